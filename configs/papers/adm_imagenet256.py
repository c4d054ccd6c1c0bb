r"""ADM, class-conditional ImageNet at 256x256 (Dhariwal and Nichol 2021, arXiv:2105.05233, appendix).

    ./launch/local.sh --config configs/papers/adm_imagenet256.py
    ./launch/local.sh --config configs/papers/adm_imagenet256.py --config.quick     # in miniature, about a minute

Guided by the classifier of adm_classifier_imagenet256.py, or by the released 256x256_classifier.pt where
`./launch/local.sh hub convert` put it:

    ./launch/local.sh --config configs/papers/adm_imagenet256.py --mode evaluate \
        --config.sampling.classifier=runs/adm_classifier_imagenet256 --config.sampling.classifier_scale=1

Paper:      FID 10.94, inception score 100.98; with classifier guidance of scale 1 FID 4.59 (12.21 after 250k steps,
            7.95 after 500k, 6.49 after 750k, 5.74 after 1M, 5.01 after 1.5M)
Network:    553.8 M parameters
Sampler:    ancestral, learned variance, estimates of x_0 clipped, 250 steps at an even stride
Protocol:   50,000 images, truncated to 8 bits, against the released statistics of the training images
Cost:       507 M images, 3.4e21 FLOP: about 6,300 hours at 150 TFLOP/s; 916 V100-days in the paper

Differs from the paper as adm_imagenet64.py does.
"""

from configs.papers import adm_imagenet64


def get_config():
    config = adm_imagenet64.get_config()
    config.name = "adm_imagenet256"
    config.data.image_size = 256
    config.model.channels = 256
    config.model.channel_mults = (1, 1, 2, 2, 4, 4)
    config.model.num_res_blocks = 2
    config.model.dropout = 0.0
    config.process.name = "linear"
    config.optimizer.learning_rate = 1e-4
    config.training.batch_size = 256
    config.training.num_steps = 1_980_000
    config.sampling.batch_size = 64
    return config

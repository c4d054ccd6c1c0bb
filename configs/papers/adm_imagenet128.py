r"""ADM, class-conditional ImageNet at 128x128 (Dhariwal and Nichol 2021, arXiv:2105.05233, appendix).

    ./launch/local.sh --config configs/papers/adm_imagenet128.py
    ./launch/local.sh --config configs/papers/adm_imagenet128.py --config.quick     # in miniature, about a minute

Guided by the classifier of adm_classifier_imagenet128.py, or by the released 128x128_classifier.pt where
`./launch/local.sh hub convert` put it:

    ./launch/local.sh --config configs/papers/adm_imagenet128.py --mode evaluate \
        --config.sampling.classifier=runs/adm_classifier_imagenet128 --config.sampling.classifier_scale=0.5

Paper:      FID 2.97 with classifier guidance of scale 0.5; with scale 1 it is 7.97 after 250k steps, 5.31 after 500k,
            4.10 after 1M, 3.42 after 2M and 3.09 at the end
Network:    421.5 M parameters
Sampler:    ancestral, learned variance, estimates of x_0 clipped, 250 steps at an even stride
Protocol:   50,000 images, truncated to 8 bits, against the released statistics of the training images
Cost:       1,116 M images, 2.1e21 FLOP: about 3,800 hours at 150 TFLOP/s; 521 V100-days in the paper

Differs from the paper as adm_imagenet64.py does.
"""

from configs.papers import adm_imagenet64


def get_config():
    config = adm_imagenet64.get_config()
    config.name = "adm_imagenet128"
    config.data.image_size = 128
    config.model.channels = 256
    config.model.channel_mults = (1, 1, 2, 3, 4)
    config.model.num_res_blocks = 2
    config.model.head_channels = None
    config.model.num_heads = 4
    config.model.dropout = 0.0
    config.process.name = "linear"
    config.optimizer.learning_rate = 1e-4
    config.training.batch_size = 256
    config.training.num_steps = 4_360_000
    return config

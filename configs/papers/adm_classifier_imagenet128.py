"""The classifier of noisy images that guides ADM at 128x128 (Dhariwal and Nichol 2021, arXiv:2105.05233, table 12).

    ./launch/local.sh --config configs/papers/adm_classifier_imagenet128.py
    ./launch/local.sh --config configs/papers/adm_classifier_imagenet128.py --config.quick     # in miniature

It guides adm_imagenet128.py, whose docstring has the command; the released 128x128_classifier.pt does as well.

Paper:      with it FID 2.97 at a scale of 0.5, in 250 steps
Network:    42.6 M parameters: the way down and the middle of ADM's U-Net, and attention pooling
Sampler:    none; training draws times uniformly, for cross-entropy on images noised by the process
Protocol:   top-1 and top-5 accuracy of held-out images by noise level, which the paper does not print
Cost:       77 M images, 9.7e18 FLOP: about 18 hours at 150 TFLOP/s; 9 V100-days in the paper

Differs from the paper as adm_classifier_imagenet64.py does.
"""

from configs.papers import adm_classifier_imagenet64


def get_config():
    config = adm_classifier_imagenet64.get_config()
    config.name = "adm_classifier_imagenet128"
    config.data.image_size = 128
    config.process.name = "linear"
    config.model.channel_mults = (1, 1, 2, 3, 4)
    config.model.num_res_blocks = 2
    config.optimizer.learning_rate = 3e-4
    config.optimizer.weight_decay = 0.05
    config.training.batch_size = 256
    return config

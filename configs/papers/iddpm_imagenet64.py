"""Improved DDPM, unconditional ImageNet at 64x64, L_hybrid (Nichol and Dhariwal 2021, arXiv:2102.09672).

    ./launch/local.sh --config configs/papers/iddpm_imagenet64.py
    ./launch/local.sh --config configs/papers/iddpm_imagenet64.py --config.quick     # in miniature, about a minute

Paper:      FID 19.2, NLL 3.57 bits per dimension; after 200k steps 28.0 and 3.62. A full reproduction elsewhere gave
            FID 13.5 with another Inception network (mmgeneration)
Network:    121,063,942 parameters
Sampler:    ancestral, learned variance, estimates of x_0 clipped, all 4000 steps (from memory)
Protocol:   50,000 images, truncated to 8 bits, against the training images
Cost:       192 M images, 4.6e19 FLOP: about 85 hours at 150 TFLOP/s
"""

from configs.papers import iddpm_cifar10


def get_config():
    config = iddpm_cifar10.get_config()
    config.name = "iddpm_imagenet64"
    config.data.name = "tfds:downsampled_imagenet/64x64"
    config.data.image_size = 64
    config.model.channel_mults = (1, 2, 3, 4)
    config.model.dropout = 0.0
    config.training.num_steps = 1_500_000
    return config

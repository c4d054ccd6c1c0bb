"""Improved DDPM, CIFAR-10, L_vlb (Nichol and Dhariwal 2021, arXiv:2102.09672): for the best likelihood.

    ./launch/local.sh --config configs/papers/iddpm_cifar10_vlb.py
    ./launch/local.sh --config configs/papers/iddpm_cifar10_vlb.py --config.quick     # in miniature, about a minute

Paper:      NLL 2.94 bits per dimension, FID 11.47
Network:    52,546,438 parameters
Sampler:    ancestral, learned variance, estimates of x_0 clipped, all 4000 steps (from memory)
Protocol:   50,000 images, truncated to 8 bits, against the training images
Cost:       64 M images, 3.2e18 FLOP: about 6 hours at 150 TFLOP/s
"""

from configs.papers import iddpm_cifar10


def get_config():
    config = iddpm_cifar10.get_config()
    config.name = "iddpm_cifar10_vlb"
    config.method.bound = "vlb"
    config.time_sampler.name = "loss_second_moment"
    return config

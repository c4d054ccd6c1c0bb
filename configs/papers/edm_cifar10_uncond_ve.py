"""EDM, unconditional CIFAR-10, VE network (Karras et al. 2022, arXiv:2206.00364, table 2, config F).

    ./launch/local.sh --config configs/papers/edm_cifar10_uncond_ve.py
    ./launch/local.sh --config configs/papers/edm_cifar10_uncond_ve.py --config.quick     # in miniature, about a minute

Paper:      FID 1.98, the smallest of three draws of 50,000 images
Network:    NCSN++, 56,397,827 parameters
Sampler:    Heun, 18 steps, 35 evaluations
Protocol:   50,000 images, rounded to 8 bits, against the 50,000 training images
Cost:       200 M images, 2.6e19 FLOP: about 48 hours at 150 TFLOP/s

Differs from the paper as edm_cifar10_uncond_vp.py does.
"""

from configs.papers import edm_cifar10_uncond_vp


def get_config():
    config = edm_cifar10_uncond_vp.get_config()
    config.name = "edm_cifar10_uncond_ve"
    config.model.embedding = "fourier"
    config.model.encoder = "residual"
    config.model.resample_filter = (1, 3, 3, 1)
    config.model.noise_channel_mult = 2
    return config

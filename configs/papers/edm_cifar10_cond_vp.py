"""EDM, class-conditional CIFAR-10, VP network (Karras et al. 2022, arXiv:2206.00364, table 2, config F).

    ./launch/local.sh --config configs/papers/edm_cifar10_cond_vp.py
    ./launch/local.sh --config configs/papers/edm_cifar10_cond_vp.py --config.quick     # in miniature, about a minute

Paper:      FID 1.79, the smallest of three draws of 50,000 images
Network:    DDPM++, 55,735,299 parameters
Sampler:    Heun, 18 steps, 35 evaluations, no guidance
Protocol:   50,000 images of random classes, rounded to 8 bits, against the 50,000 training images
Cost:       200 M images, 2.5e19 FLOP: about 47 hours at 150 TFLOP/s

Differs from the paper as edm_cifar10_uncond_vp.py does, and images are drawn of each class in turn.
"""

from configs.papers import edm_cifar10_uncond_vp


def get_config():
    config = edm_cifar10_uncond_vp.get_config()
    config.name = "edm_cifar10_cond_vp"
    config.method.class_conditional = True
    config.method.label_dropout = 0.0
    return config

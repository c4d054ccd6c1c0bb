"""EDM, AFHQv2 at 64x64, VP network (Karras et al. 2022, arXiv:2206.00364, table 2, config F).

    ./launch/local.sh --config configs/papers/edm_afhqv2_64.py --config.data.path=DIR
    ./launch/local.sh --config configs/papers/edm_afhqv2_64.py --config.quick     # in miniature, about a minute

DIR has the training images, of any size, in DIR/train, and some others in DIR/test, or a tenth is held out of training.

Paper:      FID 1.96, the smallest of three draws of 50,000 images; with the VE network, which
            edm_cifar10_uncond_ve.py sets up, 2.16
Network:    DDPM++, 61.81 M parameters
Sampler:    Heun, 40 steps, 79 evaluations
Protocol:   50,000 images, rounded to 8 bits, against all training images
Cost:       200 M images, 5.0e19 FLOP: about 93 hours at 150 TFLOP/s

Differs from the paper as edm_cifar10_uncond_vp.py does.
"""

from configs.papers import edm_ffhq64


def get_config():
    config = edm_ffhq64.get_config()
    config.name = "edm_afhqv2_64"
    config.model.dropout = 0.25
    return config

"""EDM, FFHQ at 64x64, VP network (Karras et al. 2022, arXiv:2206.00364, table 2, config F).

    ./launch/local.sh --config configs/papers/edm_ffhq64.py --config.data.path=DIR
    ./launch/local.sh --config configs/papers/edm_ffhq64.py --config.quick     # in miniature, about a minute

DIR has all 70,000 images, of any size, in DIR/train, and a few of them again in DIR/test, or a tenth is held out of
training.

Paper:      FID 2.39, the smallest of three draws of 50,000 images; with the VE network, which
            edm_cifar10_uncond_ve.py sets up, 2.53
Network:    DDPM++, 61.81 M parameters
Sampler:    Heun, 40 steps, 79 evaluations
Protocol:   50,000 images, rounded to 8 bits, against the 70,000 training images
Cost:       200 M images, 5.0e19 FLOP: about 93 hours at 150 TFLOP/s; 4 days on 8 V100 in the paper's README

Differs from the paper as edm_cifar10_uncond_vp.py does.
"""

from configs.papers import edm_cifar10_uncond_vp


def get_config():
    config = edm_cifar10_uncond_vp.get_config()
    config.name = "edm_ffhq64"
    config.data.name = "image_folder"
    config.data.image_size = 64
    config.model.channel_mults = (1, 2, 2, 2)
    config.model.dropout = 0.05
    config.augmentation.probability = 0.15
    config.training.batch_size = 256
    config.training.num_steps = 200_000_000 // 256
    config.optimizer.learning_rate = 2e-4
    config.optimizer.eps = 1e-8 / (64 * 64 * 3)
    config.sampling.num_steps = 40
    return config

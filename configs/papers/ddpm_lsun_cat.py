"""DDPM, LSUN Cat at 256x256 (Ho et al. 2020, arXiv:2006.11239, appendix B).

    ./launch/local.sh --config configs/papers/ddpm_lsun_cat.py
    ./launch/local.sh --config configs/papers/ddpm_lsun_cat.py --config.quick     # in miniature, about a minute

Paper:      FID 19.75
Network:    113,673,219 parameters
Sampler:    ancestral, 1000 evaluations, fixed small variance, estimates of x_0 clipped
Protocol:   50,000 images, clipped and not quantised, against training images
Cost:       115 M images, 1.7e20 FLOP: about 318 hours at 150 TFLOP/s

Differs from the paper: the released code clips the gradient of each of 8 cores before summing them; here the mean
gradient is clipped.
"""

from configs.papers import ddpm_celebahq256


def get_config():
    config = ddpm_celebahq256.get_config()
    config.name = "ddpm_lsun_cat"
    config.data.name = "tfds:lsun/cat"
    config.data.flip = False
    config.training.num_steps = 1_800_000
    return config

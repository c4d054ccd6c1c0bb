"""DDPM, LSUN Church at 256x256 (Ho et al. 2020, arXiv:2006.11239, appendix B).

    ./launch/local.sh --config configs/papers/ddpm_lsun_church.py
    ./launch/local.sh --config configs/papers/ddpm_lsun_church.py --config.quick     # in miniature, about a minute

Paper:      FID 7.89
Network:    113,673,219 parameters
Sampler:    ancestral, 1000 evaluations, fixed small variance, estimates of x_0 clipped
Protocol:   50,000 images, clipped and not quantised, against training images
Cost:       77 M images, 1.1e20 FLOP: about 212 hours at 150 TFLOP/s

Differs from the paper: the released code clips the gradient of each of 8 cores before summing them; here the mean
gradient is clipped.
"""

from configs.papers import ddpm_celebahq256


def get_config():
    config = ddpm_celebahq256.get_config()
    config.name = "ddpm_lsun_church"
    config.data.name = "tfds:lsun/church_outdoor"
    config.training.num_steps = 1_200_000
    return config

"""DDPM, LSUN Bedroom at 256x256 (Ho et al. 2020, arXiv:2006.11239, appendix B).

    ./launch/local.sh --config configs/papers/ddpm_lsun_bedroom.py
    ./launch/local.sh --config configs/papers/ddpm_lsun_bedroom.py --config.quick     # in miniature, about a minute

Paper:      FID 6.36 (4.90 with a network of 256 M parameters, which this is not)
Network:    113,673,219 parameters
Sampler:    ancestral, 1000 evaluations, fixed small variance, estimates of x_0 clipped
Protocol:   50,000 images, clipped and not quantised, against training images
Cost:       154 M images, 2.3e20 FLOP: about 424 hours at 150 TFLOP/s

Differs from the paper: the released code clips the gradient of each of 8 cores before summing them; here the mean
gradient is clipped.
"""

from configs.papers import ddpm_celebahq256


def get_config():
    config = ddpm_celebahq256.get_config()
    config.name = "ddpm_lsun_bedroom"
    config.data.name = "tfds:lsun/bedroom"
    config.training.num_steps = 2_400_000
    return config

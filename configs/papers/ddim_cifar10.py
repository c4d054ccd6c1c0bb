"""DDIM, CIFAR-10 (Song et al. 2021, arXiv:2010.02502, table 1): the network of ddpm_cifar10.py, sampled in fewer steps.

    ./launch/local.sh --config configs/papers/ddim_cifar10.py --workdir runs/ddpm_cifar10     # trains only what is missing
    ./launch/local.sh --config configs/papers/ddim_cifar10.py --config.quick                 # in miniature

Paper, FID for S steps (change config.sampling.num_steps and config.sampling.eta):

    eta    S=10    20      50      100     1000
    0.0    13.36    6.84    4.67    4.16    4.04
    0.2    14.04    7.11    4.77    4.25    4.09
    0.5    16.66    8.35    5.25    4.46    4.29
    1.0    41.07   18.36    8.01    5.78    4.73

Network:    35,746,307 parameters
Sampler:    DDIM, S evaluations, timesteps spaced quadratically, estimates of x_0 not clipped; here S = 100, eta = 0
Protocol:   50,000 images, rounded to 8 bits, against the 50,000 training images
Cost:       that of ddpm_cifar10.py, about 7 hours at 150 TFLOP/s

The spacing is worth 1.4 of FID at S = 100 (evenly spaced: 5.68). Differs from the paper: its own weights are Ho et al.'s.
"""

from configs.papers import ddpm_cifar10


def get_config():
    config = ddpm_cifar10.get_config()
    config.name = "ddim_cifar10"
    config.sampling.name = "ddim"
    config.sampling.num_steps = 100
    config.sampling.spacing_rule = "quadratic"
    config.sampling.eta = 0.0
    config.sampling.clip = None
    config.evaluation.quantisation = "half_up"
    return config

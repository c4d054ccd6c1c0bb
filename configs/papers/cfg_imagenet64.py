"""Classifier-free guidance, ImageNet at 64x64 (Ho and Salimans 2022, arXiv:2207.12598).

    ./launch/local.sh --config configs/papers/cfg_imagenet64.py
    ./launch/local.sh --config configs/papers/cfg_imagenet64.py --config.quick     # in miniature, about a minute

Paper, FID, where config.sampling.guidance_scale is 1 + w and config.method.label_dropout is p:

    w            0      0.1    0.2    0.3    0.5    1       2       4
    p = 0.1      1.80   1.55   2.04   3.03   5.74   12.6    21.03   26.22
    p = 0.2      1.80   1.62   2.10   2.93   5.19   11.21           23.84
    p = 0.5      2.21   1.91   2.08   2.65   4.34    9.13           21.48

The inception score of p = 0.1 rises from 53.71 at w = 0 over 66.11 at 0.1 and 170.1 at 1 to 260.2 at 4. Here p = 0.1 and
w = 0.1.

Network:    295.9 M parameters: ADM's, without the learned variance and with an embedding for "no class"
Sampler:    ancestral, two evaluations a step; 256 steps (from memory)
Protocol:   50,000 images against the training images; that they are rounded to 8 bits is a guess
Cost:       819 M images, 5.4e20 FLOP: about 1,000 hours at 150 TFLOP/s

Differs from the paper, whose code was not published: its time is continuous (log-SNR drawn from a cosine schedule cut off
at -20 and 20), here it is a cosine chain of 1000 steps; its sampler interpolates log variances between the smallest and the
largest with the weight 0.3, here it is the smallest. The paper takes ADM's architecture and names 400k steps; batch size,
learning rate and dropout are ADM's.
"""

from configs.papers import adm_imagenet64


def get_config():
    config = adm_imagenet64.get_config()
    config.name = "cfg_imagenet64"
    config.method.bound = "none"
    config.method.label_dropout = 0.1
    config.training.num_steps = 400_000
    config.sampling.num_steps = 256
    config.sampling.variance = "fixed_small"
    config.sampling.guidance_scale = 1.1
    config.evaluation.quantisation = "half_up"
    config.evaluation.protocol = None
    return config

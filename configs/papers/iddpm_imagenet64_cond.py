"""Improved DDPM, class-conditional ImageNet at 64x64, 270 M parameters (Nichol and Dhariwal 2021, arXiv:2102.09672).

    ./launch/local.sh --config configs/papers/iddpm_imagenet64_cond.py
    ./launch/local.sh --config configs/papers/iddpm_imagenet64_cond.py --config.quick     # in miniature, about a minute

Paper:      FID 2.92, precision 0.82, recall 0.71
Network:    273.0 M parameters
Sampler:    ancestral, learned variance, estimates of x_0 clipped, 250 steps at an even stride
Protocol:   50,000 images, truncated to 8 bits, against the training images
Cost:       512 M images, 2.7e20 FLOP: about 507 hours at 150 TFLOP/s

The bound enters the loss with the weight 1 instead of 4, the chain's length / 1000, and the network is told the timestep
0 .. 3999 itself, as in the released command (`rescale_learned_sigmas` and `rescale_timesteps` off).

Differs from the paper: photographs are resized with Lanczos' filter instead of halving boxes and a bicubic one.
"""

from configs.papers import iddpm_imagenet64


def get_config():
    config = iddpm_imagenet64.get_config()
    config.name = "iddpm_imagenet64_cond"
    config.data.name = "tfds:imagenet2012"
    config.model.channels = 192
    config.model.time_scale = 1.0
    config.method.bound = "hybrid_unscaled"
    config.method.class_conditional = True
    config.method.label_dropout = 0.0
    config.optimizer.learning_rate = 3e-4
    config.training.batch_size = 2048
    config.training.num_steps = 250_000
    config.sampling.num_steps = 250
    return config

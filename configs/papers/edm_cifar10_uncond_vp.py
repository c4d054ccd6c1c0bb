"""EDM, unconditional CIFAR-10, VP network (Karras et al. 2022, arXiv:2206.00364, table 2, config F).

    ./launch/local.sh --config configs/papers/edm_cifar10_uncond_vp.py
    ./launch/local.sh --config configs/papers/edm_cifar10_uncond_vp.py --config.quick     # in miniature, about a minute

Paper:      FID 1.97, the smallest of three draws of 50,000 images; a retraining with the released code gave 2.08
Network:    DDPM++, 55,733,891 parameters
Sampler:    Heun, 18 steps, 35 evaluations
Protocol:   50,000 images, rounded to 8 bits, against the 50,000 training images
Cost:       200 M images, 2.5e19 FLOP: about 47 hours at 150 TFLOP/s; 2 days on 8 V100 in the paper's README

Differs from the paper: the sampler's state is float32, there float64.
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "edm_cifar10_uncond_vp"

    config.data.name = "tfds:cifar10"
    config.data.image_size = 32
    config.data.flip = False

    config.model.name = "edm_unet"
    config.model.family = "song"
    config.model.channels = 128
    config.model.channel_mults = (2, 2, 2)
    config.model.num_res_blocks = 4
    config.model.attention_resolutions = (16,)
    config.model.augment_dim = 9
    config.model.embedding = "positional"
    config.model.encoder = "standard"
    config.model.resample_filter = (1, 1)
    config.model.noise_channel_mult = 1
    config.model.dropout = 0.13
    config.augmentation.probability = 0.12  # mirrors every other image too, and tells the network

    config.process.name = "edm"
    config.process.log_mean = -1.2
    config.process.log_std = 1.2
    config.method.prediction = "edm"
    config.weighting.name = "edm"

    config.training.batch_size = 512
    config.training.num_steps = 200_000_000 // 512
    config.training.checkpoint_every = 10_000
    config.training.sanitize_gradients = True
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_images = 10_000_000
    config.optimizer.clip_norm = None
    # The released code sums the loss over the pixels, here it is their mean: with Adam that is a matter of eps alone.
    config.optimizer.eps = 1e-8 / (32 * 32 * 3)
    config.ema.kind = "edm"
    config.ema.half_life = 500_000
    config.ema.ramp_up_ratio = 0.05

    config.sampling.name = "edm"
    config.sampling.num_steps = 18
    config.sampling.batch_size = 256
    config.evaluation.num_images = 50_000
    config.evaluation.protocol = "edm"
    return config

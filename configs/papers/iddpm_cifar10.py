"""Improved DDPM, CIFAR-10, L_hybrid (Nichol and Dhariwal 2021, arXiv:2102.09672).

    ./launch/local.sh --config configs/papers/iddpm_cifar10.py
    ./launch/local.sh --config configs/papers/iddpm_cifar10.py --config.quick     # in miniature, about a minute

Paper:      FID 3.19, NLL 3.17 bits per dimension; a full reproduction elsewhere gave FID 3.88 (mmgeneration), and the
            paper's released weights 3.7 with 100 steps
Network:    52,546,438 parameters
Sampler:    ancestral, learned variance, estimates of x_0 clipped, all 4000 steps (from memory)
Protocol:   50,000 images, truncated to 8 bits, against the training images
Cost:       64 M images, 3.2e18 FLOP: about 6 hours at 150 TFLOP/s
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "iddpm_cifar10"

    config.data.name = "tfds:cifar10"
    config.data.image_size = 32
    config.data.flip = False

    config.model.name = "unet"
    config.model.channels = 128
    config.model.channel_mults = (1, 2, 2, 2)
    config.model.num_res_blocks = 3
    config.model.attention_resolutions = (16, 8)
    config.model.num_heads = 4
    config.model.scale_shift_norm = True
    config.model.dropout = 0.3
    # What sets OpenAI's networks apart from DDPM's.
    config.model.norm_eps = 1e-5
    config.model.flip_sin_to_cos = True
    config.model.freq_shift = 0.0
    config.model.time_scale = 0.25  # 1000 / T, rescale_timesteps
    config.model.downsample_padding = 1
    config.model.initialization = "pytorch"

    config.process.name = "cosine"
    config.process.num_timesteps = 4000
    config.method.prediction = "epsilon"
    config.method.bound = "hybrid"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = None
    config.ema.kind = "constant"
    config.ema.decay = 0.9999
    config.training.batch_size = 128
    config.training.num_steps = 500_000
    config.training.checkpoint_every = 10_000

    config.sampling.name = "ddpm"
    config.sampling.num_steps = 4000
    config.sampling.spacing_rule = "even"
    config.sampling.variance = "learned_range"
    config.sampling.clip = 1.0
    config.sampling.batch_size = 256
    config.evaluation.num_images = 50_000
    config.evaluation.quantisation = "floor"
    return config

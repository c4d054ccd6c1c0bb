"""1-rectified flow, CIFAR-10 (Liu et al. 2023, arXiv:2209.03003).

    ./launch/local.sh --config configs/papers/rectified_flow_cifar10.py
    ./launch/local.sh --config configs/papers/rectified_flow_cifar10.py --config.quick     # in miniature, about a minute

Paper:      FID 2.58, inception score 9.60, recall 0.57 with RK45 (127 evaluations); FID 378 with one Euler step
Network:    score_sde's DDPM++, 61.80 M parameters
Sampler:    Dormand-Prince with tolerances 1e-5, which chooses its steps
Protocol:   50,000 images, truncated to 8 bits, against the 50,000 training images
Cost:       166 M images, 1.1e19 FLOP: about 20 hours at 150 TFLOP/s

Differs from the paper: the flow's time runs from image to noise, there from noise to image; the last 0.001 of the way to
the image is one step.
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "rectified_flow_cifar10"

    config.data.name = "tfds:cifar10"
    config.data.image_size = 32
    config.data.flip = True

    config.model.name = "edm_unet"
    config.model.family = "song"
    config.model.channels = 128
    config.model.channel_mults = (1, 2, 2, 2)
    config.model.num_res_blocks = 4
    config.model.attention_resolutions = (16,)
    config.model.embedding = "positional"
    config.model.encoder = "standard"
    config.model.resample_filter = (1, 1)
    config.model.dropout = 0.15

    config.process.name = "rectified_flow"
    config.process.time_scale = 999.0
    config.process.t_start = 0.999  # the released code trains and samples from 0.001 of the way from noise to image
    config.method.prediction = "velocity"

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.clip_norm = 1.0
    # A constant decay so near to 1 would still hold a quarter of the initial parameters at the end.
    config.ema.kind = "warmup"
    config.ema.decay = 0.999999
    config.training.batch_size = 128
    config.training.num_steps = 1_300_000
    config.training.checkpoint_every = 10_000

    config.sampling.name = "adaptive"
    config.sampling.batch_size = 256
    config.evaluation.num_images = 50_000
    config.evaluation.quantisation = "floor"
    return config

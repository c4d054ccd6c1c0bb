"""EDM, class-conditional ImageNet at 64x64 (Karras et al. 2022, arXiv:2206.00364).

    ./launch/local.sh --config configs/papers/edm_imagenet64.py
    ./launch/local.sh --config configs/papers/edm_imagenet64.py --config.quick     # in miniature, about a minute

Paper:      FID 1.36 with the stochastic sampler below, the smallest of three draws of 50,000 images; 2.44 without noise
            (config.sampling.s_churn = 0; from memory)
Network:    ADM, 295,899,267 parameters
Sampler:    Heun with noise added, 256 steps, 511 evaluations: s_churn 40 from 0.05 to 50, s_noise 1.003
Protocol:   50,000 images of random classes, rounded to 8 bits, against the training images
Cost:       2,500 M images, 1.7e21 FLOP: about 3,050 hours at 150 TFLOP/s; 13 days on 32 A100 in the paper's README

Differs from the paper: activations are bfloat16, there float16 with the loss multiplied by 100; the sampler's state is
float32, there float64; images are drawn of each class in turn.
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "edm_imagenet64"

    config.data.name = "tfds:imagenet2012"
    config.data.image_size = 64
    config.data.flip = False

    config.model.name = "edm_unet"
    config.model.family = "adm"
    config.model.channels = 192
    config.model.channel_mults = (1, 2, 3, 4)
    config.model.num_res_blocks = 3
    config.model.attention_resolutions = (32, 16, 8)
    config.model.dropout = 0.1

    config.process.name = "edm"
    config.process.log_mean = -1.2
    config.process.log_std = 1.2
    config.method.prediction = "edm"
    config.method.class_conditional = True
    config.method.label_dropout = 0.0
    config.weighting.name = "edm"

    config.training.batch_size = 4096
    config.training.num_steps = 2_500_000_000 // 4096
    config.training.checkpoint_every = 5000
    config.training.compute_dtype = "bfloat16"
    config.training.sanitize_gradients = True
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_images = 10_000_000
    config.optimizer.clip_norm = None
    # The released code sums the loss over the pixels and multiplies it by 100, here it is their mean: with Adam that is
    # a matter of eps alone.
    config.optimizer.eps = 1e-8 / (64 * 64 * 3 * 100)
    config.ema.kind = "edm"
    config.ema.half_life = 50_000_000
    config.ema.ramp_up_ratio = 0.05

    config.sampling.name = "edm"
    config.sampling.num_steps = 256
    config.sampling.s_churn = 40.0
    config.sampling.s_min = 0.05
    config.sampling.s_max = 50.0
    config.sampling.s_noise = 1.003
    config.sampling.batch_size = 256
    config.evaluation.num_images = 50_000
    config.evaluation.protocol = "edm"
    return config

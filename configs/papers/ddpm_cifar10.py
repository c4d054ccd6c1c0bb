"""DDPM, CIFAR-10 (Ho et al. 2020, arXiv:2006.11239, table 1 and appendix B).

    ./launch/local.sh --config configs/papers/ddpm_cifar10.py
    ./launch/local.sh --config configs/papers/ddpm_cifar10.py --config.quick     # in miniature, about a minute

Paper:      FID 3.17, IS 9.46, NLL at most 3.75 bits per dimension on the test set
Network:    35,746,307 parameters
Sampler:    ancestral, 1000 evaluations, fixed large variance, estimates of x_0 clipped
Protocol:   50,000 images, clipped and not quantised, against the 50,000 training images (against the test images others
            measured 5.27 for the same weights)
Cost:       102.4 M images, 3.8e18 FLOP: about 7 hours at 150 TFLOP/s

On the way, others measured 9.16 at 47k steps, 5.78 at 94k, 4.08 at 187k and 3.31 at 421k (tqch/ddpm-torch).

Differs from the paper: the released code clips the gradient of each of 8 cores before summing them; here the mean
gradient is clipped, as in all reproductions.
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "ddpm_cifar10"

    config.data.name = "tfds:cifar10"
    config.data.image_size = 32
    config.data.flip = True

    config.model.name = "unet"
    config.model.channels = 128
    config.model.channel_mults = (1, 2, 2, 2)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.1

    config.process.name = "linear"
    config.process.num_timesteps = 1000
    config.method.prediction = "epsilon"

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.clip_norm = 1.0
    config.ema.kind = "ddpm"
    config.ema.decay = 0.9999
    config.training.batch_size = 128
    config.training.num_steps = 800_000
    config.training.checkpoint_every = 10_000

    config.sampling.name = "ddpm"
    config.sampling.num_steps = 1000
    config.sampling.variance = "fixed_large"
    config.sampling.clip = 1.0
    config.sampling.batch_size = 256
    config.evaluation.num_images = 50_000
    config.evaluation.quantisation = "none"
    return config

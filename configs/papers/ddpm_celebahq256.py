"""DDPM, CelebA-HQ at 256x256 (Ho et al. 2020, arXiv:2006.11239, appendix B).

    ./launch/local.sh --config configs/papers/ddpm_celebahq256.py
    ./launch/local.sh --config configs/papers/ddpm_celebahq256.py --config.quick     # in miniature, about a minute

Paper:      samples only, no FID; others measured 19.7 at 56k steps, 11.97 at 225k, 8.85 at 393k and 8.91 at 562k
            (tqch/ddpm-torch)
Network:    113,673,219 parameters
Sampler:    ancestral, 1000 evaluations, fixed small variance, estimates of x_0 clipped
Protocol:   50,000 images, clipped and not quantised
Cost:       32 M images, 4.8e19 FLOP: about 88 hours at 150 TFLOP/s

Differs from the paper: of the 30,000 images TFDS has no test split, so a tenth is held out of training (see
configs/image_folder.py for splits of one's own). The released code clips the gradient of each of 8 cores before summing
them; here the mean gradient is clipped.
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "ddpm_celebahq256"

    config.data.name = "tfds:celeb_a_hq/256"
    config.data.image_size = 256
    config.data.flip = True

    config.model.name = "unet"
    config.model.channels = 128
    config.model.channel_mults = (1, 1, 2, 2, 4, 4)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.0

    config.process.name = "linear"
    config.process.num_timesteps = 1000
    config.method.prediction = "epsilon"

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_steps = 5000
    config.optimizer.clip_norm = 1.0
    config.ema.kind = "ddpm"
    config.ema.decay = 0.9999
    config.training.batch_size = 64
    config.training.num_steps = 500_000
    config.training.checkpoint_every = 10_000

    config.sampling.name = "ddpm"
    config.sampling.num_steps = 1000
    config.sampling.variance = "fixed_small"
    config.sampling.clip = 1.0
    config.evaluation.num_images = 50_000
    config.evaluation.quantisation = "none"
    return config

"""DDIM, CelebA at 64x64 (Song et al. 2021, arXiv:2010.02502, table 1).

    ./launch/local.sh --config configs/papers/ddim_celeba64.py --config.data.path=DIR
    ./launch/local.sh --config configs/papers/ddim_celeba64.py --config.quick     # in miniature, about a minute

DIR has the aligned images of 178x218 pixels cropped to the paper's 128x128 pixels around row 121 and column 89; other
crops have other FIDs. With ImageMagick: `mogrify -crop 128x128+25+57 +repage *.jpg`. Put them in DIR/train, and some of
the official test images in DIR/test, or a tenth is held out of training.

Paper, FID for S steps (change config.sampling.num_steps and config.sampling.eta):

    eta    S=10    20      50      100     1000
    0.0    17.33   13.73    9.17    6.53    3.51
    0.2    17.66   14.11    9.51    6.79    3.64
    0.5    19.86   16.06   11.01    8.09    4.28
    1.0    33.12   26.03   18.48   13.93    5.98

and 3.26 with DDPM's sampler (fixed large variance, S = 1000).

Network:    78,700,803 parameters
Sampler:    DDIM, S evaluations, timesteps spaced evenly, estimates of x_0 not clipped; here S = 100, eta = 0
Protocol:   50,000 images, rounded to 8 bits, against training images
Cost:       121 M images, 1.8e19 FLOP: about 33 hours at 150 TFLOP/s

Differs from the paper: it does not say how long it trained; others reached 3.00 with DDPM's sampler after 949k steps of
DDPM's recipe (tqch/ddpm-torch, with another crop), which is what runs here. The authors' released training code, of which they
say that it is not the one for best results, sums the loss over pixels and draws timesteps in antithetic pairs.
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "ddim_celeba64"

    config.data.name = "image_folder"
    config.data.image_size = 64
    config.data.flip = True

    config.model.name = "unet"
    config.model.channels = 128
    config.model.channel_mults = (1, 2, 2, 2, 4)
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
    config.training.num_steps = 949_000
    config.training.checkpoint_every = 10_000

    config.sampling.name = "ddim"
    config.sampling.num_steps = 100
    config.sampling.spacing_rule = "leading"
    config.sampling.eta = 0.0
    config.sampling.batch_size = 256
    config.evaluation.num_images = 50_000
    return config

"""EDM2, class-conditional ImageNet at 512x512 on latents (Karras et al. 2024, arXiv:2312.02696, table 2; config G).

    ./launch/local.sh encode --vae VAE --data tfds:imagenet2012 --image_size 512 --unit_range --out DIR
    ./launch/local.sh --config configs/papers/edm2_imagenet512.py:s --config.data.path=DIR
    ./launch/local.sh --config configs/papers/edm2_imagenet512.py:s --config.quick     # in miniature, about a minute

VAE is a folder with Stable Diffusion's autoencoder (sd-vae-ft-mse) in diffusers' layout. Behind the colon is the size.

Paper, FID:                        xs       s        m        l        xl       xxl
            without guidance       3.53     2.56     2.25     2.06     1.96     1.91
            guided by xs, uncond.  2.91     2.23     2.01     1.88     1.85     1.81
            guidance scale         1.4      1.4      1.2      1.2      1.2      1.2
            and width of averages  0.045    0.025    0.030    0.015    0.020    0.015
            million images         2,147    2,147    2,147    1,879    1,342    940
            hours, 150 TFLOP/s     1,074    2,400    4,270    5,830    5,990    5,710

Network:    xs 124.7 M parameters, s 280.2 M parameters, m 497.8 M parameters, l 777.5 M parameters,
            xl 1119.3 M parameters, xxl 1523.2 M parameters
Sampler:    Heun, 32 steps, 63 evaluations, parameters averaged after the training to the width that gave the best FID
Protocol:   50,000 images of random classes, truncated to 8 bits, against the training images; the smallest of three
            draws
Cost:       of s 1.3e21 FLOP; the paper trained on at least 32 A100

For guidance train xs with `--config.method.class_conditional=False --workdir GUIDE` too, and sample s with
`--config.sampling.guide=GUIDE --config.sampling.guidance_scale=1.4 --config.sampling.ema_width=0.025
--config.sampling.guide_ema_width=0.025`: both networks are averaged to the same width, which the released networks name.

Snapshots of two averages are kept every 8 * 2^20 images, as in the released code: 256 of 1 GB for xs, 112 of 12 GB for
xxl. `--config.posthoc_ema.snapshot_every=32768` keeps an eighth of them, which reconstructs the profiles of the widths
without guidance to half a per cent, but those with it only to 0.1 (xs) to 24 (xxl) per cent.

Differs from the paper: activations are bfloat16, there float16; the sampler's state is float32; images are drawn of each
class in turn. The statistics of the latents and the widths of the averages are the released code's.
"""

from diffusion_jax import config as experiment

# channels, learning rate, dropout, million (2^20) images, width of the average
SIZES = {
    "xs": (128, 0.0120, 0.0, 2048, 0.135),
    "s": (192, 0.0100, 0.0, 2048, 0.130),
    "m": (256, 0.0090, 0.1, 2048, 0.100),
    "l": (320, 0.0080, 0.1, 1792, 0.085),
    "xl": (384, 0.0070, 0.1, 1280, 0.085),
    "xxl": (448, 0.0065, 0.1, 896, 0.070),
}


def get_config(size: str = "s"):
    if size not in SIZES:
        raise ValueError(f"edm2_imagenet512.py:{size}: there is no such size; it can be {', '.join(SIZES)}")
    channels, learning_rate, dropout, images, width = SIZES[size]
    config = experiment.default()
    config.name = f"edm2_imagenet512_{size}"
    config.method.name = "latent_diffusion"

    config.data.name = "latents"
    config.data.image_size = 64
    config.data.channels = 4
    config.latents.mean = (5.81, 3.25, 0.12, -2.15)
    config.latents.std = (4.17, 4.62, 3.71, 3.28)
    config.latents.final_std = 0.5
    config.latents.unit_range = True  # training/encoders.py gives the autoencoder pixels / 255

    config.model.name = "edm2_unet"
    config.model.channels = channels
    config.model.channel_mults = (1, 2, 3, 4)
    config.model.num_res_blocks = 3
    config.model.attention_resolutions = (16, 8)
    config.model.dropout = dropout

    config.process.name = "edm"
    config.process.log_mean = -0.4
    config.process.log_std = 1.0
    config.method.prediction = "edm"
    config.method.class_conditional = True
    config.method.label_dropout = 0.0
    config.method.adaptive_weighting = True
    config.weighting.name = "edm"

    config.training.batch_size = 2048
    config.training.num_steps = images * 2**20 // 2048
    config.training.checkpoint_every = 4096
    config.training.compute_dtype = "bfloat16"
    config.training.sanitize_gradients = True
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = learning_rate
    config.optimizer.b2 = 0.99
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.decay_start = 70_000
    config.optimizer.warmup_images = 10_000_000
    config.optimizer.clip_norm = None
    # The released code sums the loss over the latent, here it is the mean: with Adam that is a matter of eps alone.
    config.optimizer.eps = 1e-8 / (64 * 64 * 4)
    config.ema.kind = "power"
    config.ema.sigma_rel = 0.1
    config.posthoc_ema.sigma_rels = (0.05, 0.1)
    config.posthoc_ema.snapshot_every = 4096

    config.sampling.name = "edm"
    config.sampling.num_steps = 32
    config.sampling.ema_width = width
    config.sampling.batch_size = 32
    config.sampling.num_images = 32
    config.evaluation.num_images = 50_000
    config.evaluation.quantisation = "floor"
    config.evaluation.protocol = "edm"
    return config

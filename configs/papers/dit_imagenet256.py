"""DiT, class-conditional ImageNet at 256x256 on latents (Peebles and Xie 2023, arXiv:2212.09748, tables 2 and 4).

    ./launch/local.sh encode --vae VAE --data tfds:imagenet2012 --image_size 256 --flip --out DIR
    ./launch/local.sh --config configs/papers/dit_imagenet256.py:xl2 --config.data.path=DIR
    ./launch/local.sh --config configs/papers/dit_imagenet256.py:xl2 --config.quick     # in miniature, about a minute

VAE is a folder with Stable Diffusion's autoencoder in diffusers' layout. Behind the colon is the size.

Paper, FID:                                s2       b2       l2       xl2
            after 400k steps, no guidance  68.4     43.5     23.3     19.5
            after 7M steps, no guidance                               9.62
            guidance 1.25 and 1.5                                     3.22 and 2.27
            hours for 400k steps           7        26       92       135; for 7M 2,360

Network:    s2 32.87 M parameters, b2 130.3 M parameters, l2 457.8 M parameters, xl2 674.8 M parameters; the papers
            count the fixed positions too: 32.96, 130.5, 458.1 and 675.1 M
Sampler:    ancestral, learned variance, 250 steps at an even stride, two evaluations a step; guidance moves the first three
            of the latent's four channels only, as in the released code
Protocol:   50,000 images, rounded to 8 bits, against ADM's reference batch of ImageNet at 256x256
Cost:       of xl2 1,790 M images, 1.3e21 FLOP: about 2,360 hours at 150 TFLOP/s

xl2 is trained for 7M steps and sampled with guidance 1.5, the others for 400k and without.

Differs from the paper: images are resized with Lanczos' filter, there by halving boxes and a bicubic one; each of the
50,000 images has the next class in turn.
"""

from diffusion_jax import config as experiment

# width, depth, heads, steps, guidance scale
SIZES = {
    "s2": (384, 12, 6, 400_000, 1.0),
    "b2": (768, 12, 12, 400_000, 1.0),
    "l2": (1024, 24, 16, 400_000, 1.0),
    "xl2": (1152, 28, 16, 7_000_000, 1.5),
}


def get_config(size: str = "xl2"):
    if size not in SIZES:
        raise ValueError(f"dit_imagenet256.py:{size}: there is no such size; it can be {', '.join(SIZES)}")
    width, depth, num_heads, num_steps, guidance_scale = SIZES[size]
    config = experiment.default()
    config.name = f"dit_imagenet256_{size}"
    config.method.name = "latent_diffusion"

    config.data.name = "latents"
    config.data.image_size = 32
    config.data.channels = 4
    config.latents.mean = (0.0,) * 4
    config.latents.std = (1 / 0.18215,) * 4

    config.model.name = "dit"
    config.model.patch_size = 2
    config.model.width = width
    config.model.depth = depth
    config.model.num_heads = num_heads

    config.process.name = "linear"
    config.process.num_timesteps = 1000
    config.method.prediction = "epsilon"
    config.method.bound = "hybrid"
    config.method.class_conditional = True
    config.method.label_dropout = 0.1

    config.training.batch_size = 256
    config.training.num_steps = num_steps
    config.training.checkpoint_every = 10_000
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = None
    config.ema.kind = "constant"
    config.ema.decay = 0.9999

    config.sampling.name = "ddpm"
    config.sampling.num_steps = 250
    config.sampling.spacing_rule = "even"
    config.sampling.variance = "learned_range"
    config.sampling.clip = None  # latents have no limits
    config.sampling.guidance_scale = guidance_scale
    if guidance_scale != 1:
        config.sampling.guidance_channels = 3
    config.sampling.batch_size = 32
    config.sampling.num_images = 32
    config.evaluation.num_images = 50_000
    config.evaluation.protocol = "adm"
    return config

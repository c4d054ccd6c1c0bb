"""OT-CFM, CIFAR-10 (Tong et al. 2024, arXiv:2302.00482, table 5; torchcfm).

    ./launch/local.sh --config configs/papers/otcfm_cifar10.py
    ./launch/local.sh --config configs/papers/otcfm_cifar10.py --config.quick     # in miniature, about a minute

Paper, FID:             Euler 100   Euler 1000   dopri5
            OT-CFM        4.443       3.741      3.577 (133.9 evaluations)
            I-CFM         4.461       3.643      3.659 (146.4 evaluations)

Network:    DDPM's size in OpenAI's code, 35,746,307 parameters
Sampler:    Dormand-Prince with tolerances 1e-5, which chooses its steps; `--config.sampling.name=euler
            --config.sampling.num_steps=100` for the first column
Protocol:   50,000 images, rounded to 8 bits, against the 50,000 training images, Inception as in clean-fid's
            `legacy_tensorflow`
Cost:       51.2 M images, 1.9e18 FLOP: about 3.5 hours at 150 TFLOP/s

Noise is matched to images within each batch of 128, exactly; `--config.method.coupling=independent` is I-CFM.

Differs from the paper: the flow's time runs from image to noise, there from noise to image; the network is told
either in [0, 1].
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "otcfm_cifar10"

    config.data.name = "tfds:cifar10"
    config.data.image_size = 32
    config.data.flip = True

    config.model.name = "unet"
    config.model.channels = 128
    config.model.channel_mults = (1, 2, 2, 2)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.head_channels = 64
    config.model.dropout = 0.1
    # What sets OpenAI's networks apart from DDPM's.
    config.model.norm_eps = 1e-5
    config.model.flip_sin_to_cos = True
    config.model.freq_shift = 0.0
    config.model.downsample_padding = 1
    config.model.initialization = "pytorch"

    config.process.name = "rectified_flow"
    config.process.time_scale = 1.0
    config.method.prediction = "velocity"
    config.method.coupling = "optimal_transport"

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.clip_norm = 1.0
    config.ema.kind = "constant"
    config.ema.decay = 0.9999
    config.training.batch_size = 128
    config.training.num_steps = 400_000
    config.training.checkpoint_every = 10_000

    config.sampling.name = "adaptive"
    config.sampling.batch_size = 256
    config.evaluation.num_images = 50_000
    return config

"""The classifier of noisy images that guides ADM at 64x64 (Dhariwal and Nichol 2021, arXiv:2105.05233, table 12).

    ./launch/local.sh --config configs/papers/adm_classifier_imagenet64.py
    ./launch/local.sh --config configs/papers/adm_classifier_imagenet64.py --config.quick     # in miniature

It guides adm_imagenet64.py, whose docstring has the command; the released 64x64_classifier.pt does as well.

Paper:      no number with guidance at 64x64; the released command has a scale of 1
Network:    65.4 M parameters: the way down and the middle of ADM's U-Net, and attention pooling
Sampler:    none; training draws times uniformly, for cross-entropy on images noised by the process
Protocol:   top-1 and top-5 accuracy of held-out images by noise level, which the paper does not print
Cost:       307 M images, 3.5e19 FLOP: about 65 hours at 150 TFLOP/s

Differs from the paper: a random crop is cut from the central square at the final size and enlarged, where the released code
shrinks the photograph by less and crops that. Activations are bfloat16 instead of float32.
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "adm_classifier_imagenet64"

    config.data.name = "tfds:imagenet2012"
    config.data.image_size = 64
    config.data.flip = True

    config.method.name = "classifier"
    config.method.least_crop = 0.8
    config.process.name = "cosine"
    config.process.num_timesteps = 1000

    config.model.name = "unet_classifier"
    config.model.channels = 128
    config.model.channel_mults = (1, 2, 3, 4)
    config.model.num_res_blocks = 4
    config.model.attention_resolutions = (32, 16, 8)
    config.model.head_channels = 64
    config.model.pool = "attention"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 6e-4
    config.optimizer.schedule = "linear"
    config.optimizer.weight_decay = 0.2
    config.optimizer.clip_norm = None
    config.ema.kind = "none"
    config.training.batch_size = 1024
    config.training.num_steps = 300_000
    config.training.checkpoint_every = 5000
    config.training.compute_dtype = "bfloat16"

    config.sampling.batch_size = 256
    return config

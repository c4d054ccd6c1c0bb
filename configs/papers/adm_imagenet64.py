r"""ADM, class-conditional ImageNet at 64x64 (Dhariwal and Nichol 2021, arXiv:2105.05233, appendix).

    ./launch/local.sh --config configs/papers/adm_imagenet64.py
    ./launch/local.sh --config configs/papers/adm_imagenet64.py --config.quick     # in miniature, about a minute

Guided by the classifier of adm_classifier_imagenet64.py, or by the released 64x64_classifier.pt where
`./launch/local.sh hub convert` put it:

    ./launch/local.sh --config configs/papers/adm_imagenet64.py --mode evaluate \
        --config.sampling.classifier=runs/adm_classifier_imagenet64 --config.sampling.classifier_scale=1

Paper:      FID 2.07, precision 0.74, recall 0.63
Network:    295.9 M parameters
Sampler:    ancestral, learned variance, estimates of x_0 clipped, 250 steps at an even stride, no guidance
Protocol:   50,000 images, truncated to 8 bits, against the released statistics of the training images
Cost:       1,106 M images, 7.3e20 FLOP: about 1,350 hours at 150 TFLOP/s

Differs from the paper: activations are bfloat16, which needs none of the loss scaling that the paper's float16 needs.
Photographs are resized with Lanczos' filter instead of halving boxes and a bicubic one, so the reference statistics
must be those of the images trained on.
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "adm_imagenet64"

    config.data.name = "tfds:imagenet2012"
    config.data.image_size = 64
    config.data.flip = True

    config.model.name = "unet"
    config.model.channels = 192
    config.model.channel_mults = (1, 2, 3, 4)
    config.model.num_res_blocks = 3
    config.model.attention_resolutions = (32, 16, 8)
    config.model.head_channels = 64
    config.model.scale_shift_norm = True
    config.model.resample = "resblock"
    config.model.dropout = 0.1
    # What sets OpenAI's networks apart from DDPM's.
    config.model.norm_eps = 1e-5
    config.model.flip_sin_to_cos = True
    config.model.freq_shift = 0.0
    config.model.initialization = "pytorch"

    config.process.name = "cosine"
    config.process.num_timesteps = 1000
    config.method.prediction = "epsilon"
    config.method.bound = "hybrid"
    config.method.class_conditional = True
    config.method.label_dropout = 0.0

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = None
    config.ema.kind = "constant"
    config.ema.decay = 0.9999
    config.training.batch_size = 2048
    config.training.num_steps = 540_000
    config.training.checkpoint_every = 5000
    config.training.compute_dtype = "bfloat16"

    config.sampling.name = "ddpm"
    config.sampling.num_steps = 250
    config.sampling.spacing_rule = "even"
    config.sampling.variance = "learned_range"
    config.sampling.clip = 1.0
    config.sampling.batch_size = 256
    config.evaluation.num_images = 50_000
    config.evaluation.quantisation = "floor"
    config.evaluation.protocol = "adm"
    return config

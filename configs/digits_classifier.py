r"""A classifier of noisy handwritten digits, to guide diffusion of digits by (Dhariwal and Nichol 2021).

    ./launch/local.sh --config configs/digits_classifier.py

Then a model that is not told the class draws the digits that it is asked for:

    ./launch/local.sh --config configs/digits.py --workdir runs/digits_guided --config.method.class_conditional=False \
        --config.sampling.guidance_scale=1 --config.sampling.classifier=runs/digits_classifier \
        --config.sampling.classifier_scale=2 --config.sampling.name=ddpm --config.sampling.variance=fixed_small \
        --config.sampling.num_steps=100 --config.sampling.spacing_rule=even
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.name = "digits_classifier"

    config.method.name = "classifier"

    config.model.name = "unet_classifier"
    config.model.channels = 32
    config.model.channel_mults = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.head_channels = 32
    config.model.norm_groups = 8
    config.model.dropout = 0.1

    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.05
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "linear"
    config.training.batch_size = 64
    config.training.num_steps = 1000
    return config

"""The classifier of noisy images that guides ADM at 256x256 (Dhariwal and Nichol 2021, arXiv:2105.05233, table 12).

    ./launch/local.sh --config configs/papers/adm_classifier_imagenet256.py
    ./launch/local.sh --config configs/papers/adm_classifier_imagenet256.py --config.quick     # in miniature

It guides adm_imagenet256.py, whose docstring has the command; the released 256x256_classifier.pt does as well.

Paper:      with it FID 4.59 at a scale of 1, in 250 steps; the unconditional network takes a scale of 10
Network:    54.1 M parameters: the way down and the middle of ADM's U-Net, and attention pooling
Sampler:    none; training draws times uniformly, for cross-entropy on images noised by the process
Protocol:   top-1 and top-5 accuracy of held-out images by noise level, which the paper does not print
Cost:       128 M images, 5.6e19 FLOP: about 104 hours at 150 TFLOP/s; 46 V100-days in the paper

Differs from the paper as adm_classifier_imagenet64.py does.
"""

from configs.papers import adm_classifier_imagenet128


def get_config():
    config = adm_classifier_imagenet128.get_config()
    config.name = "adm_classifier_imagenet256"
    config.data.image_size = 256
    config.model.channel_mults = (1, 1, 2, 2, 4, 4)
    config.training.num_steps = 500_000
    config.sampling.batch_size = 64
    return config

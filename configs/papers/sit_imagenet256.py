"""SiT, class-conditional ImageNet at 256x256 on latents (Ma et al. 2024, arXiv:2401.08740): DiT as a flow.

    ./launch/local.sh encode --vae VAE --data tfds:imagenet2012 --image_size 256 --flip --out DIR
    ./launch/local.sh --config configs/papers/sit_imagenet256.py:xl2 --config.data.path=DIR
    ./launch/local.sh --config configs/papers/sit_imagenet256.py:xl2 --config.quick     # in miniature, about a minute

VAE is a folder with Stable Diffusion's autoencoder in diffusers' layout. Behind the colon is the size.

Paper, FID:                                s2       b2       l2       xl2
            after 400k steps, no guidance  57.6     33.0     18.8     17.2
            after 7M steps, no guidance                               8.3
            guidance 1.5                                              2.06

Network:    s2 32.86 M parameters, b2 130.3 M parameters, l2 457.8 M parameters, xl2 674.8 M parameters; the papers
            count the fixed positions too: 32.96, 130.5, 458.1 and 675.1 M
Sampler:    the reverse SDE by Euler-Maruyama, 250 steps of one evaluation: noise of variance 2 sigma_t dt, the last
            step 0.04 long and without; guidance moves the first three of the latent's four channels only; all as in the
            released code. `--config.sampling.name=adaptive` takes the ODE instead, in the released code with
            --config.sampling.rtol=1e-3 and --config.sampling.atol=1e-6: without guidance users get 9.5 for 8.3
Protocol:   50,000 images, rounded to 8 bits, against ADM's reference batch of ImageNet at 256x256
Cost:       as dit_imagenet256.py

xl2 is trained for 7M steps and sampled with guidance 1.5, the others for 400k and without.

Differs from the paper: the flow's time runs from image to noise, in the released code the other way; the network has no
second half of channels for a variance that is never used; and as dit_imagenet256.py does.
"""

from configs.papers import dit_imagenet256


def get_config(size: str = "xl2"):
    config = dit_imagenet256.get_config(size)
    config.name = f"sit_imagenet256_{size}"

    config.process.name = "rectified_flow"
    config.process.time_scale = 1.0
    config.method.prediction = "velocity"
    config.method.bound = "none"

    config.sampling.name = "sde"
    return config

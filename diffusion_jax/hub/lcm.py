"""The scheduler of latent consistency models (Luo et al. 2023, arXiv:2310.04378, algorithm 3)."""

from __future__ import annotations

import dataclasses

import numpy as np

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.samplers import core
from diffusion_jax.hub import scheduler_points as points
from diffusion_jax.hub.scheduler_options import Options

_SIGMA_DATA = 0.5


def lcm(options: Options, num_steps: int) -> core.Sampler:
    """Jumps to the estimate of x_0 and noises it to the next level, on a part of the levels of the distillation.

    The consistency function is c_skip x + c_out x_0, with the factors of the paper's section 4.1. A beginning in the
    middle leaves the first steps out. Raises ValueError for more steps than the distillation had.
    """
    chain = points.chain(options, ends=(0.00085, 0.012), schedule="scaled_linear")
    original = options.get("original_inference_steps", 50)
    if not num_steps <= original <= chain.num_timesteps:
        raise ValueError(
            f"{options.name}: num_steps is {num_steps}; it can be 1 to original_inference_steps, which is {original}"
        )
    trained = np.arange(original, 0, -1) * (chain.num_timesteps // original) - 1
    times = trained[np.floor(np.linspace(0, original, num_steps, endpoint=False)).astype(np.int64)]
    points.refuse_blind(options, chain, times)
    alphas_cumprod = chain.alphas_cumprod[times]
    told = times * options.get("timestep_scaling", 10.0)
    skip = _SIGMA_DATA**2 / (told**2 + _SIGMA_DATA**2)
    out = told / np.hypot(told, _SIGMA_DATA)
    rows = []
    for i, t in enumerate(times):
        last = i == num_steps - 1
        following = 1.0 if last else alphas_cumprod[i + 1]
        rows.append(
            core.Row(
                timestep=float(t),
                step=i,
                denoise=predictions.denoised_coefficients(
                    options.prediction, np.sqrt(alphas_cumprod[i]), np.sqrt(1 - alphas_cumprod[i])
                ),
                level=(np.sqrt(alphas_cumprod[i]), np.sqrt(1 - alphas_cumprod[i])),
                x=np.sqrt(following) * skip[i],
                history=(np.sqrt(following) * out[i],),
                noise=np.sqrt(1 - following),
            )
        )
    sampler = core.build(rows, clip=options.clip(default=False))
    return dataclasses.replace(sampler, threshold=options.threshold).after(options.first_step)

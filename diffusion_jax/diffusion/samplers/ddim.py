"""Denoising diffusion implicit models."""

from __future__ import annotations

import numpy as np

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.process import DiscreteProcess
from diffusion_jax.diffusion.samplers import core, spacing


def ddim(
    process: DiscreteProcess,
    prediction: str,
    num_steps: int = 50,
    *,
    spacing_rule: str = "leading",
    offset: int = 0,
    eta: float = 0.0,
    clip: float | None = None,
    rederive_epsilon: bool = False,
    final_alpha_cumprod: float = 1.0,
) -> core.Sampler:
    """Song et al. 2021, eq. 12 and 16.

    eta: 0 is deterministic, 1 has the posterior's noise. Published variants differ in three more points: `clip` bounds
    the estimate of x_0 (the paper's code does not clip: None); `rederive_epsilon` takes the noise direction from the
    clipped estimate (OpenAI) instead of from the raw output (diffusers); `final_alpha_cumprod` is alpha_bar where the
    last step lands: 1, or alphas_cumprod[0] in latent diffusion.
    """
    visited = spacing.timesteps(spacing_rule, process.num_timesteps, num_steps, offset, repeats=True)
    alphas_cumprod = process.alphas_cumprod[visited]
    following = np.append(alphas_cumprod[1:], final_alpha_cumprod)

    rows = []
    for i, t in enumerate(visited):
        alpha, sigma = np.sqrt(alphas_cumprod[i]), np.sqrt(1 - alphas_cumprod[i])
        variance = (1 - following[i]) / (1 - alphas_cumprod[i]) * (1 - alphas_cumprod[i] / following[i])
        deviation = eta * np.sqrt(variance)
        # epsilon = (x - alpha x_0) / sigma, so the noise direction is a share of x less a share of x_0.
        direction = np.sqrt(1 - following[i] - deviation**2) / sigma
        on_estimate = np.sqrt(following[i])
        on_raw = -alpha * direction
        if rederive_epsilon or clip is None:
            on_estimate, on_raw = on_estimate + on_raw, 0.0
        rows.append(
            core.Row(
                timestep=float(t),
                step=i,
                denoise=predictions.denoised_coefficients(prediction, alpha, sigma),
                x=direction,
                denoised=on_raw,
                history=(on_estimate,),
                noise=deviation,
            )
        )
    return core.build(rows, clip=clip)

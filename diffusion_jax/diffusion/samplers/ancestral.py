"""Ancestral sampling of a discrete chain (DDPM)."""

from __future__ import annotations

import numpy as np

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.process import DiscreteProcess
from diffusion_jax.diffusion.samplers import core, spacing, texts
from diffusion_jax.options import described

VARIANCES = ("fixed_small", "fixed_large", "learned_range")
_SMALLEST_VARIANCE = 1e-20


@described(
    texts.TIMESTEPS,
    texts.RESPACING,
    texts.CLIP,
    num_steps="steps of the sampler; None: every timestep of the chain",
    variance="of the noise of a step: fixed_small, fixed_large, or learned_range with a method.bound",
)
def ddpm(
    process: DiscreteProcess,
    prediction: str,
    num_steps: int | None = None,
    *,
    spacing_rule: str = "leading",
    offset: int = 0,
    respacing: str | None = None,
    variance: str = "fixed_large",
    clip: float | None = 1.0,
) -> core.Sampler:
    """Ho et al. 2020, algorithm 2: the mean of the posterior q(x_s | x_t, x_0) at the (clipped) estimate of x_0.

    num_steps None takes every timestep; respacing is OpenAI's way to choose them instead (`spacing.respace`). With
    fewer, the chain is that of the visited timesteps, whose beta is 1 - alpha_bar_t / alpha_bar_s (Nichol and Dhariwal
    2021, section 4). variance: fixed_small is the posterior's, fixed_large is beta, learned_range interpolates between
    their logarithms by the network's extra channels (eq. 15).
    The last step adds no noise.
    """
    visited = spacing.visited(
        process.num_timesteps, num_steps or process.num_timesteps, spacing_rule, offset, respacing
    )
    return ddpm_on(process, visited, prediction, variance, clip)


def ddpm_on(
    process: DiscreteProcess,
    visited: np.ndarray,
    prediction: str,
    variance: str = "fixed_large",
    clip: float | None = 1.0,
    noise_at_end: bool = False,
) -> core.Sampler:
    """The same for any decreasing timesteps [N]. noise_at_end: the last step adds noise too, of its own variance."""
    if variance not in VARIANCES:
        raise ValueError(f"variance is {variance!r}; it can be {', '.join(VARIANCES)}")
    alphas_cumprod = process.alphas_cumprod[visited]
    following = np.append(alphas_cumprod[1:], 1.0)  # alpha_bar where the step lands
    alphas = alphas_cumprod / following
    betas = 1 - alphas
    posterior_variance = (1 - following) / (1 - alphas_cumprod) * betas
    # The last posterior variance is 0: its logarithm, which only a learned range reads, takes the value before.
    floor = posterior_variance[-2] if len(visited) > 1 else betas[-1]
    # Where noise is added there too, diffusers takes next to nothing for the variance 0.
    last_small = _SMALLEST_VARIANCE if noise_at_end else floor
    log_small, log_large = np.log(np.append(posterior_variance[:-1], last_small)), np.log(betas)
    # Where the last step lands nothing is drawn, but its variance still weighs a tilt (released code).
    last = {"fixed_small": 0.0, "fixed_large": floor, "learned_range": 1.0}[variance]
    steps = {"fixed_small": posterior_variance, "fixed_large": betas, "learned_range": np.ones_like(betas)}[variance]
    variances = np.append(steps[:-1], last)
    deviation = np.append(np.sqrt(steps[:-1]), np.sqrt(steps[-1]) if noise_at_end else 0.0)

    rows = [
        core.Row(
            timestep=float(t),
            step=i,
            denoise=predictions.denoised_coefficients(
                prediction, np.sqrt(alphas_cumprod[i]), np.sqrt(1 - alphas_cumprod[i])
            ),
            level=(np.sqrt(alphas_cumprod[i]), np.sqrt(1 - alphas_cumprod[i])),
            x=np.sqrt(alphas[i]) * (1 - following[i]) / (1 - alphas_cumprod[i]),
            history=(np.sqrt(following[i]) * betas[i] / (1 - alphas_cumprod[i]),),
            noise=deviation[i],
            log_variance=(log_small[i], log_large[i]),
            variance=variances[i],
        )
        for i, t in enumerate(visited)
    ]
    return core.build(rows, clip=clip, learned_variance=variance == "learned_range")

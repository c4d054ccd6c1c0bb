"""Denoising diffusion implicit models."""

from __future__ import annotations

import numpy as np

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.process import DiscreteProcess
from diffusion_jax.diffusion.samplers import core, spacing, texts
from diffusion_jax.options import check_least, described


@described(
    texts.TIMESTEPS,
    texts.RESPACING,
    texts.CLIP,
    eta="noise of a step: 0 is deterministic, 1 has DDPM's",
    rederive_epsilon="the direction of the noise follows from the clipped estimate, as OpenAI's code has it",
    final_alpha_cumprod=(
        "share of the image's variance where the last step lands: 1, or that of the first timestep in latent diffusion"
    ),
)
def ddim(
    process: DiscreteProcess,
    prediction: str,
    num_steps: int = 50,
    *,
    spacing_rule: str = "leading",
    offset: int = 0,
    respacing: str | None = None,
    eta: float = 0.0,
    clip: float | None = None,
    rederive_epsilon: bool = False,
    final_alpha_cumprod: float = 1.0,
) -> core.Sampler:
    """Song et al. 2021, eq. 12 and 16.

    The timesteps are those of spacing_rule, num_steps and offset, or of respacing in their stead (`spacing.respace`).

    eta: 0 is deterministic, 1 has the posterior's noise. Published variants differ in three more points: `clip` bounds
    the estimate of x_0 (the paper's code does not clip: None); `rederive_epsilon` takes the noise direction from the
    clipped estimate (OpenAI) instead of from the raw output (diffusers); `final_alpha_cumprod` is alpha_bar where the
    last step lands: 1, or alphas_cumprod[0] in latent diffusion.
    """
    check_least(0, eta=eta)
    visited = spacing.visited(process.num_timesteps, num_steps, spacing_rule, offset, respacing, repeats=True)
    alphas_cumprod = process.alphas_cumprod[visited]
    following = np.append(alphas_cumprod[1:], final_alpha_cumprod)
    return ddim_between(visited, alphas_cumprod, following, prediction, eta, clip, rederive_epsilon)


def ddim_between(
    times: np.ndarray,
    alphas_cumprod: np.ndarray,
    following: np.ndarray,
    prediction: str,
    eta: float = 0.0,
    clip: float | None = None,
    rederive_epsilon: bool = False,
    threshold: tuple[float, float] | None = None,
) -> core.Sampler:
    """DDIM's steps from the timesteps [N], with these alphas_cumprod, to any others, which `following` has.

    threshold: see `core.Sampler`; the other arguments are those of `ddim`.
    """
    rows = []
    for i, t in enumerate(times):
        alpha, sigma = np.sqrt(alphas_cumprod[i]), np.sqrt(1 - alphas_cumprod[i])
        variance = (1 - following[i]) / (1 - alphas_cumprod[i]) * (1 - alphas_cumprod[i] / following[i])
        deviation = eta * np.sqrt(variance)
        # epsilon = (x - alpha x_0) / sigma, so the noise direction is a share of x less a share of x_0.
        direction = np.sqrt(1 - following[i] - deviation**2) / sigma
        on_estimate = np.sqrt(following[i])
        on_raw = -alpha * direction
        if rederive_epsilon or (clip is None and threshold is None):
            on_estimate, on_raw = on_estimate + on_raw, 0.0
        rows.append(
            core.Row(
                timestep=float(t),
                step=i,
                denoise=predictions.denoised_coefficients(prediction, alpha, sigma),
                level=(alpha, sigma),
                x=direction,
                denoised=on_raw,
                history=(on_estimate,),
                noise=deviation,
            )
        )
    return core.build(rows, clip=clip, threshold=threshold)


def ddim_inversion(
    process: DiscreteProcess,
    prediction: str,
    num_steps: int = 50,
    *,
    spacing_rule: str = "leading",
    offset: int = 0,
    respacing: str | None = None,
    clip: float | None = None,
) -> core.Sampler:
    """From an image to the noise that DDIM turns into it: its steps backwards (Song et al. 2021, section 5.4).

    Give the image as x_T; x is the noise. The image counts as the state at the first visited timestep, and the last
    step lands where no signal is left, as in OpenAI's ddim_reverse_sample.
    """
    visited = spacing.visited(process.num_timesteps, num_steps, spacing_rule, offset, respacing, repeats=True)[::-1]
    alphas_cumprod = process.alphas_cumprod[visited]
    rows = []
    for i, (here, landing) in enumerate(zip(alphas_cumprod, np.append(alphas_cumprod[1:], 0.0), strict=True)):
        alpha, sigma = np.sqrt(here), np.sqrt(1 - here)
        direction = np.sqrt(1 - landing) / sigma
        rows.append(
            core.Row(
                timestep=float(visited[i]),
                step=i,
                denoise=predictions.denoised_coefficients(prediction, alpha, sigma),
                level=(alpha, sigma),
                x=direction,
                history=(np.sqrt(landing) - alpha * direction,),
            )
        )
    return core.build(rows, clip=clip)

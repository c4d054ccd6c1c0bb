"""RePaint: ancestral sampling that goes back to more noise again and again, so that known and new parts agree."""

from __future__ import annotations

import numpy as np

from diffusion_jax.diffusion.samplers import core


def repaint_on(
    base: core.Sampler, alpha: np.ndarray, sigma: np.ndarray, *, jump_length: int = 10, resamples: int = 10
) -> core.Sampler:
    """The walk of Lugmayr et al. 2022, algorithm 1 with the jumps of its appendix B.

    After every `jump_length` steps down the walk goes as many up again by adding noise, `resamples` - 1 times. A step
    down and the way up behind it are one row here, as both add normal noise.

    Args:
      base: an ancestral sampler, whose rows say how the network is called; from noise to image.
      alpha, sigma: of the state before each of its rows, float64 [rows].
      jump_length, resamples: both 10 in the paper, for 250 steps.

    Raises:
      ValueError: counts below 1.
    """
    if jump_length < 1 or resamples < 1:
        raise ValueError(f"jump_length is {jump_length} and resamples is {resamples}; both must be 1 or more")
    # levels by their height: 0 is the image, one more than the rows there are
    alphas, sigmas = np.append(alpha, 1.0)[::-1], np.append(sigma, 0.0)[::-1]
    rows = []
    for step, (here, landing) in enumerate(visits(base.num_evaluations, jump_length, resamples)):
        below = here - 1
        ratio = alphas[here] / alphas[below]
        added = sigmas[here] ** 2 - ratio**2 * sigmas[below] ** 2
        on_x = ratio * sigmas[below] ** 2 / sigmas[here] ** 2
        on_x0 = alphas[below] * added / sigmas[here] ** 2
        variance = added * sigmas[below] ** 2 / sigmas[here] ** 2
        up = alphas[landing] / alphas[below]
        climbed = sigmas[landing] ** 2 - up**2 * sigmas[below] ** 2
        place = base.num_evaluations - here
        on_raw, on_output = (float(value) for value in base.table.denoise[place])
        rows.append(
            core.Row(
                timestep=float(base.table.timestep[place]),
                step=step,
                denoise=(on_raw, on_output),
                level=(alphas[here], sigmas[here]),
                input_scale=float(base.table.input_scale[place]),
                x=up * on_x,
                history=(up * on_x0,),
                noise=float(np.sqrt(max(up**2 * variance + climbed, 0.0))),
            )
        )
    return core.build(rows, init_noise_sigma=base.init_noise_sigma, clip=base.clip)


def visits(num_steps: int, jump_length: int, resamples: int) -> list[tuple[int, int]]:
    """(level at which the network is called, level on which the row lands); level num_steps is noise, 0 the image."""
    left = dict.fromkeys(range(1, num_steps - jump_length + 1, jump_length), resamples - 1)
    walk, level = [], num_steps
    while level > 0:
        landing = level - 1
        if left.get(landing, 0) > 0:
            left[landing] -= 1
            landing += jump_length
        walk.append((level, landing))
        level = landing
    return walk

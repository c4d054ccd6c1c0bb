"""Predictor-corrector sampling of the reverse SDE."""

from __future__ import annotations

import numpy as np

from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers import core, grid, texts
from diffusion_jax.diffusion.samplers.grid import Grid
from diffusion_jax.options import described


def predictor_corrector_on(
    points: Grid, snr: float = 0.16, corrector_steps: int = 1, clip: float | None = None
) -> core.Sampler:
    """Langevin steps at each noise level, then a reverse-diffusion step to the next (Song et al. 2021, algorithm 1).

    Predictor (appendix E): with the forward step x' = a x + b z between two levels, x <- (2 - a) x + b^2 score + b z,
    which is algorithm 2 for VE and 3 for VP. Corrector (algorithms 4 and 5): x <- x + e score + sqrt(2 e) z with
    e = 2 a^2 (snr |z| / |score|)^2. The norms are those of each image, where the authors' code takes means over the
    batch, so that an image does not depend on its neighbours. The last step adds no noise.
    """
    alpha, sigma = points.alpha, points.sigma
    rows = []
    for i in range(points.num_steps):
        # The forward step from the next, cleaner level to this one.
        shrink = alpha[i] / alpha[i + 1]
        variance = sigma[i] ** 2 - shrink**2 * sigma[i + 1] ** 2
        for _ in range(corrector_steps):
            # For a score of norm |z| / sigma; `langevin` corrects for the actual one. score = -noise estimate / sigma.
            size = 2 * shrink**2 * (snr * sigma[i]) ** 2
            row = points.row(
                i,
                step=len(rows),
                x=1.0,
                history=(-size / sigma[i],),
                noise=np.sqrt(2 * size),
                estimate=points.noise_estimate(i),
            )
            row.langevin = 1.0
            rows.append(row)
        last = i == points.num_steps - 1
        rows.append(
            points.row(
                i,
                step=len(rows),
                x=2 - shrink,
                history=(-variance / sigma[i],),
                noise=0.0 if last else np.sqrt(variance),
                estimate=points.noise_estimate(i),
            )
        )
    return core.build(rows, init_noise_sigma=points.init_noise_sigma, clip=clip)


@described(
    texts.GRID,
    snr="signal-to-noise ratio of a corrector step; 0.16 for VE, 0.01 to 0.05 for VP",
    corrector_steps="Langevin steps at each noise level",
)
def predictor_corrector(
    process: Process,
    prediction: str,
    num_steps: int = 1000,
    *,
    spacing_rule: str | None = None,
    offset: int = 0,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    denoise_to_zero: bool = False,
    snr: float = 0.16,
    corrector_steps: int = 1,
    clip: float | None = None,
) -> core.Sampler:
    """1 + corrector_steps evaluations a step; see `predictor_corrector_on`, and `grid.make` for the other options.

    snr 0.16 is the paper's for VE; 0.01 to 0.05 suit VP. It stops at the process's last noise level, as the paper does.
    """
    if not snr > 0:
        raise ValueError(f"snr is {snr}; it must be above 0")
    points = grid.make(process, prediction, num_steps, spacing_rule, offset, rho, sigma_min, sigma_max, denoise_to_zero)
    return predictor_corrector_on(points, snr, corrector_steps, clip)

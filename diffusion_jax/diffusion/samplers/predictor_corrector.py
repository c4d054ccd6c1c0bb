"""Predictor-corrector sampling of the reverse SDE."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.samplers import core, grid, running, texts
from diffusion_jax.diffusion.samplers.grid import Grid
from diffusion_jax.options import described


class Steps(NamedTuple):
    """Of each step, float64 [steps]: how the network is called, and the coefficients.

    Attributes:
      timestep, input_scale, on_x, on_output: as in `Grid`.
      alpha, sigma: of the state.
      shrink, variance: a and b^2 of the forward step x' = a x + b z from the next, cleaner level.
      correction: 1 for a corrector step, 0 for a predictor step. noise: 0 for the last step, which adds none.
    """

    timestep: core.Column
    input_scale: core.Column
    on_x: core.Column
    on_output: core.Column
    alpha: core.Column
    sigma: core.Column
    shrink: core.Column
    variance: core.Column
    correction: core.Column
    noise: core.Column


@dataclasses.dataclass(frozen=True, eq=False)
class PredictorCorrector:
    """Langevin steps at each noise level, then a reverse-diffusion step to the next (Song et al. 2021, algorithm 1).

    Predictor (appendix E): x <- (2 - a) x + b^2 score + b z, which is algorithm 2 for VE and 3 for VP. Corrector
    (algorithms 4 and 5): x <- x + e score + sqrt(2 e) z with e = 2 a^2 (snr |z| / |score|)^2. The norms are those of
    each image, where the authors' code takes means over the batch, so that an image does not depend on its neighbours.
    """

    steps: Steps
    snr: float
    init_noise_sigma: float
    clip: float | None = None
    stochastic: ClassVar[bool] = True
    learned_variance: ClassVar[bool] = False
    has_variance: ClassVar[bool] = False

    @property
    def timesteps(self) -> np.ndarray:
        return np.asarray(self.steps.timestep)

    @property
    def num_evaluations(self) -> int:
        return len(self.steps.timestep)

    @property
    def num_steps(self) -> int:
        return self.num_evaluations

    def init(self, x_T: jax.Array) -> running.State:
        return running.State(x_T)

    def step(
        self,
        state: running.State,
        i: jax.Array,
        predict: core.Predict,
        draw: core.Draw,
        tilt: core.Predict | None = None,
    ) -> running.State:
        """See `running.Stepper`; there is no tilt."""
        x, z = state.x, draw(i)
        at = jax.tree.map(lambda column: jnp.asarray(column, x.dtype)[i], self.steps)
        denoised = at.on_x * x + at.on_output * predict(at.input_scale * x, at.timestep).astype(x.dtype)
        if self.clip is not None:
            denoised = jnp.clip(denoised, -self.clip, self.clip)
        score = (at.alpha * denoised - x) / at.sigma**2
        size = 2 * (at.shrink * self.snr * _norms(z) / _norms(score)) ** 2
        corrected = x + size * score + jnp.sqrt(2 * size) * z
        predicted = (2 - at.shrink) * x + at.variance * score + at.noise * jnp.sqrt(at.variance) * z
        return running.State(jnp.where(at.correction > 0, corrected, predicted))


jax.tree_util.register_dataclass(
    PredictorCorrector, data_fields=["steps", "snr", "init_noise_sigma"], meta_fields=["clip"]
)


def _norms(x: jax.Array) -> jax.Array:
    """The Euclidean norm of each image, [B, 1, ...]."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True))


def predictor_corrector_on(
    points: Grid, snr: float = 0.16, corrector_steps: int = 1, clip: float | None = None
) -> PredictorCorrector:
    """See `PredictorCorrector`; corrector_steps of them at each point."""
    shrink = points.alpha[:-1] / points.alpha[1:]
    variance = points.sigma[:-1] ** 2 - shrink**2 * points.sigma[1:] ** 2
    correction = np.tile([*[1.0] * corrector_steps, 0.0], points.num_steps)
    called = (points.timesteps, points.input_scale, points.on_x, points.on_output)
    columns = (*called, points.alpha[:-1], points.sigma[:-1], shrink, variance)
    rows = [np.repeat(np.asarray(column, np.float64)[: points.num_steps], corrector_steps + 1) for column in columns]
    noise = np.append(np.ones(len(correction) - 1), 0.0)
    return PredictorCorrector(Steps(*rows, correction=correction, noise=noise), snr, points.init_noise_sigma, clip)


@described(
    texts.GRID,
    snr="signal-to-noise ratio of a corrector step; 0.16 for VE, 0.01 to 0.05 for VP",
    corrector_steps="Langevin steps at each noise level",
)
@grid.on_points(num_steps=1000, denoise_to_zero=False)
def predictor_corrector(
    points: Grid,
    snr: float = 0.16,
    corrector_steps: int = 1,
    clip: float | None = None,
) -> PredictorCorrector:
    """1 + corrector_steps evaluations a step; see `predictor_corrector_on`, and `grid.Points` for the other options.

    snr 0.16 is the paper's for VE; 0.01 to 0.05 suit VP. It stops at the process's last noise level, as the paper does.
    """
    if not snr > 0:
        raise ValueError(f"snr is {snr}; it must be above 0")
    return predictor_corrector_on(points, snr, corrector_steps, clip)

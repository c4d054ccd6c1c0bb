"""PNDM as diffusers steps through its list of calls, wherever the list is entered and however it is spaced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.samplers import core
from diffusion_jax.diffusion.samplers.pndm import ADAMS_BASHFORTH
from diffusion_jax.hub import scheduler_points as points
from diffusion_jax.hub.scheduler_options import Options

# How many steps are Runge-Kutta's at first, and how many calls each of them makes.
_WARMUP, _STAGES = 3, 4


class _Walk:
    """The rows so far, and what is needed to write the next: every transfer is DDIM's between two timesteps."""

    def __init__(self, options: Options, num_steps: int):
        self.chain = points.chain(options, zero_snr=False)
        self.prediction = options.choose("prediction_type", "epsilon", {"epsilon": "epsilon", "v_prediction": "v"})
        self.times = points.timesteps(options, self.chain, num_steps)
        self.stride = self.chain.num_timesteps // num_steps
        self.final = 1.0 if options.get("set_alpha_to_one", False) else float(self.chain.alphas_cumprod[0])
        self.rows: list[core.Row] = []
        self.kept: list[int] = []  # rows whose outputs the multistep formula uses

    def level(self, t: int) -> float:
        """alpha_bar, also where a step lands below the chain."""
        if t >= self.chain.num_timesteps:
            raise ValueError(f"PNDMScheduler: it steps to timestep {t}, but the last is {self.chain.num_timesteps - 1}")
        return float(self.chain.alphas_cumprod[t]) if t >= 0 else self.final

    def call(self, step: int, told: int, start: int, end: int, weights: dict[int, float], place: str) -> None:
        """A call at timestep `told`, then a transfer from `start` to `end` by the weighted outputs of rows.

        place: of the call in its step. The "first" of several remembers the state, from which the "later" ones
        transfer; an "only" one transfers the state itself.
        """
        alpha, sigma = (float(f(told)) for f in (self.chain.alpha, self.chain.sigma))
        here, there = self.level(start), self.level(end)
        kept = np.sqrt(there / here)
        on_noise = np.sqrt(1 - there) - kept * np.sqrt(1 - here)  # Liu et al. 2022, eq. 9
        if self.prediction == "v":  # the average is taken of v, and turned into noise where the step starts
            on_noise, on_state = on_noise * np.sqrt(here), on_noise * np.sqrt(1 - here)
            kept = kept + on_state
            estimate = alpha / sigma, -1 / sigma
        else:
            estimate = 1 / sigma, -alpha / sigma
        newest = len(self.rows)
        history = np.zeros(newest - min(weights) + 1)
        for row, weight in weights.items():
            history[newest - row] = on_noise * weight
        self.rows.append(
            core.Row(
                timestep=float(told),
                step=step,
                denoise=predictions.denoised_coefficients(self.prediction, alpha, sigma),
                level=(alpha, sigma),
                x=0.0 if place == "later" else kept,
                anchor=kept if place == "later" else 0.0,
                history=history.tolist(),
                estimate=estimate,
                anchor_x=1.0 if place == "first" else 0.0,
                anchor_anchor=0.0 if place == "first" else 1.0,
            )
        )

    def average(self) -> dict[int, float]:
        """The newest call's output with up to three before it, by Adams-Bashforth; the newest is kept from now on."""
        self.kept = [*self.kept[-3:], len(self.rows)]
        return dict(zip(reversed(self.kept), ADAMS_BASHFORTH[len(self.kept)], strict=True))


def pndm(options: Options, num_steps: int) -> core.Sampler:
    """PNDM (Liu et al. 2022), with its Runge-Kutta start or, with skip_prk_steps, latent diffusion's PLMS.

    A beginning in the middle enters the list of calls there, which is longer than that of steps, and counts from 0.
    Raises ValueError for predictions that the scheduler has not, and where it would step off the chain.
    """
    walk = _Walk(options, num_steps)
    if options.get("skip_prk_steps", False):
        calls = [*walk.times[:1], *walk.times[1:2], *walk.times[1:]]
        _linear_start(walk, [int(t) for t in calls[options.first_step :]])
    else:
        warmup = _stages(walk)
        calls = [*warmup, *walk.times[len(warmup) // _STAGES :]]
        _runge_kutta_start(walk, warmup, [int(t) for t in calls[options.first_step :]])
    return core.build(walk.rows)


def _stages(walk: _Walk) -> list[int]:
    """The timesteps of the Runge-Kutta calls: where a step starts, twice halfway, and where it ends."""
    half = walk.stride // 2
    pairs = zip(walk.times[:_WARMUP], walk.times[1 : _WARMUP + 1], strict=False)
    return [int(t) for start, end in pairs for t in (start, end + half, end + half, end)]


def _linear_start(walk: _Walk, calls: Sequence[int]) -> None:
    for counter, t in enumerate(calls):
        if counter == 1:  # Heun's second call, whose output is not used again
            walk.call(0, t, t + walk.stride, t, {1: 1 / 2, 0: 1 / 2}, "later")
            continue
        place = "only" if counter else "first"
        walk.call(max(counter - 1, 0), t, t, t - walk.stride, walk.average(), place)


def _runge_kutta_start(walk: _Walk, warmup: Sequence[int], calls: Sequence[int]) -> None:
    for counter, t in enumerate(calls):
        step, stage = divmod(counter, _STAGES)
        newest = len(walk.rows)
        if counter >= len(warmup):
            step = len(warmup) // _STAGES + counter - len(warmup)
            walk.call(step, t, t, t - walk.stride, walk.average(), "only")
            continue
        start, half = warmup[step * _STAGES], walk.stride // 2
        if stage == 0:
            walk.kept.append(newest)
            walk.call(step, t, start, t - half, {newest: 1.0}, "first")
        elif stage < _STAGES - 1:
            walk.call(step, t, start, t - half * (stage == 2), {newest: 1.0}, "later")
        else:
            weights = {newest: 1 / 6, newest - 1: 1 / 3, newest - 2: 1 / 3, newest - 3: 1 / 6}
            walk.call(step, t, start, t, weights, "later")

"""Trajectories of many samplers by few compiled programs: tables are filled up to one shape by rows that do nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion import samplers

_ORDER = 16  # the longest history: of a Runge-Kutta start, whose calls lie between those that are used again


def _filled(sampler, num_rows):
    """The sampler with rows at its end that leave the state as it is."""

    def fill(name, column):
        more = num_rows - len(column)
        filled = np.zeros((num_rows, *column.shape[1:]))
        filled[: len(column)] = column
        if name in ("next_x", "next_anchor"):
            filled = np.pad(filled, ((0, 0), (0, _ORDER + 3 - column.shape[1])))
        if more and name in ("next_x", "churn"):
            filled[-more:, 0] = 1.0
        return filled.astype(column.dtype)

    table = {name: fill(name, column) for name, column in sampler.table._asdict().items()}
    return dataclasses.replace(
        sampler, table=type(sampler.table)(**table), num_steps=num_rows, uses_anchor=True, stochastic=True
    )


@functools.cache
def _program(predict):
    return jax.jit(lambda sampler, x, noise: samplers.sample(sampler, predict, x, noise=noise)[1])


def of(sampler, predict, x, noise=None):
    """The states before the first row and after each, float64 [1 + rows, B, ...]; predict is the same object again."""
    rows = sampler.num_evaluations
    num_rows = 64 if rows <= 64 else -(-rows // 400) * 400
    noises = np.zeros((num_rows, *x.shape))
    if sampler.stochastic:
        noises[: sampler.num_steps] = noise[: sampler.num_steps]
    with jax.enable_x64(True):
        states = _program(predict)(_filled(sampler, num_rows), jnp.asarray(x, jnp.float64), jnp.asarray(noises))
        return np.asarray(states)[: 1 + rows]

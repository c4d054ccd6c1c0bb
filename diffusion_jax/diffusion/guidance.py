"""Guidance: transforms of the function that a sampler calls."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Predict = Callable[[jax.Array, jax.Array], jax.Array]
ConditionalPredict = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def conditional(predict: ConditionalPredict, condition: jax.Array) -> Predict:
    """predict(x, t, condition) with the condition [B, ...] fixed."""
    return lambda x, t: predict(x, t, condition)


def classifier_free(
    predict: ConditionalPredict,
    condition: jax.Array,
    null_condition: jax.Array,
    scale: jax.Array | float,
    channels: int | None = None,
) -> Predict:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6): null + scale * (conditional - null).

    condition and null_condition: [B, ...]. scale: a scalar or [B]; 1 is no guidance, and is the paper's 1 + w. Both
    evaluations run as one batch of 2B. Predictions are linear in the output, so guiding the raw output guides the
    score whatever the network predicts. channels: only so many of the output's are guided; the others, such as a
    learned variance, are those of the condition.
    """
    both = jnp.concatenate([condition, null_condition])

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        output = predict(jnp.concatenate([x, x]), t, both)
        with_condition, without = jnp.split(output, 2)
        weight = jnp.asarray(scale, output.dtype)
        weight = weight.reshape(weight.shape + (1,) * (output.ndim - weight.ndim))
        moved = without + weight * (with_condition - without)
        return (
            moved if channels is None else jnp.concatenate([moved[..., :channels], with_condition[..., channels:]], -1)
        )

    return guided

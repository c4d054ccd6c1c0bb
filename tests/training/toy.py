"""A small method and a small data set for the tests of the training loop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.training import ema, loop, optimizer, sharding

WIDTH = 64


class Denoiser:
    """An MLP that predicts the noise added to a vector; its randomness follows the rules of a method.

    From step `diverge_at` on the loss, or the gradient alone, is not a number.
    """

    def __init__(self, width: int = WIDTH, diverge_at: int | None = None, diverging: str = "loss"):
        self.width = width
        self.diverge_at = diverge_at
        self.diverging = diverging

    def init(self, key: jax.Array, batch: Any) -> Any:
        features = batch["image"].shape[-1]
        k1, k2 = jax.random.split(key)
        return {
            "hidden": {
                "kernel": jax.random.normal(k1, (features, self.width)) / features**0.5,
                "bias": jnp.zeros(self.width),
            },
            "output": {"kernel": jax.random.normal(k2, (self.width, features)) / self.width**0.5},
        }

    def loss(self, params: Any, batch: Any, key: jax.Array, step: jax.Array) -> Any:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["position"])
        noise = jax.vmap(lambda k: jax.random.normal(k, batch["image"].shape[1:]))(keys)
        hidden = jnp.tanh((batch["image"] + noise) @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        loss = jnp.mean(jnp.square(hidden @ params["output"]["kernel"] - noise), axis=-1)
        if self.diverge_at is not None:
            # The root of 0 is 0, and its gradient infinity times 0.
            bad = (lambda x: x * jnp.nan) if self.diverging == "loss" else (lambda x: x + jnp.sqrt(x[0] * 0))
            loss = jax.lax.cond(step >= self.diverge_at, bad, lambda x: x, loss)
        even = (batch["position"] % 2 == 0).astype(jnp.float32)
        return loss.mean(), {"loss": (loss, jnp.ones_like(loss)), "loss_even": (loss, even)}


class Counter:
    """Batch k of an endless stream is a function of k."""

    def __init__(self, batch_size: int = 16, features: int = 32):
        self.next_index, self.batch_size, self.features = 0, batch_size, features

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.next_index)
        self.next_index += 1
        return {"image": rng.normal(size=(self.batch_size, self.features)).astype(np.float32)}

    def get_state(self) -> dict[str, int]:
        return {"next_index": self.next_index}

    def set_state(self, state: dict[str, int]) -> None:
        self.next_index = state["next_index"]


def train(
    workdir,
    method=None,
    batches=None,
    mesh=None,
    learning_rate=1e-2,
    optimizer_name="adam",
    posthoc_ema=None,
    scoring=None,
    start=None,
    **options,
):
    """A run of the loop on the toy problem."""
    update, rate = optimizer.make_optimizer(optimizer_name, learning_rate=learning_rate, warmup_steps=6)
    return loop.train(
        method or Denoiser(),
        batches or Counter(),
        workdir,
        optimizer=update,
        learning_rate=rate,
        ema_decay=ema.make_ema("warmup", decay=0.99),
        mesh=mesh or sharding.make_mesh(devices=jax.devices()[:1]),
        options=loop.TrainingOptions(**{"num_steps": 12, "log_every": 4, "checkpoint_every": 5, **options}),
        posthoc_ema=posthoc_ema,
        scoring=scoring,
        start=start,
    )

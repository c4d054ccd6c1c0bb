"""What a run has trained: its parameters, and programs of them over all devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax import batching, hub
from diffusion_jax.config import Experiment
from diffusion_jax.metrics.devices import on_every_device
from diffusion_jax.training import ema_snapshots, scoring, sharding, subset
from diffusion_jax.training.method import drawn_with, pick


class TrainedModel:
    """The model of a config with the parameters in a work directory, which are read when they are first asked for."""

    def __init__(self, config: Experiment, model: Any, workdir: Path, mesh: Mesh):
        self._config, self._model, self._workdir, self._mesh = config, model, workdir, mesh

    @functools.cached_property
    def all_shapes(self) -> Any:
        """Of the parameters, without where they lie."""
        height, width, channels = self._model.image_shape
        batch = {"image": jax.ShapeDtypeStruct((1, height, width, channels), np.float32)}
        return jax.eval_shape(self._model.init, jax.random.key(0), batch)

    @property
    def shapes(self) -> Any:
        """Of those that are drawn with."""
        return pick(self.all_shapes, drawn_with(self._model))

    @functools.cached_property
    def parameters(self) -> tuple[int, Any]:
        """(step, parameters to sample with) of config.evaluation.checkpoint; CheckpointError where there is none."""
        target = sharding.sharded_shapes(self._mesh, self.shapes)
        if (sigma_rel := self._config.sampling.ema_width) is not None:
            return ema_snapshots.reconstruct(self._workdir, sigma_rel, target)
        is_best = self._config.evaluation.checkpoint == "best"
        return subset.restore_averaged(
            self._workdir, self._workdir / (scoring.BEST if is_best else "checkpoints"), target
        )

    def restore(
        self, workdir: str, init: Callable[[], Any], width: float | None = None, step: int | None = None
    ) -> Any:
        """See `methods.method.Run`. Raises CheckpointError where there are no such parameters."""
        folder = Path(workdir).expanduser().absolute()
        if not (folder / "checkpoints").is_dir() and (folder / "model.safetensors").is_file():
            return on_every_device(self._mesh, hub.load(folder)[1])
        shapes = sharding.sharded_shapes(self._mesh, jax.eval_shape(init))
        if width is not None:
            return ema_snapshots.reconstruct(folder, width, shapes, step)[1]
        return subset.restore_averaged(folder, folder / "checkpoints", shapes)[1]

    def batched(self, function: Callable[..., Any], size: int | None = None) -> Callable[..., Any]:
        """See `methods.method.Run`. Several processes have to call the result together, as they share the work."""
        split, devices = sharding.batch_sharding(self._mesh), sharding.num_shards(self._mesh)
        precision = self._config.training.matmul_precision

        @functools.partial(jax.jit, out_shardings=sharding.replicated(self._mesh))
        def of_batch(params: Any, indices: jax.Array, rows: Any, traced: Any) -> Any:
            indices, rows = jax.lax.with_sharding_constraint((indices, rows), split)
            with jax.default_matmul_precision(precision):
                return function(params, indices, *rows, **traced)

        def of_all(*rows: Any, **traced: Any) -> Any:
            count = len(jax.tree.leaves(rows)[0])
            length = size or min(self._config.sampling.batch_size, batching.rounded_up(count, devices))

            def of_rows(batch: tuple[Any, ...]) -> Any:
                return of_batch(self.parameters[1], batch[0], batch[1:], traced)

            return batching.mapped(of_rows, (np.arange(count, dtype=np.int32), *rows), length)

        return of_all

"""What a device would hold in training DiT-XL/2 or SDXL, on meshes that nobody has to own.

    python -m benchmarks.memory_plan [--model dit_xl|sdxl] [--topology v5e|v6e|v5p] [--devices 1,8,64,256]
        [--batch_per_device 4] [--tensor 1] [--dtype bfloat16] [--remat none] [--unrolled]

The train step is compiled for so many devices, from shapes alone: nothing is allocated and nothing runs. The compiler
partitions it as it would for a pod and says what each device needs (`memory_analysis`).

With --topology it is the compiler for that generation of TPUs (`pip install "jax[tpu]"`; no TPU is needed), which
refuses what does not fit. Without, it is the one for the CPU: its state is exact, but what is temporary depends on the
backend, and what recomputing saves (--remat) shows only where the blocks are a loop.

The blocks are one loop over stacked parameters (config.model.scan_layers), so all of them can be compiled. Written out
(--unrolled) that would take long and say no more: memory is linear in the number of blocks, so networks with few are
compiled and the line through them is followed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import topology

GIB = 2**30
DIT_DEPTH = 28
SDXL_DEPTH = (1, 2, 10)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device: parameters, optimiser and averages; and what a step needs beside them."""

    state: float
    temporary: float

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.state + other.state, self.temporary + other.temporary)

    def times(self, factor: float) -> Memory:
        return Memory(self.state * factor, self.temporary * factor)


@dataclasses.dataclass(frozen=True)
class Layers:
    """How the blocks of a network are trained; the fields are those of the networks."""

    dtype: str = "bfloat16"
    remat: str = "none"
    scan_layers: bool = True


class DoesNotFit(Exception):
    """The compiler refuses a program for want of memory: `state` bytes, and what it says in one line."""

    def __init__(self, state: float, reason: str):
        super().__init__(reason)
        self.state = state


def dit_xl(depth: int, layers: Layers) -> tuple[Any, dict[str, Any]]:
    """DiT-XL/2 with so many blocks, on 32x32 latents of 1,000 classes, and the shapes of an example."""
    from diffusion_jax import config as experiment
    from diffusion_jax.config import build

    config = experiment.default()
    config.data.image_size, config.data.channels = 32, 4
    config.model.update({"name": "dit", "width": 1152, "depth": depth, "num_heads": 16})
    config.model.update({"remat": layers.remat, "scan_layers": layers.scan_layers})
    config.method.update({"bound": "hybrid", "class_conditional": True})
    config.training.compute_dtype = layers.dtype
    return build.model(config, build.of_classes(1000)), {
        "image": ((32, 32, 4), "float32"),
        "condition": {"label": ((), "int32")},
    }


class SDXL:
    """The epsilon loss of SDXL's U-Net on 128x128 latents, with the texts' encodings given."""

    def __init__(self, depth: tuple[int, int, int], layers: Layers):
        from benchmarks.memory import SDXL as network

        self.network = network.clone(transformer_depth=depth, **dataclasses.asdict(layers))

    def init(self, key: Any, batch: Any) -> Any:
        one = {name: value[:1] for name, value in batch.items()}
        return self.network.init(key, one["image"], *self._conditions(one))["params"]

    def loss(self, params: Any, batch: Any, key: Any, step: Any) -> Any:
        import jax
        import jax.numpy as jnp

        noise = jax.random.normal(key, batch["image"].shape)
        out: Any = self.network.apply({"params": params}, batch["image"] + noise, *self._conditions(batch))
        loss = jnp.mean(jnp.square(out - noise), axis=(1, 2, 3))
        return loss.mean(), {"loss": (loss, jnp.ones_like(loss))}

    def _conditions(self, batch: Any) -> tuple[Any, ...]:
        added = {"text_embeds": batch["pooled"], "time_ids": batch["time_ids"]}
        return batch["time"], batch["text"], None, added


def sdxl(depth: tuple[int, int, int], layers: Layers) -> tuple[Any, dict[str, Any]]:
    """SDXL with so many transformer blocks a level, and the shapes of an example."""
    shapes = {"image": (128, 128, 4), "text": (77, 2048), "pooled": (1280,), "time_ids": (6,)}
    return SDXL(depth, layers), {
        **{name: (shape, "float32") for name, shape in shapes.items()},
        "time": ((), "int32"),
    }


BUILDERS: dict[str, Callable[..., Any]] = {"dit_xl": dit_xl, "sdxl": sdxl}


def shapes(method: Any, example: dict[str, Any], mesh: Any, batch_size: int) -> tuple[Any, dict[str, Any], Any]:
    """(train state of Adam with an average of the parameters, batch, key): shapes, dtypes and where they are to lie."""
    import jax

    from diffusion_jax.training import optimizer, sharding, state

    split = sharding.batch_sharding(mesh)
    batch = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct((batch_size, *array[0]), array[1], sharding=split),
        {**example, "position": ((), "int32")},
        is_leaf=lambda value: isinstance(value, tuple),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    update, _ = optimizer.make_optimizer("adam")
    whole = jax.eval_shape(lambda key, batch: state.initial(method, update, key, batch), key, batch)
    return sharding.sharded_shapes(mesh, whole), batch, key


def held(state: Any) -> float:
    """Bytes of a state of `shapes` on one device."""
    import jax

    return sum(_bytes(leaf) for leaf in jax.tree.leaves(state))


def compiled(method: Any, example: dict[str, Any], mesh: Any, batch_size: int) -> Memory:
    """The memory of one device in a train step. Raises DoesNotFit."""
    import jax

    from diffusion_jax.models import target
    from diffusion_jax.training import ema, memory, optimizer, sharding, step

    state, batch, key = shapes(method, example, mesh, batch_size)
    shardings = sharding.state_shardings(mesh, state)
    update, _ = optimizer.make_optimizer("adam")
    run = step.make_train_step(method, update, ema.make_ema("ddpm"), mesh, shardings, matmul_precision="default")
    # The program is to be the one that a process with such devices would trace.
    with target.tracing_for("tpu" if on_tpu(mesh) else "cpu"):
        program = run.lower(state, batch, key)
    # The machine code is never run, so it need not be good.
    options = topology.QUICKLY if on_tpu(mesh) else {"xla_backend_optimization_level": 0}
    try:
        needed = memory.needed(program.compile(compiler_options=options))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(held(state), str(error).splitlines()[0]) from error
    return Memory(held(state), needed - held(state))


def on_tpu(mesh: Any) -> bool:
    return mesh.devices.flat[0].platform == "tpu"


def _bytes(leaf: Any) -> int:
    size = leaf.dtype.itemsize
    for length in leaf.sharding.shard_shape(leaf.shape):
        size *= length
    return size


def planned(model: str, measure: Callable[[Any], Memory], unrolled: bool = True) -> Memory:
    """The memory of the whole network; unrolled, from `measure` of networks with few blocks."""
    if not unrolled:
        return measure(DIT_DEPTH if model == "dit_xl" else SDXL_DEPTH)
    if model == "dit_xl":
        two, four = measure(2), measure(4)
        return two + (four + two.times(-1)).times((DIT_DEPTH - 2) / 2)
    base, middle, last = (measure(depth) for depth in ((1, 1, 1), (1, 2, 1), (1, 1, 2)))
    more = [(middle, SDXL_DEPTH[1] - 1), (last, SDXL_DEPTH[2] - 1)]
    return sum(((deeper + base.times(-1)).times(count) for deeper, count in more), start=base)


def mesh_shape(devices: int, tensor: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor): parameters over up to 64 devices, which are copied beyond."""
    fsdp = min(64, devices // tensor)
    return devices // fsdp // tensor, fsdp, tensor


def table(
    model: str, counts: Sequence[int], batch_per_device: int, tensor: int, layers: Layers, generation: str | None
) -> Iterator[str]:
    """The lines of the plan, one for each number of devices."""
    import jax

    from diffusion_jax.training import sharding

    meshes = [mesh_shape(count, tensor) for count in counts]
    devices = [topology.tpu_devices(generation, count) if generation else jax.devices()[:count] for count in counts]
    chip = f"{generation}, {topology.CHIP_MEMORY[generation]} GiB a chip" if generation else "fake CPU devices"
    blocks = "scan" if layers.scan_layers else "unrolled"
    yield f"{model}, {layers.dtype}, batch {batch_per_device} a device, remat {layers.remat}, {blocks}"
    yield f"{chip}; jax {jax.__version__}; GiB on each device"
    names = " ".join(f"{name:>8}" for name in ("state", "step", "in all", "seconds"))
    yield f"{'devices':>8} {'data x fsdp x tensor':>21} {'batch':>6} {names}"
    for count, shape, chosen in zip(counts, meshes, devices, strict=True):
        mesh = sharding.make_mesh(*shape, devices=chosen)
        batch_size = batch_per_device * shape[0] * shape[1]

        def measure(depth: Any, mesh: Any = mesh, batch_size: int = batch_size) -> Memory:
            method, example = BUILDERS[model](depth, layers)
            return compiled(method, example, mesh, batch_size)

        begun = time.monotonic()
        row = f"{count:>8} {' x '.join(map(str, shape)):>21} {batch_size:>6}"
        try:
            memory = planned(model, measure, not layers.scan_layers)
        except DoesNotFit as error:
            yield f"{row} {error.state / GIB:>8.3f} {refusal(error)}"
            continue
        state, needed = memory.state / GIB, (memory.state + memory.temporary) / GIB
        seconds = time.monotonic() - begun
        fits = "" if generation is None else " fits" if needed <= topology.CHIP_MEMORY[generation] else " does not fit"
        yield f"{row} {state:>8.3f} {needed - state:>8.3f} {needed:>8.3f} {seconds:>8.0f}{fits}"


def refusal(error: DoesNotFit) -> str:
    """The two sizes in what the compiler says, "does not fit: 27.99G of 15.75G", or all of it."""
    sizes = re.findall(r"\d+(?:\.\d+)?[KMGT]", str(error))
    return f"does not fit: {sizes[0]} of {sizes[1]}" if len(sizes) >= 2 else f"does not fit: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(BUILDERS), default="dit_xl")
    parser.add_argument("--topology", choices=tuple(topology.SLICES), help="compile for TPUs of this generation")
    parser.add_argument("--devices", default="1,8,64,256")
    parser.add_argument("--batch_per_device", type=int, default=4)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--remat", default="none", help="what the backward pass keeps, as config.model.remat")
    parser.add_argument("--unrolled", action="store_true", help="blocks written out, not one loop over them")
    options = parser.parse_args()
    counts = [int(count) for count in options.devices.split(",")]
    if "jax" in sys.modules:
        raise SystemExit("JAX is there already; run this module as the program")
    if options.topology:
        topology.prepare_environment()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={max(counts)}"
    layers = Layers(options.dtype, options.remat, not options.unrolled)
    try:
        for line in table(options.model, counts, options.batch_per_device, options.tensor, layers, options.topology):
            print(line, flush=True)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()

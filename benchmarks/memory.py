"""Peak memory of one denoising step and of decoding, for the published sizes of Stable Diffusion 1.5 and XL.

    python -m benchmarks.memory [--dtype bfloat16] [--only NAME]

Nothing is loaded and nothing runs: the programs are compiled for the default device from shapes alone, and the compiler
says what they will need. A step is the guided one: the network on two copies of the latent, the combination, and the
linear update of a sampler. On a CPU attention stores all its scores; on a GPU in half precision cuDNN's does not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.models import AutoencoderKL, ConditionalUNet

GIB = 2**30
SDXL = ConditionalUNet(
    widths=(320, 640, 1280),
    attention=(False, True, True),
    transformer_depth=(1, 2, 10),
    num_heads=(5, 10, 20),
    linear_projection=True,
    time_ids_channels=256,
)
Program = tuple[str, Callable[..., Any], tuple[Any, ...]]


def programs(dtype: str) -> Iterator[Program]:
    """(name, function, shapes of its arguments: parameters first) of everything that is measured."""
    for name, model, side, context, pooled in (
        ("SD 1.5 step, 512 px", ConditionalUNet(), 64, 768, None),
        ("SDXL step, 1024 px", SDXL, 128, 2048, 1280),
    ):
        yield name, *_step(model.clone(dtype=dtype), dtype, side, context, pooled)
    vae = AutoencoderKL(dtype="float32")
    for name, tile in (("VAE decode, 1024 px", None), ("VAE decode, 1024 px, tiles of 512", 512)):
        model = vae.clone(tile_size=tile)
        latent = jax.ShapeDtypeStruct((1, 128, 128, 4), jnp.float32)
        params = jax.eval_shape(vae.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
        yield name, lambda p, z, model=model: model.apply(p, z, method="decode"), (params, latent)


def _step(model: ConditionalUNet, dtype: str, side: int, context: int, pooled: int | None) -> tuple[Any, Any]:
    half = jnp.dtype(dtype)
    latent = jax.ShapeDtypeStruct((1, side, side, 4), jnp.float32)
    text = jax.ShapeDtypeStruct((2, 77, context), half)
    added = {"text_embeds": jax.ShapeDtypeStruct((2, pooled), half), "time_ids": jax.ShapeDtypeStruct((2, 6), half)}
    conditions = None if pooled is None else added
    inputs = (jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32), text)
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs, None, conditions)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, half), params)

    def step(params: Any, x: jax.Array, text: jax.Array, conditions: Any, t: jax.Array, scale: jax.Array) -> jax.Array:
        out: Any = model.apply(params, jnp.concatenate([x, x]), t, text, None, conditions)
        unconditional, conditional = jnp.split(out, 2)
        return x - 0.1 * (unconditional + scale * (conditional - unconditional))

    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    return step, (params, latent, text, conditions, scalar, scalar)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", help="of parameters and computation (the autoencoder: float32)")
    parser.add_argument("--only", default="", help="part of a name")
    chosen = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, {chosen.dtype}, jax {jax.__version__}")
    print(f"{'':36}{'parameters':>12}{'working':>12}{'peak':>12}{'compiled in':>14}")
    for name, function, arguments in programs(chosen.dtype):
        if chosen.only not in name:
            continue
        begun = time.monotonic()
        analysis = jax.jit(function).lower(*arguments).compile().memory_analysis()
        assert analysis is not None
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[0])) / GIB
        working = (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / GIB
        peak = working + analysis.argument_size_in_bytes / GIB
        seconds = time.monotonic() - begun
        print(f"{name:36}{held:8.2f} GiB{working:8.2f} GiB{peak:8.2f} GiB{seconds:12.0f} s", flush=True)


if __name__ == "__main__":
    main()

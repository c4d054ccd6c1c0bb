"""Attention by the fastest kernel that the device has, and the maps of attention for figures."""

from typing import Literal

import jax
import jax.numpy as jnp

from diffusion_jax.models import layers, target

HALF = (jnp.dtype("bfloat16"), jnp.dtype("float16"))


def dot_product_attention(q: jax.Array, k: jax.Array, v: jax.Array, heads: int) -> jax.Array:
    """Scaled dot-product attention: queries [B, N, C], keys and values [B, M, C] -> [B, N, C].

    cuDNN's flash attention on NVIDIA GPUs in half precision, which never stores the N x M scores; XLA's products on
    other accelerators; plain batched products on a CPU.
    """
    batch, _, channels = q.shape
    kernel = implementation(q.dtype, channels // heads)
    if kernel is None:
        return layers.attention(q, k, v, heads)
    q4, k4, v4 = (x.reshape(batch, x.shape[1], heads, channels // heads) for x in (q, k, v))
    return jax.nn.dot_product_attention(q4, k4, v4, implementation=kernel).reshape(q.shape)


def implementation(dtype: jnp.dtype, head_width: int) -> Literal["cudnn", "xla"] | None:
    """What jax.nn.dot_product_attention is to use on `target.platform()`: "cudnn" or "xla"; None for a CPU.

    cuDNN takes half precision and widths that are multiples of 8: up to 128 from compute capability 8.0 (Ampere) on,
    up to 256 from 9.0 (Hopper) on.
    """
    if target.platform() == "cpu":
        return None
    if target.platform() == "tpu":
        return "xla"
    device = jax.local_devices()[0]
    capability = float(getattr(device, "compute_capability", 0) if device.device_kind.startswith("NVIDIA") else 0)
    widest = 256 if capability >= 9 else 128 if capability >= 8 else 0
    return "cudnn" if dtype in HALF and head_width % 8 == 0 and head_width <= widest else "xla"


def attention_map(q: jax.Array, k: jax.Array, heads: int) -> jax.Array:
    """Where each query looks, the mean over the heads: [B, N, C], [B, M, C] -> float32 [B, N, M], rows of sum one."""
    width = q.shape[-1] // heads
    q4, k4 = (x.reshape(*x.shape[:2], heads, width).astype(jnp.float32) for x in (q, k))
    scores = jnp.einsum("bnhc,bmhc->bhnm", q4, k4) * width**-0.5
    return jax.nn.softmax(scores, axis=-1).mean(axis=1)

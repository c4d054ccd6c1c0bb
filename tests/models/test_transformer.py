"""The U-Nets' transformer, and attention by its kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import attention, layers, target
from diffusion_jax.models.transformer import SpatialTransformer, TransformerOptions


def options(**changes) -> TransformerOptions:
    fields = {
        "depth": 1, "num_heads": 2, "linear_projection": True, "norm_groups": 8, "dropout": 0.0,
        "initialization": "ddpm", "remat": False, "dtype": "float32",
    }  # fmt: skip
    return TransformerOptions(**(fields | changes))


def test_recomputation_changes_no_gradient():
    x, context = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(1, 4, 4, 16), (1, 3, 8)]))
    params = SpatialTransformer(options()).init(jax.random.key(2), x, context, False)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)

    def gradient(model):
        return jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, x, context, False)).sum()))(params)

    kept, recomputed = (gradient(SpatialTransformer(options(remat=remat))) for remat in (False, True))
    assert jax.tree.structure(kept) == jax.tree.structure(recomputed)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_dropout_is_for_training():
    x, context = jnp.ones((1, 4, 4, 16)), jnp.ones((1, 3, 8))
    model = SpatialTransformer(options(dropout=0.5))
    params = model.init(jax.random.key(0), x, context, False)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    rngs = {"dropout": jax.random.key(1)}
    plain, trained = (model.apply(params, x, context, train, rngs=rngs) for train in (False, True))
    np.testing.assert_array_equal(plain, SpatialTransformer(options()).apply(params, x, context, False))
    assert np.abs(plain - trained).max() > 1e-3


def test_kernels_agree():
    """The layout that accelerators' kernels take, against the plain products."""
    q, k, v = (jax.random.normal(jax.random.key(i), (2, n, 24)) for i, n in enumerate((7, 5, 5)))
    plain = attention.dot_product_attention(q, k, v, heads=3)
    np.testing.assert_array_equal(plain, layers.attention(q, k, v, 3))
    with target.tracing_for("tpu"):
        np.testing.assert_allclose(attention.dot_product_attention(q, k, v, heads=3), plain, atol=1e-6)
    assert target.platform() == "cpu"


@pytest.mark.parametrize(
    ("kind", "capability", "dtype", "width", "expected"),
    [
        ("NVIDIA H200", "9.0", "bfloat16", 160, "cudnn"),
        ("NVIDIA A100", "8.0", "float16", 128, "cudnn"),
        ("NVIDIA A100", "8.0", "bfloat16", 160, "xla"),
        ("NVIDIA V100", "7.0", "bfloat16", 64, "xla"),
        ("NVIDIA H200", "9.0", "float32", 64, "xla"),
        ("NVIDIA H200", "9.0", "bfloat16", 20, "xla"),
        ("TPU v5", None, "bfloat16", 64, "xla"),
    ],
)
def test_cudnn_where_it_exists(monkeypatch, kind, capability, dtype, width, expected):
    class Device:
        device_kind = kind

    if capability is not None:
        Device.compute_capability = capability
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu" if "TPU" in kind else "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert attention.implementation(jnp.dtype(dtype), width) == expected


def test_no_kernel_on_a_cpu():
    assert attention.implementation(jnp.dtype("bfloat16"), 64) is None


def test_attention_map_is_the_mean_over_heads():
    q, k = (np.random.default_rng(i).standard_normal((1, n, 4)).astype(np.float32) for i, n in enumerate((2, 3)))
    expected = np.zeros((2, 3))
    for head in (slice(0, 2), slice(2, 4)):
        scores = np.exp(q[0, :, head] @ k[0, :, head].T / np.sqrt(2))
        expected += scores / scores.sum(axis=1, keepdims=True) / 2
    np.testing.assert_allclose(attention.attention_map(q, k, heads=2)[0], expected, rtol=1e-5)

"""EDM2's network: magnitudes that stay, the paper's parameter counts, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_jax.models import MODELS
from diffusion_jax.models.edm2_unet import EDM2Block, EDM2UNet
from diffusion_jax.models.magnitude_preserving import (
    MPConv,
    MPDense,
    MPFourier,
    mp_concatenate,
    mp_silu,
    mp_sum,
    normalize,
    normalize_weights,
)
from tests.models.networks import apply, count, inputs, randomized, shapes

# channels -> millions of parameters counted in the released code, latents of 64x64x4 and 1000 classes
PAPERS = {64: 31.3, 128: 124.7, 192: 280.2, 256: 497.8, 320: 777.5, 384: 1119.3, 448: 1523.2}
TINY = EDM2UNet(
    out_channels=3,
    channels=16,
    channel_mults=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    head_channels=8,
    num_classes=4,
    dropout=0.5,
)
BATCH = inputs(TINY, 8)
PARAMS = randomized(TINY, 8)


def run(params=PARAMS, **changed) -> np.ndarray:
    given = dict(zip(("sample", "timestep", "class_labels"), BATCH, strict=True)) | changed
    return np.asarray(apply(TINY, params, **given))


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def magnitude(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize("channels", PAPERS)
def test_parameter_counts_of_the_paper(channels):
    model = EDM2UNet(channels=channels, num_classes=1000)
    assert count(model, 64, 4) / 1e6 == pytest.approx(PAPERS[channels], abs=0.05)
    model.validate(64, 4)


def test_registry_names_the_class():
    assert MODELS["edm2_unet"] is EDM2UNet


@given(t=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), width=st.sampled_from([8, 32]))
def test_sums_and_concatenations_keep_magnitude_one(t, width):
    a, b = normal(0, 4096, 16), normal(1, 4096, width)
    joined = mp_concatenate(a, b, t)
    assert magnitude(joined) == pytest.approx(1, abs=0.02)
    # each part contributes to the whole as t says, whatever its number of channels
    share = np.sum(np.square(joined[:, 16:])) / np.sum(np.square(joined))
    assert share == pytest.approx(t**2 / ((1 - t) ** 2 + t**2), abs=0.02)
    assert magnitude(mp_sum(a, normal(2, 4096, 16), t)) == pytest.approx(1, abs=0.02)


def test_activation_and_features_keep_magnitude_one():
    assert magnitude(mp_silu(normal(0, 1 << 16))) == pytest.approx(1, abs=0.01)
    fourier = MPFourier(512)
    times = jnp.linspace(-1.5, 1.1, 64)
    features = fourier.apply(fourier.init(jax.random.key(0), times), times)
    assert magnitude(features) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("layer", [MPDense(64), MPConv(64)])
def test_layers_keep_magnitude_one_whatever_their_weights_size(layer):
    x = normal(0, 2, 16, 16, 32)
    params = layer.init(jax.random.key(0), x)["params"]
    out = layer.apply({"params": params}, x)
    # the padding of the convolution takes a little away at the border
    assert magnitude(out[:, 2:-2, 2:-2]) == pytest.approx(1, abs=0.05)
    scaled = {"kernel": params["kernel"] * jnp.linspace(1, 50, 64)}
    np.testing.assert_allclose(layer.apply({"params": scaled}, x), out, atol=2e-3)
    np.testing.assert_allclose(layer.apply({"params": params}, x, 0.25), 0.25 * out, atol=1e-5)
    # so that no gradient can change the length of a weight vector
    grad = jax.grad(lambda p: jnp.sum(layer.apply({"params": p}, x) ** 3))(params)["kernel"]
    along = np.sum(np.asarray(grad * params["kernel"]), axis=tuple(range(grad.ndim - 1)))
    across = np.linalg.norm(np.asarray(grad).reshape(-1, 64), axis=0)
    assert np.abs(along / across).max() < 1e-2


def test_normalization_of_pixels_and_weights():
    x = normal(0, 2, 3, 3, 64) * 7
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(normalize(x, -1)), axis=-1)), 1, rtol=1e-3)
    params = {"a": {"kernel": 3 * normal(1, 3, 3, 8, 4), "emb_gain": jnp.float32(5)}, "b": {"frequencies": x}}
    projected = normalize_weights(params)
    np.testing.assert_allclose(np.mean(np.square(projected["a"]["kernel"]), axis=(0, 1, 2)), 1, rtol=1e-3)
    assert projected["a"]["emb_gain"] == 5
    np.testing.assert_array_equal(projected["b"]["frequencies"], x)
    # the same function of the input, and a fresh network is already there
    there, out = normalize_weights(PARAMS), run()
    assert np.linalg.norm(run(there) - out) / np.linalg.norm(out) < 2e-2  # as far as the 1e-4 in the norm goes
    again = normalize_weights(there)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3), again, there)
    fresh = MPConv(4).init(jax.random.key(0), jnp.zeros((1, 2, 2, 8)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), normalize_weights(fresh), fresh)


def test_every_block_of_a_fresh_network_has_magnitude_one():
    model = TINY.clone(channels=32, dropout=0.0, attention_resolutions=(8,))
    batch = inputs(model, 16)
    _, state = jax.jit(
        lambda key: model.apply(
            model.init(key, *batch), *batch, capture_intermediates=lambda module, _: isinstance(module, EDM2Block)
        )
    )(jax.random.key(0))
    blocks = {name: magnitude(value["__call__"][0]) for name, value in state["intermediates"].items()}
    assert len(blocks) == 3 + 2 + 5
    for name, size in blocks.items():
        assert size == pytest.approx(1, abs=0.15), name


def test_a_fresh_network_predicts_zero_and_learns():
    params = jax.jit(TINY.init)(jax.random.key(0), *BATCH)["params"]
    np.testing.assert_array_equal(run(params), 0)
    grads = jax.grad(lambda p: jnp.mean((apply(TINY, p, *BATCH) - BATCH[0]) ** 2))(params)
    assert np.abs(grads["out_gain"]) > 1e-3
    for tree in (grads["fourier"], grads["uncertainty"]["fourier"]):
        assert not any(np.any(leaf) for leaf in tree.values())


def test_every_input_reaches_its_image_and_no_other():
    out, (sample, time, labels) = run(), BATCH
    for changed in (
        run(sample=sample.at[1, 0, 0, 0].add(1.0)),
        run(timestep=time.at[1].add(0.5)),
        run(class_labels=labels.at[1].set(3)),
        run(class_labels=labels.at[1].set(4)),
    ):
        assert np.abs(changed[1] - out[1]).max() > 1e-2
        np.testing.assert_allclose(changed[::2], out[::2], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run(timestep=0.3), run(timestep=jnp.full(3, 0.3)))


def test_the_null_class_is_a_vector_of_zeros():
    null = run(class_labels=jnp.full(3, 4))
    half = PARAMS | {"embed_label": {"kernel": 1e9 * jnp.ones_like(PARAMS["embed_label"]["kernel"])}}
    np.testing.assert_array_equal(run(half, class_labels=jnp.full(3, 4)), null)


def test_log_variance_is_a_smooth_function_of_the_noise_level():
    times = jnp.array([0.1, 0.1001, 0.9])
    value = TINY.apply({"params": PARAMS}, times, method="log_variance")
    assert value.shape == (3,)
    assert abs(value[0] - value[1]) < 1e-2 < abs(value[0] - value[2])


def test_dropout_is_on_in_training_only():
    first, second = (apply(TINY, PARAMS, *BATCH, train=True, key=jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(first - run()).max() > 1e-2
    assert np.abs(first - second).max() > 1e-2


def test_bfloat16_computes_close_by_and_answers_in_float32():
    exact = run()
    rounded = apply(TINY.clone(dtype="bfloat16"), PARAMS, *BATCH)
    assert rounded.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 5e-2


def test_attention_is_where_the_resolutions_say():
    tree = shapes(TINY.clone(attention_resolutions=(8,)), 8)
    found = {name for name, block in tree.items() if "attn_proj" in getattr(block, "keys", tuple)()}
    assert found == {"encoder_0_block0", "decoder_0_block0", "decoder_0_block1", "decoder_1_in0"}


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({}, 9, "image_size=9: .* multiple of 2"),
        ({"head_channels": 3}, 8, "head_channels=3 does not divide the 32 channels"),
        ({"residual_balance": 1.5}, 8, "residual_balance=1.5: it must be from 0 to 1"),
        ({"clip_activations": 0.0}, 8, "clip_activations=0.0: it must be positive, or None"),
        ({"resample_filter": (1, 2, 1)}, 8, "resample_filter=.1, 2, 1."),
        ({"attention_resolutions": (16,)}, 8, "no level has resolution 16"),
        ({"uncertainty_channels": 0}, 8, "uncertainty_channels=0"),
        ({"dropout": 1.0}, 8, "dropout=1.0"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(fields, size, message):
    with pytest.raises(ValueError, match=message) as refused:
        TINY.clone(**fields).validate(size, 3)
    assert "\n" not in str(refused.value)

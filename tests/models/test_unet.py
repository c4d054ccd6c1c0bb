"""The U-Net: the papers' parameter counts, its behaviour, and what it refuses."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import MODELS, UNet

OPENAI = {
    "out_channels": 6,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "scale_shift_norm": True,
    "initialization": "pytorch",
    "null_class": False,
}
IDDPM = OPENAI | {"num_res_blocks": 3, "attention_resolutions": (16, 8), "num_heads": 4}
ADM = OPENAI | {"channels": 256, "attention_resolutions": (32, 16, 8), "resample": "resblock", "head_channels": 64}
ADM_64 = ADM | {"channels": 192, "channel_mults": (1, 2, 3, 4), "num_res_blocks": 3, "num_classes": 1000}
LSUN_256 = OPENAI | {"scale_shift_norm": False, "num_heads": 1, "channel_mults": (1, 1, 2, 2, 4, 4)}

# Counted in the papers' own code. Totals in millions are printed numbers, the others are exact.
PAPERS = {
    "ddpm-cifar10": ({}, 32, 35_746_307),
    "ddpm-256": ({"channel_mults": (1, 1, 2, 2, 4, 4)}, 256, 113_673_219),
    "ddim-celeba64": ({"channel_mults": (1, 2, 2, 2, 4)}, 64, 78_700_803),
    "iddpm-cifar10": (IDDPM, 32, 52_546_438),
    "iddpm-imagenet64": (IDDPM | {"channel_mults": (1, 2, 3, 4)}, 64, 121_063_942),
    "iddpm-imagenet64-classes": (
        IDDPM | {"channels": 192, "channel_mults": (1, 2, 3, 4), "num_classes": 1000},
        64,
        273.0e6,
    ),
    "iddpm-lsun256": (LSUN_256, 256, 113.68e6),
    "adm-imagenet64": (ADM_64, 64, 295.9e6),
    "adm-imagenet128": (
        ADM | {"channel_mults": (1, 1, 2, 3, 4), "head_channels": None, "num_heads": 4, "num_classes": 1000},
        128,
        421.5e6,
    ),
    "adm-imagenet256": (ADM | {"channel_mults": (1, 1, 2, 2, 4, 4), "num_classes": 1000}, 256, 553.8e6),
    "adm-imagenet512": (ADM | {"channel_mults": (0.5, 1, 1, 2, 2, 4, 4), "num_classes": 1000}, 512, 559.0e6),
    "adm-lsun256": (ADM | {"channel_mults": (1, 1, 2, 2, 4, 4)}, 256, 552.8e6),
}

TINY = UNet(channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(4,), norm_groups=4, dropout=0.5)


def inputs(model: UNet, size: int = 8, batch: int = 3, channels: int = 3):
    sample = jax.random.normal(jax.random.key(1), (batch, size, size, channels))
    labels = None if model.num_classes is None else jnp.zeros(batch, jnp.int32)
    return {"sample": sample, "timestep": jnp.linspace(0, 900, batch), "class_labels": labels}


def shapes(model: UNet, size: int):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs(model, size, batch=1)))["params"]


def randomized(model: UNet, size: int = 8, **kwargs):
    """Parameters of ordinary size everywhere: a fresh network's output is zero and would hide mistakes."""
    leaves, tree = jax.tree.flatten(
        jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs(model, size, 1, **kwargs)))["params"]
    )
    rng = np.random.default_rng(0)
    values = [
        rng.standard_normal(leaf.shape).astype(np.float32) / math.sqrt(max(1, math.prod(leaf.shape[:-1])))
        for leaf in leaves
    ]
    return jax.tree.unflatten(tree, values)


@functools.partial(jax.jit, static_argnames=("model", "train"))
def apply(model: UNet, params, sample, timestep, class_labels=None, *, train=False, key=None):
    rngs = {"dropout": key} if train else None
    return model.apply({"params": params}, sample, timestep, class_labels, train=train, rngs=rngs)


@pytest.mark.parametrize("name", PAPERS)
def test_parameter_counts_of_the_papers(name):
    fields, size, expected = PAPERS[name]
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(UNet(**fields), size)))
    assert total == expected if isinstance(expected, int) else total == pytest.approx(expected, abs=0.05e6)


def test_registry_names_the_class():
    assert MODELS["unet"] is UNet
    assert {"channels", "attention_resolutions", "dtype"} <= {field.name for field in dataclasses.fields(UNet)}


def test_attention_is_where_the_resolutions_say():
    tree = shapes(UNet(channels=32, channel_mults=(1, 1, 1), attention_resolutions=(16,)), 32)
    blocks = {name for name, block in tree.items() if "attentions_0" in block}
    assert blocks == {"down_blocks_1", "up_blocks_1", "mid_block"}
    # three on the way up: one after every residual block
    assert "attentions_2" in tree["up_blocks_1"]


def test_image_size_pins_the_levels_of_attention():
    model = TINY.clone(image_size=8)
    assert jax.tree.structure(shapes(model, 16)) == jax.tree.structure(shapes(TINY, 8))


def test_without_attention_in_the_middle():
    assert "attentions_0" not in shapes(TINY.clone(mid_attention=False), 8)["mid_block"]


def test_fresh_network_predicts_nothing_and_passes_gradients():
    batch = inputs(TINY)
    params = jax.jit(lambda key: TINY.init(key, **batch)["params"])(jax.random.key(0))
    assert np.abs(apply(TINY, params, **batch)).max() < 1e-3
    # the noise that the paper's loss asks for must move the last layer from the first step on
    grads = jax.grad(lambda p: jnp.mean((apply(TINY, p, **batch) - batch["sample"]) ** 2))(params)
    assert np.abs(grads["conv_out"]["kernel"]).max() > 1e-4


def test_images_do_not_see_each_other():
    params, batch = randomized(TINY), inputs(TINY)
    together = apply(TINY, params, **batch)
    alone = apply(TINY, params, sample=batch["sample"][1:2], timestep=batch["timestep"][1:2])
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-4, atol=1e-5)


def test_scalar_timestep_is_the_timestep_of_all():
    params, batch = randomized(TINY), inputs(TINY)
    scalar = apply(TINY, params, sample=batch["sample"], timestep=7)
    vector = apply(TINY, params, sample=batch["sample"], timestep=jnp.full(3, 7))
    other = apply(TINY, params, sample=batch["sample"], timestep=jnp.full(3, 700))
    np.testing.assert_array_equal(scalar, vector)
    assert np.abs(scalar - other).max() > 1e-2


def test_class_labels_and_the_null_class():
    model = TINY.clone(num_classes=10)
    params, batch = randomized(model), inputs(model)
    assert params["class_embedding"]["embedding"].shape == (11, 32)
    outputs = [np.asarray(apply(model, params, **batch | {"class_labels": jnp.full(3, label)})) for label in (0, 9, 10)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(outputs[a] - outputs[b]).max() > 1e-2
    assert shapes(model.clone(null_class=False), 8)["class_embedding"]["embedding"].shape == (10, 32)


def test_dropout_is_on_in_training_only():
    params, batch = randomized(TINY), inputs(TINY)
    still = apply(TINY, params, **batch)
    first, second = (apply(TINY, params, **batch, train=True, key=jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(first - still).max() > 1e-2
    assert np.abs(first - second).max() > 1e-2


@pytest.mark.parametrize("fields", [{}, {"scale_shift_norm": True, "resample": "resblock"}], ids=["ddpm", "adm"])
def test_bfloat16_computes_close_by_and_answers_in_float32(fields):
    model = TINY.clone(**fields)
    params, batch = randomized(model), inputs(model)
    exact = apply(model, params, **batch)
    rounded = apply(model.clone(dtype="bfloat16"), params, **batch)
    assert rounded.dtype == jnp.float32
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 5e-2


def test_float64_for_checks_of_the_mathematics():
    params, batch = randomized(TINY), inputs(TINY)
    with jax.enable_x64(True):
        params64 = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
        model = TINY.clone(dtype="float64")
        exact = apply(model, params64, np.asarray(batch["sample"], np.float64), np.asarray(7.0))
        assert exact.dtype == np.float64
    single = apply(TINY, params, batch["sample"], jnp.asarray(7.0))
    np.testing.assert_allclose(single, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({}, 9, "image_size=9: .* multiple of 2, for example 8 or 10"),
        ({"channel_mults": (1, 1, 1, 1)}, 4, "multiple of 8, for example 8"),
        ({"image_size": 7}, 8, "model image_size=7"),
        ({"attention_resolutions": (16,)}, 8, "no level has resolution 16; .* levels at 8, 4"),
        ({"norm_groups": 32}, 8, "norm_groups=32 does not divide a level's 8 channels .* could be 1, 2, 4, 8"),
        ({"channel_mults": (1, 1.3)}, 8, "1.3 times channels=8 is not a whole number"),
        ({"channel_mults": ()}, 8, "channel_mults=()"),
        ({"num_heads": 3}, 8, "num_heads=3 does not divide the 16 channels"),
        ({"head_channels": 32}, 8, "head_channels=32 does not divide the 16 channels"),
        ({"channels": 0}, 8, "channels=0"),
        ({"num_res_blocks": 1.5}, 8, "num_res_blocks=1.5: it must be an integer from 1 up"),
        ({"num_classes": 0}, 8, "num_classes=0"),
        ({"dropout": 1.0}, 8, "dropout=1.0"),
        ({"norm_eps": 0.0}, 8, "norm_eps=0.0"),
        ({"resample": "pool"}, 8, "resample='pool': it could be 'conv' or 'resblock'"),
        ({"downsample_padding": 2}, 8, "downsample_padding=2: it could be 0 or 1"),
        ({"initialization": "he"}, 8, "initialization='he': it could be 'ddpm' or 'pytorch'"),
        ({"dtype": "int8"}, 8, "dtype='int8'"),
        ({"dtype": "bf16"}, 8, "dtype='bf16': it could be 'float32'"),
        ({"channels": 2, "norm_groups": 1}, 8, "channels=2"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(fields, size, message):
    model = TINY.clone(**fields)
    with pytest.raises(ValueError, match=message) as refused:
        model.validate(size, 3)
    assert "\n" not in str(refused.value)
    if size != 9:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), 0))


def test_possible_settings_are_accepted():
    TINY.validate(8, 1)
    UNet().validate(32, 3)
    UNet(**ADM_64).validate(64, 3)


def test_labels_must_match_the_network():
    batch = inputs(TINY)
    with pytest.raises(ValueError, match="num_classes=None, but class_labels were given"):
        TINY.init(jax.random.key(0), **batch | {"class_labels": jnp.zeros(3, jnp.int32)})
    with pytest.raises(ValueError, match="num_classes=10, but none were given"):
        TINY.clone(num_classes=10).init(jax.random.key(0), **batch)


def test_time_is_scaled_before_it_is_embedded():
    params = randomized(TINY)
    given = inputs(TINY)
    quarter = TINY.clone(time_scale=0.25).apply({"params": params}, **{**given, "timestep": given["timestep"] * 4})
    np.testing.assert_array_equal(quarter, TINY.apply({"params": params}, **given))
    with pytest.raises(ValueError, match="time_scale=0: it must be positive"):
        TINY.clone(time_scale=0).apply({"params": params}, **given)

"""EDM's U-Nets: the released code's outputs and parameter counts, and what the fields do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import MODELS
from diffusion_jax.models.edm_blocks import downsample, upsample
from diffusion_jax.models.edm_unet import EDMUNet, FourierEmbedding
from tests.models.networks import apply, count, inputs, randomized, shapes

NCSNPP = {
    "embedding": "fourier",
    "noise_channel_mult": 2,
    "encoder": "residual",
    "resample_filter": (1, 3, 3, 1),
    "augment_dim": 9,
}
ADM = {
    "family": "adm",
    "channels": 192,
    "channel_mults": (1, 2, 3, 4),
    "num_res_blocks": 3,
    "attention_resolutions": (32, 16, 8),
    "num_classes": 1000,
}
# Counted in the released code. Those in millions are rounded there.
PAPERS = {
    "cifar10-ddpmpp-classes": ({"augment_dim": 9, "num_classes": 10}, 32, 55_735_299),
    "cifar10-ddpmpp": ({"augment_dim": 9}, 32, 55_733_891),
    "cifar10-ncsnpp-classes": (NCSNPP | {"num_classes": 10}, 32, 56_400_643),
    "cifar10-ncsnpp": (NCSNPP, 32, 56_397_827),
    "ffhq64-ddpmpp": ({"augment_dim": 9, "channel_mults": (1, 2, 2, 2)}, 64, 61.81e6),
    "ffhq64-ncsnpp": (NCSNPP | {"channel_mults": (1, 2, 2, 2)}, 64, 62.76e6),
    "imagenet64-adm": (ADM, 64, 295_899_267),
}
TINY = EDMUNet(channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.5)
# every field that adds something
FULL = TINY.clone(**{**NCSNPP, "augment_dim": 2}, num_classes=4, decoder="skip", attention_resolutions=())
BATCH = inputs(FULL, 8)
FULL_PARAMS = randomized(FULL, 8)


def run(params=FULL_PARAMS, **changed) -> np.ndarray:
    """The output of FULL on BATCH, with some of the inputs changed; always the same compiled program."""
    given = dict(zip(("sample", "timestep", "class_labels"), BATCH, strict=True))
    given |= {"augment_labels": jnp.zeros((3, 2))} | changed
    return np.asarray(apply(FULL, params, **given))


@pytest.mark.parametrize("name", PAPERS)
def test_parameter_counts_of_the_paper(name):
    fields, size, expected = PAPERS[name]
    total = count(EDMUNet(**fields), size)
    assert total == expected if isinstance(expected, int) else total == pytest.approx(expected, abs=0.01e6)


def test_registry_names_the_class():
    assert MODELS["edm_unet"] is EDMUNet


def filter_matrix(taps: tuple[float, ...], size: int) -> np.ndarray:
    """Downsampling of a row of ``size`` pixels, [size / 2, size]: pixel 2 i - border + k counts taps[k]."""
    matrix = np.zeros((size // 2, size))
    border = (len(taps) - 1) // 2
    for i in range(size // 2):
        for k, tap in enumerate(taps):
            if 0 <= (pixel := 2 * i - border + k) < size:
                matrix[i, pixel] += tap / sum(taps)
    return matrix


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (3, 1), (1, 2, 0, 4, 5, 6)])
def test_resampling_is_the_filters_matrix_and_its_transpose(taps):
    height, width = 4, 6
    rows, columns = filter_matrix(taps, height), filter_matrix(taps, width)
    x = np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)
    down = np.einsum("ih,jw,bhwc->bijc", rows, columns, x)
    np.testing.assert_allclose(jax.jit(downsample, static_argnums=1)(x, taps), down, atol=1e-6)
    y = np.random.default_rng(1).standard_normal(down.shape).astype(np.float32)
    up = 4 * np.einsum("ih,jw,bijc->bhwc", rows, columns, y)
    np.testing.assert_allclose(jax.jit(upsample, static_argnums=1)(y, taps), up, atol=1e-5)


def test_resampling_without_padding_takes_the_border_from_the_image():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 8, 8, 2)), jnp.float32)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = (1, 3, 3, 1)
    np.testing.assert_allclose(downsample(padded, taps, pad=False), downsample(x, taps), atol=1e-6)


@pytest.mark.parametrize("family", ["song", "adm"])
def test_attention_on_the_way_up(family):
    # DDPM++ has it in the last block of a level only, ADM in every one; both between the two ways
    model = EDMUNet(family=family, channels=64, channel_mults=(1, 1), num_res_blocks=2, attention_resolutions=(16,))
    tree = shapes(model, 16)
    found = {name for name, block in tree.items() if "attention" in block}
    expected = {"encoder_0_block0", "encoder_0_block1", "decoder_1_in0", "decoder_0_block2"}
    if family == "adm":
        expected |= {"decoder_0_block0", "decoder_0_block1"}
    assert found == expected


def test_image_size_pins_the_levels_of_attention():
    assert jax.tree.structure(shapes(TINY.clone(image_size=8), 16)) == jax.tree.structure(shapes(TINY, 8))
    assert jax.tree.structure(shapes(TINY.clone(image_size=8), 16)) != jax.tree.structure(
        shapes(TINY.clone(attention_resolutions=(8,)), 8)
    )


def test_initialization_of_ddpmpp():
    """Xavier everywhere, times 1e-5 at the end of a branch and sqrt(0.2) for query, key and value together."""
    model = EDMUNet(channels=64, channel_mults=(1, 1), num_res_blocks=1, attention_resolutions=(), num_classes=10)
    params = jax.jit(lambda key: model.init(key, *inputs(model, 2)))(jax.random.key(0))["params"]
    block = params["decoder_1_in0"]
    xavier = np.sqrt(2 / (9 * 64 + 9 * 64))
    assert np.std(block["conv0"]["kernel"]) == pytest.approx(xavier, rel=0.02)
    assert np.std(block["conv1"]["kernel"]) == pytest.approx(1e-5 * xavier, rel=0.02)
    assert np.std(block["attention"]["proj"]["kernel"]) == pytest.approx(1e-5 * np.sqrt(2 / 128), rel=0.05)
    for name in ("to_q", "to_k", "to_v"):
        expected = np.sqrt(0.2) * np.sqrt(2 / (64 + 3 * 64))
        assert np.std(block["attention"][name]["kernel"]) == pytest.approx(expected, rel=0.05)
    biases = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "bias"]
    assert not any(np.any(bias) for bias in biases)
    assert np.abs(apply(model, params, *inputs(model, 2))).max() < 1e-3


def test_initialization_of_adm():
    """U(-1, 1) / sqrt(fan-in), biases alike, and zeros at the end of a branch; unit label vectors."""
    model = EDMUNet(
        family="adm",
        channels=64,
        channel_mults=(1, 1),
        num_res_blocks=1,
        attention_resolutions=(),
        num_classes=10,
        augment_dim=3,
    )
    params = jax.jit(lambda key: model.init(key, *inputs(model, 2)))(jax.random.key(0))["params"]
    block = params["decoder_1_in0"]
    bound = 1 / np.sqrt(9 * 64)
    for leaf in block["conv0"].values():
        assert 0.9 * bound < np.abs(leaf).max() <= bound
    for zero in (block["conv1"], block["attention"]["proj"], params["decoder_0_aux_conv"], params["map_augment"]):
        assert not any(np.any(leaf) for leaf in zero.values())
    assert np.std(params["map_label"]["kernel"]) == pytest.approx(1, rel=0.1)


def test_the_null_class_is_a_vector_of_zeros():
    outputs = [run(class_labels=jnp.full(3, label)) for label in range(5)]
    for i in range(4):
        assert np.abs(outputs[i] - outputs[4]).max() > 1e-2
    blind = FULL_PARAMS | {"map_label": FULL_PARAMS["map_label"] | {"kernel": 0 * FULL_PARAMS["map_label"]["kernel"]}}
    np.testing.assert_array_equal(run(blind, class_labels=jnp.full(3, 1)), outputs[4])


def test_every_input_reaches_its_image_and_no_other():
    out, (sample, time, labels) = run(), BATCH
    for changed in (
        run(sample=sample.at[1, 0, 0, 0].add(1.0)),
        run(timestep=time.at[1].add(0.5)),
        run(class_labels=labels.at[1].set(3)),
        run(augment_labels=jnp.zeros((3, 2)).at[1, 1].set(1.0)),
    ):
        assert np.abs(changed[1] - out[1]).max() > 1e-2
        np.testing.assert_allclose(changed[::2], out[::2], rtol=1e-4, atol=1e-5)


def test_no_augmentation_labels_are_zeros():
    np.testing.assert_array_equal(apply(FULL, FULL_PARAMS, *BATCH), run())
    with pytest.raises(ValueError, match="augment_dim=0, but augment_labels were given"):
        jax.eval_shape(lambda: TINY.init(jax.random.key(0), *BATCH[:2], augment_labels=jnp.zeros((3, 4))))


def test_random_frequencies_are_not_trained():
    embed = FourierEmbedding(256)
    params = embed.init(jax.random.key(0), jnp.zeros(1))
    assert np.std(params["params"]["frequencies"]) == pytest.approx(16, rel=0.2)
    grads = jax.grad(lambda p: jnp.sum(embed.apply(p, jnp.ones(1)) ** 3))(params)
    assert not np.any(grads["params"]["frequencies"])


def test_dropout_is_on_in_training_only():
    first, second = (run(train=True, key=jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(first - run()).max() > 1e-2
    assert np.abs(first - second).max() > 1e-2


def test_bfloat16_computes_close_by_and_answers_in_float32():
    exact = run()
    rounded = apply(FULL.clone(dtype="bfloat16"), FULL_PARAMS, *BATCH, augment_labels=jnp.zeros((3, 2)))
    assert rounded.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 5e-2


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({}, 9, "image_size=9: .* multiple of 2"),
        ({"family": "edm2"}, 8, "family='edm2': it could be 'song' or 'adm'"),
        ({"embedding": "rotary"}, 8, "embedding='rotary': it could be 'positional' or 'fourier'"),
        ({"encoder": "dense"}, 8, "encoder='dense': it could be 'standard' or 'skip' or 'residual'"),
        ({"decoder": "residual"}, 8, "decoder='residual'"),
        ({"resample_filter": (1, 2, 1)}, 8, "resample_filter=.1, 2, 1.: it must hold an even number"),
        ({"augment_dim": -1}, 8, "augment_dim=-1"),
        ({"attention_resolutions": (16,)}, 8, "no level has resolution 16"),
        ({"channels": 3}, 8, "channels=3"),
        ({"channels": 132, "channel_mults": (1, 1)}, 8, "132 channels would have 32 groups"),
        ({"family": "adm"}, 8, "a level with attention has 16 channels; family 'adm' needs a multiple of 64"),
        ({"dtype": "int8"}, 8, "dtype='int8'"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(fields, size, message):
    with pytest.raises(ValueError, match=message) as refused:
        TINY.clone(**fields).validate(size, 3)
    assert "\n" not in str(refused.value)


def test_possible_settings_are_accepted():
    for fields, size, _ in PAPERS.values():
        EDMUNet(**fields).validate(size, 3)

"""The diffusion transformer: the paper's parameter counts, its behaviour, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import MODELS
from diffusion_jax.models.dit import DiT, PatchEmbedding, position_embedding
from tests.models.networks import apply, count, inputs, randomized, shapes

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
# name -> (size, patch, latent's size, millions counted in the paper's code, with its constant position embedding)
PAPERS = {
    "S/2": ("S", 2, 32, 32.96),
    "B/4": ("B", 4, 32, 130.5),
    "B/2": ("B", 2, 32, 130.5),
    "L/2": ("L", 2, 32, 458.1),
    "XL/4": ("XL", 4, 32, 675.1),
    "XL/2": ("XL", 2, 32, 675.1),
    "XL/2 at 512": ("XL", 2, 64, 676.0),
}
TINY = DiT(out_channels=6, width=16, depth=2, num_heads=2, num_classes=3, dropout=0.5)
BATCH = inputs(TINY, 4)
PARAMS = randomized(TINY, 4)


def run(model=TINY, params=PARAMS, **changed) -> np.ndarray:
    given = dict(zip(("sample", "timestep", "class_labels"), BATCH, strict=True)) | changed
    return np.asarray(apply(model, params, **given))


@pytest.mark.parametrize("name", PAPERS)
def test_parameter_counts_of_the_paper(name):
    size, patch, latent, millions = PAPERS[name]
    width, depth, heads = SIZES[size]
    model = DiT(out_channels=8, patch_size=patch, width=width, depth=depth, num_heads=heads, num_classes=1000)
    positions = (latent // patch) ** 2 * width
    assert (count(model, latent, 4) + positions) / 1e6 == pytest.approx(millions, abs=0.06)
    model.validate(latent, 4)


def test_registry_names_the_class():
    assert MODELS["dit"] is DiT


def test_positions_are_columns_then_rows_each_as_sines_then_cosines():
    embedded = position_embedding((3, 2), (3, 2), 8)
    assert embedded.shape == (6, 8)
    row, column, frequencies = 2, 1, np.array([1, 0.01])
    expected = [np.sin(column * frequencies), np.cos(column * frequencies)]
    expected += [np.sin(row * frequencies), np.cos(row * frequencies)]
    np.testing.assert_allclose(embedded[row * 2 + column], np.concatenate(expected))


def test_positions_on_a_finer_grid_lie_in_between():
    coarse, fine = position_embedding((2, 2), (2, 2), 8), position_embedding((4, 4), (2, 2), 8)
    np.testing.assert_allclose(fine.reshape(4, 4, 8)[::2, ::2], coarse.reshape(2, 2, 8))
    pinned = run(TINY.clone(image_size=4), sample=jnp.ones((3, 8, 8, 3)))
    assert np.abs(pinned - run(sample=jnp.ones((3, 8, 8, 3)))).max() > 1e-2
    np.testing.assert_array_equal(run(TINY.clone(image_size=4)), run())


def test_patch_embedding_is_a_strided_convolution():
    embed = PatchEmbedding(5, 2, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    params = embed.init(jax.random.key(1), x)["params"]
    expected = jax.lax.conv_general_dilated(
        x, params["kernel"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(embed.apply({"params": params}, x), expected.reshape(2, 6, 5), atol=1e-5)
    # drawn as the matrix that it is: Xavier's bound for 12 inputs and 5 outputs
    bound = np.sqrt(6 / (12 + 5))
    assert 0.8 * bound < np.abs(params["kernel"]).max() <= bound


def test_a_fresh_network_predicts_zero_and_its_blocks_are_the_identity():
    fresh = jax.jit(TINY.init)(jax.random.key(0), *BATCH)["params"]
    np.testing.assert_array_equal(run(params=fresh), 0)
    # with an output layer, what comes out is a function of the patch alone: no token sees another
    opened = fresh | {"output": PARAMS["output"]}
    changed = run(params=opened, sample=BATCH[0].at[0, 0, 0, 0].add(1.0)) - run(params=opened)
    assert np.abs(changed[0, :2, :2]).max() > 1e-2
    np.testing.assert_array_equal(changed[0, 2:], 0)
    # query, key and value are drawn as one kernel
    assert np.abs(fresh["blocks_0"]["to_q"]["kernel"]).max() <= np.sqrt(6 / (16 + 3 * 16))
    assert np.std(fresh["conditioning"]["class_embedding"]["embedding"]) == pytest.approx(0.02, rel=0.4)


def test_every_input_reaches_every_pixel_of_its_image_and_no_other():
    out, (sample, time, labels) = run(), BATCH
    for changed in (
        run(sample=sample.at[1, 0, 0, 0].add(1.0)),
        run(timestep=time.at[1].add(0.5)),
        run(class_labels=labels.at[1].set(3)),
    ):
        assert np.abs(changed[1] - out[1]).min(axis=-1).min() > 1e-6
        assert np.abs(changed[1] - out[1]).max() > 1e-2
        np.testing.assert_allclose(changed[::2], out[::2], rtol=1e-4, atol=1e-5)


def test_scalar_timestep_is_the_timestep_of_all():
    np.testing.assert_array_equal(run(timestep=0.3), run(timestep=jnp.full(3, 0.3)))


def test_patches_return_to_their_places():
    # a network of one patch size reads and writes the same pixels: shifting the image by a patch moves nothing else
    still = {name: jax.tree.map(np.zeros_like, block) for name, block in PARAMS.items() if name.startswith("blocks")}
    params = PARAMS | still
    changed = run(params=params, sample=BATCH[0].at[0, 2, 1, 0].add(1.0)) - run(params=params)
    touched = np.abs(changed[0]).max(axis=-1) > 1e-6
    np.testing.assert_array_equal(touched, np.kron([[0, 0], [1, 0]], np.ones((2, 2))))


def test_conditioning_of_every_block_its_own():
    tree = shapes(TINY.clone(shared_conditioning=False), 4)
    assert {name for name in tree if name.startswith("cond")} == {"conditioning_0", "conditioning_1"}


def test_without_classes():
    model = TINY.clone(num_classes=None)
    assert "class_embedding" not in shapes(model, 4)["conditioning"]
    with pytest.raises(ValueError, match="class_labels were given"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), *BATCH))


def test_dropout_is_on_in_training_only():
    still = run()
    first, second = (apply(TINY, PARAMS, *BATCH, train=True, key=jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(first - still).max() > 1e-2
    assert np.abs(first - second).max() > 1e-2


def test_bfloat16_computes_close_by_and_answers_in_float32():
    exact = run()
    rounded = apply(TINY.clone(dtype="bfloat16"), PARAMS, *BATCH)
    assert rounded.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 5e-2


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({}, 5, "image_size=5: it must be a multiple of patch_size=2"),
        ({"image_size": 3}, 4, "model image_size=3"),
        ({"width": 18}, 4, "width=18: the embedding of positions needs a multiple of 4"),
        ({"num_heads": 3}, 4, "num_heads=3 does not divide width=16"),
        ({"depth": 0}, 4, "depth=0: it must be an integer from 1 up"),
        ({"mlp_ratio": 0.0}, 4, "mlp_ratio=0.0"),
        ({"mlp_norm_eps": 0.0}, 4, "mlp_norm_eps=0.0"),
        ({"dropout": 1.0}, 4, "dropout=1.0"),
        ({"dtype": "int8"}, 4, "dtype='int8'"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(fields, size, message):
    with pytest.raises(ValueError, match=message) as refused:
        TINY.clone(**fields).validate(size, 3)
    assert "\n" not in str(refused.value)

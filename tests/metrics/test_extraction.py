"""Features and moments do not depend on how images are batched, mixed or split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import metrics
from diffusion_jax.metrics import extraction as extracting
from diffusion_jax.metrics.extraction import Extraction, batches_by_size, extract
from diffusion_jax.metrics.features import resize as resizing
from diffusion_jax.metrics.features.extractor import Extractor
from diffusion_jax.metrics.image_sets import Item
from tests.metrics import toy

EXTRACTOR = toy.extractor()
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (37, 8, 8, 3), np.uint8)
# every third image is wider
MIXED = [image if i % 3 else np.concatenate([image, image[:, :5]], 1) for i, image in enumerate(IMAGES)]
EXPECTED_SQUARE = np.asarray(EXTRACTOR.apply(EXTRACTOR.params, IMAGES)["features"])
EXPECTED = np.concatenate([np.asarray(EXTRACTOR.apply(EXTRACTOR.params, image[None])["features"]) for image in MIXED])


def items(images):
    return [Item(str(i), image) for i, image in enumerate(images)]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_rows_keep_their_order_and_moments_count_everything(batch_size):
    extraction = Extraction(EXTRACTOR, moments_of=["features", "spatial"], keep=["features", "logits_unbiased"])
    reading = extract(items(MIXED), extraction, batch_size=batch_size)
    assert reading.sizes == {(8, 8): 24, (8, 13): 13}
    assert not reading.unreadable
    rows = extraction.rows()
    np.testing.assert_allclose(rows, EXPECTED, atol=1e-6)
    mean, covariance, count = extraction.moments()
    assert count == 37
    expected_mean, expected_covariance = metrics.moments(rows)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-11)
    np.testing.assert_allclose(covariance, expected_covariance, atol=1e-11)
    np.testing.assert_allclose(extraction.moments("spatial")[0], (rows[:, :4].astype(float) ** 2).mean(0), atol=1e-7)


def test_many_sizes_take_few_programs(monkeypatch):
    """Images beyond the first sizes are resized on the host, and have the features that the device gives them."""

    def fit(images):
        return resizing.resize(images, 8, 8, resizing.BILINEAR)

    def apply_fitted(params, x):
        return {"features": jnp.tanh(x.reshape(len(x), -1)[:, : toy.DIM] / 255 * params)}

    extractor = Extractor(
        "fits", lambda params, x: apply_fitted(params, fit(x)), jnp.float32(2), toy.DIM, "", {}, None, fit, apply_fitted
    )
    shapes = []
    original = extracting._step

    def counted(params, shards, images, *others, **options):
        shapes.append(images.shape)
        return original(params, shards, images, *others, **options)

    monkeypatch.setattr(extracting, "_step", counted)
    many = [RANDOM.integers(0, 256, (6 + i % 9, 20 - i % 7, 3), np.uint8) for i in range(40)]
    extraction = Extraction(extractor, keep=["features"])
    reading = extract(items(many), extraction, batch_size=16)
    assert len(reading.sizes) > 30 and len(set(shapes)) == extracting.OWN_PROGRAMS + 1
    outputs = [extractor.apply(extractor.params, jnp.asarray(image[None]))["features"] for image in many]
    expected = np.concatenate(outputs)
    np.testing.assert_allclose(extraction.rows(), expected, atol=1e-5)


def test_devices_share_the_work():
    mesh = jax.make_mesh(
        (2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=jax.devices()
    )
    one = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    for over in (mesh, one):
        extraction = Extraction(EXTRACTOR, over, keep=["features"])
        extract(items(IMAGES), extraction, batch_size=16)
        shard = extraction._shards["features"].gram.high
        assert shard.addressable_shards[0].data.shape == (1, toy.DIM, toy.DIM)
        # Rows are all images' in order; the moments are theirs, whoever added which.
        np.testing.assert_allclose(extraction.rows(), EXPECTED_SQUARE, atol=1e-6)
        mean, covariance, count = extraction.moments()
        expected_mean, expected_covariance = metrics.moments(extraction.rows())
        assert count == 37
        np.testing.assert_allclose(mean, expected_mean, atol=1e-11)
        np.testing.assert_allclose(covariance, expected_covariance, atol=1e-11)


def test_images_on_the_devices_are_measured_where_they_are():
    extraction = Extraction(EXTRACTOR, keep=["features"])
    grey = IMAGES[:32, :, :, :1]
    extraction.add_sharded(jax.device_put(grey[:16], extraction.split), 16)
    extraction.add_sharded(jax.device_put(grey[16:], extraction.split), 5)  # the rest was only drawn to fill the batch
    assert extraction.count == 21
    expected = EXTRACTOR.apply(EXTRACTOR.params, jnp.repeat(grey[:21], 3, -1))["features"]
    np.testing.assert_allclose(extraction.rows(), expected, atol=1e-6)
    np.testing.assert_allclose(extraction.moments()[0], np.asarray(expected, float).mean(0), atol=1e-7)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_unreadable_images(skip_bad, monkeypatch):
    """Without skip_bad nothing is computed after the first, but all are found."""
    bad = [Item("bad 0", "broken"), *items(IMAGES[:9]), Item("bad 1", "truncated")]
    computed = []
    real = extracting.Extraction.add
    monkeypatch.setattr(Extraction, "add", lambda self, *rest: (computed.append(1), real(self, *rest)))
    extraction = Extraction(EXTRACTOR)
    progress = []
    reading = extract(bad, extraction, batch_size=4, skip_bad=skip_bad, progress=progress.append)
    assert reading.unreadable == [("bad 0", "broken"), ("bad 1", "truncated")]
    assert sum(progress) == 11
    assert len(computed) == (3 if skip_bad else 0)
    assert extraction.count == (9 if skip_bad else 0)


def test_batches_are_full_where_they_can_be():
    sizes = [(len(indices), images.shape[2]) for indices, images in batches_by_size(iter(MIXED), 8)]
    assert sorted(sizes) == [(5, 13), (8, 8), (8, 8), (8, 8), (8, 13)]


def test_no_images():
    with pytest.raises(ValueError, match="at least 2 images, got 0"):
        Extraction(EXTRACTOR).moments()

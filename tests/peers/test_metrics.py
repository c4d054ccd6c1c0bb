"""Scores of random features beside torch-fidelity: sides of unequal size, more features than images, ties."""

import sys
from unittest import mock

import numpy as np
import pytest
import torch

from diffusion_jax import metrics
from tests.peers.cases import agree

# Its package needs torchvision for networks and data sets, of which none is used here.
VISION = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in VISION}):
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

TOLERANCE = 1e-5


def sides(rng):
    """Two sets of features float64 [N, d]: Gaussians apart, or, one time in three, small integers with exact ties."""
    width = int(rng.integers(1, 40))
    first, second = (int(rng.integers(20, 200)) for _ in range(2))
    if rng.random() < 1 / 3:
        return rng.integers(0, 5, (first, width)) + 0.0, rng.integers(0, 5, (second, width)) + 0.0
    mix = rng.normal(size=(width, width))
    return rng.normal(size=(first, width)) @ mix + rng.normal(size=width), rng.normal(size=(second, width))


def frechet(rng):
    x, y = sides(rng)
    statistics = [metric_fid.fid_features_to_statistics(torch.from_numpy(one)) for one in (x, y)]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    return metrics.frechet_distance(*metrics.moments(x), *metrics.moments(y)), theirs


def kernel(rng):
    x, y = sides(rng)
    size, subsets = int(rng.integers(2, min(len(x), len(y)) + 1)), int(rng.integers(1, 20))
    theirs = metric_kid.kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=subsets, kid_subset_size=size, verbose=False
    )
    keys = ("kernel_inception_distance_mean", "kernel_inception_distance_std")
    return metrics.kernel_distance(x, y, subsets, size), [theirs[key] for key in keys]


def inception(rng):
    logits, splits = (
        3 * rng.normal(size=(int(rng.integers(10, 300)), int(rng.integers(2, 50)))),
        int(rng.integers(1, 10)),
    )
    theirs = metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits, shuffle=False)
    return metrics.inception_score(logits, splits), list(theirs.values())


def neighbours(rng):
    real, generated = sides(rng)
    k = int(rng.integers(1, 8))
    theirs = metric_prc.prc_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real),
        prc_neighborhood=k, prc_batch_size=64, save_cpu_ram=bool(rng.integers(2)), verbose=False,
    )  # fmt: skip
    return metrics.precision_recall(real, generated, k), [theirs["precision"], theirs["recall"]]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("score", [frechet, kernel, inception, neighbours], ids=lambda score: score.__name__)
def test_scores(score, seed, record_property):
    ours, theirs = score(np.random.default_rng(seed))
    agree(record_property, score.__name__, lambda: np.array(ours), np.array(theirs), TOLERANCE)

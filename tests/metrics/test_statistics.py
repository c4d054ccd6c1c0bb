"""Statistics files: our own say what made them, others' are recognised, and what differs is not mixed."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax import metrics
from diffusion_jax.metrics import foreign_statistics, protocols, statistics
from diffusion_jax.metrics.distances import Gaussian
from diffusion_jax.metrics.features.extractor import Extractor

D = 6
FEATURES = np.random.default_rng(0).normal(size=(30, D))
MU, SIGMA = metrics.moments(FEATURES)
EXTRACTOR = Extractor(
    name=protocols.INCEPTION,
    apply=lambda params, images: {},
    params={},
    feature_dim=D,
    weights_sha256="abc",
    settings={"precision": "float32-highest", "preprocessing": "tf"},
)


def made_by(protocol):
    return statistics.identity(EXTRACTOR, protocols.get(protocol))


def test_own_files_come_back_whole(tmp_path):
    spatial = Gaussian(MU[:3], SIGMA[:3, :3])
    known = made_by("adm") | {"data_sha256": "d" * 64}
    statistics.save(tmp_path / "new" / "s.npz", statistics.Statistics(Gaussian(MU, SIGMA), spatial, 30, known, ""))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["s.npz"]  # nothing half written stays
    found = foreign_statistics.load(tmp_path / "new" / "s.npz")
    np.testing.assert_array_equal(found.features.mean, MU)
    np.testing.assert_array_equal(found.features.covariance, SIGMA)
    np.testing.assert_array_equal(found.spatial.covariance, SIGMA[:3, :3])
    assert found.num_images == 30
    assert known.items() <= dict(found.made_by).items()
    assert {"jax", "numpy", "diffusion_jax"} <= set(found.made_by["versions"])


@pytest.mark.parametrize(
    ("name", "arrays", "origin", "protocol"),
    [
        ("VIRTUAL_imagenet64_labeled.npz", {"arr_0", "mu", "sigma", "mu_s", "sigma_s"}, "ADM", "adm"),
        ("fid_stats_cifar10_train.npz", {"mu", "sigma"}, "TTUR", "tf"),
        ("fid_stats_cifar10_train_pytorch.npz", {"mu", "sigma"}, "pytorch-fid", "pytorch-fid"),
        ("fid_stats_imagenet64_guided_diffusion.npz", {"mu", "sigma"}, "ADM", "adm"),
        ("cifar10-32x32.npz", {"mu", "sigma"}, "EDM", "edm"),
        ("imagenet-64x64-baseline.npz", {"mu", "sigma"}, "EDM", "edm"),
        ("cifar10_clean_train_32.npz", {"mu", "sigma"}, "clean-fid", "clean"),
        ("cifar10_legacy_tensorflow_test_32.npz", {"mu", "sigma"}, "clean-fid", "tf"),
        ("ffhq_legacy_pytorch_trainval_1024.npz", {"mu", "sigma"}, "clean-fid", "pytorch-fid"),
        ("jit_in256_stats.npz", {"mu", "sigma"}, "JiT", "torch-fidelity"),
        ("imagenet_256_fid_stats.npz", {"ref_mu", "ref_sigma"}, "MeanFlow", "tf"),
        ("cifar10_stats.npz", {"pool_3", "logits"}, "score_sde", "score_sde"),
        ("afhq_cat_clean_train_512_kid.npz", {"feats"}, "clean-fid", "clean"),
        ("mine.npz", {"mu", "sigma"}, "of unknown origin (mu and sigma in an .npz)", None),
    ],
)
def test_published_npz_files(tmp_path, name, arrays, origin, protocol):
    values = {"mu": MU.astype(np.float32), "sigma": SIGMA, "ref_mu": MU, "ref_sigma": SIGMA, "mu_s": MU[:2]}
    values |= {"sigma_s": SIGMA[:2, :2], "pool_3": FEATURES[:, None, None], "feats": FEATURES, "logits": FEATURES}
    values["arr_0"] = np.zeros((4, 2, 2, 3), np.uint8)
    np.savez(tmp_path / name, **{key: values[key] for key in arrays})
    found = foreign_statistics.load(tmp_path / name)
    assert found.origin == origin
    assert found.made_by.get("protocol") == protocol
    assert found.features.mean.dtype == found.features.covariance.dtype == np.float64
    np.testing.assert_allclose(found.features.mean, MU, rtol=1e-6)
    np.testing.assert_allclose(found.features.covariance, SIGMA, rtol=1e-12, atol=1e-15)
    assert found.has_images == ("arr_0" in arrays)
    assert (found.rows is not None) == bool(arrays & {"pool_3", "feats"})
    assert (found.spatial is not None) == ("mu_s" in arrays)


def test_pickles_of_edm2_and_stylegan3(tmp_path):
    other = 2 * MU
    content = {"num_images": 30, "fid": {"mu": MU, "sigma": SIGMA}, "fd_dinov2": {"mu": other, "sigma": SIGMA}}
    (tmp_path / "img512.pkl").write_bytes(pickle.dumps(content))
    found = foreign_statistics.load(tmp_path / "img512.pkl")
    assert (found.origin, found.num_images, found.made_by["protocol"]) == ("EDM2", 30, "edm")
    np.testing.assert_array_equal(found.features.mean, MU)
    dino = foreign_statistics.load(tmp_path / "img512.pkl", "dinov2-vitl14")
    np.testing.assert_array_equal(dino.features.mean, other)
    assert dino.made_by["extractor"] == "dinov2-vitl14"

    sums = {"num_items": 30, "raw_mean": FEATURES.sum(0), "raw_cov": FEATURES.T @ FEATURES, "all_features": None}
    (tmp_path / "ffhq.pkl").write_bytes(pickle.dumps(sums))
    found = foreign_statistics.load(tmp_path / "ffhq.pkl")
    assert found.made_by["covariance_divisor"] == "N"
    np.testing.assert_allclose(found.features.covariance, np.cov(FEATURES, rowvar=False, ddof=0), atol=1e-13)


@pytest.mark.parametrize("kind", ["images", "numpy"])
def test_the_cache_of_torch_fidelity(kind):
    """Written by PyTorch's torch.save, of tensors and of arrays; the features are those of this file's top."""
    found = foreign_statistics.load(Path(__file__).parent / "fixtures" / f"{kind}-inception-v3-compat-stat-fid-2048.pt")
    assert (found.origin, found.made_by["protocol"]) == ("torch-fidelity", "torch-fidelity")
    np.testing.assert_allclose(found.features.mean, MU, rtol=1e-6)
    np.testing.assert_allclose(found.features.covariance, SIGMA, rtol=1e-12, atol=1e-15)


class Hostile:
    def __reduce__(self):
        return (print, ("run",))


def test_a_hostile_pickle_is_refused(tmp_path, capsys):
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"fid": Hostile()}))
    with pytest.raises(statistics.StatisticsError, match=r"bad\.pkl"):
        foreign_statistics.load(tmp_path / "bad.pkl")
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04 nonsense"), "damaged"),
        (lambda path: np.savez(path, other=MU), "holds other; expected mu and sigma"),
        (lambda path: np.savez(path, mu=MU, sigma=SIGMA[:2]), r"must be \[d\] and \[d, d\]"),
        (lambda path: np.savez(path, mu=np.array([{}], object), sigma=SIGMA), "allow_pickle"),
        (lambda path: np.savez(path, manifest=np.array(json.dumps({"format": "diffusion_jax 9"}))), "newer version"),
        (lambda path: None, "no such file"),
    ],
)
def test_bad_files_are_named(tmp_path, write, message):
    write(tmp_path / "x.npz")
    with pytest.raises(statistics.StatisticsError, match=rf"x\.npz.*{message}"):
        foreign_statistics.load(tmp_path / "x.npz")


def test_images_alone_are_no_statistics(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((4, 2, 2, 3), np.uint8))
    assert foreign_statistics.load(tmp_path / "x.npz") is None


def test_what_was_measured_differently_is_not_mixed():
    """Names may differ where nothing else does; resize, divisor, network and precision may not."""
    ours = made_by("adm")
    statistics.check_comparable(foreign_statistics._made_by("edm"), ours, ("a", "b"))
    statistics.check_comparable({}, ours, ("a", "b"))
    with pytest.raises(statistics.StatisticsError, match=r"\(preprocessing: 'clean' and 'tf'\)"):
        statistics.check_comparable(foreign_statistics._made_by("clean"), ours, ("a", "b"))
    with pytest.raises(statistics.StatisticsError, match="covariance_divisor: 'N' and 'N - 1'"):
        statistics.check_comparable(foreign_statistics._made_by("stylegan3"), ours, ("a", "b"))
    with pytest.raises(statistics.StatisticsError, match="extractor: 'inception-tfgan'"):
        statistics.check_comparable(foreign_statistics._made_by("score_sde"), ours, ("a", "b"))
    for field in ("weights_sha256", "precision"):
        assert statistics.differences(ours | {field: "other"}, ours) == [f"{field}: 'other' and {ours[field]!r}"]


def test_the_cache_is_of_content(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = statistics.cache_path("d" * 64, made_by("adm"))
    assert path.parent == tmp_path / "diffusion_jax" / "statistics"
    assert path == statistics.cache_path("d" * 64, made_by("edm"))  # the same numbers under another name
    others = [("e" * 64, made_by("adm")), ("d" * 64, made_by("clean")), ("d" * 64, made_by("stylegan3"))]
    others.append(("d" * 64, made_by("adm") | {"weights_sha256": "other"}))
    assert len({path, *(statistics.cache_path(*other) for other in others)}) == 5


def test_a_cache_that_does_not_work_is_no_error(tmp_path):
    kept = statistics.Statistics(Gaussian(MU, SIGMA), None, 30, made_by("tf"), "")
    (tmp_path / "file").write_text("no folder")
    statistics.to_cache(tmp_path / "file" / "x.npz", kept)  # cannot be written
    assert statistics.from_cache(tmp_path / "file" / "x.npz") is None
    (tmp_path / "x.npz").write_bytes(b"PK damaged")
    assert statistics.from_cache(tmp_path / "x.npz") is None
    statistics.to_cache(tmp_path / "x.npz", kept)
    assert statistics.from_cache(tmp_path / "x.npz").num_images == 30


def test_divisor():
    moments = (MU, SIGMA, 30)
    np.testing.assert_allclose(
        statistics.with_divisor(moments, "N").covariance, np.cov(FEATURES, rowvar=False, ddof=0), atol=1e-14
    )
    np.testing.assert_array_equal(statistics.with_divisor(moments, "N - 1").covariance, SIGMA)

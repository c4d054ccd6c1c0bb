"""./launch/local.sh metrics: one JSON object on stdout, and for bad input one line and exit code 2."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax import metrics
from diffusion_jax.metrics import command, extraction, features, protocols
from tests.metrics import toy

RANDOM = np.random.default_rng(0)
REAL = RANDOM.integers(0, 256, (60, 8, 8, 3), np.uint8)
FAKE = RANDOM.integers(0, 200, (50, 8, 8, 3), np.uint8)


@pytest.fixture
def sets(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    one = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    monkeypatch.setattr(extraction, "local_mesh", lambda: one)  # compiles sooner than eight devices
    for name, images in (("real", REAL), ("fake", FAKE)):
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{index:03}.png")
        np.savez(tmp_path / f"{name}.npz", images)
    return tmp_path


@pytest.fixture
def toys(monkeypatch):
    """Inception is a toy; the list gets what it was loaded with."""
    loaded = []

    def load(name, weights=None, *, fast=False, preprocessing=None):
        loaded.append((name, weights, fast, preprocessing))
        return toy.extractor(name, preprocessing, fast)

    monkeypatch.setattr(features, "load", load)
    return loaded


def run(capsys, *arguments, code=0, loaders=None):
    assert command.main(arguments, loaders) == code
    out, err = capsys.readouterr()
    if code:
        assert out == ""
        return err.strip().splitlines()
    return json.loads(out), err


def rows(images):
    extractor = toy.extractor()
    outputs = extractor.apply(extractor.params, images)
    return {name: np.asarray(values) for name, values in outputs.items()}


def test_every_number_is_that_of_its_function(sets, toys, capsys):
    result, err = run(
        capsys, "--generated", "fake", "--reference", "real.npz", "--metrics", "fid,sfid,fid-infinity,is,kid,prc,dc"
    )  # fmt: skip
    real, fake = rows(REAL), rows(FAKE)
    expected = {
        "fid": metrics.frechet_distance(*metrics.moments(fake["features"]), *metrics.moments(real["features"])),
        "sfid": metrics.frechet_distance(*metrics.moments(fake["spatial"]), *metrics.moments(real["spatial"])),
        "inception_score": metrics.inception_score(fake["logits_unbiased"])[0],
        "kid": metrics.kernel_distance(fake["features"], real["features"], 100, 50)[0],
    }
    expected["precision"], expected["recall"] = metrics.precision_recall(real["features"], fake["features"])
    expected["density"], expected["coverage"] = metrics.density_coverage(real["features"], fake["features"])
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-4), name
    low, high = result["fid_interval_95"]
    assert low < result["fid"] < high
    assert result["fid_infinity"] < result["fid"]
    assert result["kid_subset_size"] == 50
    assert result["generated"]["num_images"] == 50
    assert result["reference"]["sizes"] == {"8x8": 60}
    assert result["protocol"]["name"] == "tf"
    assert result["protocol"]["weights_sha256"] == "toy"
    assert toys == [("inception-2015-12-05", None, False, "tf")]
    assert any("50 images, but published numbers of protocol tf are of 50000" in line for line in result["warnings"])
    assert "--generated: 100%" in err


def test_statistics_can_be_saved_and_are_refused_where_they_do_not_fit(sets, toys, capsys):
    direct, _ = run(capsys, "--generated", "fake", "--reference", "real", "--protocol", "clean", "--metrics", "fid")
    run(capsys, "--reference", "real", "--protocol", "clean", "--save-statistics", "s.npz")
    # the protocol follows from the file
    saved, _ = run(capsys, "--generated", "fake", "--reference", "s.npz")
    assert saved["fid"] == pytest.approx(direct["fid"], rel=1e-10)
    assert saved["protocol"]["name"] == "clean"
    assert saved["reference"]["made_by"]["data"] == "real"
    alone, _ = run(capsys, "--generated", "real", "--protocol", "clean", "--save-statistics", "alone.npz")
    assert alone["inception_score"] > 1
    both, _ = run(capsys, "--generated", "fake", "--reference", "alone.npz", "--metrics", "fid,sfid")
    assert both["fid"] == pytest.approx(direct["fid"], rel=1e-10)
    assert both["sfid"] > 0
    (line,) = run(capsys, "--generated", "fake", "--reference", "s.npz", "--protocol", "adm", code=2)
    assert "preprocessing: 'clean' and 'tf'" in line
    forced, _ = run(capsys, "--generated", "fake", "--reference", "s.npz", "--protocol", "adm", "--force")
    assert forced["protocol"]["mixed"] == ["preprocessing: 'clean' and 'tf'"]
    (line,) = run(capsys, "--generated", "fake", "--reference", "s.npz", "--metrics", "kid", code=2)[-1:]
    assert "--reference must hold images" in line


def test_no_more_reference_images_are_compared_image_by_image_than_the_protocol_says(sets, toys, capsys, monkeypatch):
    few = dataclasses.replace(protocols.get("adm"), reference_rows=20, neighbour_precision="float64")
    monkeypatch.setitem(protocols.PROTOCOLS, "adm", few)
    arguments = ("--generated", "fake.npz", "--reference", "real.npz", "--metrics", "fid,prc", "--protocol", "adm")
    found, _ = run(capsys, *arguments)
    real, fake = (rows(images)["features"] for images in (REAL, FAKE))
    precision, recall = metrics.precision_recall(real[::3], fake, 3)
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall))
    moments = (*metrics.moments(fake), *metrics.moments(real))
    assert found["fid"] == pytest.approx(metrics.frechet_distance(*moments), rel=1e-6)
    assert found["protocol"]["reference_rows"] == 20


def test_reference_moments_are_cached_by_content(sets, toys, capsys):
    arguments = ("--generated", "fake", "--metrics", "fid,sfid", "--reference")
    first, _ = run(capsys, *arguments, "real")
    assert len(list((sets / "cache" / "diffusion_jax" / "statistics").iterdir())) == 1
    (sets / "real").rename(sets / "moved")
    second, err = run(capsys, *arguments, "moved")
    assert "cached" in second["reference"]
    assert "--reference: 100%" not in err
    assert (second["fid"], second["sfid"]) == (first["fid"], first["sfid"])
    Image.fromarray(FAKE[0]).save(sets / "moved" / "000.png")
    assert "cached" not in run(capsys, *arguments, "moved")[0]["reference"]
    assert "cached" not in run(capsys, *arguments, "moved", "--no-cache")[0]["reference"]


def test_adm_files_have_moments_and_images(sets, toys, capsys):
    whole = rows(np.concatenate([REAL, REAL[:20]]))
    mu, sigma = metrics.moments(whole["features"])
    np.savez("VIRTUAL_x.npz", arr_0=REAL, mu=mu, sigma=sigma, mu_s=mu[:4], sigma_s=sigma[:4, :4])
    result, _ = run(capsys, "--generated", "fake", "--reference", "VIRTUAL_x.npz", "--metrics", "fid,prc")
    fake = rows(FAKE)["features"]
    assert result["protocol"]["name"] == "adm"
    assert result["fid"] == pytest.approx(metrics.frechet_distance(*metrics.moments(fake), mu, sigma), rel=1e-6)
    expected = metrics.precision_recall(rows(REAL)["features"], fake, precision="float16")
    assert (result["precision"], result["recall"]) == pytest.approx(expected, abs=0.05)


def test_unreadable_images_are_listed(sets, toys, capsys):
    (sets / "fake" / "010.png").write_bytes(b"nothing")
    (sets / "fake" / "020.png").write_bytes((sets / "fake" / "021.png").read_bytes()[:60])
    lines = run(capsys, "--generated", "fake", "--reference", "real", code=2)
    assert any(line.startswith("cannot read 010.png: is damaged, or no ") for line in lines)
    assert any(line.startswith("cannot read 020.png: ") for line in lines)
    assert "2 of 50 images cannot be read" in lines[-1]
    result, _ = run(capsys, "--generated", "fake", "--reference", "real", "--skip-bad")
    assert result["generated"]["num_images"] == 48
    assert result["generated"]["skipped"] == ["010.png", "020.png"]


def test_warnings(sets, toys, capsys):
    Image.fromarray(FAKE[0]).save(sets / "fake" / "x.jpg")
    Image.fromarray(FAKE[0]).resize((9, 9)).save(sets / "fake" / "y.png")
    warned = " ".join(run(capsys, "--generated", "fake", "--reference", "real")[0]["warnings"])
    assert "1 of 52 files are JPEG or WebP" in warned
    assert "images of 2 sizes are mixed: 8x8 (51), 9x9 (1)" in warned
    assert "kid: its subsets are of 52 images and not of 1000" in warned
    np.savez("few.npz", FAKE[:4])
    warned = run(capsys, "--generated", "few.npz", "--reference", "real", "--metrics", "fid")[0]["warnings"]
    assert any("4 images are too few for a covariance of 6 features" in line for line in warned)


def test_tfds_names_go_to_their_loader(sets, toys, capsys):
    files = [path.read_bytes() for path in sorted((sets / "real").iterdir())]
    loaders = {"tfds": lambda name: command.image_sets.EncodedImages(files, name)}
    direct, _ = run(capsys, "--generated", "fake", "--reference", "real", "--no-cache")
    named, _ = run(capsys, "--generated", "fake", "--reference", "tfds:x/train", loaders=loaders)
    assert named["fid"] == direct["fid"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--generated SET is missing"),
        (("--generated", "nowhere"), "nowhere: no such file or folder"),
        (("--generated", "fake", "--metrics", "fid"), "--reference SET is missing, which metric 'fid'"),
        (("--generated", "fake", "--reference", "real", "--metrics", "fod"), "metric 'fod' is unknown; it can be fid"),
        (("--generated", "fake", "--reference", "real", "--features", "vgg"), "features 'vgg' is unknown; it can be "),
        (("--generated", "fake", "--reference", "real", "--protocol", "x"), "protocol 'x' is unknown; it can be adm"),
        (("--generated", "fake", "--features", "digits", "--metrics", "is"), "needs Inception's features"),
        (("--generated", "fake", "--reference", "real", "--metrics", "cmmd"), "needs CLIP's features"),
        (("--generated", "fake", "--reference", "real", "--features", "digits", "--protocol", "adm"), "--protocol adm"),
        (("--generated", "fake", "--batch-size", "0"), "--batch-size is 0"),
        (("--generated", "fake", "--surprise"), "unrecognized arguments: --surprise"),
        (("--generated", "fake", "--batch-size", "many"), "invalid int value: 'many'"),
    ],
)
def test_bad_input_is_one_line(sets, toys, capsys, arguments, message):
    (line,) = run(capsys, *arguments, code=2)
    assert message in line


def test_help_names_everything(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in (*metrics.measure.METRICS, *metrics.protocols.PROTOCOLS, *features.NAMES, "--skip-bad", "tfds:"):
        assert word in text


def test_missing_weights_are_one_line(sets, capsys):
    (line,) = run(capsys, "--generated", "fake", "--reference", "real", "--weights", "nowhere.pth", code=2)
    assert "nowhere.pth" in line


def test_unknown_weights_are_a_plain_line_and_then_what_is_wrong(sets, capsys):
    np.savez("other.npz", w=np.zeros(3))
    sides = ("--generated", "fake", "--reference", "real", "--features", "efficientnet-lite0")
    warned, refused = run(capsys, *sides, "--weights", "other.npz", code=2)
    assert warned.startswith("warning: other.npz: not a known file of ")
    assert "not the weights of EfficientNet-Lite0" in refused


def test_the_module_runs_and_other_features_never_give_a_number_called_fid(sets):
    """As a process: stdout is JSON alone."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    start = [sys.executable, "-m", "diffusion_jax.metrics", "--generated", "fake.npz", "--reference", "real"]
    done = subprocess.run([*start, "--features", "digits"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    slug = "digits_classifier"
    names = {f"frechet_distance_{slug}", f"kernel_distance_{slug}", f"precision_{slug}", f"recall_{slug}"}
    assert names <= set(result)
    assert not {"fid", "kid", "precision", "recall"} & set(result)
    assert result["protocol"]["extractor"] == "digits-classifier"

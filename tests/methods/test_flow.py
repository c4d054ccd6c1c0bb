"""The flow as a method: the bits it counts, what it draws, and a run through the command."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import hub, main
from diffusion_jax.config import ConfigError, build
from diffusion_jax.jobs.session import Session
from tests.configs import tiny_flow

KEYS = jax.random.split(jax.random.key(3), 6)


def model(**method):
    config = tiny_flow.get_config()
    config.method.update(method)
    return build.model(config, build.of_classes(10))


def batch(images):
    return {
        "image": images,
        "condition": {"label": jnp.arange(len(images)) % 10},
        "position": jnp.arange(len(images)),
    }


def images_of(levels, count=6):
    return jnp.asarray(
        np.random.default_rng(0).integers(0, levels, (count, 8, 8, 1)) / (levels - 1) * 2 - 1, jnp.float32
    )


@pytest.mark.parametrize("levels", [17, 256])
def test_values_are_spread_over_their_level_and_come_back(levels):
    flow, images = model(pixel_levels=levels), images_of(levels)
    spread = np.asarray(flow.dequantised(images, KEYS), np.float64)
    level = np.round((np.asarray(images, np.float64) + 1) / 2 * (levels - 1))
    share = (spread + 1) / 2 * levels - level
    assert share.min() > -1e-4 and share.max() < 1 + 1e-4 and abs(share.mean() - 0.5) < 0.05
    np.testing.assert_allclose(flow.quantised(jnp.asarray(spread)), images, atol=1e-6)


@pytest.mark.parametrize("levels", [17, 256])
def test_bits_are_those_of_the_density_over_a_level(levels):
    """-log2 of (density x width of a level) by NumPy, from z and the determinant of the network's Jacobian."""
    flow, images = model(pixel_levels=levels), images_of(levels)
    params = flow.init(jax.random.key(0), batch(images))
    params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(1), p.shape), params)
    labels = jnp.arange(6) % 10
    bits = flow.bits_per_dimension(params, images, labels, KEYS)
    x = flow.dequantised(images, KEYS)

    def latent(x, label):
        return flow.network.apply({"params": params}, x[None], label[None])[0].ravel()

    for row in range(2):
        z = np.asarray(latent(x[row], labels[row]), np.float64)
        jacobian = np.asarray(jax.jacfwd(latent)(x[row], labels[row]), np.float64).reshape(64, 64)
        log_density = -0.5 * (z @ z + 64 * np.log(2 * np.pi)) + np.linalg.slogdet(jacobian)[1]
        expected = -(log_density + 64 * np.log(2 / levels)) / (64 * np.log(2))
        np.testing.assert_allclose(bits[row], expected, rtol=1e-5)


def test_the_loss_of_an_example_is_its_own_and_the_first_batch_sets_the_scales():
    flow, images = model(), images_of(17, 12)
    whole = batch(images)
    params = flow.init(jax.random.key(0), whole)
    _, metrics = flow.loss(params, whole, jax.random.key(1), 0)
    part = jax.tree.map(lambda leaf: leaf[3:5], whole)
    # dropout is drawn for a batch at once, and so left out here
    plain = model()
    object.__setattr__(plain, "network", plain.network.clone(dropout=0.0))
    losses = [plain.loss(params, part_of, jax.random.key(1), 0)[1]["loss"][0] for part_of in (whole, part)]
    np.testing.assert_allclose(losses[0][3:5], losses[1], rtol=1e-5)
    assert 0.3 < float(metrics["latent_variance"][0].mean()) < 3
    other = flow.init(jax.random.key(0), batch(0.1 * images))
    scales = [jax.tree.leaves(p["norm_0_0"]["log_scale"])[0].mean() for p in (params, other)]
    assert scales[1] > scales[0] + 0.1


def test_images_are_levels_of_their_keys_and_class_and_a_walk_ends_in_them():
    flow = model()
    params = flow.init(jax.random.key(0), batch(images_of(17)))
    params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(1), p.shape), params)
    condition, given = {"label": jnp.arange(6) % 10}, {"temperature": np.float32(0.9)}
    stride, captions = flow.frames(4)
    images, frames = flow.draw(params, KEYS, condition, given, stride)
    assert frames.shape == (4, 6, 8, 8, 1) and len(captions) == 4
    np.testing.assert_array_equal(frames[-1], images)
    level = (np.asarray(images) + 1) / 2 * 16
    np.testing.assert_allclose(level, np.round(level), atol=1e-4)
    alone, _ = flow.draw(params, KEYS[2:3], {"label": jnp.array([2])}, given, None)
    np.testing.assert_array_equal(alone[0], images[2])
    asked, _ = flow.draw(params, KEYS, {"label": jnp.full(6, 9)}, given, None)
    assert np.abs(np.asarray(asked - images)).max() > 0.1
    cold, _ = flow.draw(params, KEYS, condition, {"temperature": np.float32(0)}, None)
    np.testing.assert_array_equal(
        cold[0],
        flow.draw(params, KEYS[::-1], {"label": jnp.zeros(6, jnp.int32)}, {"temperature": np.float32(0)}, None)[0][0],
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("flow") / "run"
    assert main.main(["main", "--config", tiny_flow.__file__, "--workdir", str(workdir)]) == 0
    return workdir


def test_a_whole_run_leaves_everything(whole, capsys):
    for name in ("samples.png", "sampling.gif", "interpolation.png", "report.html"):
        assert (whole / name).stat().st_size, name
    scores = json.loads((whole / "evaluation.json").read_text())
    bits = scores["bits_per_dimension"]
    assert (
        bits["images"] == 10
        and "exact density" in bits["estimate"]
        and bits["uncompressed"] == pytest.approx(4.0875, abs=1e-3)
    )
    assert scores["protocol"]["temperature"] == 1
    text = (whole / "report.html").read_text(encoding="utf-8")
    assert (
        "A class-conditional normalising flow" in text
        and "Mean square of the latents" in text
        and "they cost 4.087" in text
    )
    assert "epsilon" not in text
    # the bits of the file are those of the model, of the same noise
    session = Session(tiny_flow.get_config(), whole)
    again = session.method.scores(session)["bits_per_dimension"]
    assert again == pytest.approx(bits)
    network, params = hub.load(whole)
    z, _ = network.apply({"params": params}, images_of(17), jnp.arange(6))
    assert np.isfinite(z).all()
    capsys.readouterr()
    assert main.main(["main", "--mode", "sample", "--from", str(whole), "--out", str(whole / "out")]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and "draws by steps of noise" in line, line


def test_what_cannot_be_is_one_line(tmp_path):
    config = tiny_flow.get_config()
    config.model.levels = 4
    with pytest.raises(ConfigError, match=r"config.model(\.levels|: levels)=4: each halves the image"):
        Session(config, tmp_path)
    config = tiny_flow.get_config()
    config.sampling.temperature = -1.0
    with pytest.raises(ConfigError, match=r"config.sampling.temperature is -1.0; it must be 0 or more"):
        Session(config, tmp_path)

"""The game as a whole: what each turn trains, a run through the command, and a kill that costs no bit."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_gan
from diffusion_jax import config as experiment
from diffusion_jax import hub
from diffusion_jax.config import ConfigError, build
from diffusion_jax.hub import export
from diffusion_jax.jobs.session import Session
from diffusion_jax.methods.gan import page
from diffusion_jax.methods.gan.adaptive import AdaptiveAugmentation
from diffusion_jax.methods.gan.losses import GAMES
from diffusion_jax.methods.gan.model import GAN
from diffusion_jax.methods.gan.settings import Settings
from diffusion_jax.training import sharding, state
from diffusion_jax.training.checkpoints import Checkpoints
from tests.configs import tiny_gan

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "configs" / "tiny_gan.py"
KEY = jax.random.key(5)
PLAIN = "--config.augmentation.target=None"


def model(*arguments: str) -> GAN:
    config = tiny_gan.get_config()
    experiment.override(config, arguments)
    experiment.check(config, 1)
    return build.model(config, build.of_classes(10))


BATCH = {
    "image": jax.random.uniform(jax.random.key(0), (8, 8, 8, 1), minval=-1),
    "condition": {"label": jnp.arange(8)},
    "position": jnp.arange(8),
}


def prepared(game, probability=0.0):
    state = game.init_state()
    strength = state.augmentation._replace(probability=jnp.float32(probability))
    return game.prepare(state._replace(augmentation=strength), BATCH, KEY)


def test_the_turns_are_what_the_config_says():
    turns = [(turn.name, turn.part, turn.every) for turn in model().turns]
    assert turns == [
        ("discriminator", "discriminator", 1),
        ("penalties", "discriminator", 2),
        ("generator", "generator", 2),
        ("path_length", "generator", 4),
    ]
    plain = build.model(digits_gan.get_config(), build.of_classes(10))
    assert [turn.name for turn in plain.turns] == ["discriminator", "generator"]


def test_penalties_of_their_own_turn_weigh_as_often_as_they_are_rarer():
    """At the same draws the two add up: a loss with all, and one without plus a part of the penalties' own."""
    every, lazy, without = (
        model(PLAIN, f"--config.method.penalties_every={often}", *weights)
        for often, weights in ((1, ()), (4, ()), (1, ["--config.method.r1=0"]))
    )
    params = every.init(KEY, BATCH)
    batch = prepared(every)

    @jax.jit
    def losses(params):
        arguments = (params, batch, KEY, 0)
        return (
            every.discriminator_loss(*arguments)[0],
            without.discriminator_loss(*arguments)[0],
            lazy.penalties_loss(*arguments)[0],
        )

    whole, game, penalties = losses(params)
    assert penalties > 0
    np.testing.assert_allclose(whole - game, penalties / 4, rtol=1e-5)


@pytest.fixture(scope="module")
def playing():
    """(a game, the compiled losses of its turns by a prepared batch)."""
    game = model()
    params = game.init(KEY, BATCH)
    return game, jax.jit(lambda batch: [turn.loss(params, batch, KEY, 0)[0] for turn in game.turns])


def test_a_batch_in_parts_is_the_same_game(playing):
    """What is random follows from an example's place, so a loss is the mean of those of the parts."""
    game, losses = playing
    batch = prepared(game, 0.5)
    parts = [losses(jax.tree.map(lambda value, first=first: value[first::2], batch)) for first in (0, 1)]
    np.testing.assert_allclose(losses(batch), np.mean(parts, axis=0), rtol=1e-5)


def test_each_turn_trains_all_of_its_part_the_classes_too():
    game = model(PLAIN, "--config.method.r2=1", "--config.method.gradient_penalty=1")
    params, batch = game.init(KEY, BATCH), prepared(game)

    @jax.jit
    def gradients(params, batch):
        return [
            jax.grad(lambda part, turn=turn: turn.loss({**params, turn.part: part}, batch, KEY, 0)[0])(
                params[turn.part]
            )
            for turn in game.turns
        ]

    for turn, found in zip(game.turns, gradients(params, batch), strict=True):
        norms = jax.tree.map(jnp.linalg.norm, found)
        assert all(np.isfinite(norm) for norm in jax.tree.leaves(norms))
        weights = [norm for path, norm in jax.tree_util.tree_leaves_with_path(norms) if path[-1].key != "bias"]
        assert all(norm > 0 for norm in weights), turn.name


def test_the_discriminator_sees_what_augmentation_makes_and_the_generator_learns_through_it(playing):
    game, losses = playing
    before, after = losses(prepared(game)), losses(prepared(game, 1.0))
    changed = [abs(one - other) > 1e-6 for one, other in zip(before, after, strict=True)]
    assert changed == [True, True, True, False]  # lengths of paths are of the images alone


def test_what_is_remembered_follows_from_the_verdicts_and_the_lengths_that_were_taken():
    game = model()
    ones, zeros = jnp.ones(8), jnp.zeros(8)
    memory = game.init_state()
    metrics = {"verdict_sign": (ones, ones), "path_length": (5 * ones, ones)}
    for _ in range(4):
        memory = game.update_state(memory, BATCH, metrics)
    np.testing.assert_allclose(memory.augmentation.probability, 4 * 8 / 6400, atol=1e-6)
    np.testing.assert_allclose(memory.path_length, 5 * (1 - 0.99**4), rtol=1e-5)
    untaken = game.update_state(memory, BATCH, {**metrics, "path_length": (zeros, zeros)})
    assert untaken.path_length == memory.path_length


def test_truncation_goes_to_the_mean_style_of_the_class():
    game = model()
    params = game.init(KEY, BATCH)["generator"]
    keys, labels = jax.random.split(KEY, 4), jnp.array([3, 3, 4, 4])
    means = game.mean_styles(params, KEY, 500)
    assert means.shape == (10, 8)  # the latent and the class's vector
    draw = jax.jit(
        lambda psi: game.draw(params, keys, {"label": labels}, {"truncation": psi, "mean_styles": means}, None)[0]
    )
    plain = game.draw(params, keys, {"label": labels}, {}, None)[0]
    np.testing.assert_allclose(draw(1.0), plain, atol=1e-5)
    middle = np.asarray(draw(0.0))
    np.testing.assert_allclose(middle[0], middle[1], atol=1e-6)
    assert np.abs(middle[0] - middle[2]).max() > 1e-3 and np.abs(plain[0] - plain[1]).max() > 1e-3


def test_a_walk_ends_in_the_images_and_each_is_its_keys_alone():
    game = model()
    params = game.init(KEY, BATCH)["generator"]
    keys, labels = jax.random.split(KEY, 3), jnp.array([0, 1, 2])
    stride, captions = game.frames(8)
    images, frames = game.draw(params, keys, {"label": labels}, {}, stride)
    assert frames.shape == (len(captions), 3, 8, 8, 1) and captions[-1] == "image"
    np.testing.assert_array_equal(frames[-1], images)
    np.testing.assert_allclose(
        game.draw(params, keys[1:2], {"label": labels[1:2]}, {}, None)[0], images[1:2], atol=1e-6
    )
    steps = np.abs(np.diff(np.asarray(frames), axis=0)).max((1, 2, 3, 4))
    assert (steps > 0).all()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.method.game=chess", r"config.method.game is 'chess'; it can be non_saturating"),
        ("--config.method.r1=-1", r"config.method.r1 is -1.0; it must be 0 or more"),
        ("--config.method.generator_every=0", r"generator_every is 0; it must be 1 or more"),
        (
            "--config.generator.name=unet",
            r"config.generator.name 'unet' does not exist; it can be mlp, dcgan, stylegan2",
        ),
        ("--config.generator.width=0", r"config.generator: width=0"),
        ("--config.discriminator.depth=0", r"config.discriminator: depth=0"),
        ("--config.sampling.truncation=-1", r"truncation is -1.0; it must be 0 or more"),
        ("--config.augmentation.target=2", r"augmentation.target is 2.0"),
        ("--config.data.image_size=96", r"images of 96x96x1: an MLP takes at most"),
    ],
)
def test_what_cannot_be_is_one_line(argument, message):
    with pytest.raises(ConfigError, match=message):
        model(argument)


def start(workdir, *arguments):
    """The command in a process of its own."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    line = [sys.executable, "-m", "diffusion_jax.main", "--config", str(TINY), "--workdir", str(workdir), *arguments]
    return subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finished(process, code=0):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("game") / "run"
    finished(start(workdir))
    return workdir


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_whole_run_leaves_everything(whole):
    for name in ("samples.png", "sampling.gif", "interpolation.png", "evaluation.json", "report.html"):
        assert (whole / name).stat().st_size, name
    last = rows(whole)[-1]
    for name in ("loss_discriminator", "loss_generator", "loss_penalties", "loss_path_length", "r1", "path_length"):
        assert np.isfinite(last[name]), name
    report = (whole / "report.html").read_text(encoding="utf-8")
    for said in ("Two networks and a game", "generative adversarial network", "Probability of augmentation", "R3GAN"):
        assert said in report, said
    assert "epsilon" not in report and "read_as_requested" in json.loads((whole / "evaluation.json").read_text())


def test_the_run_opens_as_its_generator_and_what_it_cannot_be_is_one_line(whole, tmp_path):
    network, params = hub.load(whole)
    session = Session(tiny_gan.get_config(), whole)
    assert network == session.model.network
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(session.parameters[1]))
    with pytest.raises(
        hub.CheckpointError, match="trains no network that draws by steps of noise; draw from this run by"
    ):
        hub.load_pipeline(whole)
    with pytest.raises(hub.CheckpointError, match="MLPGenerator: no layout of another library holds this network"):
        export.export(whole, tmp_path / "there")


@pytest.mark.parametrize("name", GAMES)
def test_the_report_explains_what_was_chosen_and_nothing_else(name):
    chosen = Settings(game=name, r1=0.0, gradient_penalty=10.0 if name == "wasserstein" else 0.0)
    sections = page.parts(chosen, AdaptiveAugmentation(probability=0.1 if name == "hinge" else 0.0), 0.7)
    content = "".join(text for part in ("before_training", "after_training") for _, text in sections[part].values())
    assert "Truncation 0.7" in content and "Steepness costs" not in content
    assert ("Gulrajani" in content) == (name == "wasserstein") and ("recoloured" in content) == (name == "hinge")


def training_state(workdir):
    session = Session(tiny_gan.get_config(), workdir)
    create = functools.partial(state.initial, session.model, session.optimizer)
    shapes = sharding.sharded_shapes(session.mesh, jax.eval_shape(create, KEY, BATCH))
    with Checkpoints(workdir / "checkpoints", None) as checkpoints:
        return jax.device_get(checkpoints.restore(shapes).state)


def test_a_kill_costs_no_bit_of_networks_optimisers_and_augmentation(whole, tmp_path):
    killed = start(tmp_path / "run", "--mode", "train")
    deadline = time.monotonic() + 240
    while not (tmp_path / "run" / "checkpoints" / "40").exists():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    finished(killed, -signal.SIGKILL)
    assert not (tmp_path / "run" / "checkpoints" / "160").exists()
    assert "resuming" in finished(start(tmp_path / "run", "--mode", "train"))
    calm, resumed = training_state(whole), training_state(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, calm, resumed)
    assert set(calm.opt_state) == {"generator", "discriminator"} and 0 < calm.method_state.augmentation.probability < 1
    assert calm.method_state.path_length > 0
    kept = [name for name in rows(whole)[0] if "per_second" not in name]
    assert [[row[name] for name in kept] for row in rows(whole)] == [
        [row[name] for name in kept] for row in rows(tmp_path / "run")
    ]


def test_the_generator_is_updated_as_often_as_the_config_says(whole):
    """Adam counts its updates: 160 of the discriminator and 80 for the penalties; 80 of the generator, 40 for paths."""
    counts = {
        part: {int(leaf) for leaf in jax.tree.leaves(moments) if jnp.issubdtype(leaf.dtype, jnp.integer)}
        for part, moments in training_state(whole).opt_state.items()
    }
    assert counts == {"discriminator": {240}, "generator": {120}}

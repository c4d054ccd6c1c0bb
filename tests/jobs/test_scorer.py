"""Scores in training and in sweeps, through the jobs, on a run of seconds."""

import json

import numpy as np
import pytest

from diffusion_jax import data, metrics
from diffusion_jax.config import ConfigError
from diffusion_jax.jobs import run, scorer, sweep_scores
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.session import Session
from diffusion_jax.methods.diffusion import sampled_by
from diffusion_jax.metrics import features, table
from tests.configs import tiny
from tests.metrics import toy, toy_metric

KEY = "frechet_distance_classifier_digits"


def config(**evaluation):
    settings = {
        "every": 15, "keep_best": "fid", "scored_images": 40, "classifier_steps": 20, "max_reference_images": 200,
        "num_likelihood_images": 0, "metrics": ("fid", "prc"), "reference_images": 200,
    }  # fmt: skip
    result = tiny.get_config()
    result.training.num_steps = 30
    result.evaluation.update(settings | evaluation)
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    swept = config(sweep_samplers=("ddpm",), sweep_steps=(2, 4), sweep_guidance=(1.0, 2.0), checkpoint="best")
    assert run.run(swept, workdir, ("train", "evaluate"), "test") == 0
    return workdir, Session(swept, workdir)


def test_training_is_scored(trained):
    workdir, session = trained
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scored = {row["step"]: row for row in rows if KEY in row}
    assert sorted(scored) == [15, 30]
    assert all(row[KEY] > 0 and 0 <= row["precision_classifier_digits"] <= 1 for row in scored.values())
    protocol = json.loads((workdir / "scoring.json").read_text())
    assert protocol["extractor"] == "classifier-digits"
    assert protocol["quantisation"] == "half_up"
    assert protocol["generated_images"] == 40
    # the best parameters, and a score that is that of the images which they draw
    best_step = min(scored, key=lambda step: scored[step][KEY])
    step, params = session.parameters
    assert step == best_step
    images, _ = Generator(session).draw(40)
    scores = scorer.Scorer(session)
    outputs = scores.extractor.apply(scores.extractor.params, np.repeat(images, 3, -1))
    held_out, _ = data.load_arrays(session.test_source, limit=200)
    reference = scores.extractor.apply(scores.extractor.params, np.repeat(held_out, 3, -1))
    expected = metrics.frechet_distance(*(m for o in (outputs, reference) for m in metrics.moments(o["features"])))
    assert scored[best_step][KEY] == pytest.approx(expected, rel=1e-4)
    assert scores.score(Generator(session), params)[KEY] == pytest.approx(expected, rel=1e-4)


def test_sweep(trained):
    workdir, _ = trained
    swept = json.loads((workdir / "evaluation.json").read_text())["sweep"]
    assert swept["score"] == KEY
    assert swept["protocol"]["extractor"] == "classifier-digits"
    found = {(r["sampler"], r["num_steps"], r["guidance_scale"]): r for r in swept["results"]}
    assert len(found) == 4
    assert found["ddpm", 4, 2.0]["network_evaluations"] == 2 * found["ddpm", 4, 1.0]["network_evaluations"] == 8
    assert len({entry[KEY] for entry in found.values()}) == 4  # every setting was sampled in its own way
    assert (workdir / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_evaluation_in_known_features(trained, monkeypatch):
    """Images as those of the sample job, compared with the training split, with standard errors."""
    _, session = trained
    assert scorer.final_scores(session, Generator(session)) is None  # no features are asked for
    known = toy.extractor("efficientnet-lite0")
    monkeypatch.setattr(features, "load", lambda *rest, **more: known)
    monkeypatch.setenv("XDG_CACHE_HOME", str(session.workdir))
    session.config.evaluation.features = "efficientnet"
    try:
        found = scorer.final_scores(session, Generator(session))
    finally:
        session.config.evaluation.features = None
    images, _ = Generator(session).draw(40)
    train, _ = data.load_arrays(session.train_source, limit=200)
    sides = [metrics.moments(known.apply(known.params, np.repeat(x, 3, -1))["features"]) for x in (images, train)]
    key = "frechet_distance_efficientnet_lite0"
    assert found[key] == pytest.approx(metrics.frechet_distance(*sides[0], *sides[1]), rel=1e-4)
    assert found[f"{key}_standard_error"] > 0
    assert found["protocol"]["generated_images"] == 40
    assert found["protocol"]["reference"] == "digits, training split"


@pytest.mark.parametrize("rule", ["half_up", "floor", "none"])
def test_generated_images_are_quantised_as_the_config_says(trained, monkeypatch, rule):
    _, session = trained
    known, drawn = toy.extractor(), []
    monkeypatch.setattr(features, "load", lambda *rest, **more: known)
    monkeypatch.setitem(session.config.evaluation, "features", "inception")
    monkeypatch.setitem(session.config.evaluation, "quantisation", rule)
    generator = Generator(session)
    by_generator = generator.on_devices

    def keep(*arguments):
        for images, count in by_generator(*arguments):
            drawn.append(np.repeat(np.asarray(images)[:count], 3, -1))
            yield images, count

    monkeypatch.setattr(generator, "on_devices", keep)
    scores = scorer.Scorer(session)
    side = scores.generated(generator, session.parameters[1], 40, intervals=False)
    levels = np.clip((np.concatenate(drawn) + 1) * np.float32(127.5) + (0.5 if rule == "half_up" else 0), 0, 255)
    shown = levels if rule == "none" else np.floor(levels).astype(np.uint8)
    apply = known.apply_unrounded if rule == "none" else known.apply
    mean, _ = metrics.moments(apply(known.params, shown)["features"])
    np.testing.assert_allclose(side.features.mean, mean, atol=1e-6)
    assert scores.protocol(40)["quantisation"] == rule


def test_a_sweep_keeps_the_options_that_a_sampler_takes(trained):
    _, session = trained
    session.config.sampling.eta = 0.5
    try:
        same = session.drawn_by(sampled_by(session.config, "ddim", 3, 1.0))
        other = session.drawn_by(sampled_by(session.config, "ddpm", 3, 1.0))
    finally:
        session.config.sampling.eta = 0.0
    assert same.config.sampling.eta == 0.5
    assert "eta" not in other.config.sampling
    assert (same.model.sampler.num_steps, session.model.sampler.num_steps) == (3, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "keep_best and patience need scores: set config.evaluation.every"),
        ({"keep_best": "kid"}, "keep_best is 'kid', which is not computed; it can be fid, prc"),
        ({"metrics": ("fod",)}, "config.evaluation: metric 'fod' is unknown"),
        ({"features": "vgg"}, "features 'vgg' is unknown"),
        ({"keep_best": None, "patience": 3}, "patience needs a score to wait for"),
        ({"checkpoint": "oldest"}, "config.evaluation.checkpoint is 'oldest'; it can be newest, best"),
        ({"scored_images": 0}, "config.evaluation.scored_images is 0"),
        ({"reference_images": 1}, "config.evaluation.reference_images is 1; it must be 2 or more"),
        ({"quantisation": "ceil"}, "config.evaluation.quantisation is 'ceil'; it can be half_up, floor, none"),
        ({"quantisation": "none", "features": "digits"}, "quantisation is 'none', which is of Inception's features"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        scorer.training_scores(Session(config(**settings), tmp_path))


def test_sweeps_that_cannot_be_are_named(tmp_path):
    for settings, message in (
        ({"sweep_samplers": ("ddym",)}, "sweep_samplers has 'ddym'"),
        ({"sweep_steps": (0,)}, "config.evaluation.sweep_steps has 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            sweep_scores.sweep(Session(config(**settings), tmp_path))
    unconditional = config(sweep_guidance=(2.0,))
    unconditional.method.class_conditional = False
    unconditional.sampling.guidance_scale = 1.0
    with pytest.raises(ConfigError, match="sweep_guidance needs a class-conditional method"):
        sweep_scores.sweep(Session(unconditional, tmp_path))


def test_a_metric_of_a_line_in_the_table_is_scored_in_training(trained, monkeypatch):
    """Of the labels that the images were asked for; a run has no prompts, which is refused in one line."""
    _, session = trained
    monkeypatch.setitem(table.METRICS, "class-spread", toy_metric.SPREAD)
    monkeypatch.setitem(table.METRICS, "prompt-length", toy_metric.LENGTH)
    monkeypatch.setitem(session.config.evaluation, "metrics", ("class-spread",))
    monkeypatch.setitem(session.config.evaluation, "keep_best", "class-spread")
    scoring = scorer.training_scores(session)
    assert scoring.best_by == "class_spread_classifier_digits" and scoring.higher_is_better
    found = scoring.evaluate(30, session.parameters[1])
    images, _ = Generator(session).draw(40)
    scores = scorer.Scorer(session)
    rows = np.asarray(scores.extractor.apply(scores.extractor.params, np.repeat(images, 3, -1))["features"])
    means = np.stack([rows[np.arange(40) % 10 == label].mean(0) for label in range(10)])
    expected = (means.max(0) - means.min(0)).max()
    assert found == {"class_spread_classifier_digits": pytest.approx(expected, rel=1e-4)}
    monkeypatch.setitem(session.config.evaluation, "metrics", ("prompt-length",))
    with pytest.raises(ConfigError, match="metric 'prompt-length' needs prompts, and this run draws from none"):
        scorer.Scorer(session)

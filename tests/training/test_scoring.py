"""Scores in training: taken on time, never in the way of the bits; the best is kept, and patience ends the run."""

import json

import jax
import numpy as np
import pytest

from diffusion_jax.training import checkpoints, loop, sharding
from diffusion_jax.training.scoring import Scorekeeper, Scoring
from tests.training import toy


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def scripted(values):
    """Scores by step, and the parameters that were scored."""
    seen = {}

    def evaluate(step, params):
        seen[step] = jax.device_get(params)
        return {"distance": values[step], "other": 1.0}

    return evaluate, seen


def best(workdir, params):
    shapes = sharding.sharded_shapes(sharding.make_mesh(devices=jax.devices()[:1]), params)
    return checkpoints.restore_params(workdir / "best", shapes)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_scores_are_written_and_the_best_parameters_kept(tmp_path):
    evaluate, seen = scripted({3: 5.0, 6: 2.0, 9: 2.0, 12: 4.0})
    scored = toy.train(tmp_path / "scored", scoring=Scoring(evaluate, every=3, best_by="distance"))
    plain = toy.train(tmp_path / "plain")
    assert_same(scored.state, plain.state)  # scoring left no trace
    assert sorted(seen) == [3, 6, 9, 12]
    by_step = {row["step"]: row for row in rows(tmp_path / "scored")}
    assert {step: row.get("distance") for step, row in by_step.items()} == {
        3: 5.0, 4: None, 6: 2.0, 8: None, 9: 2.0, 12: 4.0
    }  # fmt: skip
    assert "loss" in by_step[12] and "loss" not in by_step[3]
    step, params = best(tmp_path / "scored", plain.state.ema_params)
    assert step == 6  # the first of equals
    assert_same(params, seen[6])


def test_the_last_step_is_scored_and_higher_can_be_better(tmp_path):
    evaluate, seen = scripted({5: 1.0, 10: 0.5, 12: 3.0})
    result = toy.train(tmp_path, scoring=Scoring(evaluate, every=5, best_by="distance", higher_is_better=True))
    assert sorted(seen) == [5, 10, 12]
    assert best(tmp_path, result.state.ema_params)[0] == 12


def test_patience_ends_the_run_and_a_new_start_does_not_go_on(tmp_path):
    evaluate, _ = scripted({2: 3.0, 4: 1.0, 6: 2.0, 8: float("nan"), 10: 0.0, 12: 0.0})
    scoring = Scoring(evaluate, every=2, best_by="distance", patience=2)
    result = toy.train(tmp_path, scoring=scoring)
    assert int(result.state.step) == 8  # 6 and 8 are not better than 4
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == 8
    assert [row["step"] for row in rows(tmp_path) if "distance" in row] == [2, 4, 6, 8]
    again = toy.train(tmp_path, scoring=scoring)
    assert int(again.state.step) == 8
    assert len(rows(tmp_path)) == 4


@pytest.mark.parametrize("stop", [5, 7])
def test_a_resumed_run_decides_as_one_that_was_not_interrupted(tmp_path, stop, monkeypatch):
    values = {2: 3.0, 4: 1.0, 6: 0.1 + 1e-9, 8: 2.0, 10: 0.1, 12: 2.0}  # 10 is not better than 6 in float32
    with monkeypatch.context() as patched:
        patched.setattr(loop.Interruption, "requested", lambda self, step: step == stop)
        toy.train(tmp_path, scoring=Scoring(scripted(values)[0], every=2, best_by="distance", patience=2))
    result = toy.train(tmp_path, scoring=Scoring(scripted(values)[0], every=2, best_by="distance", patience=2))
    assert int(result.state.step) == 10
    assert best(tmp_path, result.state.ema_params)[0] == 6


def test_best_parameters_from_beyond_the_checkpoint_are_made_again(tmp_path):
    """A kill after step 6 was scored, with the newest checkpoint at 5."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "distance": 1.0}\n{"step": 6, "distance": 0.5}\n')
    params = {"a": np.zeros(3, np.float32)}
    with Scorekeeper(Scoring(lambda step, params: {"distance": 0.5}, 2, "distance"), tmp_path, 6) as keeper:
        keeper._history = []
        keeper.score(6, params)
    with Scorekeeper(Scoring(lambda step, params: {"distance": 0.7}, 2, "distance"), tmp_path, 5) as keeper:
        assert keeper._history == [(4, 1.0)]
        keeper.score(6, {"a": np.ones(3, np.float32)})
    step, found = best(tmp_path, params)
    assert (step, found["a"].tolist()) == (6, [1, 1, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "evaluation.every is 0"),
        ({"every": 1, "patience": -1}, "evaluation.patience is -1"),
        ({"every": 1, "patience": 1}, "set evaluation.keep_best"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Scoring(lambda step, params: {}, **options)


def test_an_unknown_score_is_named(tmp_path):
    scoring = Scoring(lambda step, params: {"fid": 1.0}, 2, "fod")
    with pytest.raises(ValueError, match="keep_best is 'fod', which is not among the scores: fid"):
        Scorekeeper(scoring, tmp_path, 0).score(2, {"a": np.zeros(3)})

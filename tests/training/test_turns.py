"""Losses that are minimised in turn: each moves its own part and sees what the turn before it has changed."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.training import loop, replay, sharding, state, step
from diffusion_jax.training.checkpoints import arrays
from diffusion_jax.training.method import turns_of, updates_per_step
from diffusion_jax.turn import Turn
from tests.training import toy

RATE = 0.1


@dataclasses.dataclass(frozen=True)
class Game:
    """Two numbers: the first minimises a b + noise, the second -a b, and now and then b^2 / 2."""

    bad_at: int = -1
    drawn_with: str = "first"

    def init(self, key, batch):
        return {"first": {"a": jnp.float32(1.0)}, "second": {"b": jnp.float32(2.0)}}

    @property
    def turns(self):
        return (
            Turn("game", "first", self.game),
            Turn("answer", "second", self.answer),
            Turn("rest", "second", self.rest, 3),
        )

    def game(self, params, batch, key, step):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["position"])
        noise = jax.vmap(jax.random.normal)(keys)
        values = params["first"]["a"] * (params["second"]["b"] + 0 * noise) + 0 * batch["image"][:, 0]
        return values.mean(), {"loss": (values, jnp.ones_like(values)), "game_value": (values, jnp.ones_like(values))}

    def answer(self, params, batch, key, step):
        bad = jnp.where(step == self.bad_at, jnp.nan, 0.0)
        value = -params["first"]["a"] * params["second"]["b"] + bad
        return value, {}

    def rest(self, params, batch, key, step):
        return params["second"]["b"] ** 2 / 2, {}

    def init_state(self):
        return {"taken": jnp.zeros(3)}

    def prepare(self, state, batch, key):
        return batch

    def update_state(self, state, batch, metrics):
        return {"taken": state["taken"] + metrics["loss_game"][1].mean()}


def expected(steps):
    """a, b and the average of a, by hand: gradient descent on each loss in turn."""
    a, b, average = 1.0, 2.0, 1.0
    for i in range(steps):
        a = a - RATE * b
        b = b + RATE * a
        if i % 3 == 0:
            b = b - RATE * b
        average = 0.5 * average + 0.5 * a
    return a, b, average


def run(method, steps, **options):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    update = {"first": optax.sgd(RATE), "second": optax.sgd(RATE)}
    batch = sharding.global_batch(mesh, next(toy.Counter()))
    start = jax.jit(lambda: state.initial(method, update, jax.random.key(0), batch))()
    shardings = sharding.state_shardings(mesh, start)
    train_step = step.make_train_step(method, update, lambda _: jnp.float32(0.5), mesh, shardings, **options)
    seen = []
    for _ in range(steps):
        start, sums = train_step(start, batch, jax.random.key(1))
        seen.append(jax.device_get(sums))
    return start, seen


@pytest.mark.parametrize("parts", [1, 4])
def test_each_turn_moves_its_part_and_sees_the_turn_before(parts):
    end, seen = run(Game(), 5, accumulation_steps=parts)
    a, b, average = expected(5)
    np.testing.assert_allclose([end.params["first"]["a"], end.params["second"]["b"]], [a, b], rtol=1e-6)
    np.testing.assert_allclose(end.ema_params["a"], average, rtol=1e-6)
    assert end.ema_params.keys() == {"a"} and end.opt_state.keys() == {"first", "second"}
    np.testing.assert_allclose(end.method_state["taken"], 5)
    a, b, _ = expected(1)
    assert (
        seen[1]["loss_game"][0] / seen[1]["loss_game"][1]
        == pytest.approx(a * b)
        == pytest.approx(seen[1]["loss"][0] / seen[1]["loss"][1])
    )
    assert [float(sums["loss_rest"][1]) for sums in seen] == [parts, 0, 0, parts, 0]  # weight only where it was taken
    assert (
        seen[1]["grad_norm_game"][0] == pytest.approx(b, rel=1e-5)
        and {"game_value", "grad_norm", "bad_steps"} <= seen[0].keys()
    )


def test_a_turn_that_is_not_finite_leaves_out_the_whole_step():
    before, _ = run(Game(), 2)
    after, seen = run(Game(bad_at=2), 3, max_bad_steps=5)
    assert [float(sums["bad_steps"][0]) for sums in seen] == [0, 0, 1] and int(after.step) == 3
    for name in ("params", "ema_params", "opt_state", "method_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))


def test_what_turns_cannot_be():
    lazy = types.SimpleNamespace(init=lambda: None, drawn_with="a", turns=(Turn("one", "a", None, 2),))
    with pytest.raises(ValueError, match="the first must be in each"):
        turns_of(lazy)
    twice = types.SimpleNamespace(
        init=lambda: None, drawn_with="a", turns=(Turn("one", "a", None), Turn("one", "b", None))
    )
    with pytest.raises(ValueError, match="needs a name of its own"):
        turns_of(twice)
    assert updates_per_step(Game(), "second") == pytest.approx(4 / 3) and updates_per_step(toy.Denoiser(), "") == 1


def test_a_run_that_is_cut_goes_on_to_the_same_bits_with_both_optimisers(tmp_path):
    def train(workdir, **options):
        rate = {"first": lambda step: 0.01, "second": lambda step: 0.02}
        return loop.train(
            Game(),
            toy.Counter(),
            workdir,
            optimizer={"first": optax.adam(0.01), "second": optax.adam(0.02)},
            learning_rate=rate,
            ema_decay=lambda _: jnp.float32(0.9),
            mesh=sharding.make_mesh(devices=jax.devices()[:1]),
            options=loop.TrainingOptions(log_every=4, checkpoint_every=5, **options),
        ).state

    whole = train(tmp_path / "whole", num_steps=9)
    train(tmp_path / "cut", num_steps=5)
    resumed = train(tmp_path / "cut", num_steps=9)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert float(whole.opt_state["second"][0].count) == 12  # nine and the three of the lazy turn
    names = arrays(tmp_path / "whole" / "checkpoints", "ema_params/")
    assert list(names) == ["ema_params/a"]
    line = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0]
    assert '"learning_rate_second": 0.02' in line and '"loss_answer"' in line


def test_a_replay_names_the_turn(tmp_path):
    method, mesh = Game(bad_at=3), sharding.make_mesh(devices=jax.devices()[:1])
    update = {"first": optax.sgd(RATE), "second": optax.sgd(RATE)}
    with pytest.raises(loop.DivergenceError):
        loop.train(
            method,
            toy.Counter(),
            tmp_path,
            optimizer=update,
            learning_rate={"first": lambda _: RATE, "second": lambda _: RATE},
            ema_decay=lambda _: jnp.float32(0.9),
            mesh=mesh,
            options=loop.TrainingOptions(num_steps=9, log_every=4, checkpoint_every=5, max_bad_steps=0),
        )
    batch = sharding.global_batch(mesh, next(toy.Counter()))
    shapes = sharding.sharded_shapes(
        mesh, jax.eval_shape(lambda: state.initial(method, update, jax.random.key(0), batch))
    )
    lines = list(replay.diagnose(method, update, mesh, replay.load(tmp_path, shapes, batch, "first")))
    assert "answer: loss nan" in lines and any(line.startswith("game: loss") and "nan" not in line for line in lines)
    assert any(line.startswith("rest: ") for line in lines)  # the fourth step has it

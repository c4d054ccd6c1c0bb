"""Methods that see the whole batch: what they remember, and that it is the same however the batch is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training import loop, sharding
from tests.training import toy


class Recalling(toy.Denoiser):
    """Adds to each example its neighbour in the batch, by an amount that follows from the last losses."""

    def init_state(self):
        return {"losses": jnp.zeros(16), "images": jnp.zeros((16, 32))}

    def prepare(self, state, batch, key):
        share = jnp.tanh(state["losses"].mean()) + jax.random.uniform(key)
        return {**batch, "image": batch["image"] + share * jnp.roll(batch["image"], 1, axis=0)}

    def update_state(self, state, batch, metrics):
        losses = metrics["loss"][0]
        # A sum would not show the order.
        return {"losses": 0.5 * state["losses"] + losses, "images": batch["image"]}


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return toy.train(tmp_path_factory.mktemp("whole"), Recalling()).state


@pytest.mark.parametrize(
    ("sizes", "devices", "accumulation_steps"), [({}, 1, 4), ({}, 8, 1), ({"fsdp": 2}, 4, 2), ({"tensor": 2}, 2, 8)]
)
def test_the_whole_batch_is_the_same_in_parts(tmp_path, whole, sizes, devices, accumulation_steps):
    mesh = sharding.make_mesh(**sizes, devices=jax.devices()[:devices])
    result = toy.train(tmp_path, Recalling(), mesh=mesh, accumulation_steps=accumulation_steps)
    assert_close(result.state, whole)
    assert len(np.unique(whole.method_state["losses"])) == 16


def test_what_is_remembered_enters_the_loss(tmp_path, whole):
    class Forgetful(Recalling):
        def update_state(self, state, batch, metrics):
            return state

    other = toy.train(tmp_path, Forgetful()).state
    assert np.abs(np.asarray(other.params["output"]["kernel"] - whole.params["output"]["kernel"])).max() > 1e-4


def test_it_is_resumed_to_the_bit(tmp_path, whole, monkeypatch):
    for number in (3, 7, 99):
        monkeypatch.setattr(loop.Interruption, "requested", lambda self, step, number=number: step == number)
        result = toy.train(tmp_path, Recalling())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(result.state), jax.device_get(whole))


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_gradients_that_are_not_numbers_are_dropped(tmp_path, accumulation_steps):
    """The loss stays finite, its gradient does not: a run goes on, and says how large the rest of the gradient was."""
    method = toy.Denoiser(diverge_at=9, diverging="gradient")
    result = toy.train(tmp_path, method, sanitize_gradients=True, accumulation_steps=accumulation_steps)
    assert int(result.state.step) == 12
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(result.state)))


def test_infinite_gradients_are_large_ones(tmp_path):
    class Infinite(toy.Denoiser):
        def loss(self, params, batch, key, step):
            kernel = params["output"]["kernel"]
            # The root's gradient at 0 is infinite.
            value = jnp.sqrt(kernel[0, 0] - jax.lax.stop_gradient(kernel[0, 0])) - jnp.sqrt(
                kernel[1, 1] - jax.lax.stop_gradient(kernel[1, 1])
            )
            return value, {}

    options = {"num_steps": 1, "optimizer_name": "sgd"}
    toy.train(tmp_path / "a", Infinite(), sanitize_gradients=True, **options)
    norm = np.sqrt(2) * 1e5
    assert f'"grad_norm": {norm:.0f}'[:20] in (tmp_path / "a" / "metrics.jsonl").read_text()
    with pytest.raises(loop.DivergenceError, match=r"before step 1 .loss or gradient is not finite"):
        toy.train(tmp_path / "b", Infinite(), max_bad_steps=0, **options)


def test_a_loss_that_is_not_a_number_still_ends_the_run(tmp_path):
    with pytest.raises(loop.DivergenceError, match="diverged before step 12"):
        toy.train(tmp_path, toy.Denoiser(diverge_at=9), sanitize_gradients=True, max_bad_steps=2)

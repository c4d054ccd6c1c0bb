import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.training.optimizer import OPTIMIZERS, make_optimizer, make_schedule, projected


def run(update, gradients, params=1.0):
    """The parameter after each of a list of scalar gradients."""
    params = jnp.float32(params)
    state = update.init(params)
    history = []
    for gradient in gradients:
        change, state = update.update(jnp.float32(gradient), state, params)
        params = optax.apply_updates(params, change)
        history.append(float(params))  # pyright: ignore[reportArgumentType]
    return history


def test_warmup_is_ddpms():
    _, rate = make_optimizer(learning_rate=2e-4, warmup_steps=5000)
    assert float(rate(0)) == 0.0
    np.testing.assert_allclose([rate(1), rate(2500), rate(5000), rate(800_000)], [4e-8, 1e-4, 2e-4, 2e-4], rtol=1e-6)


def test_first_update_of_a_warmup_changes_nothing():
    update, _ = make_optimizer(learning_rate=0.1, warmup_steps=2)
    history = run(update, [1.0, 1.0])
    assert history[0] == 1.0 and history[1] < 1.0


@pytest.mark.parametrize(("schedule", "expected"), [("cosine", [1, 0.5, 0]), ("linear", [1, 0.5, 0])])
def test_decay_starts_after_warmup_and_ends_with_the_run(schedule, expected):
    rate = make_schedule(3.0, warmup_steps=10, schedule=schedule, num_steps=110)
    np.testing.assert_allclose([rate(10), rate(60), rate(110)], np.array(expected) * 3, atol=1e-6)
    np.testing.assert_allclose(rate(35), 3 * (0.75 if schedule == "linear" else (1 + 2**-0.5) / 2), rtol=1e-6)
    np.testing.assert_allclose(rate(5), 1.5, rtol=1e-6)
    assert float(rate(500)) == pytest.approx(0, abs=1e-6)


def test_warmup_in_images_is_edms():
    """EDM: lr * min(images seen / 10 M, 1), the images of the update itself not counted; 19531.25 updates of 512."""
    _, rate = make_optimizer(learning_rate=1e-3, warmup_images=10_000_000, batch_size=512)
    steps = np.array([0, 1, 9_000, 19_531, 19_532, 300_000])
    np.testing.assert_allclose(rate(steps), 1e-3 * np.minimum(steps * 512 / 10e6, 1), rtol=1e-6)


def test_inverse_square_root_is_edm2s():
    """EDM2-S: 0.01 with t_ref 70,000 batches of 2048 and a ramp of 10 M images."""
    _, rate = make_optimizer(
        learning_rate=0.01, warmup_images=10_000_000, schedule="inverse_sqrt", decay_start=70_000, batch_size=2048
    )
    steps = np.array([0, 100, 4882, 4883, 70_000, 70_001, 280_000, 1_048_576])
    images = steps * 2048
    expected = 0.01 / np.sqrt(np.maximum(images / (70e3 * 2048), 1)) * np.minimum(images / 10e6, 1)
    np.testing.assert_allclose(rate(steps), expected, rtol=1e-6)
    assert float(rate(280_000)) == pytest.approx(0.005)


def test_a_decay_may_begin_during_the_warmup():
    rate = make_schedule(1.0, warmup_steps=100, schedule="inverse_sqrt", decay_start=25)
    np.testing.assert_allclose([rate(25), rate(100), rate(400)], [0.25, 0.5, 0.25], rtol=1e-6)


def test_a_projected_update_lands_where_it_must():
    update, _ = make_optimizer("sgd", learning_rate=1.0, clip_norm=None)
    update = projected(update, lambda params: jax.tree.map(lambda p: p / jnp.linalg.norm(p), params))
    params = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([0.0, 2.0])}
    change, _ = update.update({"a": jnp.array([0.0, -1.0]), "b": jnp.zeros(2)}, update.init(params), params)
    after = optax.apply_updates(params, change)
    np.testing.assert_allclose(after["a"], [0.5**0.5, 0.5**0.5], rtol=1e-6)
    np.testing.assert_allclose(after["b"], [0, 1], rtol=1e-6)


def test_adam_matches_kingma_and_ba():
    b1, b2, eps, lr, gradients = 0.8, 0.95, 1e-3, 0.1, [0.3, -0.2, 0.5, 0.1]
    update, _ = make_optimizer("adam", learning_rate=lr, b1=b1, b2=b2, eps=eps)
    x, m, v, expected = 1.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x -= lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)) ** 0.5 + eps)
        expected.append(x)
    np.testing.assert_allclose(run(update, gradients), expected, rtol=1e-5)


def test_adamw_decays_weights_apart_from_the_gradient():
    plain, _ = make_optimizer("adam", learning_rate=0.1)
    decayed, _ = make_optimizer("adamw", learning_rate=0.1, weight_decay=0.5)
    assert run(decayed, [0.2])[0] == pytest.approx(run(plain, [0.2])[0] - 0.1 * 0.5 * 1.0, rel=1e-5)


def test_sgd_and_its_momentum():
    update, _ = make_optimizer("sgd", learning_rate=0.1, momentum=0.5)
    np.testing.assert_allclose(run(update, [1.0, 1.0]), [0.9, 0.9 - 0.1 * 1.5], rtol=1e-6)


def test_radam_starts_like_momentum_sgd():
    # rho_t <= 5 in the first steps: no adaptive denominator (Liu et al. 2020, algorithm 2)
    update, _ = make_optimizer("radam", learning_rate=0.1)
    np.testing.assert_allclose(run(update, [0.5])[0], 1 - 0.1 * 0.5, rtol=1e-5)


def test_clipping_is_by_the_global_norm():
    update, _ = make_optimizer("sgd", learning_rate=0.1, clip_norm=1.0)  # of the update, it would not clip at all
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    change, _ = update.update(gradients, update.init(gradients), gradients)
    np.testing.assert_allclose(jax.tree.leaves(change), [[-0.06], [-0.08]], rtol=1e-6)
    free, _ = make_optimizer("sgd", learning_rate=0.1, clip_norm=None)
    change, _ = free.update(gradients, free.init(gradients), gradients)
    np.testing.assert_allclose(jax.tree.leaves(change), [[-0.3], [-0.4]], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adm"}, r"optimizer.name is 'adm'; it can be .*; did you mean 'adam'\?"),
        ({"schedule": "cosin"}, r"optimizer.schedule is 'cosin'; .*did you mean 'cosine'\?"),
        ({"schedule": "cosine"}, "needs num_steps"),
        ({"schedule": "cosine", "num_steps": 10, "warmup_steps": 10}, "needs it below the 10 steps"),
        ({"learning_rate": 0.0}, "optimizer.learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate is nan"),
        ({"clip_norm": 0.0}, "optimizer.clip_norm is 0.0"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps is -1"),
        (
            {"warmup_images": 10, "warmup_steps": 5},
            "optimizer.warmup_images is 10 and optimizer.warmup_steps 5; only one",
        ),
        ({"warmup_images": -1}, "optimizer.warmup_images is -1; it must be at least 0"),
        ({"warmup_images": 1000}, "optimizer.warmup_images is 1000, which needs the batch size"),
        ({"schedule": "inverse_sqrt"}, "optimizer.decay_start is None, but .* 'inverse_sqrt' needs it"),
        ({"schedule": "inverse_sqrt", "decay_start": 0}, "optimizer.decay_start is 0; it must be at least 1"),
        ({"decay_start": 10}, "optimizer.decay_start is 10, but .*no other has it"),
        ({"b1": 1.0}, "optimizer.b1 is 1.0; it must be at least 0 and below 1"),
        ({"name": "adamw", "weight_decay": -0.1}, "optimizer.weight_decay is -0.1"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        make_optimizer(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_option_is_accepted_without_effect(name):
    gradients = [0.3, -0.2, 0.5, 0.4, 0.3, 0.2, 0.6, 0.1]
    reference = run(make_optimizer(name, learning_rate=0.1)[0], gradients)
    for option, value in {"b1": 0.5, "b2": 0.5, "eps": 0.1, "weight_decay": 0.3, "momentum": 0.7}.items():
        try:
            update, _ = make_optimizer(name, learning_rate=0.1, **{option: value})
        except ValueError as error:
            assert option in str(error) and name in str(error)
        else:
            assert run(update, gradients) != reference, option

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training import gradients, optimizer, sharding, state, step
from tests.training import toy


def build(mesh=None, accumulation_steps=1, matmul_precision="highest", name="sgd"):
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    method = toy.Denoiser()
    update, _ = optimizer.make_optimizer(name, learning_rate=0.1)
    batch = sharding.global_batch(mesh, next(toy.Counter()))

    def create():
        return state.create(method.init(jax.random.key(0), batch), update)

    shardings = sharding.state_shardings(mesh, jax.eval_shape(create))
    train_step = step.make_train_step(
        method,
        update,
        lambda step: (step + 1) / 4,
        mesh,
        shardings,
        accumulation_steps=accumulation_steps,
        matmul_precision=matmul_precision,
    )
    return train_step, jax.jit(create, out_shardings=shardings)(), batch


def run(num_steps=3, **options):
    train_step, current, batch = build(**options)
    history = []
    for _ in range(num_steps):
        current, sums = train_step(current, batch, jax.random.key(1))
        history.append(jax.tree.map(float, sums))
    return jax.device_get(current), history


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize("accumulation_steps", [2, 4])
@pytest.mark.parametrize("num_devices", [1, 4])
def test_accumulation_changes_nothing(accumulation_steps, num_devices):
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:4]) if num_devices == 4 else None
    whole, whole_sums = run()
    parts, parts_sums = run(accumulation_steps=accumulation_steps, mesh=mesh)
    assert_close(parts, whole)
    for a, b in zip(parts_sums, whole_sums, strict=True):
        assert a.keys() == b.keys() == {"loss", "loss_even", "grad_norm", "bad_steps"}
        for name in a:
            np.testing.assert_allclose(a[name][0] / a[name][1], b[name][0] / b[name][1], rtol=1e-5)
        assert a["loss"][1] == 16 and a["loss_even"][1] == 8


def test_split_batch_moves_nothing_between_devices():
    mesh = sharding.make_mesh()
    rows = sharding.global_batch(mesh, {"image": np.arange(64.0)[:, None]})["position"]
    split = jax.jit(lambda x: gradients.split_batch(x, 4, mesh))
    compiled = split.lower(rows).compile().as_text()
    assert "all-to-all" not in compiled and "all-gather" not in compiled and "permute" not in compiled
    np.testing.assert_array_equal(np.sort(split(rows), axis=None), np.arange(64))


def test_one_update_by_hand():
    train_step, before, batch = build()
    method, key = toy.Denoiser(), jax.random.fold_in(jax.random.key(1), 0)
    before = jax.device_get(before)
    gradients = jax.device_get(jax.grad(lambda p: method.loss(p, batch, key, jnp.int32(0))[0])(before.params))
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradients)))
    params = jax.tree.map(lambda p, g: p - 0.1 * g / max(norm, 1), before.params, gradients)
    after, sums = train_step(jax.device_put(before), batch, jax.random.key(1))
    assert int(after.step) == 1
    assert_close(jax.device_get(after.params), params)
    average = jax.tree.map(lambda p, q: 0.25 * p + 0.75 * q, before.params, params)
    assert_close(jax.device_get(after.ema_params), average)
    np.testing.assert_allclose(sums["grad_norm"][0], norm, rtol=1e-5)


def test_randomness_follows_the_step_and_the_run():
    train_step, current, batch = build()
    current = jax.device_get(current)

    def loss(number, seed):
        at = jax.device_put(current.replace(step=np.int32(number)))
        return float(train_step(at, batch, jax.random.key(seed))[1]["loss"][0])

    assert loss(0, 1) == loss(0, 1)
    assert len({loss(0, 1), loss(1, 1), loss(0, 2)}) == 3


def test_the_old_state_is_donated():
    train_step, current, batch = build()
    train_step(current, batch, jax.random.key(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(current.params))


@pytest.mark.parametrize(("precision", "expected"), [("highest", "HIGHEST"), ("high", "HIGH"), ("default", "DEFAULT")])
def test_matmul_precision_reaches_every_product(precision, expected):
    train_step, current, batch = build(matmul_precision=precision)
    text = train_step.lower(current, batch, jax.random.key(1)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) >= 5  # two forward, and backward
    for line in products:
        assert f"precision = [{expected}, {expected}]" in line or (expected == "DEFAULT" and "HIGH" not in line), line


def test_unknown_precision_is_named():
    with pytest.raises(ValueError, match=r"training.matmul_precision is 'higest'.*did you mean 'highest'"):
        build(matmul_precision="higest")

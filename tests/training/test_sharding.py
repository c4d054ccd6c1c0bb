import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax import config as experiment
from diffusion_jax.config import build
from diffusion_jax.jobs import run
from diffusion_jax.methods.diffusion.model import Diffusion
from diffusion_jax.models.registry import MODELS
from diffusion_jax.training import optimizer, sharding, state, step
from tests.configs import tiny
from tests.training import toy

BOTH = ("tensor", "fsdp")


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": 1, "tensor": 8}, (1, 1, 8)),
    ],
)
def test_mesh_fills_the_free_axis(sizes, shape):
    mesh = sharding.make_mesh(**sizes)
    assert tuple(mesh.shape.values()) == shape and mesh.axis_names == ("data", "fsdp", "tensor")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "mesh is data 3, fsdp 1, tensor 1; the sizes must multiply to the number of devices, which is 8"),
        ({"fsdp": 3}, "mesh is data -1, fsdp 3, tensor 1; .*which is 8"),
        ({"fsdp": 16}, "which is 8"),
        ({"fsdp": -1}, "mesh.data and mesh.fsdp are both -1"),
        ({"tensor": 0}, "mesh.tensor is 0; it must be at least 1"),
    ],
)
def test_impossible_meshes_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(**sizes)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), P(None, None, None, "fsdp")),
        ((3, 3, 128, 64), P(None, None, "fsdp")),
        ((64, 64), P(None, "fsdp")),
        ((101, 64), P(None, "fsdp")),  # the largest axis that 4 divides, not the largest
        ((101, 103), P()),
        ((128,), P()),  # too small to be worth it
        ((), P()),
    ],
)
def test_the_largest_divisible_axis_is_split(shape, spec):
    assert sharding.parameter_spec("dense/kernel", shape, {"fsdp": 4, "tensor": 1}) == spec
    assert sharding.parameter_spec("dense/kernel", shape, {"fsdp": 1, "tensor": 1}) == P()


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("blocks_0/to_q/kernel", (64, 96), P(None, BOTH)),
        ("blocks_0/to_out/kernel", (64, 96), P(BOTH)),
        ("opt_state/1/0/mu/blocks_0/mlp_1/kernel", (64, 256), P(None, BOTH)),  # moments as their parameters
        ("blocks_0/mlp_2/kernel", (256, 64), P(BOTH)),
        ("attn/to_out_0/kernel", (64, 64), P(BOTH)),
        ("ff/net_0/proj/kernel", (64, 512), P(None, BOTH)),
        ("attention/proj/kernel", (64, 64), P(BOTH)),
        ("resnets_0/conv1/kernel", (3, 3, 64, 128), P(None, None, None, BOTH)),
        ("resnets_0/conv2/kernel", (3, 3, 128, 128), P(None, None, BOTH)),
        ("blocks_0/to_q/kernel", (64, 100), P(None, "fsdp")),  # 8 does not divide 100
        ("time_embedding/linear/kernel", (64, 256), P(None, "fsdp")),
        ("blocks_0/to_q/bias", (64,), P()),
    ],
)
def test_pairs_of_layers_are_split_where_they_meet(path, shape, spec):
    assert sharding.parameter_spec(path, shape, {"data": 1, "fsdp": 4, "tensor": 2}) == spec


NETWORKS = {
    "dit": {"width": 32, "depth": 1, "num_heads": 2},
    "unet": {
        "channels": 16,
        "channel_mults": (1, 2),
        "num_res_blocks": 1,
        "norm_groups": 4,
        "attention_resolutions": (8,),
    },
    "edm_unet": {"channels": 16, "channel_mults": (1, 2), "num_res_blocks": 1, "attention_resolutions": (8,)},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_most_of_a_network_is_split_by_tensor(name):
    network = MODELS[name](out_channels=3, **NETWORKS[name])
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    image, time = jnp.zeros((2, 8, 8, 3)), jnp.zeros(2, jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image, time)["params"]
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, sharding.sharded_shapes(mesh, shapes))
    kernels = [
        (leaf.size, spec)
        for leaf, spec in zip(jax.tree.leaves(shapes), jax.tree.leaves(specs), strict=True)
        if leaf.ndim > 1 and leaf.size >= sharding.MIN_SHARDED_SIZE
    ]
    split = sum(size for size, spec in kernels if BOTH in spec)
    assert split > 0.5 * sum(size for size, _ in kernels)
    assert all("fsdp" in str(spec) for _, spec in kernels)


def test_the_whole_state_is_split():
    mesh = sharding.make_mesh(fsdp=4)
    params = {"kernel": jnp.zeros((64, 256)), "bias": jnp.zeros(256)}
    shapes = sharding.sharded_shapes(mesh, jax.eval_shape(lambda: state.create(params, optax.adam(1e-3))))
    split = [leaf.sharding.spec for leaf in jax.tree.leaves(shapes) if leaf.shape == (64, 256)]
    assert split == [P(None, "fsdp")] * 4  # parameters, two moments and the moving average
    assert shapes.step.sharding.spec == P()


def test_every_device_holds_its_rows_once():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    local = {"image": np.arange(16 * 3, dtype=np.float32).reshape(16, 3)}
    batch = sharding.global_batch(mesh, local)
    np.testing.assert_array_equal(batch["image"], local["image"])
    np.testing.assert_array_equal(batch["position"], np.arange(16))
    assert batch["position"].dtype == jnp.int32
    assert {shard.data.shape for shard in batch["image"].addressable_shards} == {(4, 3)}


def test_batch_has_to_split_evenly():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    sharding.check_batch_size(mesh, 24, accumulation_steps=3)
    with pytest.raises(ValueError, match=r"training.batch_size is 24; it must be a multiple of 16 \(4 devices"):
        sharding.check_batch_size(mesh, 24, accumulation_steps=4)


class Layers(nn.Module):
    """Two pairs of layers with the names of the real ones."""

    @nn.compact
    def __call__(self, x):
        for name in ("mlp_1", "mlp_2", "to_v", "to_out"):
            x = x + nn.tanh(nn.Dense(32, name=name)(x))
        return x


class Method(toy.Denoiser):
    """The toy problem for a network of Flax's."""

    def __init__(self, network=None):
        super().__init__()
        self.network = network or Layers()

    def apply(self, params, x):
        return self.network.apply({"params": params}, x)

    def init(self, key, batch):
        return self.network.init(key, batch["image"][:1])["params"]

    def loss(self, params, batch, key, step):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["position"])
        noise = jax.vmap(lambda k: jax.random.normal(k, batch["image"].shape[1:]))(keys)
        loss = jnp.mean(jnp.square(self.apply(params, batch["image"] + noise) - noise), axis=-1)
        return loss.mean(), {"loss": (loss, jnp.ones_like(loss))}


class Real(Diffusion):
    """A class-conditional method on a real network, with parameters of which none is zero."""

    def init(self, key, batch):
        """Constants, as the compilation of a network's own takes as long as that of the step."""
        leaves, tree = jax.tree.flatten(jax.eval_shape(super().init, key, batch))
        rng = np.random.default_rng(0)
        return jax.tree.unflatten(tree, [rng.normal(size=leaf.shape, scale=0.1).astype(np.float32) for leaf in leaves])


def real_method(name):
    config = experiment.default()
    config.data.update({"image_size": 4, "channels": 2})
    config.method.update({"class_conditional": True, "label_dropout": 0.25})
    config.model.name = name
    config.model.update(
        {
            "dit": {"width": 32, "depth": 1, "num_heads": 4, "dropout": 0.1},
            "unet": {
                **{"channels": 16, "channel_mults": (1,), "num_res_blocks": 1, "norm_groups": 4},
                "attention_resolutions": (4,),
            },
        }[name]
    )
    method = build.model(config, build.of_classes(3))
    return Real(**{field.name: getattr(method, field.name) for field in dataclasses.fields(method)})


class Images(toy.Counter):
    """Batches of images with labels."""

    def __next__(self):
        image = super().__next__()["image"].reshape(-1, 4, 4, 2)
        return {"image": image, "condition": {"label": np.arange(len(image), dtype=np.int32) % 3}}


METHODS = {
    "toy": (Method, toy.Counter, 1),
    "dit": (functools.partial(real_method, "dit"), Images, 2),
    "unet": (functools.partial(real_method, "unet"), Images, 2),
}


def learn(mesh, name, num_steps=3):
    """(losses, state after them, the lowered step) of one of METHODS, some with their batches in two parts."""
    make, batches, accumulation_steps = METHODS[name]
    method, batches = make(), batches()
    update, _ = optimizer.make_optimizer("sgd", learning_rate=0.1, momentum=0.9)
    batch = sharding.global_batch(mesh, next(batches))

    def create(batch):
        return state.initial(method, update, jax.random.key(0), batch)

    shardings = sharding.state_shardings(mesh, jax.eval_shape(create, batch))
    now = jax.jit(create, out_shardings=shardings)(batch)
    run = step.make_train_step(method, update, lambda _: 0.5, mesh, shardings, accumulation_steps=accumulation_steps)
    lowered = run.lower(now, batch, jax.random.key(1))
    compiled = lowered.compile()
    curve = []
    for _ in range(num_steps):
        now, sums = compiled(now, batch, jax.random.key(1))
        curve.append(float(sums["loss"][0] / sums["loss"][1]))
        batch = sharding.global_batch(mesh, next(batches))
    return curve, now, lowered


@pytest.fixture(scope="module")
def quick_to_compile():
    """Most of the time of these tests is XLA's."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def one_device(quick_to_compile):
    """Curves and averages on one device, each made once."""

    @functools.cache
    def of(name):
        curve, after, _ = learn(sharding.make_mesh(devices=jax.devices()[:1]), name)
        return curve, jax.device_get(after.ema_params)

    return of


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("devices", "sizes"),
    [
        (2, {"tensor": 2}),
        (4, {"fsdp": 2}),
        (8, {"fsdp": 2, "tensor": 2}),
        *(
            pytest.param(devices, sizes, marks=pytest.mark.slow)
            for devices, sizes in (
                (2, {}),
                (2, {"fsdp": -1, "data": 1}),
                (4, {"tensor": 4}),
                (4, {"fsdp": 2, "tensor": 2}),
                (8, {}),
                (8, {"fsdp": -1, "data": 1}),
                (8, {"tensor": 4}),
                (8, {"fsdp": 4}),
                (8, {"fsdp": 4, "tensor": 2}),
            )
        ),
    ],
)
def test_every_mesh_learns_the_same_curve(one_device, devices, sizes, name):
    """Classes, dropped labels, attention, dropout, parts of the batch, the moving average: none knows of the mesh."""
    mesh = sharding.make_mesh(**sizes, devices=jax.devices()[:devices])
    curve, after, lowered = learn(mesh, name)
    expected, averages = one_device(name)
    np.testing.assert_allclose(curve, expected, rtol=1e-5)
    assert len({round(loss, 6) for loss in curve}) == 3
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), jax.device_get(after.ema_params), averages)
    big = max(jax.tree.leaves(after.params), key=lambda leaf: leaf.size)
    parts = mesh.shape["fsdp"] * (mesh.shape["tensor"] if name == "toy" else 1)
    assert big.addressable_shards[0].data.size * parts <= big.size
    # What each module returned, beside the gradients (as many again as there are parameters).
    constraints = lowered.as_text().count("sharding_constraint")
    assert constraints >= len(jax.tree.leaves(after.params)) + 4


@pytest.mark.usefixtures("quick_to_compile")
@pytest.mark.parametrize(
    ("devices", "sizes"),
    [
        (8, {"fsdp": 2, "tensor": 2}),
        pytest.param(4, {"data": 1, "fsdp": -1}, marks=pytest.mark.slow),
        pytest.param(2, {"tensor": 2}, marks=pytest.mark.slow),
    ],
)
def test_every_mesh_runs_the_same_job(tmp_path, monkeypatch, devices, sizes):
    """The job from its config to metrics.jsonl, resumed on one device in the middle."""
    make_mesh = sharding.make_mesh

    def job(folder, num_steps, devices, sizes):
        monkeypatch.setattr(sharding, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:devices]))
        config = tiny.get_config()
        config.model.width = 64
        config.training.update({"num_steps": num_steps, "log_every": 1, "accumulation_steps": 2})
        config.optimizer.schedule = "constant"  # which knows nothing of the number of steps
        config.mesh.update(sizes)
        assert run.run(config, tmp_path / folder, ("train",), command="") == 0
        rows = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [[row[name] for name in ("step", "loss", "grad_norm")] for row in rows]

    expected = job("one", 6, 1, {})
    assert len(expected) == 6
    np.testing.assert_allclose(job("other", 4, devices, sizes), expected[:4], rtol=1e-5)
    np.testing.assert_allclose(job("other", 6, 1, {}), expected, rtol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_transformers_recompute_their_blocks_where_asked(remat):
    network = MODELS["dit"](width=32, depth=3, num_heads=4, remat=remat)
    image, time = jnp.zeros((2, 8, 8, 4)), jnp.zeros(2)
    params = jax.eval_shape(network.init, jax.random.key(0), image, time)
    gradient = jax.make_jaxpr(jax.grad(lambda params: network.apply(params, image, time).sum()))(params)
    assert sum(equation.primitive.name in ("remat2", "checkpoint") for equation in gradient.eqns) == 3 * remat


def test_two_axes_of_one_array_are_not_split_because_xla_errs():
    """Should this fail, XLA was mended, and `parameter_spec` may split along two axes."""
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    rng = np.random.default_rng(0)
    x, *kernels = (rng.normal(size=shape).astype(np.float32) / 6 for shape in ((16, 32), (32, 32), (32, 32)))

    def network(x, kernels):
        for kernel in kernels:
            x = x + jnp.tanh(x @ kernel)
        return x

    def split(*specs):
        placed = [
            jax.device_put(kernel, NamedSharding(mesh, spec)) for kernel, spec in zip(kernels, specs, strict=True)
        ]
        rows = jax.device_put(x, sharding.batch_sharding(mesh))
        return np.abs(np.asarray(jax.jit(network)(rows, placed)) - np.asarray(network(x, kernels))).max()

    assert split(P(None, BOTH), P(BOTH)) < 1e-5
    if jax.__version__.startswith("0.10."):
        assert split(P("fsdp", "tensor"), P("tensor", "fsdp")) > 1e-2

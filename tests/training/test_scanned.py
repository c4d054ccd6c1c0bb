"""Stacked layers on a mesh: split as one layer is, and never along the axis that the loop goes through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from diffusion_jax.models import DiT
from diffusion_jax.models.scanned import STACK, stack_name
from diffusion_jax.training import optimizer, sharding, state, step
from tests.training import toy

NETWORK = DiT(out_channels=2, width=32, depth=2, num_heads=4, scan_layers=True)
BOTH = ("tensor", "fsdp")
FAST = {"xla_backend_optimization_level": 0}  # to compile; one step runs for no time


class Method(toy.Denoiser):
    """The toy problem for a transformer on images, with parameters of which none is zero."""

    def init(self, key, batch):
        params = NETWORK.init(key, jnp.zeros((1, 4, 4, 2)), jnp.zeros(1))["params"]
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(
            tree, [leaf + 0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        )

    def loss(self, params, batch, key, step):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["position"])
        image = batch["image"].reshape(-1, 4, 4, 2)
        noise = jax.vmap(lambda k: jax.random.normal(k, image.shape[1:]))(keys)
        predicted = NETWORK.apply({"params": params}, image + noise, jnp.ones(len(image)))
        loss = jnp.mean(jnp.square(predicted - noise), axis=(1, 2, 3))
        return loss.mean(), {"loss": (loss, jnp.ones_like(loss))}


def learn(mesh):
    """The state after one step."""
    method = Method()
    update, _ = optimizer.make_optimizer("sgd", learning_rate=0.1, momentum=0.9)
    batch = sharding.global_batch(mesh, next(toy.Counter()))

    def create(batch):
        return state.initial(method, update, jax.random.key(0), batch)

    shardings = sharding.state_shardings(mesh, jax.eval_shape(create, batch))
    now = jax.jit(create, out_shardings=shardings, compiler_options=FAST)(batch)
    run = step.make_train_step(method, update, lambda _: 0.5, mesh, shardings)
    return run.lower(now, batch, jax.random.key(1)).compile(compiler_options=FAST)(now, batch, jax.random.key(1))[0]


@pytest.fixture(scope="module")
def one_device():
    return learn(sharding.make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2}, pytest.param({"fsdp": 4}, marks=pytest.mark.slow)])
def test_eight_devices_learn_as_one(one_device, sizes):
    after = learn(sharding.make_mesh(**sizes))
    for tree, other in ((after.params, one_device.params), (after.opt_state, one_device.opt_state)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), tree, other)
    kernel = after.params["blocks_0_to_1"]["mlp_1"]["kernel"]
    parts = sizes["fsdp"] * sizes.get("tensor", 1)
    assert kernel.shape == (2, 32, 128) and kernel.addressable_shards[0].data.shape == (2, 32, 128 // parts)


@pytest.mark.parametrize("mesh_shape", [{"fsdp": 2, "tensor": 1}, {"fsdp": 4, "tensor": 2}, {"fsdp": 1, "tensor": 4}])
def test_no_mesh_splits_the_layers(mesh_shape):
    """Every array of the stack is split as the same one of a single layer, one axis further on."""
    stacked = jax.eval_shape(lambda: NETWORK.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)), jnp.zeros(1)))["params"]
    split = 0
    for path, leaf in jax.tree.leaves_with_path(stacked["blocks_0_to_1"]):
        end = jax.tree_util.keystr(path, simple=True, separator="/")
        for before in ("", "opt_state/1/0/mu/", "ema_params/"):  # moments and averages as their parameters
            spec = sharding.parameter_spec(f"{before}blocks_0_to_1/{end}", leaf.shape, mesh_shape)
            assert spec[:1] in ((), (None,))
            alone = sharding.parameter_spec(f"{before}blocks_0/{end}", leaf.shape[1:], mesh_shape)
            assert tuple(spec[1:]) == tuple(alone)
        split += spec != P()
    assert split >= 7  # the kernels, at least


def test_rules_for_one_layer_hit_the_stack():
    mesh_shape = {"fsdp": 4, "tensor": 2}
    assert sharding.parameter_spec("blocks_0_to_27/to_q/kernel", (28, 64, 96), mesh_shape) == P(None, None, BOTH)
    assert sharding.parameter_spec("blocks_0_to_27/to_out/kernel", (28, 64, 96), mesh_shape) == P(None, BOTH)
    # a large number of layers is no reason to split a small array, or along the layers
    assert sharding.parameter_spec("blocks_0_to_4095/to_q/bias", (4096, 64), mesh_shape) == P()
    assert sharding.parameter_spec("blocks_0_to_4095/other/kernel", (4096, 64, 101), mesh_shape) == P(None, "fsdp")


def test_the_names_of_stacks_are_the_networks():
    name = stack_name("transformer_blocks", 2, 13)
    assert STACK.fullmatch(name) and sharding.STACKED.search(f"params/{name}/attn/to_q/kernel")
    assert not sharding.STACKED.search("params/transformer_blocks_2/attn/to_out_0/kernel")

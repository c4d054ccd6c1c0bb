import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from diffusion_jax.training import sharding, state


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
    assert sharding.parameter_spec(shape, 4) == spec
    assert sharding.parameter_spec(shape, 1) == P()


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

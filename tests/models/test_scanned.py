"""Loops over layers against the same networks written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax import config as experiment
from diffusion_jax.methods.diffusion import building
from diffusion_jax.models import DiT, FluxTransformer, MMDiT, UNet
from diffusion_jax.models.scanned import apply_layers, scanned, stack, unrolled, unstack
from diffusion_jax.models.transformer import SpatialTransformer
from tests.models.test_transformer import options

FAST = {"xla_backend_optimization_level": 0}  # to compile; the programs run for no time
IMAGE, TOKENS = jnp.zeros((2, 4, 4, 4)), jnp.zeros((2, 3, 12))
JOINT = {"encoder_hidden_states": TOKENS, "pooled_projections": jnp.zeros((2, 6)), "timestep": jnp.ones(2)}
POSITIONS = {"img_ids": jnp.ones((4, 3)), "txt_ids": jnp.zeros((3, 3))}


def networks(depth: int) -> dict[str, tuple[nn.Module, dict]]:
    """Every kind of loop, and what it is called with."""
    dit, image = DiT(width=16, depth=depth, num_heads=2), {"hidden_states": IMAGE, "timestep": jnp.ones(2)}
    joint = {"out_channels": 4, "depth": depth, "num_heads": 2, "head_width": 8}
    return {
        "dit": (dit, image),
        "dit with embeddings of its own": (dit.clone(shared_conditioning=False), image),
        "mmdit": (MMDiT(**joint, sample_size=8, position_grid=8), {"hidden_states": IMAGE, **JOINT}),
        "flux": (
            FluxTransformer(**joint, single_depth=depth, rotary_widths=(2, 4, 2)),
            {"hidden_states": IMAGE[:, 0], **JOINT, **POSITIONS},
        ),
        "transformer": (
            SpatialTransformer(options(depth=depth)),
            {"x": jnp.zeros((2, 4, 4, 16)), "context": TOKENS, "train": False},
        ),
    }


def looped(model: nn.Module, **changes) -> nn.Module:
    if isinstance(model, SpatialTransformer):
        return model.clone(options=options(depth=model.options.depth, scan_layers=True, **changes))
    return model.clone(scan_layers=True, **changes)


def shapes(model: nn.Module, given: dict):
    static = {name: value for name, value in given.items() if isinstance(value, bool)}
    arrays = {name: value for name, value in given.items() if name not in static}
    return jax.eval_shape(lambda arrays: model.init(jax.random.key(0), **arrays, **static), arrays)["params"]


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        ("dit with embeddings of its own", "full"),
        ("transformer", "dots_no_batch"),
        pytest.param("mmdit", "none", marks=pytest.mark.slow),
        pytest.param("flux", "dots", marks=pytest.mark.slow),
    ],
)
def test_outputs_and_gradients_are_those_of_the_blocks_written_out(name, remat):
    model, given = networks(3 if name == "mmdit" else 2)[name]  # MMDiT's last block is of its own
    rng = np.random.default_rng(0)
    params = shapes(model, given)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, params)
    first, *rest = given
    given = {first: rng.normal(size=given[first].shape).astype(np.float32), **{key: given[key] for key in rest}}

    def gradient(model, params):
        return jax.value_and_grad(lambda p: jnp.square(model.apply({"params": p}, **given)).mean())(params)

    def both(params):
        return gradient(model, params), gradient(looped(model, remat=remat), stack(params))

    written_out, (value, grads) = jax.jit(both, compiler_options=FAST)(params)
    assert jax.tree.structure(grads) == jax.tree.structure(shapes(looped(model), given))
    np.testing.assert_allclose(value, written_out[0], rtol=1e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(written_out[1]))
    for (path, a), b in zip(jax.tree.leaves_with_path(written_out[1]), jax.tree.leaves(unstack(grads)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest, err_msg=str(path))


@pytest.mark.parametrize("name", ["dit", "mmdit", "flux", "transformer"])
def test_programs_do_not_grow_with_the_depth(name):
    """And what is stored stays as much as it was."""

    def program(depth: int) -> tuple[int, int]:
        """(equations of the gradient, those of its loops included; parameters)"""
        model, given = networks(depth)[name]
        params = shapes(looped(model), given)
        assert count(params) == count(shapes(model, given))
        gradient = jax.grad(lambda p: looped(model).apply({"params": p}, **given).sum())
        return str(jax.make_jaxpr(gradient)(params)).count(" = "), count(params)

    (small, few), (large, many) = program(3), program(7)
    assert small == large and many > 1.5 * few


def test_stacks_are_runs_of_equal_blocks():
    model, given = networks(6)["mmdit"]
    model = model.clone(dual_attention=(0, 1, 3))
    found = [name for name in shapes(looped(model), given) if name.startswith("transformer_blocks")]
    assert sorted(found) == [f"transformer_blocks_{run}" for run in ("0_to_1", "2", "3", "4", "5")]


def test_stack_and_unstack_are_inverse():
    rng = np.random.default_rng(0)
    model, given = networks(12)["dit"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes(model, given))
    stacked = stack({"outer": params, "resnets_0": {"a": np.zeros(1)}, "resnets_1": {"a": np.zeros(1)}})
    assert set(stacked) == {"outer", "resnets_0", "resnets_1"}  # only blocks of transformers
    kernel = stacked["outer"]["blocks_0_to_11"]["to_q"]["kernel"]
    assert isinstance(kernel, np.ndarray)
    np.testing.assert_array_equal(kernel[10], params["blocks_10"]["to_q"]["kernel"])  # 10 comes behind 9, not 1
    jax.tree.map(np.testing.assert_array_equal, unstack(stacked)["outer"], params)
    other, changed = scanned(model, params)
    assert other == model.clone(scan_layers=True)
    again, back = unrolled(other, changed)
    assert again == model and jax.tree.structure(back) == jax.tree.structure(params)
    assert unrolled(model, params)[1] is params
    with pytest.raises(ValueError, match="UNet has no scan_layers"):
        scanned(UNet(), {})


def test_layers_start_as_they_would_alone():
    model, given = networks(8)["dit"]
    start = functools.partial(jax.random.key, 0)
    params = jax.jit(lambda: looped(model).init(start(), **given))()["params"]
    for layer, scale in (("to_q", 0.5), ("mlp_1", 1.0)):
        kernel = np.asarray(params["blocks_0_to_7"][layer]["kernel"])
        bound = np.sqrt(3 * scale * 2 / (kernel.shape[1] + kernel.shape[2]))  # Xavier's, for one layer
        largest = np.abs(kernel).max(axis=(1, 2))
        assert (largest <= bound).all() and (largest > 0.9 * bound).all()
        assert len({float(value) for value in kernel[:, 0, 0]}) == 8  # no two from the same key


class Draw(nn.Module):
    @nn.compact
    def __call__(self, h, place):
        return h + place * jax.random.uniform(self.make_rng("dropout"))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_every_layer_drops_out_for_itself(remat):
    class Network(nn.Module):
        @nn.compact
        def __call__(self):
            start, places = jnp.zeros(5), jnp.eye(5)
            return apply_layers(Draw, [()] * 5, "blocks", Draw.__call__, start, places, scan=True, remat=remat)

    drawn, again = (Network().apply({}, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1))
    assert len({*map(float, drawn), *map(float, again)}) == 10


def test_attention_maps_need_the_blocks_written_out():
    model, given = networks(2)["transformer"]
    params = shapes(looped(model), given)
    with pytest.raises(
        ValueError, match=r"^scan_layers=True: a loop over layers keeps no attention maps; hub.unrolled"
    ):
        jax.eval_shape(lambda p: looped(model).apply({"params": p}, **given, mutable=["attention"]), params)


def test_configs_reach_it():
    config = experiment.default()
    config.model.name, config.model.scan_layers, config.data.image_size = "dit", True, 8
    assert building.network(config, {}) == DiT(out_channels=3, scan_layers=True)

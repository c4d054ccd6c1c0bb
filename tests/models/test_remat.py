"""What a block keeps for the backward pass: the numbers stay, what is kept changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import config as experiment
from diffusion_jax.config import ConfigError
from diffusion_jax.methods.diffusion import building
from diffusion_jax.models import MODELS, AutoencoderKL, ConditionalUNet, FluxTransformer, MMDiT
from diffusion_jax.models.remat import POLICIES, rematerialized
from diffusion_jax.models.transformer import TransformerBlock

IMAGE, TOKENS = jnp.zeros((2, 8, 8, 4)), jnp.zeros((2, 3, 12))
JOINT = {"encoder_hidden_states": TOKENS, "pooled_projections": jnp.zeros((2, 6))}
LEVELS = {"channels": 32, "channel_mults": (1,), "num_res_blocks": 1, "attention_resolutions": (), "dropout": 0.0}
# every network with the field, and what it is called with beside a time
NETWORKS = {
    "dit": (MODELS["dit"](width=32, depth=1, num_heads=2), {"hidden_states": IMAGE}),
    "unet": (MODELS["unet"](out_channels=4, **LEVELS), {"sample": IMAGE}),
    "edm_unet": (MODELS["edm_unet"](out_channels=4, **LEVELS), {"sample": IMAGE}),
    "edm2_unet": (MODELS["edm2_unet"](head_channels=32, **LEVELS), {"sample": IMAGE}),
    "mmdit": (
        MMDiT(out_channels=4, depth=1, num_heads=2, head_width=16, sample_size=8, position_grid=8),
        {"hidden_states": IMAGE, **JOINT},
    ),
    "flux": (
        FluxTransformer(out_channels=4, depth=1, single_depth=1, num_heads=2, head_width=8, rotary_widths=(2, 4, 2)),
        {"hidden_states": IMAGE[:, 0], **JOINT, "img_ids": jnp.zeros((8, 3)), "txt_ids": jnp.zeros((3, 3))},
    ),
    "conditional_unet": (
        ConditionalUNet(widths=(32,), num_res_blocks=1, attention=(True,), transformer_depth=(1,), num_heads=(2,)),
        {"sample": IMAGE, "encoder_hidden_states": TOKENS},
    ),
}


def pullback(network, given, params):
    """What the backward pass takes from the forward pass, as arrays."""
    return jax.vjp(lambda params: network.apply({"params": params}, **given), params)[1]


def kept(network, given, params) -> int:
    """Numbers in it, without computing any."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p: pullback(network, given, p), params)))


@functools.cache
def shapes(name):
    network, given = NETWORKS[name]
    given = {**given, "timestep": jnp.ones(2)}
    return network, given, jax.eval_shape(lambda: network.init(jax.random.key(0), **given))["params"]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_keeps_less(name):
    network, given, params = shapes(name)
    everything, nothing = (kept(network.clone(remat=remat), given, params) for remat in ("none", "full"))
    assert nothing < 0.7 * everything


def test_a_bool_is_everything_or_nothing():
    network, given, params = shapes("dit")
    for old, new in ((False, "none"), (True, "full")):
        sizes = [kept(network.clone(remat=remat), given, params) for remat in (old, new)]
        assert sizes[0] == sizes[1]


def test_autoencoders_keep_less():
    network = AutoencoderKL(widths=(32,), num_res_blocks=1, sample_size=8)
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), IMAGE[..., :3]))["params"]
    given = {"sample": IMAGE[..., :3]}
    assert kept(network.clone(remat="full"), given, params) < kept(network.clone(remat="dots"), given, params)


def test_products_with_kernels_are_told_from_those_of_the_attention():
    """Of a transformer, `dots` keeps the scores and `dots_no_batch` does not."""
    network, given, params = shapes("dit")

    def squares(remat) -> int:
        arrays = jax.tree.leaves(jax.eval_shape(lambda p: pullback(network.clone(remat=remat), given, p), params))
        return sum(array.shape == (4, 16, 16) for array in arrays)  # 2 images of 2 heads, 16 tokens

    assert squares("dots") >= 1 and squares("dots_no_batch") == squares("full") == 0
    order = [kept(network.clone(remat=remat), given, params) for remat in ("none", "dots", "dots_no_batch", "full")]
    assert order == sorted(order, reverse=True) and len(set(order)) == 4


def test_outputs_and_gradients_stay():
    network, given, params = shapes("dit")
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 6, params)
    given = {**given, "hidden_states": rng.normal(size=IMAGE.shape).astype(np.float32)}

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # quicker to compile
    def losses(params):
        def loss(params, remat):
            return jnp.square(network.clone(remat=remat).apply({"params": params}, **given)).mean()

        return {remat: jax.value_and_grad(functools.partial(loss, remat=remat))(params) for remat in POLICIES}

    expected, *others = (jax.tree.leaves(found) for found in losses(params).values())
    largest = max(np.abs(leaf).max() for leaf in expected[1:])
    for found in others:
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest)


def test_offloaded_results_are_in_the_memory_of_the_host():
    network, given, params = shapes("dit")
    offloading = network.clone(remat="offload")
    program = jax.make_jaxpr(jax.grad(lambda params: offloading.apply({"params": params}, **given).sum()))(params)
    assert "pinned_host" in str(program) or "<host>" in str(program)


def test_unknown_names_are_refused():
    message = "^remat='half': it could be 'none' or 'dots' or 'dots_no_batch' or 'offload' or 'full'$"
    with pytest.raises(ValueError, match=message):
        rematerialized(TransformerBlock, "half")
    for name in ("dit", "unet", "edm_unet", "edm2_unet"):
        with pytest.raises(ValueError, match=message):
            NETWORKS[name][0].clone(remat="half").validate(8, 4)


@pytest.mark.parametrize("name", ["dit", "unet", "edm_unet", "edm2_unet"])
def test_configs_reach_it(name):
    config = experiment.default()
    config.model.name, config.model.remat = name, "dots"
    config.data.image_size = 32
    assert building.network(config, {}).remat == "dots"
    config.model.remat = "half"
    with pytest.raises(ConfigError, match=r"^config.model: remat='half': it could be 'none' or"):
        building.network(config, {})

"""The published settings: parameter counts, and programs for several devices, from shapes alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.hub.checkpoint import format_of
from diffusion_jax.training import sharding
from tests.hub.test_single_file import SDXL, VAE

STABLE_DIFFUSION_2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
STABLE_DIFFUSION_3 = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
SD35 = {"qk_norm": "rms_norm"}
NETWORKS = {
    "SD 1.5": ({"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}, 859_520_964),
    "SD 1.5 inpainting": (
        {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "in_channels": 9},
        859_520_964 + 5 * 9 * 320,
    ),
    "SD 2.1": ({"_class_name": "UNet2DConditionModel", **STABLE_DIFFUSION_2}, 865_910_724),
    "SDXL": ({"_class_name": "UNet2DConditionModel", **SDXL}, 2_567_463_684),
    "ControlNet of SD 1.5": ({"_class_name": "ControlNetModel", "cross_attention_dim": 768}, 361_279_120),
    "SD 3 medium": ({"_class_name": "SD3Transformer2DModel", **STABLE_DIFFUSION_3}, 2_028_328_000),
    "SD 3.5 medium": (
        {
            "_class_name": "SD3Transformer2DModel",
            **(STABLE_DIFFUSION_3 | SD35),
            "dual_attention_layers": list(range(13)),
        },
        2_243_171_520,
    ),
    "SD's autoencoder": ({"_class_name": "AutoencoderKL", **VAE}, 83_653_863),
    "SD 3's autoencoder": (
        {
            "_class_name": "AutoencoderKL",
            **VAE,
            "latent_channels": 16,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        83_819_683,
    ),
}
SIDES = {"SD 1.5": 64, "SD 2.1": 96, "SDXL": 128, "SD 3 medium": 128}


def shapes_of(name: str):
    """The network, shapes of its parameters, and small inputs, by keyword."""
    config, _ = NETWORKS[name]
    form = format_of(config, None)
    model = form.build(config, "bfloat16")
    inputs = form.inputs(model, config)
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))["params"], inputs


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_counts(name):
    _, params, _ = shapes_of(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == NETWORKS[name][1]


def lowered(name: str):
    """A guided evaluation of four images at the published size, on a mesh of 2 x 2 x 2 devices."""
    model, params, inputs = shapes_of(name)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    placed = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        params,
        sharding.state_shardings(mesh, params),
    )
    image = "hidden_states" if "hidden_states" in inputs else "sample"
    sizes = {image: (SIDES[name], SIDES[name]), "encoder_hidden_states": (77,)}

    def batched(path, leaf):
        size = sizes.get(path[0].key, ())
        shape = (8, *size, *leaf.shape[1 + len(size) :])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding.batch_sharding(mesh))

    given = jax.tree.map_with_path(batched, {key: value for key, value in inputs.items() if value is not None})
    guided = jax.jit(
        lambda p, given: jnp.add(*jnp.split(model.apply({"params": p}, **given), 2)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    return guided.lower(placed, given), placed


@pytest.mark.parametrize("name", SIDES)
def test_programs_for_eight_devices_are_lowered(name):
    program, params = lowered(name)
    text = program.as_text()
    assert f"8x{SIDES[name]}x{SIDES[name]}x" in text
    held = [np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params)]
    assert sum(held) < 0.3 * NETWORKS[name][1]  # a quarter of most parameters on each device


@pytest.mark.slow
@pytest.mark.parametrize("name", SIDES)
def test_programs_for_eight_devices_compile(name):
    program, _ = lowered(name)
    analysis = program.compile().memory_analysis()
    assert analysis.argument_size_in_bytes < 0.3 * 2 * NETWORKS[name][1] + 2**26

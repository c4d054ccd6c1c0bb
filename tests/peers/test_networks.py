"""Random small networks of diffusers that denoise: opened, evaluated and saved back."""

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)

from tests.peers.networks import call, compare, draw, filled, pick

SIDES = ((8, 8), (8, 16), (16, 8))


def noise(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def times(rng):
    return torch.from_numpy(rng.integers(1, 1000, 2).astype(np.float32))


def each(rng, levels, *choices):
    """One value for all levels, or one for each."""
    return pick(rng, *choices) if rng.random() < 0.5 else [pick(rng, *choices) for _ in range(levels)]


def unet2d(rng):
    levels = int(rng.integers(1, 4))
    attention = rng.random(levels) < 0.4
    kind = pick(rng, "conv", "resnet")
    plain = ("DownBlock2D", "UpBlock2D") if kind == "conv" else ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    classes = pick(rng, None, None, 5)
    odd = rng.random() < 0.1  # blocks and embeddings that only this class has
    config = {
        "sample_size": pick(rng, 16, None, [8, 16]),
        "in_channels": pick(rng, 1, 3),
        "out_channels": pick(rng, 3, 6),
        "center_input_sample": pick(rng, False, False, True),
        "time_embedding_type": pick(rng, "positional", "positional", "fourier"),
        "freq_shift": pick(rng, 0, 1),
        "flip_sin_to_cos": pick(rng, True, False),
        "down_block_types": ["AttnDownBlock2D" if here else plain[0] for here in attention],
        "up_block_types": ["AttnUpBlock2D" if here else plain[1] for here in reversed(attention)],
        "block_out_channels": [int(16 * pick(rng, 1, 2)) for _ in range(levels)],
        "layers_per_block": int(rng.integers(1, 3)),
        "mid_block_scale_factor": pick(rng, 1, 1, 1.5),
        "downsample_padding": pick(rng, 0, 1),
        "downsample_type": kind,
        "upsample_type": kind,
        "act_fn": pick(rng, "silu", "silu", "gelu", "mish", "relu", "swish"),
        "attention_head_dim": pick(rng, 4, 8, None),
        "norm_num_groups": pick(rng, 4, 8),
        "norm_eps": pick(rng, 1e-5, 1e-6),
        "resnet_time_scale_shift": pick(rng, "default", "scale_shift"),
        "add_attention": pick(rng, True, True, False),
        "class_embed_type": None if classes or rng.random() < 0.8 else "timestep",
        "num_class_embeds": classes,
    }
    if odd:
        config |= pick(rng, {"mid_block_type": None}, {"time_embedding_type": "learned", "num_train_timesteps": 1000})
    config["attn_norm_num_groups"] = pick(rng, None, config["norm_num_groups"])
    if levels == 1 or rng.random() < 0.1:  # how the lowest level would change the resolution does not matter
        config["down_block_types"][-1] = "DownBlock2D" if not attention[-1] else "AttnDownBlock2D"
    given = {"sample": noise(rng, 2, config["in_channels"], *pick(rng, *SIDES)), "timestep": times(rng)}
    if config["time_embedding_type"] == "learned":
        given["timestep"] = given["timestep"].long()
    if classes is not None:
        given["class_labels"] = torch.tensor([0, classes - 1])
    elif config["class_embed_type"] == "timestep":
        given["class_labels"] = times(rng)
    return checked(UNet2DModel(**config), given)


def trunk(rng):
    """Settings of UNet2DConditionModel and ControlNetModel, and the inputs that go with them."""
    levels = int(rng.integers(1, 4))
    attention = rng.random(levels) < 0.6
    context, width = 12, 16
    config = {
        "in_channels": pick(rng, 4, 9),
        "flip_sin_to_cos": pick(rng, True, False),
        "freq_shift": pick(rng, 0, 1),
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "only_cross_attention": pick(rng, False, False, False, True, [bool(rng.integers(2)) for _ in range(levels)]),
        "block_out_channels": [int(width * pick(rng, 1, 2)) for _ in range(levels)],
        "layers_per_block": int(rng.integers(1, 3)),
        "downsample_padding": pick(rng, 0, 1),
        "mid_block_scale_factor": pick(rng, 1, 1, 1.5),
        "act_fn": pick(rng, "silu", "silu", "gelu"),
        "norm_num_groups": pick(rng, 4, 8),
        "norm_eps": pick(rng, 1e-5, 1e-6),
        "cross_attention_dim": context,
        "transformer_layers_per_block": each(rng, levels, 1, 2),
        "attention_head_dim": each(rng, levels, 2, 4),
        "use_linear_projection": pick(rng, False, True),
        "upcast_attention": pick(rng, False, True),
        "resnet_time_scale_shift": pick(rng, "default", "default", "scale_shift"),
    }
    sides = pick(rng, *SIDES)
    given = {
        "sample": noise(rng, 2, config["in_channels"], *sides),
        "timestep": times(rng),
        "encoder_hidden_states": noise(rng, 2, 5, context),
    }
    extra = pick(rng, None, None, "classes", "timestep", "projection", "text_time")
    if extra == "classes":
        config["num_class_embeds"] = 5
        given["class_labels"] = torch.tensor([4, 0])
    elif extra == "timestep":
        config["class_embed_type"] = extra
        given["class_labels"] = times(rng)
    elif extra == "projection":
        config |= {"class_embed_type": extra, "projection_class_embeddings_input_dim": 10}
        given["class_labels"] = noise(rng, 2, 10)
    elif extra == "text_time":
        config |= {
            "addition_embed_type": extra, "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 48 + 6
        }  # fmt: skip
        ids = torch.from_numpy(rng.integers(0, 512, (2, 6)).astype(np.float32))
        given["added_cond_kwargs"] = {"text_embeds": noise(rng, 2, 6), "time_ids": ids}
    return config, given, sides


def unet2d_condition(rng):
    config, given, _ = trunk(rng)
    blocks = config["down_block_types"]
    config |= {
        "sample_size": pick(rng, 16, None),
        "out_channels": pick(rng, 4, 8),
        "up_block_types": [block.replace("Down", "Up") for block in reversed(blocks)],
        "mid_block_type": pick(rng, "UNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
        "center_input_sample": pick(rng, False, False, False, True),
        "time_cond_proj_dim": pick(rng, None, None, 24),
    }
    if rng.random() < 0.3:
        config["reverse_transformer_layers_per_block"] = [int(rng.integers(1, 3)) for _ in blocks]
    if rng.random() < 0.2 and config.get("class_embed_type") == "projection":
        config["class_embed_type"] = "simple_projection"
    if rng.random() < 0.15:
        config |= pick(
            rng, {"conv_in_kernel": 5}, {"timestep_post_act": "silu"}, {"time_embedding_type": "fourier"},
            {"time_embedding_dim": 48}, {"layers_per_block": [int(rng.integers(1, 3)) for _ in blocks]},
        )  # fmt: skip
    if config["time_cond_proj_dim"] is not None:
        given["timestep_cond"] = noise(rng, 2, config["time_cond_proj_dim"])
    return checked(UNet2DConditionModel(**config), given)


def controlnet(rng):
    config, given, sides = trunk(rng)
    hints = [int(4 * pick(rng, 1, 2)) for _ in range(int(rng.integers(1, 4)))]
    config |= {
        "mid_block_type": pick(rng, "UNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
        "conditioning_embedding_out_channels": hints,
        "controlnet_conditioning_channel_order": pick(rng, "rgb", "bgr"),
        "global_pool_conditions": pick(rng, False, False, True),
    }
    factor = 2 ** (len(hints) - 1)
    given |= {
        "controlnet_cond": torch.sigmoid(noise(rng, 2, 3, *(factor * side for side in sides))),
        "conditioning_scale": torch.tensor(0.7),
    }
    return checked(ControlNetModel(**config), given)


def dit(rng):
    patch = pick(rng, 1, 2)
    config = {
        "num_attention_heads": pick(rng, 2, 4),
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": pick(rng, None, 8),
        "num_layers": int(rng.integers(1, 4)),
        "sample_size": pick(rng, 4, 8),
        "patch_size": patch,
        "num_embeds_ada_norm": pick(rng, 5, 1000),
        "attention_bias": pick(rng, True, True, True, False),
        "norm_eps": pick(rng, 1e-5, 1e-6),
        "activation_fn": pick(rng, "gelu-approximate", "gelu-approximate", "gelu"),
    }
    size = config["sample_size"]
    labels = torch.tensor([0, 4])
    return checked(
        DiTTransformer2DModel(**config),
        {"hidden_states": noise(rng, 2, 4, size, size), "timestep": times(rng), "class_labels": labels},
    )


def joint(rng, **more):
    heads, head = int(rng.integers(1, 4)), pick(rng, 8, 16)
    layers = int(rng.integers(1, 4))
    config = {
        "sample_size": 8,
        "patch_size": pick(rng, 1, 2),
        "in_channels": pick(rng, 4, 16),
        "num_layers": layers,
        "attention_head_dim": head,
        "num_attention_heads": heads,
        "joint_attention_dim": 12,
        "caption_projection_dim": heads * head,
        "pooled_projection_dim": 10,
        "out_channels": pick(rng, 4, 16),
        "pos_embed_max_size": pick(rng, 16, 20),
        "dual_attention_layers": [i for i in range(layers) if rng.random() < 0.4],
        "qk_norm": pick(rng, None, "rms_norm"),
    } | more
    given = {
        "hidden_states": noise(rng, 2, config["in_channels"], *pick(rng, (8, 8), (4, 8))),
        "encoder_hidden_states": noise(rng, 2, 3, 12),
        "pooled_projections": noise(rng, 2, 10),
        "timestep": times(rng),
    }
    return config, given


def sd3(rng):
    config, given = joint(rng)
    return checked(SD3Transformer2DModel(**config), given)


def sd3_controlnet(rng):
    config, given = joint(rng, extra_conditioning_channels=pick(rng, 0, 1))
    channels = config["in_channels"] + config["extra_conditioning_channels"]
    given["controlnet_cond"] = noise(rng, 2, channels, *given["hidden_states"].shape[2:])
    given["conditioning_scale"] = torch.tensor(0.6)
    return checked(SD3ControlNetModel(**config), given)


def flux(rng):
    axes = pick(rng, [4, 6, 6], [2, 2, 4])
    config = {
        "in_channels": 8,
        "out_channels": pick(rng, None, 4),
        "num_layers": int(rng.integers(1, 3)),
        "num_single_layers": int(rng.integers(1, 3)),
        "attention_head_dim": sum(axes),
        "num_attention_heads": int(rng.integers(1, 4)),
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "guidance_embeds": pick(rng, True, False),
        "axes_dims_rope": axes,
    }
    rows, columns = pick(rng, (2, 3), (4, 4))
    places = torch.zeros(rows, columns, 3)
    places[..., 1], places[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)
    given = {
        "hidden_states": noise(rng, 2, rows * columns, 8),
        "encoder_hidden_states": noise(rng, 2, 3, 12),
        "pooled_projections": noise(rng, 2, 10),
        "timestep": times(rng) / 1000,
        "img_ids": places.reshape(-1, 3),
        "txt_ids": torch.zeros(3, 3),
    }
    if config["guidance_embeds"]:
        given["guidance"] = torch.tensor([3.5, 1.0])
    return checked(FluxTransformer2DModel(**config), given)


def checked(model, given):
    """The case, with random weights, if the peer can evaluate it."""
    assert np.isfinite(call(filled(model, 0), given)).all()
    return model, given


CASES = (
    [(unet2d, 14), (unet2d_condition, 20), (controlnet, 8), (dit, 6), (sd3, 7), (sd3_controlnet, 4), (flux, 6)]
)  # fmt: skip


@pytest.mark.parametrize(("make", "seed"), [(make, seed) for make, count in CASES for seed in range(count)])
def test_network(make, seed, record_property, tmp_path):
    model, given = draw(seed, make)
    compare(record_property, type(model).__name__, model, given, tmp_path)

"""LoRA files in the three spellings that the world publishes, against the formula W + weight alpha / rank B A."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax import hub
from diffusion_jax.hub import compvis
from diffusion_jax.hub.lora import add_lora, set_lora_weights
from diffusion_jax.hub.tensors import flatten
from diffusion_jax.pipelines import adapters
from tests.hub import pipeline_folders

# module of the U-Net (or "text_encoder"), shape of its kernel in PyTorch's layout, path here
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
POINT = "down_blocks.0.attentions.0.proj_in"
TEXT = "text_model.encoder.layers.1.self_attn.v_proj"
MODULES = {QUERY: (32, 32), OUT: (64, 64), CONV: (32, 32, 3, 3), POINT: (32, 32, 1, 1), TEXT: (32, 32)}
RANK, ALPHA, WEIGHT = 2, 3.0, 0.7


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return hub.load_pipeline(pipeline_folders.write("pipeline-sd15", tmp_path_factory.mktemp("lora") / "sd"))


@pytest.fixture(scope="module")
def factors():
    """(down, up) of each module in PyTorch's layout."""
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in MODULES.items():
        spatial, points = shape[2:], (1,) * (len(shape) - 2)
        found[name] = (
            rng.standard_normal((RANK, shape[1], *spatial)).astype(np.float32),
            rng.standard_normal((shape[0], RANK, *points)).astype(np.float32),
        )
    return found


def place(name):
    network = "text_encoder" if name == TEXT else "network"
    path = name.removeprefix("text_model.encoder.")
    for module in ("down_blocks", "attentions", "transformer_blocks", "resnets", "layers", "to_out"):
        for index in "01":
            path = path.replace(f"{module}.{index}", f"{module}_{index}")
    return network, (*path.split("."), "kernel")


def expected(pipe, factors, scale):
    """Every weight, those of the modules changed by hand."""
    trees = {network: dict(flatten(pipe.params[network])) for network in ("network", "text_encoder")}
    for name, (down, up) in factors.items():
        network, path = place(name)
        delta = np.einsum("or,ri...->oi...", up.reshape(up.shape[0], RANK), down)
        delta = delta.transpose(2, 3, 1, 0) if delta.ndim == 4 else delta.T
        trees[network][path] = np.asarray(trees[network][path]) + scale * delta
    return trees


def assert_weights(pipe, trees, what=""):
    for network, leaves in trees.items():
        found = flatten(pipe.params[network])
        for path, value in leaves.items():
            np.testing.assert_allclose(found[path], value, rtol=0, atol=2e-6, err_msg=f"{what} {path}")


def diffusers_file(factors, path, *, ends=("lora_A.weight", "lora_B.weight"), alpha=True, **options):
    tensors = {}
    for name, pair in factors.items():
        prefix = f"text_encoder.{name}" if name == TEXT else f"unet.{name}"
        tensors |= {f"{prefix}.{end}": value for end, value in zip(ends, pair, strict=True)}
        if alpha:
            tensors[f"{prefix}.alpha"] = np.array(ALPHA, np.float32)
    save_file(tensors, path, **options)
    return path


def kohya_file(factors, path, names=lambda name: name):
    tensors = {}
    for name, (down, up) in factors.items():
        prefix = "lora_te_" if name == TEXT else "lora_unet_"
        key = prefix + names(name).replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        tensors[f"{key}.alpha"] = np.array(ALPHA, np.float16)
    save_file(tensors, path)
    return path


def test_spellings_and_alpha(pipe, factors, tmp_path):
    with_alpha = expected(pipe, factors, WEIGHT * ALPHA / RANK)
    files = {
        "diffusers": diffusers_file(factors, tmp_path / "a.safetensors"),
        "older diffusers": diffusers_file(
            factors, tmp_path / "b.safetensors", ends=("lora_linear_layer.down.weight", "lora_linear_layer.up.weight")
        ),
        "kohya": kohya_file(factors, tmp_path / "c.safetensors"),
    }
    for spelling, file in files.items():
        merged = add_lora(pipe, [(file, WEIGHT)])
        assert_weights(merged, with_alpha, spelling)
    without = diffusers_file(factors, tmp_path / "d.safetensors", alpha=False)
    assert_weights(add_lora(pipe, [(without, WEIGHT)]), expected(pipe, factors, WEIGHT))


def test_attention_layers_as_diffusers_named_them_before_0_22(pipe, factors, tmp_path):
    """processor.to_q_lora; in text encoders to_v for v_proj (the spellings of diffusers' own conversion of kohya)."""
    names = {
        QUERY: f"unet.{QUERY.removesuffix('.to_q')}.processor.to_q_lora",
        OUT: f"unet.{OUT.removesuffix('.to_out.0')}.processor.to_out_lora",
        TEXT: f"text_encoder.{TEXT.removesuffix('v_proj')}to_v_lora",
    }
    tensors = {}
    for name, there in names.items():
        tensors |= dict(zip((f"{there}.down.weight", f"{there}.up.weight"), factors[name], strict=True))
    save_file(tensors, tmp_path / "old.safetensors")
    trees = expected(pipe, {name: factors[name] for name in names}, WEIGHT)
    assert_weights(add_lora(pipe, [(tmp_path / "old.safetensors", WEIGHT)]), trees)


def test_names_of_single_files(pipe, factors, tmp_path):
    """SDXL's LoRAs name the U-Net's blocks as the original code does: input_blocks_1_1, not down_blocks_0."""
    shapes = {path: leaf.shape for path, leaf in flatten(pipe.params["network"]).items()}
    original = {tensor.paths[0]: tensor.name for tensor in compvis.unet_tensors(pipe.network, shapes, {})}

    def names(name):
        return name if name == TEXT else original[place(name)[1]].removesuffix(".weight")

    file = kohya_file(factors, tmp_path / "original.safetensors", names)
    assert "input_blocks" in names(QUERY)
    assert_weights(add_lora(pipe, [(file, WEIGHT)]), expected(pipe, factors, WEIGHT * ALPHA / RANK))
    # ComfyUI writes the same names with their dots
    only_unet = {name: pair for name, pair in factors.items() if name != TEXT}
    tensors = {}
    for name, (down, up) in only_unet.items():
        prefix = f"diffusion_model.{names(name)}"
        tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    save_file(tensors, tmp_path / "dotted.safetensors")
    assert_weights(add_lora(pipe, [(tmp_path / "dotted.safetensors", WEIGHT)]), expected(pipe, only_unet, WEIGHT))


def test_peft_folders_and_the_header_of_diffusers_state_alpha(pipe, factors, tmp_path):
    only_unet = {name: pair for name, pair in factors.items() if name != TEXT}
    tensors = {}
    for name, (down, up) in only_unet.items():
        tensors |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": True, "alpha_pattern": {QUERY: 2 * ALPHA}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    root = WEIGHT * ALPHA / RANK**0.5
    trees = expected(pipe, {name: pair for name, pair in only_unet.items() if name != QUERY}, root)
    query = expected(pipe, {QUERY: only_unet[QUERY]}, 2 * root)
    trees["network"][place(QUERY)[1]] = query["network"][place(QUERY)[1]]
    assert_weights(add_lora(pipe, [(tmp_path, WEIGHT)]), trees)

    header = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": ALPHA, "unet.r": RANK})}
    file = diffusers_file(only_unet, tmp_path / "header.safetensors", alpha=False, metadata=header)
    assert_weights(add_lora(pipe, [(file, WEIGHT)]), expected(pipe, only_unet, WEIGHT * ALPHA / RANK))


def test_tucker_convolutions(pipe, tmp_path):
    """LoCon with lora_mid: down to the rank, a 3x3 convolution there, and up."""
    rng = np.random.default_rng(1)
    down, mid, up = (rng.standard_normal(shape).astype(np.float32)
                     for shape in ((RANK, 32, 1, 1), (RANK, RANK, 3, 3), (32, RANK, 1, 1)))  # fmt: skip
    key = f"lora_unet_{CONV.replace('.', '_')}"
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_mid.weight": mid, f"{key}.lora_up.weight": up},
              tmp_path / "t.safetensors")  # fmt: skip
    delta = np.einsum("or,rshw,si->oihw", up[:, :, 0, 0], mid, down[:, :, 0, 0]).transpose(2, 3, 1, 0)
    before = np.asarray(flatten(pipe.params["network"])[place(CONV)[1]])
    after = flatten(add_lora(pipe, [(tmp_path / "t.safetensors", 1.0)]).params["network"])[place(CONV)[1]]
    np.testing.assert_allclose(after, before + delta, atol=1e-5)


def test_live_is_merged_and_several_add_up(pipe, factors, tmp_path):
    file = diffusers_file(factors, tmp_path / "a.safetensors")
    half = diffusers_file({QUERY: factors[QUERY]}, tmp_path / "b.safetensors")
    asked = [(file, WEIGHT), (half, -0.4)]
    merged, live = add_lora(pipe, asked), add_lora(pipe, asked, merge=False)
    jax.tree.map(np.testing.assert_array_equal, live.params, pipe.params)
    effective = jax.jit(lambda p, a, w: adapters.apply(p, a, w))

    def weights_of(one):
        return effective(one.params, one.adapters, np.array(one.adapter_weights, np.float32))

    for network in ("network", "text_encoder"):
        leaves = flatten(weights_of(live)[network])
        for path, value in flatten(merged.params[network]).items():
            np.testing.assert_allclose(leaves[path], value, atol=1e-6)
    off = weights_of(set_lora_weights(live, [0.0, 0.0]))
    jax.tree.map(np.testing.assert_array_equal, off, pipe.params)
    with pytest.raises(ValueError, match="there are 1 weights for 2 live LoRAs"):
        set_lora_weights(live, [1.0])


def test_the_program_of_a_live_lora_draws_the_merged_ones_images(factors, tmp_path):
    from tests.pipelines import tiny

    small = tiny.pipeline()
    down, up = np.ones((8, 1), np.float32), np.ones((1, 8), np.float32)
    path = "mid_block/attentions_0/transformer_blocks_0/attn2/to_v/kernel"
    text = "layers_0/self_attn/v_proj/kernel"
    adapter = {"network": {path: (down, up)}, "text_encoder": {text: (down, up)}}
    live = dataclasses.replace(small, adapters=(adapter,), adapter_weights=(0.3,))
    merged = dataclasses.replace(small, params=adapters.apply(small.params, [adapter], np.array([0.3], np.float32)))
    given = {"num_steps": 2, "guidance_scale": 1.0}
    drawn = live("red cat", **given)
    np.testing.assert_allclose(drawn, merged("red cat", **given), atol=1e-5)
    other = set_lora_weights(live, [0.0])
    assert np.abs(other("red cat", **given) - drawn).max() > 1e-4
    assert live._whole_program._cache_size() == 1


def test_keys_that_fit_nothing_are_all_listed(pipe, factors, tmp_path):
    stranger = np.zeros((RANK, 32), np.float32)
    wrong = {"unet.down_blocks.7.attn1.to_q.lora_A.weight": stranger,
             "unet.down_blocks.7.attn1.to_q.lora_B.weight": stranger.T.copy(),
             f"unet.{QUERY}.hada_w1_a": stranger}  # fmt: skip
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(hub.CheckpointError, match="3 keys fit no weight") as caught:
        add_lora(pipe, [(tmp_path / "wrong.safetensors", 1.0)])
    assert all(key in str(caught.value) for key in wrong)


def test_factors_of_another_size_are_refused(pipe, factors, tmp_path):
    down, up = factors[OUT]
    file = diffusers_file({QUERY: (down, up)}, tmp_path / "size.safetensors")
    with pytest.raises(hub.CheckpointError, match=r"to_q changes a weight of shape \[64, 64\]; it is \[32, 32\] here"):
        add_lora(pipe, [(file, 1.0)])
    with pytest.raises(hub.CheckpointError, match="no such LoRA file"):
        add_lora(pipe, [(tmp_path / "nothing.safetensors", 1.0)])


def test_broken_files_are_named_in_one_line(pipe, tmp_path):
    (tmp_path / "garbage.safetensors").write_text("garbage")
    one = {"x": np.zeros(1, np.float32)}
    for stem, header in (("cut", "{"), ("list", "[1]")):
        save_file(one, tmp_path / f"{stem}.safetensors", metadata={"lora_adapter_metadata": header})
    peft = tmp_path / "peft"
    peft.mkdir()
    save_file(one, peft / "adapter_model.safetensors")
    (peft / "adapter_config.json").write_text("{")
    for name in ("garbage.safetensors", "cut.safetensors", "list.safetensors", "peft"):
        with pytest.raises(hub.CheckpointError, match=name.replace(".", r"\.")) as caught:
            add_lora(pipe, [(tmp_path / name, 1.0)])
        assert "\n" not in str(caught.value)

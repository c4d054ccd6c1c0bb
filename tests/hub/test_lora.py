"""LoRA files in the spellings that the world publishes, against the formula W + weight alpha / rank B A; other kinds of
changes against peft.

The golden "lora-kinds" was made by peft 0.21.2 (merge_and_unload) on two modules of the pipeline's U-Net, with base
weights and factors by the fill rule; it stores DoRA's magnitudes, and some rows of the merged weights.
"""

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
from tests import golden
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
    factors = adapters.LowRank(down, up)
    adapter = {"network": {path: factors}, "text_encoder": {text: factors}}
    live = dataclasses.replace(small, adapters=(adapter,), adapter_weights=(0.3,))
    merged = dataclasses.replace(small, params=adapters.apply(small.params, [adapter], np.array([0.3], np.float32)))
    given = {"num_steps": 2, "guidance_scale": 1.0}
    drawn = live("red cat", **given)
    np.testing.assert_allclose(drawn, merged("red cat", **given), atol=1e-5)
    other = set_lora_weights(live, [0.0])
    assert np.abs(other("red cat", **given) - drawn).max() > 1e-4
    assert live._whole_program._cache_size() == 1


def test_keys_that_fit_nothing_are_counted_and_the_first_named(pipe, factors, tmp_path):
    stranger = np.zeros((RANK, 32), np.float32)
    wrong = {"unet.down_blocks.7.attn1.to_q.lora_A.weight": stranger,
             "unet.down_blocks.7.attn1.to_q.lora_B.weight": stranger.T.copy(),
             f"unet.{QUERY}.hada_w1_a": stranger}  # fmt: skip
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(hub.CheckpointError, match="3 keys fit no weight") as caught:
        add_lora(pipe, [(tmp_path / "wrong.safetensors", 1.0)])
    assert "unet.down_blocks." in str(caught.value)
    many = {f"unet.down_blocks.{i}.attn1.to_q.lora_A.weight": stranger for i in range(200)}
    save_file(many, tmp_path / "many.safetensors")
    with pytest.raises(
        hub.CheckpointError, match=r"200 keys fit no weight of this pipeline: unet.*, \.\.\.$"
    ) as caught:
        add_lora(pipe, [(tmp_path / "many.safetensors", 1.0)])
    assert len(str(caught.value)) < 300


KINDS = ("lora", "dora", "loha", "loha-tucker", "lokr", "lokr-both", "lokr-tucker", "lokr-full")


def kind_folder(kind, directory):
    """peft's folder of the golden's adapter."""
    recorded, prefix = golden.load("lora-kinds"), f"{kind}/"
    stored = {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}
    shapes = golden.config("lora-kinds", "tensors.json")[kind]
    tensors = {
        name: stored[name] if name in stored else golden.fill(name, tuple(shape)) for name, shape in shapes.items()
    }
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(golden.config("lora-kinds")[kind]))
    return directory, stored


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_changes_are_those_of_peft(kind, pipe, tmp_path):
    folder, stored = kind_folder(kind, tmp_path / kind)
    merged = flatten(add_lora(pipe, [(folder, 1.0)]).params["network"])
    query, conv = (np.asarray(merged[place(name)[1]]) for name in (QUERY, CONV))
    np.testing.assert_allclose(query.T[:8], stored["to_q"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(conv.transpose(3, 2, 0, 1)[::8], stored["conv1"], rtol=0, atol=2e-6)
    assert np.abs(query - np.asarray(flatten(pipe.params["network"])[place(QUERY)[1]])).max() > 1e-2


def test_changes_of_every_kind_stay_live_and_add_up(pipe, tmp_path):
    asked = [
        (kind_folder(kind, tmp_path / kind)[0], weight) for kind, weight in (("dora", 0.5), ("loha", 2), ("lokr", -1))
    ]
    live = add_lora(pipe, asked, merge=False)
    effective = jax.jit(adapters.apply)(live.params, live.adapters, np.array(live.adapter_weights, np.float32))
    before = np.asarray(flatten(pipe.params["network"])[place(QUERY)[1]])
    alone = [flatten(add_lora(pipe, [one]).params["network"])[place(QUERY)[1]] - before for one in asked]
    np.testing.assert_allclose(flatten(effective["network"])[place(QUERY)[1]], before + sum(alone), rtol=0, atol=1e-5)
    # DoRA at half its weight, by hand: the direction of W + BA / 2 times alpha / rank, at the stored length
    tensors = {
        key: golden.fill(key, tuple(shape))
        for key, shape in golden.config("lora-kinds", "tensors.json")["dora"].items()
    }
    down, up = (tensors[f"base_model.model.{QUERY}.lora_{end}.weight"] for end in "AB")
    magnitude = golden.load("lora-kinds")[f"dora/base_model.model.{QUERY}.lora_magnitude_vector"]
    moved = before.T + 0.5 * 1.5 * up @ down
    expected = moved / np.linalg.norm(moved, axis=1, keepdims=True) * magnitude[:, None]
    np.testing.assert_allclose((before + alone[0]).T, expected, rtol=0, atol=2e-6)


def test_lycoris_states_alpha_in_tensors(pipe, tmp_path):
    """By its formulas: alpha / rank, but 1 where both factors of a Kronecker product are stored whole."""
    key = f"lora_unet_{QUERY.replace('.', '_')}"
    rng = np.random.default_rng(3)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    one, two = draw(4, 4), draw(8, 8)
    alpha = np.array(3.0, np.float32)
    save_file({f"{key}.lokr_w1": one, f"{key}.lokr_w2": two, f"{key}.alpha": alpha}, tmp_path / "whole.safetensors")
    a, b = draw(8, 2), draw(2, 8)
    save_file({f"{key}.lokr_w1": one, f"{key}.lokr_w2_a": a, f"{key}.lokr_w2_b": b, f"{key}.alpha": alpha},
              tmp_path / "factored.safetensors")  # fmt: skip
    before = np.asarray(flatten(pipe.params["network"])[place(QUERY)[1]])
    for file, delta in (("whole", np.kron(one, two)), ("factored", 1.5 * np.kron(one, a @ b))):
        after = flatten(add_lora(pipe, [(tmp_path / f"{file}.safetensors", 1.0)]).params["network"])[place(QUERY)[1]]
        np.testing.assert_allclose(after, before + delta.T, rtol=0, atol=1e-5)


BAD_DOWN = {
    "1-D": (np.ones(32, np.float32), r"lora_A\.weight is \[32\]; it must have 2 or 4 axes"),
    "scalar": (np.array(1, np.float32), r"lora_A\.weight is \[\]; it must have 2 or 4 axes"),
    "empty": (np.ones((0, 32), np.float32), r"lora_A\.weight is \[0, 32\]"),
    "NaN": (np.full((RANK, 32), np.nan, np.float32), r"to_q\.lora_A\.weight holds values that are not finite"),
    "inf": (np.full((RANK, 32), -np.inf, np.float16), r"to_q\.lora_A\.weight holds values that are not finite"),
    "rank": (np.ones((3, 32), np.float32), r"to_q has factors of \[3, 32\] and \[32, 2\], which"),
    "order": (np.ones((RANK, 1, 1, 32), np.float32), "to_q changes a weight of shape"),
}


@pytest.mark.parametrize("case", BAD_DOWN)
def test_factors_that_cannot_be_are_refused(case, pipe, factors, tmp_path):
    down, message = BAD_DOWN[case]
    file = diffusers_file({QUERY: (down, factors[QUERY][1])}, tmp_path / "bad.safetensors")
    with pytest.raises(hub.CheckpointError, match=rf"bad\.safetensors: .*{message}") as caught:
        add_lora(pipe, [(file, 1.0)])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_lora_of_zeros_changes_nothing(pipe, factors, tmp_path):
    zeros = {name: tuple(np.zeros_like(x) for x in pair) for name, pair in factors.items()}
    merged = add_lora(pipe, [(diffusers_file(zeros, tmp_path / "zeros.safetensors"), 1.0)])
    jax.tree.map(np.testing.assert_array_equal, merged.params, pipe.params)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("oft_blocks", "OFT"),
        ("lora_B.bias", "LoRA with biases"),
        ("diff", "full differences of weights"),
        ("glora_a1.weight", "GLoRA"),
    ],
)
def test_kinds_that_are_not_covered_are_refused_by_name(key, kind, pipe, tmp_path):
    tensors = {f"unet.{QUERY}.{i}.{key}": np.zeros((RANK, 32), np.float32) for i in range(200)}
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(hub.CheckpointError, match=f"holds {kind}, which is not covered; LoRA, DoRA, LoHa and LoKr are"):
        add_lora(pipe, [(tmp_path / "other.safetensors", 1.0)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha_pattern": {"to_q(": 5.0}}, r"alpha_pattern: 'to_q\(' is no regular expression"),
        ({"alpha_pattern": {"to_q": "5"}}, "alpha_pattern, 'to_q': got '5'; it must be a number"),
        ({"alpha_pattern": [5]}, r"alpha_pattern=\[5\]: it must hold numbers"),
        ({"lora_alpha": float("nan")}, "got nan; it must be a number"),
    ],
)
def test_settings_of_peft_that_cannot_be_are_refused(settings, message, pipe, tmp_path):
    folder, _ = kind_folder("lora", tmp_path / "lora")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 3} | settings))
    with pytest.raises(hub.CheckpointError, match=message):
        add_lora(pipe, [(folder, 1.0)])


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

"""Adapters that peft and diffusers write with random settings, merged into the same weights as theirs."""

import copy

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file
from transformers import CLIPTextModel

from diffusion_jax import hub
from diffusion_jax.pipelines import adapters
from tests.hub import pipeline_folders
from tests.peers.cases import agree
from tests.peers.networks import pick

TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2",
    "conv_shortcut", "time_emb_proj", "linear_1", "conv_in", "conv_out",
)  # fmt: skip
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
PATTERNS = ("to_q", "to_q|to_k", r"down_blocks\.\d+.*", "mid_block.*to_v", r"(conv1|conv2)", "q_proj|fc1")
KINDS = ("lora", "lora", "lora", "dora", "loha", "lokr")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pipeline_folders.write("pipeline-sd15", tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture(scope="module")
def ours(folder):
    return hub.load_pipeline(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return {
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
    }


def patterns(rng, *values):
    """Sorted, as files have them: the first that fits counts."""
    chosen = rng.permutation(PATTERNS)[: rng.integers(0, 3)].tolist()
    return {pattern: pick(rng, *values) for pattern in sorted(chosen)}


def configure(rng, kind, targets):
    count = int(rng.integers(1, 5))
    settings = {
        "r": int(rng.integers(1, 6)),
        "target_modules": rng.permutation(targets)[:count].tolist(),
        "rank_pattern": patterns(rng, 1, 3, 8),
        "alpha_pattern": patterns(rng, 1, 2.5, 16),
    }
    alpha = pick(rng, 1, 4, 7.5)
    if kind == "loha":
        return LoHaConfig(alpha=alpha, use_effective_conv2d=pick(rng, True, False), **settings)
    if kind == "lokr":
        return LoKrConfig(
            alpha=alpha, use_effective_conv2d=pick(rng, True, False), decompose_both=pick(rng, True, False),
            decompose_factor=pick(rng, -1, 4), **settings,
        )  # fmt: skip
    return LoraConfig(lora_alpha=alpha, use_rslora=pick(rng, False, False, True), use_dora=kind == "dora", **settings)


def fill(model, rng):
    """Random factors in an adapter that was just made, so that none is the zero it begins as."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if any(mark in name for mark in ("lora_", "hada_", "lokr_")):
                noise = torch.from_numpy(rng.standard_normal(value.shape).astype(np.float32))
                value.copy_(1 + noise.abs() if "magnitude" in name else 0.3 * noise)
    return model


def written(ours, merged, folder):
    """The merged weights as the other library names them, beside the peer's network."""
    parts = {"unet": (ours.network, "network"), "text_encoder": (ours.encoders[0].model, "text_encoder")}
    values = {}
    for part, (model, name) in parts.items():
        hub.save(model, merged[name], folder / part)
        (file,) = (folder / part).glob("*.safetensors")
        values |= {f"{part}.{key.removeprefix('text_model.')}": value for key, value in load_file(file).items()}
    return values


def expected(networks):
    return {
        f"{part}.{key.removeprefix('text_model.')}": value.numpy()
        for part, network in networks.items()
        for key, value in network.state_dict().items()
        if "position_ids" not in key
    }


@pytest.mark.parametrize("seed", range(24))
def test_adapter(seed, ours, theirs, record_property, tmp_path):
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    weight = 1.0
    networks = copy.deepcopy(theirs)
    file = tmp_path / "adapter"
    if kind == "lora" and seed % 2:  # diffusers' own file, for one network or two
        weight = float(rng.uniform(-1, 2))
        parts = ("unet", "text_encoder") if rng.random() < 0.5 else ("unet",)
        given = {}
        for part in parts:
            config = configure(rng, kind, TARGETS if part == "unet" else TEXT_TARGETS)
            networks[part].add_adapter(config)
            given[f"{part}_lora_layers"] = get_peft_model_state_dict(fill(networks[part], rng))
            given[f"{part}_lora_adapter_metadata"] = config.to_dict()
        StableDiffusionPipeline.save_lora_weights(file, **given)
        plain = copy.deepcopy(theirs)
        for part in parts:
            merge(networks[part], weight)
            networks[part] = strip(networks[part], plain[part])
    else:
        model = fill(get_peft_model(networks["unet"], configure(rng, kind, TARGETS)), rng)
        model.save_pretrained(file)
        networks["unet"] = model.merge_and_unload()
    wanted = expected(networks)
    names = sorted(wanted)

    def got(merge: bool) -> np.ndarray:
        pipeline = hub.add_lora(ours, [(file, weight)], merge=merge)
        params = pipeline.params
        if not merge:
            params = jax.jit(adapters.apply)(params, pipeline.adapters, np.array(pipeline.adapter_weights, np.float32))
        values = written(ours, params, tmp_path / f"out-{merge}")
        assert values.keys() == wanted.keys()
        return np.concatenate([values[name].ravel() for name in names])

    theirs_flat = np.concatenate([wanted[name].ravel() for name in names])
    agree(record_property, kind, lambda: got(True), theirs_flat, 1e-5)
    np.testing.assert_allclose(got(False), theirs_flat, rtol=0, atol=1e-5 * np.abs(theirs_flat).max())


def merge(model, weight):
    """Every layer's change, times the weight, into its base weights."""
    for module in model.modules():
        if hasattr(module, "merge") and hasattr(module, "scale_layer"):
            module.scale_layer(weight)
            module.merge()


def strip(model, plain):
    """The plain network with the merged weights."""
    state = {
        key.replace(".base_layer.", "."): value for key, value in model.state_dict().items() if ".lora_" not in key
    }
    plain.load_state_dict(state)
    return plain

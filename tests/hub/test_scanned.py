"""Networks with stacked layers: diffusers' outputs, and files that do not tell."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax import hub
from diffusion_jax.hub.tensors import flatten
from diffusion_jax.models.scanned import STACK
from tests import golden
from tests.hub import pipeline_folders, test_dit
from tests.hub.folders import assert_close, write

# golden -> keywords under other names there
NAMES = {
    "dit": {"sample": "hidden_states", "timesteps": "timestep"},
    "mmdit-sd35": {"sample": "hidden_states", "timesteps": "timestep"},
    "flux-tiny": {},
    "unet-sdxl": {"timesteps": "timestep"},
}


def load(name: str, folder: Path):
    return hub.load(test_dit.write(name, folder) if name == "dit" else write(name, folder))


def arguments(name: str) -> dict:
    given = {NAMES[name].get(key, key): value for key, value in golden.load(name).items() if key != "out"}
    if "text_embeds" in given:
        given["added_cond_kwargs"] = {key: given.pop(key) for key in ("text_embeds", "time_ids")}
    return given


@pytest.mark.parametrize("name", ["dit", "mmdit-sd35", "flux-tiny", pytest.param("unet-sdxl", marks=pytest.mark.slow)])
def test_outputs_are_diffusers(name, tmp_path):
    model, params = hub.scanned(*load(name, tmp_path))
    # quicker to compile
    fast = {"xla_backend_optimization_level": 0}
    run = jax.jit(lambda p, given: model.apply({"params": p}, **given), compiler_options=fast)
    assert_close(run(params, arguments(name)), golden.load(name)["out"], 1e-4 if name == "flux-tiny" else 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_files_do_not_tell(name, tmp_path):
    model, params = load(name, tmp_path / "there")
    stacked = hub.scanned(model, params)
    assert any(STACK.fullmatch(part) for path in flatten(stacked[1]) for part in path)
    hub.save(*stacked, tmp_path / "back")
    hub.save(model, params, tmp_path / "plain")
    files = [{file.name: file.read_bytes() for file in (tmp_path / each).iterdir()} for each in ("back", "plain")]
    assert files[0] == files[1]
    (weights,) = (tmp_path / "back").glob("*.safetensors")
    written, original = load_file(weights), golden.fill_tensors(name)
    for tensor, value in original.items():
        np.testing.assert_array_equal(written[tensor], value, err_msg=tensor)
    again = hub.scanned(*hub.load(tmp_path / "back"))
    assert again[0] == stacked[0]
    jax.tree.map(np.testing.assert_array_equal, again[1], stacked[1])


def test_papers_layout(tmp_path):
    model, params = hub.load(test_dit.write("dit-original", tmp_path / "there"))
    hub.save(*hub.scanned(model, params), tmp_path / "back", format="original")
    written = load_file(tmp_path / "back" / "model.safetensors")
    for tensor, value in golden.fill_tensors("dit-original").items():
        np.testing.assert_array_equal(written[tensor], value, err_msg=tensor)


def test_lora_refuses_stacks(tmp_path):
    pipe = hub.load_pipeline(pipeline_folders.write("pipeline-sd15", tmp_path / "sd"))
    network, params = hub.scanned(pipe.network, pipe.params["network"])
    stacked = dataclasses.replace(pipe, network=network, params={**pipe.params, "network": params})
    file = tmp_path / "lora.safetensors"
    save_file({"unet.a.lora_A.weight": np.zeros((1, 1), np.float32)}, file)
    with pytest.raises(hub.CheckpointError, match=r"scan_layers=True: a LoRA needs hub.unrolled"):
        hub.add_lora(stacked, [(file, 1.0)])

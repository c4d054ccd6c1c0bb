"""Files as the papers' authors released them, written by the tests, become folders of the same network."""

import json
import pickle
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax import hub
from diffusion_jax.hub.__main__ import main
from tests import golden
from tests.hub import test_edm2
from tests.readers.torch_writer import Call, save, stand_in

# golden -> name of the file, what has to be stated
STATE_DICTS = {
    "guided-unet-adm": ("model.pt", ["num_head_channels=32", "image_size=16"]),
    "guided-unet-neworder": ("model.pt", ["num_head_channels=32", "use_new_attention_order=true", "image_size=16"]),
    "improved-unet": ("cifar10_uncond_50M_500K.pt", ["image_size=16"]),
    "dit-original": ("DiT.pt", ["num_heads=4", "input_size=8"]),
    "sit-original": ("SiT.pt", ["num_heads=4", "input_size=8"]),
    "ddpm-original": ("ema_diffusion.ckpt", ["resolution=16", "attn_resolutions=[8]"]),
}
# golden -> class of the object in the pickle
PICKLES = {"edm-ddpmpp-vp": "VPPrecond", "edm-adm-edm": "EDMPrecond", "edm2": "Precond"}


def tensors_of(name: str) -> dict[str, np.ndarray]:
    return test_edm2.state_dict(name) if name == "edm2" else golden.fill_tensors(name)


def folder(name: str, directory: Path) -> Path:
    """The golden as a folder in the layout of its repository."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(golden.config(name)))
    save_file(tensors_of(name), directory / "model.safetensors")
    return directory


def assert_same_network(converted: Path, expected: Path) -> None:
    (model, params), (original, original_params) = hub.load(converted), hub.load(expected)
    assert model.clone(dropout=0.0) == original.clone(dropout=0.0)
    jax.tree.map(np.testing.assert_array_equal, params, original_params)


def write_state_dict(path: Path, tensors: dict[str, np.ndarray], monkeypatch) -> None:
    with monkeypatch.context() as patched:
        save(path, tensors, stand_in(patched))


@pytest.mark.parametrize("name", STATE_DICTS)
def test_state_dicts(name, tmp_path, monkeypatch):
    file, stated = STATE_DICTS[name]
    write_state_dict(tmp_path / file, golden.fill_tensors(name), monkeypatch)
    options = [part for setting in stated for part in ("--set", setting)]
    assert main(["convert", str(tmp_path / file), str(tmp_path / "converted"), *options]) == 0
    assert_same_network(tmp_path / "converted", folder(name, tmp_path / "expected"))


def pickled(name: str, monkeypatch) -> bytes:
    """A pickle like those of the EDM and EDM2 repositories: the network as a persistent object with its arguments."""
    arguments = golden.config(name)
    for elsewhere in ("preconditioning", "class_name"):
        arguments.pop(elsewhere, None)
    with monkeypatch.context() as patched:
        torch = stand_in(patched)
        state = {
            "_init_args": (),
            "_init_kwargs": arguments | {"use_fp16": False},
            "_parameters": tensors_of(name),
        }
        meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": PICKLES[name]}
        network = Call(torch.reconstruct_persistent_obj, meta | {"state": state})
        return pickle.dumps({"ema": network, "loss_fn": None})


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(name, tmp_path, monkeypatch):
    (tmp_path / "network.pkl").write_bytes(pickled(name, monkeypatch))
    assert main(["convert", str(tmp_path / "network.pkl"), str(tmp_path / "converted")]) == 0
    assert_same_network(tmp_path / "converted", folder(name, tmp_path / "expected"))


def test_averaged_parameters_are_taken_and_layouts_changed(tmp_path, monkeypatch, capsys):
    tensors = golden.fill_tensors("ddpm-original")
    both = {f"model.{name}": np.zeros_like(value) for name, value in tensors.items()}
    both |= {f"ema.{name}": value for name, value in tensors.items()}
    write_state_dict(tmp_path / "checkpoint.pt", both, monkeypatch)
    arguments = ["convert", str(tmp_path / "checkpoint.pt"), str(tmp_path / "converted"), "--format", "diffusers"]
    assert main([*arguments, "--set", "resolution=16", "--set", "attn_resolutions=[8]"]) == 0
    assert json.loads((tmp_path / "converted" / "config.json").read_text())["_class_name"] == "UNet2DModel"
    expected = hub.load(folder("ddpm-original", tmp_path / "expected"))[1]
    jax.tree.map(np.testing.assert_array_equal, hub.load(tmp_path / "converted")[1], expected)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "DDPM: 182 tensors" in lines[1]


def test_export_to_another_layout(tmp_path):
    source = folder("improved-unet", tmp_path / "there")
    for layout in ("diffusers", "guided-diffusion"):
        assert main(["export", str(source), str(tmp_path / layout), "--format", layout]) == 0
        jax.tree.map(np.testing.assert_array_equal, hub.load(tmp_path / layout)[1], hub.load(source)[1])
    assert main(["export", str(source), str(tmp_path / "other"), "--format", "ddpm"]) == 2


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ("guided-unet-adm", (), r"the number of heads does not follow .* --set num_heads=N"),
        ("dit-original", (), r"the heads of a width of 32 do not follow"),
        ("vae-kl", (), r"holds no network of EDM, improved-diffusion"),
        ("guided-unet-adm", ("--set", "num_heads"), r"--set num_heads: it must be NAME=VALUE"),
        ("guided-unet-adm", ("--set", "num_heads=5"), r"num_heads=5"),
    ],
)
def test_what_does_not_work_is_one_line(tensors, options, message, tmp_path, monkeypatch, capsys):
    write_state_dict(tmp_path / "model.pt", golden.fill_tensors(tensors), monkeypatch)
    assert main(["convert", str(tmp_path / "model.pt"), str(tmp_path / "converted"), *options]) == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


def test_hostile_and_missing_files_are_one_line(tmp_path, capsys):
    (tmp_path / "evil.pkl").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    for file, message in (("evil.pkl", "forbidden global 'posix.system'"), ("nothing.pkl", "no such file")):
        assert main(["convert", str(tmp_path / file), str(tmp_path / "converted")]) == 2
        (line,) = capsys.readouterr().err.splitlines()[1:]
        assert message in line
    assert not (tmp_path / "converted").exists()


def test_help(capsys):
    for arguments in (["--help"], ["convert", "--help"], ["export", "--help"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0
        assert "DST" in capsys.readouterr().out or arguments == ["--help"]

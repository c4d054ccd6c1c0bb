"""Where networks come from: pipelines' folders, variants and shards, repositories, precision of the parameters."""

import fnmatch
import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax import hub
from tests import golden
from tests.hub.folders import STEM, write
from tests.readers import torch_writer

NAME = "vae-tiny"


def halves() -> dict[str, np.ndarray]:
    return {name: value.astype(np.float16) for name, value in golden.fill_tensors(NAME).items()}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_parts_of_a_pipeline(tmp_path):
    write(NAME, tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    assert_same(hub.load(tmp_path, part="vae")[1], hub.load(tmp_path / "vae")[1])
    with pytest.raises(hub.CheckpointError, match="is a whole pipeline; part could be 'vae'"):
        hub.load(tmp_path)
    with pytest.raises(hub.CheckpointError, match="part='unet'; it could be 'vae'"):
        hub.load(tmp_path, part="unet")


def test_variants(tmp_path):
    write(NAME, tmp_path)
    save_file(halves(), tmp_path / f"{STEM}.fp16.safetensors")
    full, half = (hub.load(tmp_path, variant=variant)[1] for variant in (None, "fp16"))
    assert np.abs(full["encoder"]["conv_0"]["kernel"] - half["encoder"]["conv_0"]["kernel"]).max() > 0
    assert_same(half, jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), full))
    with pytest.raises(hub.CheckpointError, match=rf"no {STEM}\.bf16\.safetensors .*there: {STEM}\.fp16"):
        hub.load(tmp_path, variant="bf16")
    (tmp_path / f"{STEM}.safetensors").unlink()
    assert_same(hub.load(tmp_path)[1], half)  # the only weights there are


def test_shards_of_a_variant(tmp_path):
    write(NAME, tmp_path)
    tensors, names = halves(), sorted(golden.fill_tensors(NAME))
    files = {f"{STEM}.fp16-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / f"{STEM}.safetensors.index.fp16.json").write_text(json.dumps(index))
    sharded = hub.load(tmp_path, variant="fp16")[1]
    save_file(tensors, tmp_path / f"{STEM}.fp16.safetensors")
    assert_same(sharded, hub.load(tmp_path, variant="fp16")[1])


def pickled(path, tensors, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        torch_writer.save(path, tensors, torch_writer.stand_in(patched))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_of_pytorch_where_there_are_no_others(variant, tmp_path, monkeypatch):
    expected = hub.load(write(NAME, tmp_path))[1]
    if variant is not None:
        expected = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), expected)
    tensors = golden.fill_tensors(NAME) if variant is None else {n: v.astype(np.float32) for n, v in halves().items()}
    (tmp_path / f"{STEM}.safetensors").unlink()
    names, middle = sorted(tensors), "" if variant is None else f".{variant}"
    files = {f"{STEM}{middle}-0000{i}-of-00002.bin": names[i - 1 :: 2] for i in (1, 2)}
    for file, part in files.items():
        pickled(tmp_path / file, {name: tensors[name] for name in part}, monkeypatch)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / f"{STEM}.bin.index{middle}.json").write_text(json.dumps(index))
    assert_same(hub.load(tmp_path, variant=variant)[1], expected)
    for file in files:
        (tmp_path / file).unlink()
    with pytest.raises(hub.CheckpointError, match="2 of 2 are not there"):
        hub.load(tmp_path, variant=variant)
    pickled(tmp_path / f"{STEM}{middle}.bin", tensors, monkeypatch)
    assert_same(hub.load(tmp_path, variant=variant)[1], expected)


def test_pytorch_weights_of_text_encoders_and_what_trainers_leave_beside_them(tmp_path, monkeypatch):
    expected = hub.load(write("text-t5", tmp_path))[1]
    (weights,) = tmp_path.glob("*.safetensors")
    weights.unlink()
    (tmp_path / "training_args.bin").write_bytes(b"not weights")
    pickled(tmp_path / "pytorch_model.bin", golden.fill_tensors("text-t5"), monkeypatch)
    assert_same(hub.load(tmp_path)[1], expected)


@pytest.mark.parametrize("shard", ["../outside.safetensors", 5, ["a"], None])
def test_shards_are_files_of_the_folder(shard, tmp_path):
    write(NAME, tmp_path)
    (tmp_path / f"{STEM}.safetensors").unlink()
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(hub.CheckpointError, match="not an index with a weight_map to files of its folder"):
        hub.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_out_channels", 1e308),
        ("block_out_channels", "x" * 10**6),
        ("layers_per_block", [1]),
        ("layers_per_block", None),
        ("norm_num_groups", 0),
        ("norm_num_groups", {}),
        ("latent_channels", "four"),
        ("_class_name", ["a"] * 10**5),
    ],
)
def test_settings_of_the_wrong_type_are_one_line(field, value, tmp_path):
    config = golden.config("vae-kl") | {field: value}
    write("vae-kl", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(hub.CheckpointError) as caught:
        hub.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(str(tmp_path)) and "\n" not in message and len(message) < len(str(tmp_path)) + 300


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_precision_of_parameters_and_files(dtype, tmp_path):
    model, params = hub.load(write(NAME, tmp_path / "there"), param_dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    out = jax.eval_shape(lambda p: model.apply({"params": p}, jnp.zeros((1, 32, 32, 3))), params)
    assert out.dtype == jnp.float32
    hub.save(model, params, tmp_path / "back", dtype=dtype)
    assert {value.dtype for value in load_file(tmp_path / "back" / f"{STEM}.safetensors").values()} == {
        jnp.dtype(dtype)
    }
    assert_same(hub.load(tmp_path / "back", param_dtype=dtype)[1], params)


def test_settings_can_be_overruled(tmp_path):
    assert hub.load(write(NAME, tmp_path), config={"scaling_factor": 2.0})[0].scaling_factor == 2.0


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("part", ["vae", None])
def test_repositories_without_safetensors_are_read_from_bin(part, variant, tmp_path, monkeypatch):
    """As huggingface_hub filters: a file is fetched where a pattern fits its path, and none of those to ignore."""
    remote, cache = tmp_path / "remote", tmp_path / "cache"
    place = remote / "vae" if part else remote
    expected = hub.load(write(NAME, place))[1]
    (place / f"{STEM}.safetensors").unlink()
    pickled(place / f"{STEM}.bin", golden.fill_tensors(NAME), monkeypatch)
    rounded = {name: value.astype(np.float32) for name, value in halves().items()}
    pickled(place / f"{STEM}.fp16.bin", rounded, monkeypatch)
    for other in ("optimizer.bin", "flax_model.bin"):
        (place / other).write_bytes(b"no weights")
    write(NAME, remote / "unet")  # the other network has safetensors, and its .bin stays away
    save_file(halves(), remote / "unet" / f"{STEM}.fp16.safetensors")
    for middle in ("", ".fp16"):
        (remote / "unet" / f"{STEM}{middle}.bin").write_bytes(b"the same again")

    def snapshot_download(repository, *, revision, allow_patterns, ignore_patterns):
        for path in (path.relative_to(remote) for path in remote.rglob("*") if path.is_file()):
            asked, unwanted = (
                any(fnmatch.fnmatch(path.as_posix(), pattern) for pattern in patterns)
                for patterns in (allow_patterns, ignore_patterns)
            )
            if asked and not unwanted:
                (cache / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(remote / path, cache / path)
        return str(cache)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    if variant is not None:
        expected = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), expected)
    assert_same(hub.load("someone/something", part=part, variant=variant)[1], expected)
    fetched = [path.relative_to(cache).as_posix() for path in cache.rglob("*.bin")]
    assert fetched == [f"{part + '/' if part else ''}{STEM}{'' if variant is None else '.fp16'}.bin"]


def test_repositories(tmp_path, monkeypatch):
    write(NAME, tmp_path / "vae")
    asked = {}

    def snapshot_download(repository, **options):
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download)
    )  # fmt: skip
    params = hub.load("someone/something", part="vae", revision="main")[1]
    assert_same(params, hub.load(tmp_path / "vae")[1])
    assert (asked["repository"], asked["revision"]) == ("someone/something", "main")
    assert "vae/*.safetensors" in asked["allow_patterns"]
    assert not any(pattern.startswith(("*", "unet")) for pattern in asked["allow_patterns"])
    assert "*.fp16.*" in asked["ignore_patterns"]
    assert not any(".bin" in pattern for pattern in asked["allow_patterns"])

    def offline(repository, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=offline))
    with pytest.raises(hub.CheckpointError, match=r"someone/something: .* \(ConnectionError: no route to host\)$"):
        hub.load("someone/something")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(hub.CheckpointError, match="huggingface_hub must be installed"):
        hub.load("someone/something")

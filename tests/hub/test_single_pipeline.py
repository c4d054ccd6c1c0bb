"""Whole pipelines in one file: the images that diffusers drew with the same weights in a folder."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax import hub
from diffusion_jax.hub import clip_vocabulary, compvis, open_clip, pipeline_parts, single_file
from diffusion_jax.hub.__main__ import main
from diffusion_jax.hub.tensors import flatten, from_params
from diffusion_jax.hub.tokenizer import clip_tokenizer, load_tokenizer
from tests import golden
from tests.hub import pipeline_folders
from tests.hub.test_pipelines import assert_same_images, recorded_and_settings
from tests.readers import torch_writer

NAME = "pipeline-sd15"
PARTS = {part.name: part for part in single_file.PARTS[:3]}


def original(folder) -> dict[str, np.ndarray]:
    """The tensors of a pipeline's folder under the names that one file has."""
    tensors = {}
    for name, part in PARTS.items():
        model, params = hub.load(folder / name)
        config = {"_prefixed": True} if name == "text_encoder" else {}
        shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
        named = from_params(part.tensors(model, shapes, config), params)
        tensors |= {part.prefixes[0] + tensor: np.ascontiguousarray(value) for tensor, value in named.items()}
    return tensors


@pytest.fixture(scope="module", autouse=True)
def small():
    """Networks of other sizes than the published: what no shape tells is that of the golden."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compvis, "FAMILIES", {**compvis.FAMILIES, 32: ("Stable Diffusion 1", 16)})
        patched.setattr(compvis, "HEADS_OF_SD1", 4)
        patched.setattr(open_clip, "HEAD_WIDTH", 8)
        yield


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    folder = pipeline_folders.write(NAME, tmp_path_factory.mktemp("single") / "folder")
    return original(folder)


def beside(directory):
    """The tokeniser and the scheduler of the golden, which are not those of the family."""
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(golden.GOLDENS / NAME / name, directory / name)
    return directory


def write_ckpt(path, tensors, monkeypatch):
    """As trainers write it: the weights are under "state_dict", and indices and averages are among them."""
    with monkeypatch.context() as patched:
        torch = torch_writer.stand_in(patched)
        torch_writer.save(path, {f"state_dict.{name}": value for name, value in tensors.items()}, torch)


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_images_are_those_of_diffusers(ending, tensors, tmp_path, monkeypatch):
    path = beside(tmp_path) / f"model.{ending}"
    if ending == "ckpt":
        write_ckpt(path, tensors, monkeypatch)
    else:
        save_file(tensors, path)
    recorded, prompts, negatives, settings = recorded_and_settings(NAME)
    images = hub.load_pipeline(path)(prompts, negatives, **settings)
    assert_same_images(images, recorded["text2img"])


def test_a_ckpt_becomes_a_folder_that_draws_the_same(tensors, tmp_path, monkeypatch):
    write_ckpt(beside(tmp_path) / "model.ckpt", tensors, monkeypatch)
    assert main(["convert", str(tmp_path / "model.ckpt"), str(tmp_path / "converted")]) == 0
    index = json.loads((tmp_path / "converted" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"] and index["safety_checker"] == [None, None]
    recorded, prompts, negatives, settings = recorded_and_settings(NAME)
    assert_same_images(hub.load_pipeline(tmp_path / "converted")(prompts, negatives, **settings), recorded["text2img"])


def test_a_single_network_becomes_a_model_folder(tensors, tmp_path):
    vae = {name: value for name, value in tensors.items() if name.startswith("first_stage_model.")}
    save_file(vae, tmp_path / "vae.safetensors")
    assert main(["convert", str(tmp_path / "vae.safetensors"), str(tmp_path / "vae")]) == 0
    assert type(hub.load(tmp_path / "vae")[0]).__name__ == "AutoencoderKL"


def test_what_a_pipeline_lacks_is_named(tensors, tmp_path, capsys):
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(hub.CheckpointError, match=r"knows 99 tokens, not CLIP's 49408; put .* into .*tokenizer$"):
        hub.load_pipeline(tmp_path / "model.safetensors")
    assert main(["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "converted")]) == 2
    assert "knows 99 tokens" in capsys.readouterr().err and not (tmp_path / "converted").exists()
    unet = {name: value for name, value in tensors.items() if name.startswith("model.")}
    save_file(unet, tmp_path / "unet.safetensors")
    with pytest.raises(hub.CheckpointError, match=r"Stable Diffusion 1 without vae and text_encoder; it holds unet"):
        hub.load_pipeline(tmp_path / "unet.safetensors")
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(hub.CheckpointError, match="no U-Net of theirs"):
        hub.load_pipeline(tmp_path / "other.safetensors")
    with pytest.raises(hub.CheckpointError, match=r"none\.ckpt: no such file"):
        hub.load_pipeline(tmp_path / "none.ckpt")


# --- Families. --------------------------------------------------------------------------------------

MIDDLE = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
VAE = "first_stage_model.encoder.down.0.block.0.conv1.weight"
OPENAI = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
FAMILIES = {
    "sd1": (768, 4, (OPENAI,)),
    "sd1-inpainting": (768, 9, (OPENAI,)),
    "sd2": (1024, 4, ("cond_stage_model.model.token_embedding.weight",)),
    "sd2-inpainting": (1024, 9, ("cond_stage_model.model.token_embedding.weight",)),
    "sdxl": (
        2048,
        4,
        (
            OPENAI.replace("cond_stage_model", "conditioner.embedders.0"),
            "conditioner.embedders.1.model.token_embedding.weight",
        ),
    ),
}


def parts(name, path, **extra):
    width, channels, encoders = FAMILIES[name]
    marks = {
        "model.diffusion_model.input_blocks.0.0.weight": (1, channels, 1, 1),
        MIDDLE: (1, width),
        **dict.fromkeys((VAE, *encoders), (1, 1)),
        **dict.fromkeys(extra, (1,)),
    }
    save_file({key: np.zeros(shape, np.float32) for key, shape in marks.items()}, path)
    return pipeline_parts.FileParts(path)


@pytest.mark.parametrize(
    ("name", "pipeline", "scheduler", "prediction", "pads"),
    [  # as published: model_index.json, scheduler_config.json and tokenizer_config.json of each family
        ("sd1", "StableDiffusionPipeline", "PNDMScheduler", "epsilon", ["<|endoftext|>"]),
        ("sd1-inpainting", "StableDiffusionPipeline", "PNDMScheduler", "epsilon", ["<|endoftext|>"]),
        ("sd2", "StableDiffusionPipeline", "DDIMScheduler", "v_prediction", ["!"]),
        ("sd2-inpainting", "StableDiffusionPipeline", "DDIMScheduler", "epsilon", ["!"]),
        ("sdxl", "StableDiffusionXLPipeline", "EulerDiscreteScheduler", "epsilon", ["<|endoftext|>", "!"]),
    ],
)
def test_families(name, pipeline, scheduler, prediction, pads, tmp_path):
    found = parts(name, tmp_path / "model.safetensors")
    assert found.index["_class_name"] == pipeline
    encoders = ["text_encoder", "text_encoder_2"][: len(pads)]
    assert [found.pad(encoder) for encoder in encoders] == pads
    assert [found.tokenizer(encoder, 49408).pad for encoder in encoders] == [0 if pad == "!" else 49407 for pad in pads]
    config = found.scheduler
    assert (config["_class_name"], config["prediction_type"]) == (scheduler, prediction)
    assert (config["beta_start"], config["beta_end"], config["steps_offset"]) == (0.00085, 0.012, 1)
    assert found.schedule(None).sampler(4) is not None


def test_files_of_sdxl_that_say_how_they_were_trained(tmp_path):
    found = parts("sdxl", tmp_path / "model.safetensors", v_pred=1, ztsnr=1)
    assert found.scheduler["prediction_type"] == "v_prediction" and found.scheduler["rescale_betas_zero_snr"]


# --- The vocabulary. --------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [clip_vocabulary.OPENAI_PAD, clip_vocabulary.OPEN_CLIP_PAD])
def test_the_vocabulary_has_the_numbers_of_transformers(pad, tmp_path):
    """Recorded from CLIPTokenizer of transformers 5.24 with the files that `write` writes; 3,014 texts agreed."""
    recorded = golden.config("clip-vocabulary", "golden.json")
    clip_vocabulary.write(tmp_path, pad)
    for tokenizer in (clip_tokenizer(pad), load_tokenizer(tmp_path)):
        ids = tokenizer(recorded["texts"], weighted=False, warn=False).ids
        expected = recorded["end" if pad == clip_vocabulary.OPENAI_PAD else "!"]
        for row, numbers in zip(ids, expected, strict=True):
            np.testing.assert_array_equal(row, np.pad(numbers, (0, 77 - len(numbers)), constant_values=tokenizer.pad))


def test_the_vocabulary_is_that_of_the_published_models():
    """Numbers that papers and tools name: the start, the end, and the words of OpenAI's example."""
    numbers, pairs = clip_vocabulary.vocabulary()
    assert len(numbers) == 49408 and len(pairs) == 48894
    assert (numbers["<|startoftext|>"], numbers["<|endoftext|>"], numbers["!"]) == (49406, 49407, 0)
    assert clip_tokenizer("!")(["a photo of a cat"]).ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_the_vocabulary_has_its_licence():
    text = clip_vocabulary.PAIRS.with_name("LICENSE").read_text()
    assert re.search(r"MIT licence.*OpenAI", text) and "Permission is hereby granted" in text

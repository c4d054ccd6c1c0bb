"""Pipelines from folders as diffusers writes them: its images for the same latents."""

import json

import numpy as np
import pytest

from diffusion_jax import hub
from tests import golden
from tests.hub import pipeline_folders

NAME = "pipeline-sd15"
ASKED = golden.config(NAME, "golden.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pipeline_folders.write(NAME, tmp_path_factory.mktemp("sd") / "checkpoint")


@pytest.fixture(scope="module")
def pipe(folder):
    return hub.load_pipeline(folder)


def test_prompts_have_the_numbers_of_transformers(pipe):
    tokens = pipe.encoders[0].tokenizer(ASKED["prompts"])
    np.testing.assert_array_equal(tokens.ids, golden.load(NAME)["input_ids"])


@pytest.mark.parametrize(
    ("recorded", "asked"),
    [
        ("text2img", {}),
        ("text2img_rescale0.7", {"guidance_rescale": 0.7}),
        ("text2img_noguidance", {"guidance_scale": 1.0}),
    ],
)
def test_images_are_those_of_diffusers(recorded, asked, pipe):
    expected = golden.load(NAME)
    given = {"num_steps": ASKED["steps"], "guidance_scale": ASKED["guidance_scale"], "latents": expected["latents"]}
    images = pipe(ASKED["prompts"], ASKED["negative_prompts"], **(given | asked))
    assert images.dtype == np.float32 and images.shape == expected[recorded].shape
    np.testing.assert_allclose(images, expected[recorded], rtol=0, atol=1e-4)


def test_scale_steps_and_seed_do_not_recompile(pipe, folder):
    """The golden's program serves any scale; the number of steps is a shape of the sampler's table."""
    expected = golden.load(NAME)
    given = {"num_steps": ASKED["steps"], "latents": expected["latents"]}
    pipe(ASKED["prompts"], ASKED["negative_prompts"], guidance_scale=7.5, **given)
    compiled = pipe._whole_program._cache_size()
    other = pipe(["the cat", "a dog"], ["red", ""], guidance_scale=3.0, **given)
    assert pipe._whole_program._cache_size() == compiled
    assert np.abs(other - expected["text2img"]).max() > 1e-3


def test_unconditional_images_are_those_of_diffusers(tmp_path):
    pipe = hub.load_pipeline(pipeline_folders.write("pipeline-ddpm", tmp_path / "ddpm"), sampler="ddim")
    recorded = golden.load("pipeline-ddpm")
    images = pipe(num_steps=10, latents=recorded["noise"])
    np.testing.assert_allclose(2 * images - 1, recorded["ddim10"], rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="this pipeline takes no prompts"):
        pipe(["a cat"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "FluxPipeline"}, "describes 'FluxPipeline'; covered are StableDiffusionPipeline"),
        ({"text_encoder": [None, None]}, "names no text encoder"),
        ({"requires_aesthetics_score": True}, "aesthetic score"),
    ],
)
def test_pipelines_that_are_not_covered_are_refused(change, message, folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in folder.iterdir():
        if part.is_dir():
            (copy / part.name).symlink_to(part)
    (copy / "model_index.json").write_text(json.dumps(json.loads((folder / "model_index.json").read_text()) | change))
    with pytest.raises(hub.CheckpointError, match=message):
        hub.load_pipeline(copy)


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(hub.CheckpointError, match=r"model_index\.json: no such file"):
        hub.load_pipeline(tmp_path)


def test_an_unknown_solver_is_refused(folder):
    with pytest.raises(ValueError, match=r"sampler 'k_best' does not exist .* it can be ddpm, ddim, plms, euler"):
        hub.load_pipeline(folder, sampler="k_best")

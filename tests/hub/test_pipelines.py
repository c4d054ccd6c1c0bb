"""Pipelines from folders as diffusers writes them: its images for the same latents.

The goldens "pipeline-sd15-more", "pipeline-sdxl" and "pipeline-sd3" were made like "pipeline-sd15", by diffusers
0.42.1, transformers 5.23.0 and the fill rule. In them image-to-image and inpainting take the mean of the autoencoder's
Gaussian, where diffusers draws from it, and clip_skip is recorded without guidance.
"""

import json

import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.hub.files import CheckpointError
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


def recorded_and_settings(name):
    asked = golden.config(name, "golden.json")
    recorded = golden.load(name)
    settings = {"num_steps": asked["steps"], "guidance_scale": asked["guidance_scale"], "latents": recorded["latents"]}
    return recorded, asked["prompts"], asked["negative_prompts"], settings


def assert_same_images(images, expected):
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("recorded", "asked"),
    [
        ("text2img", {}),
        pytest.param("text2img_rescale0.7", {"guidance_rescale": 0.7}, marks=pytest.mark.slow),
        ("text2img_noguidance", {"guidance_scale": 1.0}),
    ],
)
def test_images_are_those_of_diffusers(recorded, asked, pipe):
    expected = golden.load(NAME)
    given = {"num_steps": ASKED["steps"], "guidance_scale": ASKED["guidance_scale"], "latents": expected["latents"]}
    images = pipe(ASKED["prompts"], ASKED["negative_prompts"], **(given | asked))
    assert images.dtype == np.float32 and images.shape == expected[recorded].shape
    np.testing.assert_allclose(images, expected[recorded], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def more():
    return golden.load("pipeline-sd15-more")


@pytest.mark.parametrize(
    ("solver", "steps", "recorded"),
    [
        pytest.param("ddim", 5, "img2img", marks=pytest.mark.slow),
        ("dpmpp", 10, "img2img_dpmpp"),
        pytest.param("euler", 5, "img2img_euler", marks=pytest.mark.slow),
        pytest.param("unipc", 10, "img2img_unipc", marks=pytest.mark.slow),
    ],
)
def test_images_from_images_are_those_of_diffusers(solver, steps, recorded, pipe, more):
    """Multistep solvers begin in the middle without the estimates that they would have by then."""
    _, prompts, negatives, settings = recorded_and_settings(NAME)
    settings |= {"num_steps": steps, "image": more["image"], "strength": 0.6}
    assert_same_images(pipe.with_solver(solver)(prompts, negatives, **settings), more[recorded])


def test_painted_images_are_those_of_diffusers(pipe, more):
    _, prompts, negatives, settings = recorded_and_settings(NAME)
    settings |= {"image": more["image"], "mask": more["mask"], "strength": 0.6, "keep_unmasked": False}
    assert_same_images(pipe(prompts, negatives, **settings), more["inpaint"])


def test_controlled_images_are_those_of_diffusers(folder, more, tmp_path):
    """With a factor on the residuals, and until 0.6 of the steps only."""
    control = pipeline_folders.write("pipeline-sd15-more", tmp_path / "more") / "controlnet"
    controlled = hub.load_pipeline(folder, controlnets=[control])
    _, prompts, negatives, settings = recorded_and_settings(NAME)
    settings |= {"control_images": [more["control_image"]], "control_scale": 0.7, "control_end": 0.6}
    assert_same_images(controlled(prompts, negatives, **settings), more["control"])


@pytest.mark.slow
def test_images_with_layers_of_clip_left_out_are_those_of_diffusers(pipe, more):
    _, prompts, _, settings = recorded_and_settings(NAME)
    assert_same_images(pipe(prompts, clip_skip=1, **settings | {"guidance_scale": 1.0}), more["clip_skip"])


def test_images_of_sdxl_are_those_of_diffusers(tmp_path):
    """Two text encoders, sizes and crops, and zeros where there is no negative prompt."""
    pipe = hub.load_pipeline(pipeline_folders.write("pipeline-sdxl", tmp_path / "sdxl"))
    recorded, prompts, negatives, settings = recorded_and_settings("pipeline-sdxl")
    sizes = {"original_size": (64, 48), "crop": (4, 8), "target_size": (32, 40)}
    assert_same_images(pipe(prompts, negatives, **settings, **sizes), recorded["sizes"])
    assert_same_images(pipe(prompts, negatives, **settings), recorded["negative"])
    assert_same_images(pipe(prompts, **settings), recorded["zeros"])


@pytest.mark.parametrize("t5", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_images_of_sd3_are_those_of_diffusers(t5, tmp_path):
    """Three text encoders, of which the largest may be left out."""
    folder = pipeline_folders.write("pipeline-sd3", tmp_path / "sd3")
    if not t5:
        index = json.loads((folder / "model_index.json").read_text())
        index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
        (folder / "model_index.json").write_text(json.dumps(index))
    recorded, prompts, negatives, settings = recorded_and_settings("pipeline-sd3")
    images = hub.load_pipeline(folder)(prompts, negatives, **settings)
    assert_same_images(images, recorded["with_t5" if t5 else "without_t5"])


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


def test_a_controlnet_for_stable_diffusion_3_is_refused_by_name(tmp_path):
    folder = pipeline_folders.write("pipeline-sd3", tmp_path / "sd3")
    with pytest.raises(CheckpointError, match="pipelines of Stable Diffusion 3 take no ControlNets yet"):
        hub.load_pipeline(folder, controlnets=[tmp_path / "control"])


def test_images_need_not_be_square(tmp_path):
    """As in diffusers, of the height and width that the network's config names."""
    folder = pipeline_folders.write("pipeline-ddpm", tmp_path / "ddpm")
    file = folder / "unet" / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"sample_size": [8, 24]}))
    assert hub.load_pipeline(folder)(2, num_steps=2).shape == (2, 8, 24, 3)
    file.write_text(json.dumps(settings | {"sample_size": [8, 24, 3]}))
    with pytest.raises(CheckpointError, match=r"sample_size is \[8, 24, 3\]; it must be an integer or two"):
        hub.load_pipeline(folder)


def test_schedulers_of_early_checkpoints_are_corrected(folder, tmp_path):
    """diffusers' StableDiffusionPipeline, but not the one with ControlNets, whatever its scheduler's file says."""
    for part in folder.iterdir():
        if part.name != "scheduler":
            (tmp_path / part.name).symlink_to(part)
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    (tmp_path / "scheduler").mkdir()
    early = config | {"_class_name": "DDIMScheduler", "steps_offset": 0, "clip_sample": True}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(early))
    for solver in (None, "dpmpp"):
        opened = hub.load_pipeline(tmp_path, sampler=solver).schedule.config
        assert opened["steps_offset"] == 1 and opened["clip_sample"] is False
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").unlink()  # a link
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionControlNetPipeline"}))
    opened = hub.load_pipeline(tmp_path).schedule.config
    assert opened["steps_offset"] == 0 and opened["clip_sample"] is True


def test_a_chain_is_not_drawn_in_more_steps_than_it_has(tmp_path):
    folder = pipeline_folders.write("pipeline-ddpm", tmp_path / "ddpm")
    assert hub.load_pipeline(folder).num_steps == 1000
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_train_timesteps": 6}))
    pipe = hub.load_pipeline(folder)
    assert pipe.num_steps == 6
    np.testing.assert_array_equal(pipe(1), pipe(1, num_steps=6))


def test_unconditional_networks_paint_into_images(tmp_path):
    """By RePaint's walk: what is known stays, what is not follows from the seed."""
    pipe = hub.load_pipeline(pipeline_folders.write("pipeline-ddpm", tmp_path / "ddpm"))
    image = np.random.default_rng(0).uniform(size=(16, 16, 3)).astype(np.float32)
    mask = np.zeros((16, 16), np.float32)
    mask[4:9] = 1
    sampler = pipe.schedule.repaint(4, jump_length=2, resamples=2)
    painted = pipe(2, image=image, mask=mask, sampler=sampler)
    np.testing.assert_allclose(painted[:, mask == 0], np.stack([image[mask == 0]] * 2), atol=1e-5)
    assert np.abs(painted[0] - painted[1])[4:9].mean() > 1e-2
    with pytest.raises(ValueError, match="image and mask belong together"):
        pipe(1, image=image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "FluxPipeline"}, "describes 'FluxPipeline'; covered are, among others, PNDMPipeline, "),
        ({"_class_name": ["DDIMPipeline"] * 100}, r"describes \['DDIMPipeline', .*; covered are, among others, Stable"),
        ({"_class_name": "x" * 10**6}, r"describes 'x{59}; covered are, among others, \w+, \w+, \w+ \(docs/hub"),
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
    with pytest.raises(ValueError, match=r"sampler 'k_best' does not exist .* it can be ddpm, ddim, plms, pndm, euler"):
        hub.load_pipeline(folder, sampler="k_best")

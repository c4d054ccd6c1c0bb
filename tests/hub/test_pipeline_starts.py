"""Where image-to-image and inpainting begin, and what holds the image: whole pipelines beside diffusers.

The golden "pipeline-starts" was made by diffusers 0.42.1 from the folders of "pipeline-sd15" and "pipeline-sd3", with
their latents for noise, the image and mask of "pipeline-sd15-more", 5 steps where nothing else is said, and the mean of
the autoencoder's Gaussian, as in tests/hub/test_pipelines.py.
"""

import json

import numpy as np
import pytest

from diffusion_jax import hub
from tests import golden
from tests.hub import pipeline_folders

MORE = golden.load("pipeline-sd15-more")
STARTS = golden.load("pipeline-starts")


def asked_of(name):
    asked = golden.config(name, "golden.json")
    settings = {"guidance_scale": asked["guidance_scale"], "latents": golden.load(name)["latents"]}
    return (asked["prompts"], asked["negative_prompts"]), settings


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return hub.load_pipeline(pipeline_folders.write("pipeline-sd15", tmp_path_factory.mktemp("starts") / "sd15"))


def check(images, recorded):
    np.testing.assert_allclose(images, STARTS[recorded], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("solver", "strength"),
    [
        ("plms", 1.0),
        pytest.param("ddim", 1.0, marks=pytest.mark.slow),
        pytest.param("euler", 1.0, marks=pytest.mark.slow),
        pytest.param("dpmpp", 1.0, marks=pytest.mark.slow),
        pytest.param("heun", 1.0, marks=pytest.mark.slow),
        pytest.param("lms", 0.6, marks=pytest.mark.slow),
    ],
)
def test_painting_with_a_network_of_four_channels(solver, strength, pipe):
    """At strength 1 the first call sees noise alone, also where the image is known."""
    prompts, settings = asked_of("pipeline-sd15")
    settings |= {"image": MORE["image"], "mask": MORE["mask"], "strength": strength, "keep_unmasked": False}
    check(pipe.with_solver(solver)(*prompts, num_steps=5, **settings), f"paint_{solver}_{strength}")


@pytest.mark.parametrize(
    ("solver", "num_steps"),
    [
        ("plms", 5),
        pytest.param("lms", 5, marks=pytest.mark.slow),
        pytest.param("singlestep", 7, marks=pytest.mark.slow),
    ],
)
def test_solvers_that_remember_begin_in_the_middle(solver, num_steps, pipe):
    prompts, settings = asked_of("pipeline-sd15")
    drawing = pipe.with_solver("dpmpp_singlestep" if solver == "singlestep" else solver)
    check(
        drawing(*prompts, num_steps=num_steps, image=MORE["image"], strength=0.6, **settings),
        f"img2img_{solver}",
    )


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    return pipeline_folders.write("pipeline-sd3", tmp_path_factory.mktemp("starts") / "sd3")


def test_a_flow_begins_where_the_steps_that_are_left_out_end(flow):
    """7 steps at strength 0.66: 7 - 4.62 rounds down to 2 that are left out, and 5 are run, not int(4.62)."""
    prompts, settings = asked_of("pipeline-sd3")
    images = hub.load_pipeline(flow)(*prompts, num_steps=7, image=MORE["image"], strength=0.66, **settings)
    check(images, "sd3_img2img")


def test_a_flow_shifts_by_the_size_of_the_image(flow, tmp_path):
    """The shift runs from 0.5 at 16 patches to 1.15 at 128; this image has 64."""
    for part in flow.iterdir():
        if part.name != "scheduler":
            (tmp_path / part.name).symlink_to(part)
    config = json.loads((flow / "scheduler" / "scheduler_config.json").read_text())
    config |= {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 128}
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    prompts, settings = asked_of("pipeline-sd3")
    check(hub.load_pipeline(tmp_path)(*prompts, num_steps=4, **settings), "sd3_dynamic")

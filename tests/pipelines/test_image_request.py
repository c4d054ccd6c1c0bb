"""What is asked of a pipeline: one request, whether a call or the command asks."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest

from diffusion_jax import options
from diffusion_jax.jobs import request as command
from diffusion_jax.pipelines.families import FAMILIES
from diffusion_jax.pipelines.image_request import ImageRequest
from diffusion_jax.pipelines.latent import LatentDiffusion
from tests.pipelines import tiny


def test_a_call_has_the_documented_signature():
    documented = inspect.signature(
        lambda self, prompts, negative_prompts=None, num_steps=50, guidance_scale=7.5, guidance_rescale=0.0,
        latents=None, key=None: None
    )  # fmt: skip
    *own, others = inspect.signature(LatentDiffusion.__call__).parameters.values()
    assert [(one.name, one.default) for one in own] == [
        (one.name, one.default) for one in documented.parameters.values()
    ]
    assert others.kind is inspect.Parameter.VAR_KEYWORD


def test_a_call_and_its_request_draw_the_same():
    pipe = tiny.pipeline()
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(tiny.SIZE, tiny.SIZE, 3)).astype(np.float32)
    given = {"num_steps": 2, "guidance_scale": 3.0, "image": image, "strength": 0.5, "key": jax.random.key(1)}
    called = pipe(["cat", "dog"], "red", **given)
    np.testing.assert_array_equal(pipe.draw(ImageRequest(["cat", "dog"], ["red", "red"], **given)), called)


def test_a_request_checks_itself_before_any_pipeline_is_there():
    for asked, message in (
        ({"prompts": [1]}, "prompts must be a string or a list of strings"),
        ({"prompts": ["a", "b"], "negative_prompts": ["a", "b", "c"]}, "3 negative_prompts for 2 prompts; give 1 or 2"),
        ({"prompts": "a", "num_steps": 0}, "num_steps is 0; it must be 1 or more"),
        ({"prompts": "a", "output": "video"}, "output is 'video'; it can be 'images' or 'latents'"),
        ({"prompts": "a", "mask": np.zeros((4, 4))}, "a mask needs the image that it belongs to"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            ImageRequest(**asked)
        assert "\n" not in str(caught.value)


def test_every_field_says_what_it_means_and_the_command_says_the_same():
    fields = options.options(ImageRequest)
    assert all(option.text for option in fields.values())
    flags = {field.name: field.metadata["help"] for field in dataclasses.fields(command.Request)}
    shared = {
        "prompt": "prompts", "negative_prompt": "negative_prompts", "steps": "num_steps", "guidance": "guidance_scale",
        "guidance_rescale": "guidance_rescale", "size": "size", "image": "image", "strength": "strength",
        "mask": "mask", "control_image": "control_images", "control_scale": "control_scale", "clip_skip": "clip_skip",
        "latents": "latents",
    }  # fmt: skip
    for flag, field in shared.items():
        assert flags[flag].startswith(fields[field].text), flag
    assert "50 if not given" in flags["steps"] and "if not given 7.5" in flags["guidance"]


def test_sdxl_is_told_sizes_that_are_not_asked_for():
    """(original height, width, crop's top, left, target's height, width), as diffusers orders them."""
    told = FAMILIES["sdxl"].told(ImageRequest(["a", "b"], crop=(3, 4), original_size=(100, 200)), (32, 64))
    np.testing.assert_array_equal(told["time_ids"], [[100, 200, 3, 4, 32, 64]] * 2)
    assert FAMILIES["sd"].told(ImageRequest("a"), (32, 64)) == FAMILIES["sd3"].told(ImageRequest("a"), (32, 64)) == {}

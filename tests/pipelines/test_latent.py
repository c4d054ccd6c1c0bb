"""What pipelines promise, on networks of a few channels."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from diffusion_jax.diffusion import samplers
from diffusion_jax.pipelines import latents, text
from diffusion_jax.pipelines.denoiser import Control
from tests.pipelines import tiny

STEPS = {"num_steps": 4}
PROMPTS = ["a red cat", "dog"]


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    return rng.uniform(size=(tiny.SIZE, tiny.SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def drawn(pipe):
    return pipe(PROMPTS, ["blue", ""], key=jax.random.key(3), **STEPS)


def test_images_are_in_range_and_their_own(drawn):
    assert drawn.shape == (2, tiny.SIZE, tiny.SIZE, 3) and drawn.dtype == np.float32
    assert drawn.min() >= 0 and drawn.max() <= 1 and drawn.std() > 0.01
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01


def test_an_image_is_a_function_of_seed_and_index_alone(pipe, drawn):
    """In another batch, with its own key."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), np.arange(2))
    alone = pipe(PROMPTS[1], "", key=keys[1:], **STEPS)
    np.testing.assert_allclose(alone[0], drawn[1], atol=1e-4)


def test_devices_change_nothing(pipe, drawn):
    mesh = jax.make_mesh((4, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3,
                         devices=jax.devices()[:4])  # fmt: skip
    sharded = pipe.shard(mesh)
    np.testing.assert_allclose(sharded(PROMPTS, ["blue", ""], key=jax.random.key(3), **STEPS), drawn, atol=1e-4)


def test_the_negative_prompt_and_the_scale_are_used(pipe, drawn):
    key = jax.random.key(3)
    assert np.abs(pipe(PROMPTS, ["red", "red"], key=key, **STEPS) - drawn).max() > 1e-3
    assert np.abs(pipe(PROMPTS, ["blue", ""], guidance_scale=2.0, key=key, **STEPS) - drawn).max() > 1e-3


def test_scale_one_is_the_prompt_alone(pipe, drawn):
    """And nearly what guidance gives as its scale goes to one."""
    key = jax.random.key(3)
    alone = pipe(PROMPTS, ["blue", ""], guidance_scale=1.0, key=key, **STEPS)
    np.testing.assert_array_equal(pipe(PROMPTS, None, guidance_scale=1.0, key=key, **STEPS), alone)
    np.testing.assert_allclose(pipe(PROMPTS, ["blue", ""], guidance_scale=1 + 1e-6, key=key, **STEPS), alone, atol=1e-4)


def test_weights_of_words_are_used(pipe, drawn):
    key = jax.random.key(3)
    same = pipe(["a (red:1.0) cat", "dog"], ["blue", ""], key=key, **STEPS)
    np.testing.assert_array_equal(same, drawn)
    heavier = pipe(["a (red:1.8) cat", "dog"], ["blue", ""], key=key, **STEPS)
    assert np.abs(heavier[0] - drawn[0]).max() > 1e-3
    np.testing.assert_allclose(heavier[1], drawn[1], atol=1e-6)


def test_clip_skip_reads_an_earlier_layer(pipe, drawn):
    skipped = pipe(PROMPTS, ["blue", ""], clip_skip=1, key=jax.random.key(3), **STEPS)
    assert np.abs(skipped - drawn).max() > 1e-3
    with pytest.raises(ValueError, match="clip_skip is 3; with this text encoder it can be 0 to 2"):
        pipe(PROMPTS, clip_skip=3)


def test_an_image_at_strength_zero_is_the_image(pipe, image):
    np.testing.assert_allclose(pipe("cat", image=image, strength=0.0, **STEPS)[0], image, atol=1e-5)


@pytest.mark.slow
def test_strength_is_how_far_the_image_moves(pipe, image):
    away = [np.abs(pipe("cat", image=image, strength=s, key=jax.random.key(1), num_steps=8)[0] - image).mean()
            for s in (0.25, 0.75)]  # fmt: skip
    assert 0 < away[0] < away[1]


def test_a_multistep_solver_can_begin_in_the_middle(image):
    """Its first step has no earlier estimate: it must not take zeros for one."""
    config = tiny.DDIM | {"_class_name": "DPMSolverMultistepScheduler"}
    sampler = tiny.pipeline(config=config).schedule.sampler(8, 4)
    assert sampler.num_steps == 4
    # a perfect network gives the image back: x_0 = image whatever the input
    alpha, sigma = (float(x[0]) for x in tiny.pipeline(config=config).schedule.levels(sampler))
    from diffusion_jax.diffusion import samplers

    noise = np.random.default_rng(1).standard_normal((1, 4, 4, 3)).astype(np.float32)
    known = image[None, :4, :4]
    on_x, on_output = np.asarray(sampler.table.denoise).T

    def perfect(x, t):
        row = np.argmin(np.abs(np.asarray(sampler.table.timestep) - np.asarray(t)))
        return (known - on_x[row] * x / np.asarray(sampler.table.input_scale)[row]) / on_output[row]

    with jax.disable_jit():
        end, _ = samplers.sample(sampler, perfect, alpha * known + sigma * noise, return_trajectory=False)
    np.testing.assert_allclose(end, known, atol=1e-4)


@pytest.mark.parametrize("keep", [True, False])
def test_painting_keeps_what_is_not_masked(keep, pipe, image):
    mask = np.zeros((tiny.SIZE, tiny.SIZE), np.float32)
    mask[4:12, 4:12] = 1
    painted = pipe("cat", image=image, mask=mask, keep_unmasked=keep, key=jax.random.key(1), num_steps=8)[0]
    np.testing.assert_allclose(painted[mask == 0], image[mask == 0], atol=0 if keep else 1e-5)
    assert np.abs(painted[mask == 1] - image[mask == 1]).mean() > 0.02


def test_a_network_made_for_painting_is_told_mask_and_image(image):
    pipe = tiny.pipeline(painting=True)
    mask = np.zeros((tiny.SIZE, tiny.SIZE), np.float32)
    mask[4:12, 4:12] = 1
    given = {"key": jax.random.key(1), "keep_unmasked": False, **STEPS}
    painted = pipe("cat", image=image, mask=mask, **given)[0]
    # what is under the mask is hidden from it, what is outside is not
    under, outside = image.copy(), image.copy()
    under[8, 8], outside[0, 0] = 1 - under[8, 8], 1 - outside[0, 0]
    np.testing.assert_allclose(pipe("cat", image=under, mask=mask, **given)[0], painted, atol=1e-5)
    assert np.abs(pipe("cat", image=outside, mask=mask, **given)[0] - painted).max() > 1e-4
    with pytest.raises(ValueError, match="this network paints into images: give image and mask"):
        pipe("cat")


def test_control_scale_and_interval(pipe, image, drawn):
    """Scale 0 is the pipeline without ControlNets; an interval is the steps it names; two add up."""
    controlled = tiny.pipeline(controls=2)
    given = {"key": jax.random.key(3), "control_images": [image, 1 - image], **STEPS}
    asked = (PROMPTS, ["blue", ""])
    np.testing.assert_allclose(controlled(*asked, control_scale=0.0, **given), drawn, atol=1e-5)
    both = controlled(*asked, **given)
    first = controlled(*asked, control_scale=[1.0, 0.0], **given)
    early = controlled(*asked, control_end=0.5, **given)
    late = controlled(*asked, control_start=0.5, **given)
    for one, other in [(both, drawn), (both, first), (both, early), (early, late), (late, drawn)]:
        assert np.abs(one - other).max() > 1e-3
    with pytest.raises(ValueError, match="there are 1 control_images for 2 ControlNets"):
        controlled("cat", control_images=[image])


def test_attention_to_words_is_returned_when_asked_for(pipe, drawn):
    images, maps = pipe(["a red cat", "red dog"], ["blue", ""], attention=["red"], key=jax.random.key(3), **STEPS)
    side = tiny.SIZE // tiny.FACTOR
    assert list(maps) == ["red"] and len(maps["red"]) == 4  # one down, one middle, two up
    for value in maps["red"].values():
        assert value.shape == (4, 2, side, side) and value.min() >= 0 and value.max() <= 1 and value.std() > 0
    np.testing.assert_allclose(images[0], drawn[0], atol=1e-5)
    with pytest.raises(ValueError, match="is not in list"):
        pipe("cat", attention=["red"])


def test_meshes_of_every_kind_are_taken(pipe, drawn):
    """jax.make_mesh makes axes of explicit shardings, unless told otherwise."""
    for shape, axes in (((1, 1, 1), ("data", "fsdp", "tensor")), ((2,), ("data",)), ((2, 2), ("fsdp", "tensor"))):
        mesh = jax.make_mesh(shape, axes, devices=jax.devices()[: math.prod(shape)])
        again = pipe.shard(mesh)(PROMPTS, ["blue", ""], key=jax.random.key(3), **STEPS)
        np.testing.assert_allclose(again, drawn, atol=1e-4)
    with pytest.raises(ValueError, match="needs 'data' or 'fsdp'"):
        pipe.shard(jax.make_mesh((2,), ("model",), devices=jax.devices()[:2]))


def test_masks_come_in_every_layout(pipe, image):
    mask = np.zeros((16, 16), np.float32)
    mask[:, 8:] = 1
    common = {"prompts": PROMPTS, "image": image, "key": jax.random.key(3), **STEPS}
    expected = pipe(**common, mask=mask)
    for layout in (mask[..., None], np.stack([mask, mask]), np.stack([mask, mask])[..., None], mask.astype(bool)):
        np.testing.assert_array_equal(pipe(**common, mask=layout), expected)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 2, 16, 16, 1\); it must be \[height, width\]"):
        pipe(**common, mask=np.zeros((2, 2, 16, 16, 1)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("num_inference_steps", "here it is num_steps"),
        ("negative_prompt", "here it is negative_prompts"),
        ("num_images_per_prompt", "here it is prompts, each as often"),
        ("seed", r"here it is key \(jax.random.key\(seed\)\)"),
        ("flavour", "there is nothing of that name"),
    ],
)
def test_the_names_of_diffusers_are_answered(pipe, name, said):
    with pytest.raises(TypeError, match=said):
        pipe(PROMPTS, **{name: 3})


@pytest.mark.parametrize("name", ["guidance_scale", "guidance_rescale", "control_scale", "control_end", "latents"])
def test_numbers_that_are_not_finite_are_refused(pipe, name):
    value = np.full((2, 8, 8, 4), np.nan) if name == "latents" else float("nan")
    with pytest.raises(ValueError, match=f"{name} is nan; it must be finite"):
        pipe(PROMPTS, **{name: value})


def test_offloaded_text_encoders_give_the_same(pipe, drawn):
    apart = tiny.replace(pipe, offload_text=True)
    np.testing.assert_allclose(apart(PROMPTS, ["blue", ""], key=jax.random.key(3), **STEPS), drawn, atol=1e-6)


@pytest.mark.slow
def test_inversion_is_undone_by_sampling(image):
    """With more steps the way back meets the image; the network's answer hardly depends on x here."""
    pipe = tiny.pipeline()
    soft = jax.tree.map(lambda leaf: leaf, pipe.params)
    soft["network"]["conv_out"] = jax.tree.map(lambda leaf: 0.1 * leaf, soft["network"]["conv_out"])
    pipe = tiny.replace(pipe, params=soft)
    noise = pipe.invert(image, "cat", num_steps=20)
    back = pipe("cat", guidance_scale=1.0, latents=noise, num_steps=20)
    other = pipe("cat", guidance_scale=1.0, latents=np.roll(noise, 3, axis=1), num_steps=20)
    error = np.abs(back[0] - image).mean()
    assert error < 0.02 < 0.1 < np.abs(other[0] - image).mean()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompts": []}, "prompts must be a string or a list"),
        ({"negative_prompts": ["a", "b", "c"]}, "3 negative_prompts for 2 prompts"),
        ({"size": (15, 16)}, "size is 15x16; both sides must be multiples of 2"),
        ({"latents": np.zeros((2, 4, 8, 3))}, "latents have shape"),
        ({"image": np.zeros((16, 16, 3)), "strength": 1.5}, "strength is 1.5"),
        ({"image": np.full((16, 16, 3), 7.0)}, r"values from 7 to 7; they must be in \[0, 1\]"),
        ({"mask": np.zeros((16, 16))}, "a mask needs the image"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"output": "video"}, "output is 'video'"),
    ],
)
def test_bad_arguments_are_one_line(asked, message, pipe):
    with pytest.raises(ValueError, match=message) as caught:
        pipe(**({"prompts": PROMPTS} | asked))
    assert "\n" not in str(caught.value)


def test_arcs_between_latents_keep_their_length():
    rng = np.random.default_rng(0)
    one, two = (rng.standard_normal((8, 8, 4)).astype(np.float32) for _ in range(2))
    between = np.asarray(latents.interpolate(one, two, 5))
    np.testing.assert_allclose(between[0], one, atol=1e-5)
    np.testing.assert_allclose(between[-1], two, atol=1e-5)
    lengths = np.sqrt((between**2).sum(axis=(1, 2, 3)))
    assert lengths.min() > 0.95 * min(lengths[0], lengths[-1])
    np.testing.assert_allclose(latents.slerp(one[None], one[None], 0.3)[0], one, atol=1e-5)
    # what `invert` gives for one image each
    np.testing.assert_array_equal(latents.interpolate(one[None], two[None], 5), between)
    with pytest.raises(ValueError, match="give one latent"):
        latents.interpolate(np.stack([one, two]), np.stack([two, one]), 5)
    varied = np.asarray(latents.vary(one[None], jax.random.key(0), 0.1))
    assert 0.02 < np.abs(varied - one).mean() < 0.3


def test_a_network_that_is_told_the_guidance_scale_is_called_once_with_it(pipe):
    """As in diffusers: timestep_cond is the embedding of the scale less one, and there is no other guidance."""
    network = pipe.network.clone(guidance_channels=6)
    matrix = 20 * np.random.default_rng(5).standard_normal((6, 8)).astype(np.float32)
    trunk = pipe.params["network"]
    embedding = trunk["time_embedding"] | {"cond_proj": {"kernel": matrix}}
    params = pipe.params | {"network": trunk | {"time_embedding": embedding}}
    told = tiny.replace(pipe, network=network, params=params)
    noise = np.random.default_rng(6).standard_normal((1, 8, 8, 12)).astype(np.float32)
    given = {"latents": noise, "output": "latents", "num_steps": 4}
    drawn = told("red cat", "blue", guidance_scale=4.0, **given)

    sampler = pipe.schedule.sampler(4)
    tokens = jax.tree.map(np.asarray, text.tokenize(pipe.encoders, ["red cat"]))
    context = text.encode(pipe.encoders, pipe.options, params, tokens, 0)["encoder_hidden_states"]
    half = 1000 * 3.0 * 10_000.0 ** (-np.arange(3) / 2)
    cond = np.concatenate([np.sin(half), np.cos(half)])[None].astype(np.float32)

    def predict(x, t):
        return network.apply({"params": params["network"]}, x, t, context, timestep_cond=cond)

    expected, _ = samplers.sample(
        sampler, predict, sampler.init_noise_sigma * noise, jax.random.split(jax.random.key(0), 1)
    )
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.abs(told("red cat", guidance_scale=2.0, **given) - drawn).max() > 2e-3 * np.abs(drawn).max()


def test_a_controlnet_that_pools_acts_on_the_prompt_alone():
    """As in diffusers (global_pool_conditions): under guidance its residuals are zero for the negative prompt."""
    pipe = tiny.pipeline(controls=1)
    (control,) = pipe.controls
    pooled = tiny.replace(pipe, controls=(Control(control.name, control.model.clone(global_pool=True)),))
    hint = np.random.default_rng(8).uniform(size=(tiny.SIZE, tiny.SIZE, 3)).astype(np.float32)
    noise = np.random.default_rng(6).standard_normal((1, 8, 8, 12)).astype(np.float32)
    given = {"latents": noise, "output": "latents", "num_steps": 1}

    def draw(which, scale, prompt, **more):
        return which(prompt, "", guidance_scale=scale, **given, **({"control_images": [hint]} | more))

    drawn = draw(pooled, 3.0, "red cat")
    # one step of DDIM is linear in the prediction: the guided latent is 3 times the prompt's less 2 times the other
    prompt = draw(pooled, 1.0, "red cat")
    other = draw(pipe, 1.0, "", control_scale=[0.0])
    np.testing.assert_allclose(drawn, 3 * prompt - 2 * other, rtol=0, atol=1e-5 * np.abs(drawn).max())
    assert np.abs(prompt - draw(pooled, 1.0, "red cat", control_scale=[0.0])).max() > 1e-4

"""`--mode sample --from DIR`: the images, their settings, and what is refused."""

import errno
import io
import json
import os
import shutil
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from diffusion_jax import main as command
from diffusion_jax.jobs import pipeline, request
from tests import golden
from tests.hub import pipeline_folders

NAME = "pipeline-sd15"
ASKED = golden.config(NAME, "golden.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pipeline_folders.write(NAME, tmp_path_factory.mktemp("command") / "sd")


def run(*arguments) -> int:
    return command.main(["main", "--mode", "sample", *map(str, arguments)])


def test_the_command_writes_the_images_of_diffusers(folder, tmp_path, capfd):
    """With a LoRA of weight 0 and a folder that already holds an image, which stays as it is."""
    recorded = golden.load(NAME)
    np.save(tmp_path / "latents.npy", recorded["latents"])
    key = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{key}.lora_down.weight": np.ones((1, 64, 1, 1), np.float32),
               f"{key}.lora_up.weight": np.ones((64, 1, 1, 1), np.float32)}, tmp_path / "l.safetensors")  # fmt: skip
    out = tmp_path / "images"
    out.mkdir()
    Image.new("RGB", (2, 2)).save(out / "00000.png")
    before = (out / "00000.png").read_bytes()
    prompts = [part for prompt in ASKED["prompts"] for part in ("--prompt", prompt)]
    negatives = [part for prompt in ASKED["negative_prompts"] for part in ("--negative_prompt", prompt)]
    code = run("--from", folder, *prompts, *negatives, "--steps", ASKED["steps"], "--guidance", ASKED["guidance_scale"],
               "--latents", tmp_path / "latents.npy", "--lora", f"{tmp_path / 'l.safetensors'}:0", "--out", out,
               "--batch_size", 2)  # fmt: skip
    said = capfd.readouterr().err
    assert code == 0, said
    assert "first image after" in said and "2 in" in said
    assert (out / "00000.png").read_bytes() == before
    for i, expected in enumerate(recorded["text2img"]):
        with Image.open(out / f"{i + 1:05d}.png") as picture:
            pixels, text = np.asarray(picture).astype(int), picture.text
        assert np.abs(pixels - np.round(expected * 255)).max() <= 1
        settings = json.loads(text["diffusion_jax"])
        assert settings["prompt"] == ASKED["prompts"][i] and settings["negative_prompt"] == ASKED["negative_prompts"][i]
        assert settings["steps"] == 5 and settings["index"] == i and settings["seed"] == 0
        assert f"CFG scale: {ASKED['guidance_scale']:g}" in text["parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), '--prompt "..." is missing'),
        (("--prompt", "a", "--steps", "0"), "--steps is 0; it must be 1 or more"),
        (("--prompt", "a", "--steps", "many"), "--steps: invalid int value: 'many'"),
        (("--prompt", "a", "--color", "red"), "--color is not an option; here it is --"),
        (("--prompt", "a", "--num_inference_steps", "5"), "--num_inference_steps is not an option; here it is --steps"),
        (("--prompt", "a", "--guidance_scale=3"), "--guidance_scale is not an option; here it is --guidance"),
        (("--prompt", "a", "--guidance", "nan"), "--guidance is nan; it must be finite"),
        (("--prompt", "a", "--guidance_rescale", "inf"), "--guidance_rescale is inf; it must be finite"),
        (("--prompt", "a", "--lora", "l.safetensors:nan"), "the weight is nan; it must be finite"),
        (("--prompt", "a", "--seed", "-1"), "--seed is -1; it must be a whole number from 0 to 2^64 - 1"),
        (("--prompt", "a", "--seed", 2**64), "it must be a whole number from 0 to 2^64 - 1"),
        (
            ("--prompt", "a", "--dtype", "float16"),
            "on a CPU it can be bfloat16 or float32",
        ),
        (("--prompt", "a", "--negative_prompt", "b", "--guidance", "1"), "--negative_prompt needs guidance"),
        (("--prompt", "a", "--guidance_rescale", "0.7", "--guidance", "1"), "--guidance_rescale needs guidance"),
        (("--prompt", "a", "--control_scale", "0.5"), "there are 1 --control_scale for 0 --control"),
        (("--prompt", "a", "--out", __file__), "test_pipeline.py is a file; name a folder"),
        (("--prompt", "a", "--mask", "m.png"), "--mask needs the --image"),
        (("--prompt", "a", "--image", "none.png"), "--image none.png: not a readable image"),
        (("--prompt", "a", "--control", "x"), "there are 1 --control and 0 --control_image"),
        (("--prompt", "a", "--sampler", "best"), "sampler 'best' does not exist"),
        (("--prompt", "a", "--lora", "none.safetensors:0.8"), "none.safetensors: no such LoRA file"),
        (("--prompt", "a", "--label", "3"), "has prompts, and does nothing with --label"),
        (("--prompt", "a", "--size", "512"), "--size is '512'; it must be HEIGHTxWIDTH"),
        (("--prompt", "a", "--size", "33x32"), "size is 33x32; both sides must be multiples of 4"),
        (("--prompt", "a", "--dtype", "int8"), "--dtype is 'int8'"),
        (("--prompt", "a", "--negative_prompt", "b", "--negative_prompt", "c"), "there are 2 --negative_prompt for 1"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, message, folder, tmp_path, capfd):
    assert run("--from", folder, "--out", tmp_path / "out", *arguments) == 2
    said = capfd.readouterr().err.strip()
    assert message in said and said.count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_a_picture_that_does_not_fit_on_the_disk_leaves_no_half(tmp_path):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(self, mode):
        self.touch()
        return Full()

    asked = request.Request(source="x", prompt=("a",))
    with (
        mock.patch.object(pipeline.Path, "open", opened),
        pytest.raises(ValueError, match=r"00000\.png: cannot be written: No space left on device"),
    ):
        pipeline._write(np.zeros((4, 4, 3)), tmp_path, asked, "a", "", 0)
    assert not list(tmp_path.iterdir())


def drawn(folder, out, *arguments):
    assert run("--from", folder, "--prompt", "a", "--steps", "2", "--out", out, *arguments) == 0
    return np.asarray(Image.open(out / "00000.png")).astype(int)


def test_seeds_have_64_bits(folder, tmp_path):
    """torch's seeds go as far; the images of different ones differ."""
    seeds = (0, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
    images = [drawn(folder, tmp_path / str(seed), "--seed", seed) for seed in seeds]
    for i, image in enumerate(images):
        assert all(np.abs(image - other).max() > 3 for other in images[:i])


def test_the_sampler_and_the_guidance_are_named_in_the_picture(folder, tmp_path):
    for arguments, expected in (((), "ddim"), (("--sampler", "dpmpp_karras"), "dpmpp_karras")):
        out = tmp_path / expected
        drawn(folder, out, *arguments)
        with Image.open(out / "00000.png") as picture:
            assert f"Sampler: {expected}, CFG scale: 7.5, Seed: 0" in picture.text["parameters"]


def test_an_image_that_is_not_finite_is_one_line_and_code_1(folder, tmp_path, capfd):
    broken = shutil.copytree(folder, tmp_path / "broken")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in load_file(file).items()}
    tensors["conv_out.bias"][0] = np.nan
    save_file(tensors, file)
    assert run("--from", broken, "--prompt", "a", "--steps", "2", "--out", tmp_path / "out") == 1
    said = capfd.readouterr().err.strip().splitlines()
    assert said[-1].startswith("diffusion_jax: the image is not finite: the numbers were lost in the network")
    assert not (tmp_path / "out").exists()


def test_what_a_checkpoint_without_prompts_cannot_do_is_refused(tmp_path, capfd):
    folder = pipeline_folders.write("pipeline-ddpm", tmp_path / "ddpm")
    for option, value in (("--size", "32x32"), ("--guidance", "3"), ("--clip_skip", "1"), ("--negative_prompt", "b")):
        assert run("--from", folder, option, value, "--steps", "2", "--out", tmp_path / "out") == 2
        said = capfd.readouterr().err.strip()
        assert "which it draws without" in said or f"does nothing with {option}; it takes --num, --seed" in said, said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path, capfd):
    assert run("--from", tmp_path, "--prompt", "a") == 2
    assert "model_index.json: no such file" in capfd.readouterr().err


def test_the_options_are_explained(capsys):
    assert run("--from", "x", "--help") == 0
    shown = capsys.readouterr().out
    for name in request.Request.__dataclass_fields__:
        assert f"--{'from' if name == 'source' else name}" in shown


def test_weights_of_lora_files():
    assert request.weighted("a.safetensors:0.8") == ("a.safetensors", 0.8)
    assert request.weighted("a.safetensors") == ("a.safetensors", 1.0)
    assert request.weighted("C:/a.safetensors") == ("C:/a.safetensors", 1.0)

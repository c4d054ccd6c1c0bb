"""Whole small pipelines beside diffusers': random solvers, steps, guidance, sizes, images and masks.

The folders are those of the goldens, the scheduler in them is drawn. What is random in diffusers is given to both: the
noise that a drawing starts from, and the autoencoder's Gaussian, of which the mean is taken.
"""

import importlib
import json
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from diffusion_jax import hub
from tests import golden
from tests.hub import pipeline_folders
from tests.peers.cases import agree
from tests.peers.networks import pick
from tests.peers.schedulers import double

CHAIN = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
# Solvers without noise of their own, and the options drawn for each.
LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
SOLVERS = {
    "DDIMScheduler": {"clip_sample": (False,), "set_alpha_to_one": (True, False)},
    "PNDMScheduler": {"skip_prk_steps": (True,), "set_alpha_to_one": (True, False)},
    "EulerDiscreteScheduler": {"levels": (None, *LEVELS)},
    "HeunDiscreteScheduler": {"levels": (None, *LEVELS)},
    "LMSDiscreteScheduler": {"levels": (None, *LEVELS)},
    "DPMSolverMultistepScheduler": {"levels": (None, *LEVELS), "solver_order": (1, 2, 3)},
    "DPMSolverSinglestepScheduler": {"levels": (None, None, LEVELS[0]), "solver_order": (1, 2, 3)},
    "DEISMultistepScheduler": {"solver_order": (1, 2, 3)},
    "UniPCMultistepScheduler": {"levels": (None, *LEVELS), "solver_order": (1, 2, 3)},
}
FLOWS = {
    "FlowMatchEulerDiscreteScheduler": {"shift": (1.0, 3.0), "levels": (None, *LEVELS)},
    "FlowMatchHeunDiscreteScheduler": {"shift": (1.0, 3.0)},
}
# (folder of the golden, diffusers' pipeline, what it starts from)
KINDS = {
    "StableDiffusion": ("pipeline-sd15", "noise"),
    "StableDiffusionImg2Img": ("pipeline-sd15", "image"),
    "StableDiffusionInpaint": ("pipeline-sd15", "mask"),
    "StableDiffusionXL": ("pipeline-sdxl", "noise"),
    "StableDiffusionXLImg2Img": ("pipeline-sdxl", "image"),
    "StableDiffusionXLInpaint": ("pipeline-sdxl", "mask"),
    "StableDiffusion3": ("pipeline-sd3", "noise"),
    "StableDiffusion3Img2Img": ("pipeline-sd3", "image"),
}
FACTOR = 2  # pixels of an image for each latent, on a side
TOLERANCE = 2e-4
diffusers.utils.logging.disable_progress_bar()


def scheduler(rng, folder):
    """Of a kind that fits the folder's network, in the words of diffusers."""
    solvers = FLOWS if folder == "pipeline-sd3" else SOLVERS
    name = pick(rng, *solvers)
    config = {"_class_name": name} | {option: pick(rng, *values) for option, values in solvers[name].items()}
    if levels := config.pop("levels", None):
        config[levels] = True
    if solvers is FLOWS:
        return config | {"num_train_timesteps": 1000}
    config |= CHAIN | {"prediction_type": pick(rng, "epsilon", "v_prediction"), "steps_offset": pick(rng, 0, 1)}
    return config | {"timestep_spacing": pick(rng, "leading", "linspace", "trailing")}


def asked(rng, kind, folder, start):
    """The arguments that both take, by diffusers' names."""
    prompts = golden.config(folder, "golden.json")["prompts"]
    given = {
        "prompt": prompts,
        "num_inference_steps": int(rng.integers(3, 12)),
        "guidance_scale": pick(rng, 1.0, 3.0, 7.5),
    }
    if rng.random() < 0.6:
        given["negative_prompt"] = prompts[::-1]
    if kind == "StableDiffusionXL" and rng.random() < 0.3:
        given["clip_skip"] = 1  # of the others, diffusers 0.42 fails at it with this version of transformers
    if kind in ("StableDiffusion", "StableDiffusionXL") and rng.random() < 0.5:
        given["guidance_rescale"] = 0.7
    if start != "noise":
        given["strength"] = float(pick(rng, 1.0, 0.8, 0.61, 0.5))
    return given


def theirs(kind, folder, given, noise, image, mask):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipe = getattr(diffusers, f"{kind}Pipeline")(**pipe.components)
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.register_to_config(force_upcast=False)  # which means float32
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.double()
    arguments = dict(given) | {"output_type": "np"}
    latents = torch.from_numpy(np.moveaxis(noise, -1, 1).astype(np.float64))
    size = {"height": image.shape[1], "width": image.shape[2]}
    if "strength" not in given:
        arguments |= {"latents": latents, **size}
    else:
        arguments["image"] = torch.from_numpy(np.moveaxis(image, -1, 1).astype(np.float64))
    if mask is not None:
        arguments |= {"mask_image": torch.from_numpy(mask[:, None].astype(np.float64)), **size}
    module = importlib.import_module(type(pipe).__module__)
    with (
        double(),
        torch.no_grad(),
        mock.patch.object(module, "randn_tensor", lambda *_, **__: latents),
        mock.patch.object(DiagonalGaussianDistribution, "sample", lambda self, *_, **__: self.mean),
    ):
        return pipe(**arguments).images


def ours(folder, given, noise, image, mask):
    given = dict(given)
    words = [given.pop("prompt"), given.pop("negative_prompt", None)]
    if "strength" in given:
        given["image"] = image
    if mask is not None:
        given |= {"mask": mask[..., None], "keep_unmasked": False}
    steps = given.pop("num_inference_steps")
    return hub.load_pipeline(folder)(*words, num_steps=steps, latents=noise, **given)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_images(kind, seed, tmp_path, record_property):
    name, start = KINDS[kind]
    rng = np.random.default_rng(1000 * list(KINDS).index(kind) + seed)
    folder = pipeline_folders.write(name, tmp_path / "there")
    config = scheduler(rng, name)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", config["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    given = asked(rng, kind, name, start)
    usual = golden.load(name)["latents"]
    noise = rng.standard_normal(usual.shape).astype(np.float32)
    height, width = (FACTOR * side for side in usual.shape[1:3])
    image = rng.uniform(size=(len(noise), height, width, 3)).astype(np.float32)
    mask = None
    if start == "mask":
        mask = np.zeros(image.shape[:3], np.float32)
        mask[:, height // 4 :, : width // 2] = 1
    wanted = theirs(kind, folder, given, noise, image, mask)
    agree(record_property, kind, lambda: ours(folder, given, noise, image, mask), wanted, TOLERANCE)

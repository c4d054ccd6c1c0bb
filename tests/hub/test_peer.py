"""diffusers opens what the hub saves: no tensor missing or unexpected, and its recorded output again.

Runs where PyTorch and diffusers are installed.
"""

import numpy as np
import pytest

from diffusion_jax import hub
from tests import golden
from tests.hub import folders

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

NAMES = (
    "unet2d-ddpm-cifar",
    "unet2d-adm",
    "dit",
    "unet-sd15",
    "unet-sd21-linear",
    "unet-sdxl",
    "unet-sd15-inpaint",
    "controlnet-sd15/controlnet",
    "mmdit-sd3",
    "mmdit-sd35",
    "flux-tiny",
    "flux-tiny-schnell",
)


def channels_first(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, -1, 1)) if array.ndim == 4 else array


def resaved(name: str, tmp_path):
    hub.save(*hub.load(folders.write(name, tmp_path / "there")), tmp_path / "back")
    kind = getattr(diffusers, golden.config(name)["_class_name"])
    model, info = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_networks(name, tmp_path):
    model = resaved(name, tmp_path)
    recorded = golden.load(name)
    given = {key: torch.from_numpy(channels_first(value)) for key, value in recorded.items() if value.ndim}
    expected = [given.pop(key) for key in sorted(given) if key in ("out", "mid") or key.startswith("down_")]
    if "timesteps" in given:
        given["timestep"] = given.pop("timesteps")
    if golden.config(name)["_class_name"] in ("DiTTransformer2DModel", "SD3Transformer2DModel"):
        given["hidden_states"] = given.pop("sample")
    if "text_embeds" in given:
        given["added_cond_kwargs"] = {key: given.pop(key) for key in ("text_embeds", "time_ids")}
    if name.startswith("controlnet"):
        given["conditioning_scale"] = float(recorded["conditioning_scale"])
        expected = expected[:-1]  # the U-Net's
    with torch.no_grad():
        outputs = model(**given, return_dict=False)
    flat = [tensor for output in outputs for tensor in (output if isinstance(output, list | tuple) else [output])]
    for output, wanted in zip(flat, expected, strict=True):
        folders.assert_close(output.numpy(), wanted.numpy())


@pytest.mark.parametrize("name", ["vae-kl", "vae-kl-16ch", "vae-tiny"])
def test_autoencoders(name, tmp_path):
    model = resaved(name, tmp_path)
    recorded = {key: channels_first(value) for key, value in golden.load(name).items()}
    with torch.no_grad():
        encoded = model.encode(torch.from_numpy(recorded["image"]))
        latents = encoded.latents if name == "vae-tiny" else encoded.latent_dist.mean
        expected = recorded["latents" if name == "vae-tiny" else "mean"]
        folders.assert_close(latents.numpy(), expected)
        folders.assert_close(model.decode(torch.from_numpy(expected)).sample.numpy(), recorded["decoded"])

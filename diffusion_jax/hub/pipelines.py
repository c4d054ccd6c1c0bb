"""Pipelines: of a folder as diffusers writes it, or of one file of Stable Diffusion."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.typing import DTypeLike

from diffusion_jax.hub.checkpoint import load
from diffusion_jax.hub.files import CheckpointError, nearest
from diffusion_jax.hub.pipeline_parts import Parts, open_parts
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.mmdit import MMDiT
from diffusion_jax.pipelines import families
from diffusion_jax.pipelines.denoiser import Control
from diffusion_jax.pipelines.families import TextOptions
from diffusion_jax.pipelines.latent import LatentDiffusion
from diffusion_jax.pipelines.text import TextEncoder
from diffusion_jax.pipelines.unconditional import Unconditional

# Classes of model_index.json, and their families.
FAMILIES = {
    **dict.fromkeys(
        (
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionControlNetPipeline",
        ),
        "sd",
    ),
    **dict.fromkeys(
        (
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
        ),
        "sdxl",
    ),
    **dict.fromkeys(("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"), "sd3"),
}
# Number of steps where a call does not say, or all of a shorter chain: the ancestral chain is made for all of them.
UNCONDITIONAL = {"DDPMPipeline": 1000, "DDIMPipeline": 50, "PNDMPipeline": 50}
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
ABSENT_TOKENS = T5_LENGTH = 256  # of SD 3's third encoder
# Those of diffusers that correct the scheduler that they are given, unless there are ControlNets.
_CORRECTING = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")


def load_pipeline(
    source: str | Path,
    *,
    dtype: DTypeLike = "float32",
    param_dtype: DTypeLike = "float32",
    variant: str | None = None,
    revision: str | None = None,
    sampler: str | None = None,
    controlnets: Sequence[str | Path] = (),
    tile_size: int | None = None,
    offload_text: bool = False,
) -> Any:
    """Opens a pipeline: Stable Diffusion 1, 2, XL, 3 and 3.5, with their inpainting checkpoints, and DDPM's.

    Args:
      source: a folder with model_index.json, one file of Stable Diffusion 1, 2 or XL (.safetensors, .ckpt; see
        :class:`diffusion_jax.hub.pipeline_parts.FileParts`), or the name of a repository, "owner/name".
      dtype, param_dtype: what the networks compute in, and what their parameters are kept in. An autoencoder that is
        marked to overflow in half precision (force_upcast) stays float32.
      variant, revision: see :func:`diffusion_jax.hub.load`.
      sampler: another solver than the checkpoint's, see :meth:`diffusion_jax.hub.schedule.Schedule.with_solver`.
      controlnets: folders of ControlNets.
      tile_size: the autoencoder takes images with larger sides in tiles of so many pixels.
      offload_text: the text encoders' parameters stay in the host's memory while images are drawn.

    Returns:
      :class:`diffusion_jax.pipelines.latent.LatentDiffusion` or
      :class:`diffusion_jax.pipelines.unconditional.Unconditional`: ``pipe(prompts, ...)`` gives images, float32
      [B, H, W, 3] in [0, 1].

    Raises:
      CheckpointError: what is wrong with which file, or a kind of pipeline that is not covered.
    """
    parts = open_parts(source, variant, revision)
    with contextlib.closing(parts):
        return _pipeline(
            parts,
            lambda name, kind=dtype, params=param_dtype: parts.network(name, kind, params),
            lambda where: load(where, dtype=dtype, param_dtype=param_dtype, variant=variant),
            sampler,
            controlnets,
            tile_size,
            offload_text,
        )


def _pipeline(
    parts: Parts,
    part: Any,
    control: Any,
    sampler: str | None,
    controlnets: Sequence[str | Path],
    tile_size: int | None,
    offload_text: bool,
) -> LatentDiffusion | Unconditional:
    """The pipeline of these parts; ``part(name)`` and ``control(folder)`` give a network and its parameters."""
    folder, index = parts.where, parts.index
    name = index.get("_class_name")
    if not isinstance(name, str) or not (name in FAMILIES or name in UNCONDITIONAL):
        raise CheckpointError(
            f"{folder / 'model_index.json'}: describes {name!r:.60}; covered are, among others, "
            f"{nearest(name, (*FAMILIES, *UNCONDITIONAL))}"
        )
    schedule = parts.schedule(sampler)
    if name in _CORRECTING and not controlnets:
        schedule = schedule.corrected()
    if name in UNCONDITIONAL:
        if controlnets:
            raise CheckpointError(f"{folder}: {name} has no text encoder, which a ControlNet needs")
        network, params = part("unet")
        config = parts.config("unet")
        size = _sides(config, folder / "unet")
        if size is None:
            raise CheckpointError(f"{folder / 'unet' / 'config.json'}: sample_size is missing")
        channels, timesteps = config.get("in_channels", 3), schedule.config.get("num_train_timesteps")
        return Unconditional(
            network,
            jax.device_put({"network": params}),
            schedule,
            size,
            channels,
            min(UNCONDITIONAL[name], timesteps if isinstance(timesteps, int) else 1000),
            getattr(network, "num_classes", None),
            parts.null_class(),
        )
    if index.get("requires_aesthetics_score"):
        raise CheckpointError(f"{folder}: refiners, which are told an aesthetic score, are not covered")

    family = families.FAMILIES[FAMILIES[name]]
    if controlnets and not family.takes_controls:
        raise CheckpointError(
            f"{folder}: pipelines of Stable Diffusion 3 take no ControlNets yet; hub.load opens the network alone"
        )
    params: dict[str, Any] = {}
    network, params["network"] = part(family.network)
    autoencoder, params["autoencoder"] = _autoencoder(folder, part, tile_size)
    encoders = []
    for i, encoder_name in enumerate(ENCODERS):
        if not _has(index, encoder_name):
            continue
        model, params[encoder_name] = part(encoder_name)
        tokenizer = parts.tokenizer(encoder_name, model.vocab_size)
        if i == 2:
            tokenizer.length = min(tokenizer.length, T5_LENGTH) if tokenizer.length > 77 else T5_LENGTH
        encoders.append(TextEncoder(encoder_name, model, tokenizer))
    if not encoders:
        raise CheckpointError(f"{folder / 'model_index.json'}: names no text encoder")
    controls = []
    for i, where in enumerate(controlnets):
        model, params[f"control_{i}"] = control(where)
        controls.append(Control(f"control_{i}", model))

    kept = {encoder.name for encoder in encoders} if offload_text else set()
    return LatentDiffusion(
        network=network,
        autoencoder=autoencoder,
        encoders=tuple(encoders),
        schedule=schedule,
        params={key: tree if key in kept else jax.device_put(tree) for key, tree in params.items()},
        options=_text_options(network, params["network"], FAMILIES[name], index),
        sample_size=_sides(parts.config(family.network), folder / family.network)
        or (network.sample_size or 64, network.sample_size or 64),
        controls=tuple(controls),
        zero_negative=family.zeros_by_default and bool(index.get("force_zeros_for_empty_prompt", True)),
        offload_text=offload_text,
    )


def _sides(config: Mapping[str, Any], folder: Path) -> tuple[int, int] | None:
    """(height, width) of what a network was trained on; None where its config does not say."""
    size = config.get("sample_size")
    if size is None:
        return None
    match size if isinstance(size, list) else [size, size]:
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
    raise CheckpointError(f"{folder / 'config.json'}: sample_size is {size!r:.60}; it must be an integer or two")


def _has(index: Mapping[str, Any], part: str) -> bool:
    return any(index.get(part) or ())


def _autoencoder(folder: Path, part: Any, tile_size: int | None) -> tuple[Any, Any]:
    model, params = part("vae")
    if isinstance(model, AutoencoderKL):
        if model.force_upcast and model.dtype != "float32":
            model, params = part("vae", "float32", "float32")
        model = dataclasses.replace(model, tile_size=tile_size)
    elif tile_size is not None:
        raise CheckpointError(f"{folder}: {type(model).__name__} has no tiles")
    return model, params


def _text_options(network: Any, params: Any, family: str, index: Mapping[str, Any]) -> TextOptions:
    if not isinstance(network, MMDiT):
        return TextOptions(family, 0)
    width = params["context_embedder"]["kernel"].shape[0]
    return TextOptions(family, width, 0 if _has(index, "text_encoder_3") else ABSENT_TOKENS)

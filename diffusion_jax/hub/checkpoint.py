"""Loading and saving of networks in the layouts of other libraries."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.hub import (
    autoencoder,
    conditional_unet,
    ddpm,
    dit,
    edm,
    edm2,
    flux,
    mmdit,
    mmdit_controlnet,
    openai_classifier,
    openai_unet,
    single_file,
    sources,
    text_encoders,
    tiny_autoencoder,
    unet2d,
    vq,
)
from diffusion_jax.hub.files import CheckpointError, nearest, read_config, read_tensors, write_config, write_tensors
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import flatten, from_params, to_params
from diffusion_jax.models.scanned import unrolled

FORMATS: tuple[Format, ...] = (
    unet2d.FORMAT,
    dit.FORMAT,
    dit.ORIGINAL_FORMAT,
    mmdit_controlnet.FORMAT,  # before the transformer, which its class extends
    mmdit.FORMAT,
    flux.FORMAT,
    edm.FORMAT,
    edm2.FORMAT,
    openai_classifier.FORMAT,
    openai_unet.FORMAT,
    ddpm.FORMAT,
    conditional_unet.UNET_FORMAT,
    conditional_unet.CONTROLNET_FORMAT,
    autoencoder.FORMAT,
    tiny_autoencoder.FORMAT,
    vq.FORMAT,
    text_encoders.CLIP_FORMAT,
    text_encoders.T5_FORMAT,
    text_encoders.BERT_FORMAT,
)


def load(
    source: str | Path,
    *,
    part: str | None = None,
    dtype: DTypeLike = "float32",
    param_dtype: DTypeLike = "float32",
    variant: str | None = None,
    revision: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Opens a network: its module and its parameters.

    Args:
      source: a model folder (config.json and .safetensors weights, in one file or in shards), for example ``unet`` of
        a diffusers pipeline; the pipeline's folder, with ``part``; a single-file Stable Diffusion checkpoint
        (.safetensors or .ckpt with the original names), with ``part``; the folder of a run of this project, whose
        averaged parameters are taken; or the name of a repository, "owner/name", which huggingface_hub downloads.
      part: which network of a pipeline or single file: "unet", "vae", "text_encoder", ...
      dtype: what the network computes in.
      param_dtype: of the parameters, whatever the file holds; "bfloat16" halves their memory.
      variant: of a folder's weights, for example "fp16" (``*.fp16.safetensors``).
      revision: branch, tag or commit of a repository.
      config: settings that overrule those of config.json, or those that a single file's shapes suggest.

    Returns:
      The network and its parameters: ``model.apply({"params": params}, sample=x, timestep=t)``, the keywords of
      the original's ``forward()``, images channels last.

    Raises:
      CheckpointError: a ValueError that names the file, what is wrong and what is covered; tensors that are
        missing, left over or of the wrong shape are counted, and the first of them named.
    """
    path, given = Path(source), dict(config or {})
    if single_file.is_file(path):
        return single_file.load(path, part, dtype, param_dtype, given)
    if sources.is_run(path):
        model, params, *_ = sources.open_run(path)
        kind = jnp.dtype(param_dtype)
        return model.clone(dtype=dtype), jax.tree.map(lambda leaf: np.asarray(leaf, dtype=kind), params)
    directory = sources.model_folder(source, part, variant, revision)
    settings: Config = read_config(directory) | given
    format_ = format_of(settings, directory)
    stored = read_tensors(directory, format_.stem, variant)
    tensors = {format_.rename(name): value for name, value in stored.items() if not format_.ignores(name)}
    del stored
    model, layout = format_.network(settings, tensors, dtype, directory / "config.json")
    return model, to_params(layout, tensors, where=str(directory), dtype=param_dtype)


def save(
    model: nn.Module,
    params: Any,
    directory: str | Path,
    *,
    format: str | None = None,
    dtype: DTypeLike = "float32",
) -> None:
    """Writes the network as config.json and one .safetensors file, the inverse of :func:`load`.

    Args:
      model: the network. With scan_layers, the file has its blocks one by one all the same.
      params: its parameters.
      directory: made if missing; files of the same names are replaced.
      format: name of a layout ("diffusers", "guided-diffusion", "original"); None takes the first for this class of
        network.
      dtype: of the tensors in the file.

    Raises:
      CheckpointError: no such layout, or settings that it cannot express.
    """
    directory, (model, params) = Path(directory), unrolled(model, params)
    known = [candidate for candidate in FORMATS if isinstance(model, candidate.model_class)]
    if not known:
        raise CheckpointError(f"{type(model).__name__}: no layout of another library holds this network")
    chosen = [candidate for candidate in known if format in (None, candidate.name)]
    if not chosen:
        choices = " or ".join(repr(candidate.name) for candidate in known)
        raise CheckpointError(f"format={format!r}: {type(model).__name__} can be saved as {choices}")
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    config = chosen[0].describe(model, shapes)
    tensors = from_params(chosen[0].tensors(model, shapes, config), params, dtype)
    write_config(directory, config)
    write_tensors(directory, chosen[0].stem, tensors)


def format_of(config: Config, directory: Path) -> Format:
    """The layout that config.json describes. Raises CheckpointError if there is none."""
    architectures = config.get("architectures") or []
    names = [(field, config.get(field)) for field in ("_class_name", "model_type")]
    names += [
        ("architectures", name) for name in (architectures if isinstance(architectures, list) else [architectures])
    ]
    for field, name in names:
        if name is not None and not isinstance(name, str):
            raise CheckpointError(f"{directory / 'config.json'}: {field}: got {name!r:.60}; it must be a text")
    for candidate in FORMATS:
        if candidate.matches(config):
            return candidate
    got = config.get("_class_name") or config.get("architectures") or "no known network"
    classes = [name for candidate in FORMATS for name in re.findall(r"[A-Z]\w+", candidate.covers.split(" (")[0])]
    raise CheckpointError(
        f"{directory / 'config.json'}: describes {str(got)[:60]}; covered are, among others, {nearest(got, classes)}"
    )

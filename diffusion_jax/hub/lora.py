"""LoRA files of diffusers, peft, kohya's scripts and LyCORIS: changes of a pipeline's weights, merged or live."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import readers
from diffusion_jax.hub import compvis
from diffusion_jax.hub.checkpoint import FORMATS
from diffusion_jax.hub.files import CheckpointError, TensorFile, read_object
from diffusion_jax.hub.lora_factors import PARTS, Module, Stated, stranger
from diffusion_jax.hub.tensors import Path as Place
from diffusion_jax.hub.tensors import Tensor, flatten
from diffusion_jax.models.conditional_unet import ConditionalUNet
from diffusion_jax.pipelines import adapters
from diffusion_jax.pipelines.inputs import check_finite
from diffusion_jax.pipelines.latent import LatentDiffusion
from diffusion_jax.readers import few

# What a name can begin with -> the network of the pipeline. The first that fits counts.
DOTTED = {
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
    "text_encoder.": "text_encoder",
    "unet.": "network",
    "transformer.": "network",
    "diffusion_model.": "network",
    "base_model.model.": "network",
    "": "network",
}
KOHYA = {
    "lora_unet_": "network",
    "lora_transformer_": "network",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te_": "text_encoder",
}
METADATA = "lora_adapter_metadata"


def add_lora(
    pipeline: LatentDiffusion, files: Sequence[tuple[str | Path, float]], *, merge: bool = True
) -> LatentDiffusion:
    """The pipeline with the weights W + sum_i weight_i alpha_i / rank_i B_i A_i (Hu et al. 2021, section 4.1).

    DoRA, LoHa and LoKr change W in their own ways, see :mod:`diffusion_jax.pipelines.adapters`.

    Args:
      pipeline: of :func:`diffusion_jax.hub.load_pipeline`.
      files: LoRA files, or folders with adapter_model.safetensors, each with its weight.
      merge: change the weights now, at no cost later; False keeps them and adds the change in the program, so that
        weights can be changed (`set_lora_weights`) without loading or compiling anything again.

    Raises:
      CheckpointError: a file that cannot be read, keys that fit nothing, factors of the wrong shape or
        that are not finite, kinds of changes that are not covered.
    """
    read = [_adapter(pipeline, Path(path)) for path, _ in files]
    weights = tuple(float(weight) for _, weight in files)
    check_finite(weights=weights)
    if merge:
        changed = adapters.apply(pipeline.params, read, np.array(weights, np.float32))  # pyright: ignore[reportArgumentType]
        return dataclasses.replace(pipeline, params=changed)
    return dataclasses.replace(
        pipeline,
        adapters=(*pipeline.adapters, *(jax.device_put(adapter) for adapter in read)),
        adapter_weights=(*pipeline.adapter_weights, *weights),
    )


def set_lora_weights(pipeline: LatentDiffusion, weights: Sequence[float]) -> LatentDiffusion:
    """Other weights for live LoRAs; nothing is compiled again.

    Raises ValueError for another number of them, or one that is not finite.
    """
    if len(weights) != len(pipeline.adapters):
        raise ValueError(f"there are {len(weights)} weights for {len(pipeline.adapters)} live LoRAs")
    check_finite(weights=weights)
    changed = dataclasses.replace(pipeline, adapter_weights=tuple(float(weight) for weight in weights))
    vars(changed)["programs"] = pipeline.programs  # which depend on the number of LoRAs, not on their weights
    return changed


def _adapter(pipeline: LatentDiffusion, path: Path) -> adapters.Adapter:
    file, settings = _locate(path)
    try:
        tensors = dict(readers.read_tensors(file))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    modules, unknown = _group(tensors, file)
    networks = _networks(pipeline)
    adapter: dict[str, dict[str, adapters.Factors]] = {}
    for name, module in modules.items():
        found = _find(name, networks)
        if found is None or not module.complete:
            unknown += [key for key in tensors if key.startswith(name)]
            continue
        network, tensor, shape = found
        try:
            stated = _stated(name, settings)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        adapter.setdefault(network, {})["/".join(tensor.paths[0])] = module.factors(shape, stated)
    if unknown:
        raise CheckpointError(f"{file}: {len(unknown)} keys fit no weight of this pipeline: {few(unknown)}")
    if not adapter:
        raise CheckpointError(f"{file}: holds no LoRA")
    return adapter


def _locate(path: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The file, and peft's settings by network."""
    file = path
    if path.is_dir():
        found = [path / name for name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")]
        file = next((candidate for candidate in found if candidate.is_file()), found[0])
    if not file.is_file():
        raise CheckpointError(f"{file}: no such LoRA file")
    config = path / "adapter_config.json"
    if path.is_dir() and config.is_file():
        return file, {"": read_object(config)}
    return file, _metadata(file)


def _metadata(file: Path) -> dict[str, dict[str, Any]]:
    """peft's settings by network, as diffusers stores them in the header: {"unet": {"lora_alpha": 8, ...}}."""
    if file.suffix != ".safetensors":
        return {}
    with TensorFile(file) as opened:
        text = opened.metadata.get(METADATA, "{}")
    try:
        stated = readers.parse_object(text, f"{file}: its header's {METADATA}")
    except readers.ReadError as error:
        raise CheckpointError(str(error)) from None
    settings: dict[str, dict[str, Any]] = {}
    for key, value in stated.items():
        network, _, option = key.partition(".")
        settings.setdefault(network, {})[option] = value
    return settings


def _stated(name: str, settings: Mapping[str, Mapping[str, Any]]) -> Stated:
    """What the settings of peft say of a module."""
    for network, options in settings.items():
        if network and not name.startswith(f"{network}."):
            continue
        inside = name.removeprefix(f"{network}.").removeprefix("base_model.model.")
        alpha = _by_pattern(inside, options, "alpha_pattern", options.get("lora_alpha", options.get("alpha")))
        rank = _by_pattern(inside, options, "rank_pattern", options.get("r"))
        if alpha is not None:
            return Stated(float(alpha), None if rank is None else int(rank), bool(options.get("use_rslora")))
    return Stated()


def _by_pattern(name: str, options: Mapping[str, Any], field: str, default: Any) -> Any:
    """The value of the first pattern that the end of a module's name, from a dot on, fits as a whole."""
    patterns = options.get(field) or {}
    if not isinstance(patterns, Mapping):
        raise CheckpointError(f"{field}={patterns!r:.80}: it must hold numbers by the names of modules")
    for pattern, value in [*patterns.items(), ("", default)]:
        try:
            fits = not pattern or re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name)
        except re.error as error:
            raise CheckpointError(f"{field}: {pattern!r:.80} is no regular expression ({error})") from None
        if fits:
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if value is not None and not number:
                raise CheckpointError(f"{field}, {pattern!r:.80}: got {value!r:.80}; it must be a number")
            return value
    return None


def _group(tensors: Mapping[str, np.ndarray], file: Path) -> tuple[dict[str, Module], list[str]]:
    """The tensors of each module, and the keys that are no part of a change."""
    modules: dict[str, Module] = {}
    unknown = []
    for key, value in tensors.items():
        match = PARTS.match(key)
        if match is None:
            unknown.append(key)
            continue
        assert match.lastgroup is not None
        modules.setdefault(match[1], Module(match[1], file)).add(match.lastgroup, key, value)
    if kind := next(filter(None, map(stranger, unknown)), None):
        raise CheckpointError(f"{file}: holds {kind}, which is not covered; LoRA, DoRA, LoHa and LoKr are")
    return modules, unknown


Network = dict[str, tuple[Tensor, tuple[int, ...]]]  # name of a module -> its kernel


def _networks(pipeline: LatentDiffusion) -> dict[str, Network]:
    """The kernels of the networks that a LoRA can change, under the names of diffusers and of single files."""
    models: dict[str, Any] = {"network": pipeline.network}
    models |= {encoder.name: encoder.model for encoder in pipeline.encoders}
    found: dict[str, Network] = {}
    for name, model in models.items():
        if getattr(model, "scan_layers", False):
            raise CheckpointError(
                f"{type(model).__name__} has scan_layers=True: a LoRA needs hub.unrolled(network, params)"
            )
        shapes = {path: leaf.shape for path, leaf in flatten(pipeline.params[name]).items()}
        format_ = next(candidate for candidate in FORMATS if isinstance(model, candidate.model_class))
        layout = list(format_.tensors(model, shapes, format_.describe(model, shapes)))
        if isinstance(model, ConditionalUNet):
            layout += compvis.unet_tensors(model, shapes, {})
        found[name] = _kernels(layout, shapes)
    return found


def _kernels(layout: Iterable[Tensor], shapes: Mapping[Place, tuple[int, ...]]) -> Network:
    return {
        tensor.name.removesuffix(".weight").removeprefix("text_model."): (tensor, shapes[tensor.paths[0]])
        for tensor in layout
        if len(tensor.paths) == 1 and tensor.paths[0][-1] == "kernel"
    }


def _find(name: str, networks: Mapping[str, Network]) -> tuple[str, Tensor, tuple[int, ...]] | None:
    """The kernel that a module's name in the file stands for."""
    for prefix, network in KOHYA.items():
        if name.startswith(prefix) and network in networks:
            wanted = name.removeprefix(prefix).removeprefix("text_model_")
            for module, (tensor, shape) in networks[network].items():
                if module.replace(".", "_") == wanted:
                    return network, tensor, shape
            return None
    for prefix, network in DOTTED.items():
        if name.startswith(prefix) and network in networks:
            wanted = name.removeprefix(prefix).removeprefix("base_model.model.").removeprefix("text_model.")
            # attention layers as diffusers named them before 0.22
            wanted = re.sub(r"\.processor\.(to_(?:q|k|v|out))(?:_lora)?$", r".\1", wanted)
            wanted = re.sub(r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj", wanted)
            wanted = re.sub(r"\.to_out$", ".to_out.0", wanted)
            if wanted in networks[network]:
                return network, *networks[network][wanted]
            return None
    return None

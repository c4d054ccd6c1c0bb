"""LoRA files of diffusers, peft and kohya's scripts: low-rank changes of a pipeline's weights, merged or live."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from diffusion_jax import readers
from diffusion_jax.hub import compvis
from diffusion_jax.hub.checkpoint import FORMATS
from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.tensors import Path as Place
from diffusion_jax.hub.tensors import Tensor, flatten
from diffusion_jax.models.conditional_unet import ConditionalUNet
from diffusion_jax.pipelines import adapters
from diffusion_jax.pipelines.latent import LatentDiffusion

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
# ends of the names: down, up, and kohya's convolution in between; older spellings of diffusers too
PARTS = re.compile(
    r"^(?P<module>.*?)[._](?:lora_A|lora_linear_layer\.down|lora\.down|lora_down)(?:\.default)?\.weight$"
    r"|^(?P<up>.*?)[._](?:lora_B|lora_linear_layer\.up|lora\.up|lora_up)(?:\.default)?\.weight$"
    r"|^(?P<mid>.*?)[._]lora_mid\.weight$"
    r"|^(?P<alpha>.*?)[._](?:lora_)?alpha$"
)
METADATA = "lora_adapter_metadata"


@dataclasses.dataclass
class Factors:
    """One module's change: up @ down, in PyTorch's layout, times alpha / rank."""

    down: np.ndarray | None = None
    up: np.ndarray | None = None
    mid: np.ndarray | None = None
    alpha: float | None = None


def add_lora(
    pipeline: LatentDiffusion, files: Sequence[tuple[str | Path, float]], *, merge: bool = True
) -> LatentDiffusion:
    """The pipeline with the weights W + sum_i weight_i alpha_i / rank_i B_i A_i (Hu et al. 2021, section 4.1).

    Args:
      pipeline: of :func:`diffusion_jax.hub.load_pipeline`.
      files: LoRA files, or folders with adapter_model.safetensors, each with its weight.
      merge: change the weights now, at no cost later; False keeps them and adds the change in the program, so that
        weights can be changed (`set_lora_weights`) without loading or compiling anything again.

    Raises:
      CheckpointError: a file that cannot be read, keys that fit nothing (all of them), factors of the wrong shape.
    """
    read = [_adapter(pipeline, Path(path)) for path, _ in files]
    weights = tuple(float(weight) for _, weight in files)
    if merge:
        changed = adapters.apply(pipeline.params, read, np.array(weights, np.float32))  # pyright: ignore[reportArgumentType]
        return dataclasses.replace(pipeline, params=changed)
    return dataclasses.replace(
        pipeline,
        adapters=(*pipeline.adapters, *(jax.device_put(adapter) for adapter in read)),
        adapter_weights=(*pipeline.adapter_weights, *weights),
    )


def set_lora_weights(pipeline: LatentDiffusion, weights: Sequence[float]) -> LatentDiffusion:
    """Other weights for live LoRAs; nothing is compiled again. Raises ValueError for another number of them."""
    if len(weights) != len(pipeline.adapters):
        raise ValueError(f"there are {len(weights)} weights for {len(pipeline.adapters)} live LoRAs")
    changed = dataclasses.replace(pipeline, adapter_weights=tuple(float(weight) for weight in weights))
    for program in ("_encode_program", "_sample_program", "_whole_program"):
        if program in vars(pipeline):  # a program depends on the number of LoRAs, not on their weights
            vars(changed)[program] = vars(pipeline)[program]
    return changed


def _adapter(pipeline: LatentDiffusion, path: Path) -> adapters.Adapter:
    file, scaling = _locate(path)
    try:
        tensors = dict(readers.read_tensors(file))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    modules, unknown = _group(tensors)
    networks = _networks(pipeline)
    adapter: dict[str, dict[str, tuple[Any, Any]]] = {}
    for name, factors in modules.items():
        found = _find(name, networks)
        if found is None or factors.down is None or factors.up is None:
            unknown += [key for key in tensors if key.startswith(name)]
            continue
        network, tensor, shape = found
        kernels = adapter.setdefault(network, {})
        kernels["/".join(tensor.paths[0])] = _in_layout(name, factors, shape, scaling(name), file)
    if unknown:
        raise CheckpointError(f"{file}: {len(unknown)} keys fit no weight of this pipeline: {', '.join(unknown)}")
    if not adapter:
        raise CheckpointError(f"{file}: holds no LoRA")
    return adapter


def _locate(path: Path) -> tuple[Path, Any]:
    """The file, and its rule: module name -> alpha where the tensors state none (None: the rank)."""
    file = path
    if path.is_dir():
        found = [path / name for name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")]
        file = next((candidate for candidate in found if candidate.is_file()), found[0])
    if not file.is_file():
        raise CheckpointError(f"{file}: no such LoRA file")
    config = path / "adapter_config.json"
    if path.is_dir() and config.is_file():
        settings = {"": _object(config.read_text(encoding="utf-8"), str(config))}
    else:
        settings = _metadata(file)
    return file, lambda name: _stated_alpha(name, settings)


def _metadata(file: Path) -> dict[str, dict[str, Any]]:
    """peft's settings by network, as diffusers stores them in the header: {"unet": {"lora_alpha": 8, ...}}."""
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, framework="numpy") as opened:
            text = (opened.metadata() or {}).get(METADATA, "{}")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a readable .safetensors file ({error})") from None
    settings: dict[str, dict[str, Any]] = {}
    for key, value in _object(text, f"{file}: its header's {METADATA}").items():
        network, _, option = key.partition(".")
        settings.setdefault(network, {})[option] = value
    return settings


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not JSON ({readers.reason(error)})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{where}: holds a {type(found).__name__}; it must hold a JSON object")
    return found


def _stated_alpha(name: str, settings: Mapping[str, Mapping[str, Any]]) -> tuple[float | None, bool]:
    """(alpha of a module, whether it is divided by the root of the rank)."""
    for network, options in settings.items():
        if network and not name.startswith(f"{network}."):
            continue
        inside = name.removeprefix(f"{network}.").removeprefix("base_model.model.")
        for pattern, value in (options.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?{pattern}", inside):
                return float(value), bool(options.get("use_rslora"))
        if options.get("lora_alpha") is not None:
            return float(options["lora_alpha"]), bool(options.get("use_rslora"))
    return None, False


def _group(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Factors], list[str]]:
    """The factors of each module, and the keys that are no part of a LoRA."""
    modules: dict[str, Factors] = {}
    unknown = []
    for key, value in tensors.items():
        match = PARTS.match(key)
        if match is None:
            unknown.append(key)
        elif match["module"] is not None:
            modules.setdefault(match["module"], Factors()).down = value.astype(np.float32)
        elif match["up"] is not None:
            modules.setdefault(match["up"], Factors()).up = value.astype(np.float32)
        elif match["mid"] is not None:
            modules.setdefault(match["mid"], Factors()).mid = value.astype(np.float32)
        else:
            modules.setdefault(match["alpha"], Factors()).alpha = float(np.asarray(value).reshape(-1)[0])
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


def _in_layout(
    name: str, factors: Factors, shape: tuple[int, ...], stated: tuple[float | None, bool], file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """(down [..., in, r], up [r, out]) of a kernel's shape here, with alpha / rank in `up`."""
    down, up, mid = factors.down, factors.up, factors.mid
    assert down is not None and up is not None
    rank = up.shape[1]
    if mid is not None:  # down to the rank, a convolution there, and up
        down = np.einsum("orhw,ri->oihw", mid, down.reshape(down.shape[0], -1))
    if up.ndim == 4:
        up = up[:, :, 0, 0]
    if down.ndim == 2 and len(shape) == 4:
        down = down[:, :, None, None]
    if down.ndim == 4 and len(shape) == 2:
        down = down[:, :, 0, 0]
    down = down.transpose(2, 3, 1, 0) if down.ndim == 4 else down.T
    got = (*down.shape[:-1], up.shape[0])
    if got != shape or down.shape[-1] != rank:
        raise CheckpointError(f"{file}: {name} changes a weight of shape {list(got)}; it is {list(shape)} here")
    alpha, root = (factors.alpha, False) if factors.alpha is not None else stated
    scale = 1.0 if alpha is None else alpha / (np.sqrt(rank) if root else rank)
    return np.ascontiguousarray(down), np.ascontiguousarray(up.T) * np.float32(scale)

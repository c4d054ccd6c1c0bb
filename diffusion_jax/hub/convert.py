"""Weights as the papers' authors released them, to folders that :func:`diffusion_jax.hub.load` opens."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import readers
from diffusion_jax.hub import research, single_file
from diffusion_jax.hub.checkpoint import format_of, load, save
from diffusion_jax.hub.files import CheckpointError, open_tensors, write_config, write_json, write_tensors
from diffusion_jax.hub.pipeline_parts import FileParts, tokenizer_name

PIPELINE = "a pipeline"


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    format: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Reads a .pkl of EDM or EDM2, a .pt of DDPM's port, improved-diffusion, guided-diffusion, DiT or SiT, or a file of
    Stable Diffusion 1, 2 or XL (.ckpt, .safetensors), which becomes a pipeline's folder.

    Nothing in the file is run (:mod:`diffusion_jax.readers`), and no other framework is needed.

    Args:
      source: the file.
      destination: folder for config.json and the weights; made if missing.
      settings: arguments of the network that do not follow from the file, or overrule what does.
      format: layout of the folder, as for :func:`diffusion_jax.hub.save`; None keeps the names of the file.
      say: takes lines about the progress.

    Raises:
      CheckpointError: the file cannot be read, holds no such network, or does not say enough about it.
    """
    path, given = Path(source), dict(settings or {})
    say(f"reading {path}")
    if single_file.is_file(path) and (network := _stable_diffusion(path, Path(destination), given)):
        say(f"wrote {destination}, {network} that hub.load{'_pipeline' * (network == PIPELINE)} opens")
        return
    try:
        config, tensors, what = _network(path, given)
    except readers.ReadError as error:
        raise CheckpointError(str(error)) from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    say(f"{what}: {len(tensors)} tensors, {sum(tensor.size for tensor in tensors.values()):,} numbers")
    directory = Path(destination)
    write_config(directory, config)
    write_tensors(directory, format_of(config, directory).stem, tensors)
    model, params = load(directory)
    if format is not None:
        save(model, params, directory, format=format)
        load(directory)
    say(f"wrote {directory}, a {type(model).__name__} that hub.load opens")


def _stable_diffusion(path: Path, directory: Path, given: dict[str, Any]) -> str | None:
    """Writes the networks of one file of Stable Diffusion as diffusers does; None for a file that holds none."""
    with open_tensors(path) as file:
        there = single_file.parts_of(file.shapes)
        if single_file.family(file.shapes) is None and "vae" not in there:
            return None
        if len(there) == 1:
            save(*single_file.load_part(file, None, "float32", "float32", given), directory)
            return f"its {next(iter(there))}"
        parts = FileParts(path, file)
        networks = {name: parts.network(name, "float32", "float32") for name in parts.networks}
        tokenizers = {name: parts.tokenizer_files(name, networks[name][0].vocab_size) for name in parts.encoders}
        parts.schedule(None)
        for name, (model, params) in networks.items():
            save(model, params, directory / name)
        for name, write in tokenizers.items():
            write(directory / tokenizer_name(name))
        (directory / "scheduler").mkdir(exist_ok=True)
        write_json(directory / "scheduler" / "scheduler_config.json", parts.scheduler)
        write_json(directory / "model_index.json", parts.written_index())
    return PIPELINE


def _network(path: Path, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """config.json and the tensors of the network in a file, and what it is."""
    stored = readers.read_tensors(path)
    if pickled := research.pickled_network(readers.read_tree(path)):
        name, config = pickled
        return _plain(config | given), _under(f"{name}.", stored), "EDM2" if "class_name" in config else "EDM"
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    found = research.state_dict(shapes)
    if found is None:
        titles = ", ".join(kind.title for kind in research.KINDS)
        raise CheckpointError(
            f"holds no network of EDM, {titles}; its tensors begin with {', '.join(list(shapes)[:3])}"
        )
    kind, prefix = found
    tensors = _under(prefix, stored)
    config = kind.settings({name: tensor.shape for name, tensor in tensors.items()}, given, path.stem)
    return _plain(config), tensors, kind.title


def _under(prefix: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value

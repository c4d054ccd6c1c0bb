"""Runs of this project, and whatever else opens here, in another library's layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffusion_jax.hub import sources
from diffusion_jax.hub.checkpoint import load, save
from diffusion_jax.hub.files import CheckpointError, check_writable, read_config, write_config, write_json
from diffusion_jax.hub.pipeline_parts import PIPELINES
from diffusion_jax.models.unet import UNet


def export(
    source: str | Path,
    destination: str | Path,
    *,
    format: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes a run, or what :func:`diffusion_jax.hub.load` opens, in the layout of another library.

    A run of a U-Net in pixels on a chain of timesteps becomes a whole pipeline of diffusers where no other layout is
    asked for: model_index.json, scheduler and unet, which DDPMPipeline or DDIMPipeline opens. Anything else becomes a
    network's folder, and `say` is told why.

    Raises:
      CheckpointError: a source that cannot be read, settings that the layout cannot express, or a destination that
        holds files, unless `overwrite`.
    """
    source, directory = Path(source), Path(destination)
    check_new(directory, overwrite)
    if not sources.is_run(source):
        save(*load(source), directory, format=format)
        return
    run = sources.open_run(source)
    why = run.without
    if not why and not isinstance(run.network, UNet):
        why = f"no pipeline there holds a {type(run.network).__name__}"
    if run.scheduler is None or why or format not in (None, "diffusers"):
        save(run.network, run.params, directory, format=format)
        if format in (None, "diffusers"):
            say(f"{directory} is the network alone: {why}")
        return
    save(run.network, run.params, directory / "unet")
    # the pipelines take the size of their images from here
    write_config(directory / "unet", {**read_config(directory / "unet"), "sample_size": run.image_shape[0]})
    (directory / "scheduler").mkdir(exist_ok=True)
    write_json(directory / "scheduler" / "scheduler_config.json", run.scheduler)
    scheduler = run.scheduler["_class_name"]
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", scheduler]}
    write_json(directory / sources.PIPELINE, {"_class_name": PIPELINES[scheduler], **parts})
    if run.num_classes is not None:
        say(f"diffusers' {PIPELINES[scheduler]} opens it but passes no classes: call its unet with class_labels")


def check_new(directory: Path, overwrite: bool) -> None:
    """Raises CheckpointError where no folder can be written, and for one that holds anything, unless `overwrite`."""
    check_writable(directory)
    if not overwrite and directory.is_dir() and any(directory.iterdir()):
        raise CheckpointError(f"{directory}: is there and not empty; name another folder, or add --overwrite")

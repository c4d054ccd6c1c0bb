"""What can be opened: a model folder, a part of a pipeline's folder, a repository of the Hugging Face hub."""

import importlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax import openers
from diffusion_jax.hub.files import NO_WEIGHTS, PICKLED, SAFE, CheckpointError, read_object

PIPELINE = "model_index.json"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# everything a network or pipeline is made of beside its weights
ALLOWED = ("*.json", "*.txt", "*.model")
# copies in other frameworks' formats, what trainers leave, and a classifier that no pipeline here has
IGNORED = ("*.non_ema.*", "*flax*", "*onnx*", "*openvino*", "*safety_checker/*", *(f"*{name}" for name in NO_WEIGHTS))
# Weights in half precision, where they were not asked for.
VARIANTS = ("*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*")


def model_folder(source: str | Path, part: str | None, variant: str | None, revision: str | None) -> Path:
    """The folder with the config.json of one network.

    Args:
      source: a folder, or the name of a repository, "owner/name", where there is no such folder.
      part: subfolder of a pipeline ("unet", "vae", ...); None for a folder that is a network itself.
      variant: of the weights, for repositories: other variants are not downloaded.
      revision: branch, tag or commit of a repository.

    Raises:
      CheckpointError: there is no such folder or repository, or it has no such part.
    """
    path = Path(source)
    if not path.exists() and REPOSITORY.fullmatch(str(source)):
        path = download(str(source), part, variant, revision)
    if part is not None:
        if not (path / part).is_dir():
            raise CheckpointError(f"{path}: part={part!r}; it could be {', '.join(map(repr, parts(path))) or None}")
        return path / part
    if (path / PIPELINE).is_file() and not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: is a whole pipeline; part could be {', '.join(map(repr, parts(path)))}")
    return path


def parts(folder: Path) -> list[str]:
    """The subfolders of a pipeline that hold networks."""
    return sorted(path.parent.name for path in folder.glob("*/config.json"))


def download(repository: str, part: str | None, variant: str | None, revision: str | None) -> Path:
    """A local folder with the repository's files, or with those of one part; cached by huggingface_hub.

    PyTorch's .bin weights are downloaded for networks without .safetensors only.

    Raises:
      CheckpointError: huggingface_hub is not installed, there is no network, or no such repository.
    """
    missing = f"{repository}: there is no such file or folder here"
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise CheckpointError(
            f"{missing}, and to look for a repository of that name huggingface_hub must be installed"
        ) from None
    ignored = [*IGNORED, *(VARIANTS if variant is None else ())]

    def fetch(patterns: Iterable[str], *unwanted: str) -> Path:
        try:
            return Path(
                hub.snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=[PIPELINE, *patterns],
                    ignore_patterns=[*ignored, *unwanted],
                )
            )
        except Exception as error:  # of many kinds, by the library and by what it uses
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{missing}, and no repository of that name could be read ({type(error).__name__}: {reason})"
            ) from None

    def weights(ending: str) -> str:
        return f"*{ending}" if variant is None else f"*.{variant}*{ending}"

    folder = fetch(kind if part is None else f"{part}/{kind}" for kind in (*ALLOWED, weights(SAFE)))
    networks = [folder / part] if part is not None else [path.parent for path in sorted(folder.rglob("config.json"))]
    # PyTorch's own weights are the same ones again, unless there are no others
    for network in networks:
        if not _holds(network, weights(SAFE), ignored):
            # a star stands for folders, too
            deeper = "*/*" if network == folder else f"{network.relative_to(folder).as_posix()}/*/*"
            fetch([(network.relative_to(folder) / weights(PICKLED)).as_posix()], deeper)
    return folder


def _holds(folder: Path, kind: str, ignored: Iterable[str]) -> bool:
    """Whether there is such a file in the folder; a cache may hold those of other calls, too."""
    return any(not any(path.match(pattern) for pattern in ignored) for path in folder.glob(kind))


def is_run(folder: Path) -> bool:
    """Whether this project's training wrote the folder."""
    if not (folder / "checkpoints").is_dir() or not (folder / "config.json").is_file():
        return False
    try:
        config = read_object(folder / "config.json")
    except CheckpointError:
        return False
    return {"data", "training", "optimizer"} <= config.keys()


class Run(NamedTuple):
    """What training left.

    Attributes:
      network, params: and its averaged parameters, of the newest checkpoint.
      image_shape: (height, width, channels) of what it draws.
      num_classes: None for a network that is told none.
      null_class: the label that means no class; None where training dropped no labels.
      scheduler: a scheduler config of diffusers with its process, prediction and solver; None where `without` says why
        there is none.
    """

    network: Any
    params: Any
    image_shape: tuple[int, int, int]
    num_classes: int | None
    null_class: int | None
    scheduler: Mapping[str, Any] | None
    without: str = ""


def open_run(folder: Path) -> Run:
    """Opens the newest checkpoint of a run, as the package registers it (:mod:`diffusion_jax.openers`).

    Raises:
      CheckpointError: a package that training uses, and the hub does not, is not installed.
      ValueError: in one line, what the run lacks.
    """
    try:
        return openers.named("run")(folder)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{folder}: to open what training wrote, the package {error.name} must be installed"
        ) from None

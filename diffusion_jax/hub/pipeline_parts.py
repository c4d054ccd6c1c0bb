"""What a pipeline is made of, from a folder as diffusers writes it or from one file of Stable Diffusion."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.hub import clip_vocabulary, open_clip, single_file, sources
from diffusion_jax.hub.checkpoint import load
from diffusion_jax.hub.files import CheckpointError, PickledFile, TensorFile, open_tensors, read_object
from diffusion_jax.hub.schedule import Schedule
from diffusion_jax.hub.schedulers import read_config
from diffusion_jax.hub.text_encoders import PROJECTED
from diffusion_jax.hub.tokenizer import clip_tokenizer, load_tokenizer
from diffusion_jax.models.text.tokenizer import Tokenizer


class Parts(Protocol):
    """Where a pipeline's parts come from."""

    @property
    def where(self) -> Path:
        """The folder or file, for messages."""
        ...

    @property
    def index(self) -> Mapping[str, Any]:
        """What model_index.json says, or would say."""
        ...

    def network(self, name: str, dtype: DTypeLike, param_dtype: DTypeLike) -> tuple[Any, Any]:
        """(network, parameters) of a part, "unet" for example."""
        ...

    def tokenizer(self, encoder: str, vocabulary: int) -> Tokenizer:
        """The tokeniser of a text encoder whose table has so many rows."""
        ...

    def schedule(self, solver: str | None) -> Schedule:
        """The checkpoint's noise schedule, for its own solver or another."""
        ...

    def config(self, name: str) -> Mapping[str, Any]:
        """The settings of a part."""
        ...

    def null_class(self) -> int | None:
        """The label that means no class; None where none was trained."""
        ...

    def close(self) -> None: ...


# diffusers' pipelines without texts, by their schedulers.
PIPELINES = {"DDPMScheduler": "DDPMPipeline", "DDIMScheduler": "DDIMPipeline"}


def open_parts(source: str | Path, variant: str | None, revision: str | None) -> Parts:
    """The parts of a pipeline's folder, a repository, a file or a run. Raises CheckpointError if it is none."""
    path = Path(source)
    if single_file.is_file(path):
        return FileParts(path)
    if sources.is_run(path):
        return RunParts(path)
    if not path.exists() and sources.REPOSITORY.fullmatch(str(source)):
        path = sources.download(str(source), None, variant, revision)
    return FolderParts(path, variant)


class FolderParts:
    """Of a folder with model_index.json."""

    def __init__(self, folder: Path, variant: str | None):
        self.where, self._variant = folder, variant
        path = folder / sources.PIPELINE
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; a pipeline's folder holds model_index.json")
        self.index: Mapping[str, Any] = read_object(path)

    def network(self, name: str, dtype: DTypeLike, param_dtype: DTypeLike) -> tuple[Any, Any]:
        return load(self.where / name, dtype=dtype, param_dtype=param_dtype, variant=self._variant)

    def tokenizer(self, encoder: str, vocabulary: int) -> Tokenizer:
        return load_tokenizer(self.where / tokenizer_name(encoder))

    def schedule(self, solver: str | None) -> Schedule:
        return Schedule.read(self.where / "scheduler", solver)

    def config(self, name: str) -> Mapping[str, Any]:
        return read_object(self.where / name / "config.json")

    def null_class(self) -> int | None:
        return None  # diffusers' settings do not say which it is

    def close(self) -> None:
        pass


class RunParts:
    """Of a run of this project: a network in pixels, on a chain of timesteps, with or without classes."""

    def __init__(self, folder: Path):
        self.where, self._run = folder, sources.open_run(folder)
        if self._run.without:
            raise CheckpointError(
                f"{folder}: {self._run.without}; draw from this run by --mode sample with its own config"
            )
        self.index: Mapping[str, Any] = {"_class_name": PIPELINES[self._scheduler["_class_name"]]}

    @property
    def _scheduler(self) -> Mapping[str, Any]:
        assert self._run.scheduler is not None
        return self._run.scheduler

    def network(self, name: str, dtype: DTypeLike, param_dtype: DTypeLike) -> tuple[Any, Any]:
        kind = jnp.dtype(param_dtype)
        params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype=kind), self._run.params)
        return self._run.network.clone(dtype=dtype), params

    def tokenizer(self, encoder: str, vocabulary: int) -> Tokenizer:
        raise CheckpointError(f"{self.where}: has no text encoder")

    def schedule(self, solver: str | None) -> Schedule:
        return Schedule.of(self._scheduler, solver)

    def config(self, name: str) -> Mapping[str, Any]:
        *sides, channels = self._run.image_shape
        return {"sample_size": sides, "in_channels": channels}

    def null_class(self) -> int | None:
        return self._run.null_class

    def close(self) -> None:
        pass


_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
# The schedulers that the families were published with.
SCHEDULERS: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1": {
        "_class_name": "PNDMScheduler",
        **_BETAS,
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
    "Stable Diffusion 2": {
        "_class_name": "DDIMScheduler",
        **_BETAS,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
    "SDXL": {"_class_name": "EulerDiscreteScheduler", **_BETAS, "timestep_spacing": "leading", "steps_offset": 1},
}
INPAINTING_CHANNELS = 9
CLASSES = {
    "Stable Diffusion 1": "StableDiffusionPipeline",
    "Stable Diffusion 2": "StableDiffusionPipeline",
    "SDXL": "StableDiffusionXLPipeline",
}
CLASS_OF = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
NEEDED = {
    "StableDiffusionPipeline": ("unet", "vae", "text_encoder"),
    "StableDiffusionXLPipeline": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
# Tensors without a meaning but their names, by which files of SDXL say how they were trained.
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"


class FileParts:
    """Of one file of Stable Diffusion 1, 2 or XL.

    The family follows from the tensors, and with it the settings, the scheduler and CLIP's vocabulary. Folders named
    ``tokenizer``, ``tokenizer_2`` and ``scheduler`` beside the file, as diffusers writes them, are taken instead.
    """

    def __init__(self, path: Path, file: TensorFile | PickledFile | None = None):
        self.where = path
        self._open = contextlib.ExitStack()
        self._file = self._open.enter_context(open_tensors(path)) if file is None else file
        shapes = self._file.shapes
        there, family = single_file.parts_of(shapes), single_file.family(shapes)
        if "unet" not in there or family is None:
            raise CheckpointError(f"{path}: no file of Stable Diffusion 1, 2 or XL: it has no U-Net of theirs")
        self._family, name = family, CLASSES[family]
        missing = [part for part in NEEDED[name] if part not in there]
        if missing:
            raise CheckpointError(
                f"{path}: {family} without {' and '.join(missing)}; it holds {', '.join(there)}. One part is opened by"
                " hub.load(file, part=...); a whole pipeline needs all in one file"
            )
        unet, prefix = there["unet"]
        self._inpaints = shapes[prefix + unet.mark][1] == INPAINTING_CHANNELS
        self._v_prediction = V_PREDICTION in shapes
        self._zero_snr = ZERO_SNR in shapes
        self._open_clip = {
            part for part, (kind, _) in there.items() if kind.name == part and kind.mark == open_clip.OPEN_CLIP
        }
        self.index: dict[str, Any] = {
            "_class_name": name,
            **{part: ["diffusers", CLASS_OF[part]] for part in ("unet", "vae")},
        }
        for encoder in self.encoders:
            projected = encoder == "text_encoder_2"
            self.index[encoder] = ["transformers", PROJECTED if projected else "CLIPTextModel"]
            self.index[tokenizer_name(encoder)] = ["transformers", "CLIPTokenizer"]
        # what diffusers asks for, and no file of these holds
        absent = [None, None]
        if family == "SDXL":
            self.index |= {"force_zeros_for_empty_prompt": True, "feature_extractor": absent, "image_encoder": absent}
        else:
            self.index |= {"safety_checker": absent, "feature_extractor": absent, "requires_safety_checker": False}

    def network(self, name: str, dtype: DTypeLike, param_dtype: DTypeLike) -> tuple[Any, Any]:
        return single_file.load_part(self._file, name, dtype, param_dtype, {})

    @property
    def networks(self) -> tuple[str, ...]:
        return NEEDED[self.index["_class_name"]]

    @property
    def encoders(self) -> tuple[str, ...]:
        return tuple(name for name in self.networks if name.startswith("text_encoder"))

    def tokenizer(self, encoder: str, vocabulary: int) -> Tokenizer:
        beside = self._beside(encoder, vocabulary)
        return clip_tokenizer(self.pad(encoder)) if beside is None else load_tokenizer(beside)

    def tokenizer_files(self, encoder: str, vocabulary: int) -> Callable[[Path], object]:
        """What writes the tokeniser's files into a folder; raises CheckpointError at once where there are none."""
        beside = self._beside(encoder, vocabulary)
        if beside is None:
            return functools.partial(clip_vocabulary.write, pad=self.pad(encoder))
        load_tokenizer(beside)
        return functools.partial(shutil.copytree, beside, dirs_exist_ok=True)

    def _beside(self, encoder: str, vocabulary: int) -> Path | None:
        """The folder with the tokeniser's files; None where the vocabulary is the one that ships with us."""
        beside = self.where.parent / tokenizer_name(encoder)
        if beside.is_dir():
            return beside
        if vocabulary < clip_vocabulary.SIZE:
            raise CheckpointError(
                f"{self.where}: its {encoder} knows {vocabulary} tokens, not CLIP's {clip_vocabulary.SIZE}; put the"
                f" tokeniser's vocab.json and merges.txt into {beside}"
            )
        return None

    def pad(self, encoder: str) -> str:
        """What fills a text up for this encoder."""
        return clip_vocabulary.OPEN_CLIP_PAD if encoder in self._open_clip else clip_vocabulary.OPENAI_PAD

    def schedule(self, solver: str | None) -> Schedule:
        return Schedule.of(self.scheduler, solver)

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """scheduler_config.json beside the file, or that of the family.

        Stable Diffusion 2 predicts v, as the published one for 768 pixels; the shapes of the one for 512 pixels, which
        predicts the noise, are the same, and its scheduler has to stand beside the file. Its inpainting, too, predicts
        the noise.
        """
        beside = self.where.parent / "scheduler"
        if beside.is_dir():
            return read_config(beside)
        velocity = self._v_prediction or (self._family == "Stable Diffusion 2" and not self._inpaints)
        return {
            **SCHEDULERS[self._family],
            "prediction_type": "v_prediction" if velocity else "epsilon",
            **({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if self._zero_snr else {}),
        }

    def config(self, name: str) -> Mapping[str, Any]:
        return {}  # it states none

    def null_class(self) -> int | None:
        return None

    def written_index(self) -> dict[str, Any]:
        """model_index.json of a folder made of this file."""
        inpaints = self._inpaints
        name = self.index["_class_name"].replace("Pipeline", "InpaintPipeline" if inpaints else "Pipeline")
        return {**self.index, "_class_name": name, "scheduler": ["diffusers", self.scheduler["_class_name"]]}

    def close(self) -> None:
        self._open.close()


def tokenizer_name(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")

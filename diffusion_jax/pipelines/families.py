"""One adapter a family says what sets text-to-image networks apart: how texts and requests become arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.pipelines.image_request import ImageRequest

Conditions = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """The options say how the encoders' features become conditions.

    Attributes:
      family: "sd" (Stable Diffusion 1 and 2), "sdxl" or "sd3", a key of FAMILIES.
      context_width: of the tokens that the network reads; SD 3 pads to it.
      absent_tokens: SD 3 without its T5: so many tokens of zeros stand for it. 0 where there is one.
    """

    family: str
    context_width: int
    absent_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class EncodedTexts:
    """These are what one text encoder made of the prompts.

    Attributes:
      features: all that the encoder gives, such as hidden_states and pooled.
      is_clip: whether it is a CLIP, whose earlier layers are read.
      emphasized: a layer's tokens [B, N, C] with the prompts' weights of words.
      normalized: a layer through CLIP's last normalisation.
    """

    features: Any
    is_clip: bool
    emphasized: Callable[[jax.Array], jax.Array]
    normalized: Callable[[jax.Array], jax.Array]


class Family(Protocol):
    """An adapter knows how its family is told of texts and requests, and how its network is called.

    Attributes:
      network: the name of its network in a pipeline's folder.
      takes_controls: whether its pipelines take ControlNets. has_maps: whether its attention to words can be returned.
      zeros_by_default: whether zeros guide where there is no negative prompt, unless the checkpoint says otherwise.
    """

    network: str
    takes_controls: bool
    has_maps: bool
    zeros_by_default: bool

    def conditions(self, texts: Sequence[EncodedTexts], options: TextOptions, clip_skip: int) -> Conditions:
        """Gives what the network is told of the texts, each [B, ...], without clip_skip more of CLIP's last layers."""
        ...

    def told(self, request: ImageRequest, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Gives what it is told beside the texts of a request for images of this (height, width), each [B, ...]."""
        ...

    def arguments(self, x: jax.Array, t: jax.Array, conditions: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Gives (the argument that is the state, the network's other arguments)."""
        ...


class StableDiffusion:
    """Stable Diffusion 1 and 2 (Rombach et al. 2022) have a U-Net that reads the last layer of one CLIP."""

    network, takes_controls, has_maps, zeros_by_default = "unet", True, True, False

    def conditions(self, texts: Sequence[EncodedTexts], options: TextOptions, clip_skip: int) -> Conditions:
        (text,) = texts
        hidden = text.features.last_hidden_state
        if clip_skip:
            hidden = text.normalized(text.features.hidden_states[-1 - clip_skip])
        return {"encoder_hidden_states": text.emphasized(hidden)}

    def told(self, request: ImageRequest, size: tuple[int, int]) -> dict[str, np.ndarray]:
        return {}

    def arguments(self, x: jax.Array, t: jax.Array, conditions: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        return "sample", {"timestep": t, "encoder_hidden_states": conditions["encoder_hidden_states"]}


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL has a U-Net that reads two CLIPs' layers before the last side by side.

    It is also told the pooled text and sizes (Podell et al. 2023, section 2).
    """

    zeros_by_default = True

    def conditions(self, texts: Sequence[EncodedTexts], options: TextOptions, clip_skip: int) -> Conditions:
        return {"encoder_hidden_states": _side_by_side(texts, clip_skip), "text_embeds": texts[-1].features.pooled}

    def told(self, request: ImageRequest, size: tuple[int, int]) -> dict[str, np.ndarray]:
        original, target = request.original_size or size, request.target_size or size
        ids = np.array([*original, *request.crop, *target], np.float32)
        return {"time_ids": np.broadcast_to(ids, (request.batch, 6))}

    def arguments(self, x: jax.Array, t: jax.Array, conditions: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        name, arguments = super().arguments(x, t, conditions)
        added = {name: conditions[name] for name in ("text_embeds", "time_ids")}
        return name, arguments | {"added_cond_kwargs": added}


class StableDiffusion3:
    """Stable Diffusion 3 and 3.5 have a transformer that reads two CLIPs side by side, and T5's tokens behind them.

    CLIP's tokens are padded with zeros to T5's width (Esser et al. 2024, section 4).
    """

    network, takes_controls, has_maps, zeros_by_default = "transformer", False, False, False

    def conditions(self, texts: Sequence[EncodedTexts], options: TextOptions, clip_skip: int) -> Conditions:
        clips = [text for text in texts if text.is_clip]
        others = [text for text in texts if not text.is_clip]
        hidden = _side_by_side(clips, clip_skip)
        pooled = jnp.concatenate([text.features.pooled for text in clips], axis=-1)
        hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, options.context_width - hidden.shape[-1])))
        if others:
            long = others[0].emphasized(others[0].features.last_hidden_state)
        else:
            long = jnp.zeros((len(hidden), options.absent_tokens, options.context_width), hidden.dtype)
        return {"encoder_hidden_states": jnp.concatenate([hidden, long], axis=1), "pooled_projections": pooled}

    def told(self, request: ImageRequest, size: tuple[int, int]) -> dict[str, np.ndarray]:
        return {}

    def arguments(self, x: jax.Array, t: jax.Array, conditions: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        told = {name: conditions[name] for name in ("encoder_hidden_states", "pooled_projections")}
        return "hidden_states", {"timestep": t} | told


def _side_by_side(clips: Sequence[EncodedTexts], clip_skip: int) -> jax.Array:
    """The layers before the last of each CLIP, along the channels."""
    return jnp.concatenate([text.emphasized(text.features.hidden_states[-2 - clip_skip]) for text in clips], axis=-1)


FAMILIES: dict[str, Family] = {"sd": StableDiffusion(), "sdxl": StableDiffusionXL(), "sd3": StableDiffusion3()}

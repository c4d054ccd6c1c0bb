"""Feature extractors by name: what a protocol calls its features."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.metrics.features import clip_vision, dinov2, efficientnet, inception, inception_weights
from diffusion_jax.metrics.features import resize as resizing
from diffusion_jax.metrics.features.extractor import Extractor, precision_name, weights_sha256
from diffusion_jax.metrics.features.inception import Inception
from diffusion_jax.metrics.features.small_classifier import DIGITS_CLASSIFIER, classifier_extractor, digits_classifier

__all__ = ["NAMES", "Extractor", "classifier_extractor", "load", "load_inception"]

INCEPTION = inception_weights.SOURCE.name


def load(
    name: str, weights: str | Path | None = None, *, fast: bool = False, preprocessing: str | None = None
) -> Extractor:
    """The extractor of that name, its weights in memory.

    Args:
      name: one of `NAMES`; "inception" is short for "inception-2015-12-05".
      weights: the file (or folder) that holds its weights; None for those that are installed, cached or downloaded.
      fast: default matrix precision and bfloat16 convolutions, which move the numbers; recorded in the settings.
      preprocessing: how images come to the network's size and range, where references differ: for Inception "tf" (the
        default), "pytorch-fid" or "clean"; for DINOv2 "dgm-eval" (the default) or "edm2"; for CLIP "cmmd" (the default
        of clip-vitl14-336) or "clip".

    Raises:
      ValueError: in one line: an unknown name, weights that are missing (with the file to put and where) or unreadable.
    """
    name = INCEPTION if name == "inception" else name
    if name not in _LOADERS:
        raise ValueError(f"features {name!r} are unknown; they could be {', '.join(NAMES)}")
    return _LOADERS[name](weights, fast, preprocessing)


def load_inception(
    weights: str | Path | None = None, *, fast: bool = False, preprocessing: str = "tf"
) -> tuple[Inception, dict[str, Any]]:
    """The Inception of FID as (module, params): `module.apply({"params": params}, images)`; see :class:`Inception`.

    Args:
      weights: pytorch-fid's .pth (either layout), NVIDIA's .pt or .pkl, the frozen .pb, the pickle of jax-fid, or a
        .npz or .safetensors with the names of one of them; None for the file in the cache, downloaded if need be.
      fast, preprocessing: as in :func:`load`.

    Raises:
      ValueError: in one line: no weights, unreadable ones, or another network.
    """
    if preprocessing not in inception.PREPROCESSING:
        raise ValueError(
            f"preprocessing {preprocessing!r} is unknown; it could be {', '.join(inception.PREPROCESSING)}"
        )
    return Inception(preprocessing, fast), inception_weights.load_params(weights)


def _inception(weights: str | Path | None, fast: bool, preprocessing: str | None) -> Extractor:
    preprocessing = preprocessing or "tf"
    module, params = load_inception(weights, fast=fast, preprocessing=preprocessing)

    def apply(params: Any, images: jax.Array, unrounded: bool = False) -> dict[str, jax.Array]:
        outputs: Any = module.apply({"params": params}, images, unrounded)
        return {"features": outputs["pool"], **outputs}

    resize, scaling = inception.PREPROCESSING[preprocessing]
    settings = {"preprocessing": preprocessing, "input_size": inception.SIZE, "resize": resize, "scaling": scaling}
    return Extractor(
        name=INCEPTION,
        apply=apply,
        params=params,
        feature_dim=inception.POOL_FEATURES,
        weights_sha256=weights_sha256(params),
        settings=settings | {"precision": precision_name(fast)},
        apply_unrounded=functools.partial(apply, unrounded=True),
        fit=functools.partial(resizing.resize, height=inception.SIZE, width=inception.SIZE, manner=resize),
        apply_fitted=functools.partial(apply, unrounded=True),
    )


def _digits(weights: str | Path | None, fast: bool, preprocessing: str | None) -> Extractor:
    _only_one(preprocessing, DIGITS_CLASSIFIER)
    if weights is not None or fast:
        raise ValueError(f"{DIGITS_CLASSIFIER} is trained where it is used: it takes neither weights nor fast")
    return digits_classifier()


def _efficientnet(weights: str | Path | None, fast: bool, preprocessing: str | None) -> Extractor:
    _only_one(preprocessing, efficientnet.NAME)
    return efficientnet.load(weights, fast)


def _only_one(preprocessing: str | None, name: str) -> None:
    if preprocessing is not None:
        raise ValueError(f"preprocessing {preprocessing!r}: {name} has only one, so that it cannot be chosen")


_LOADERS: dict[str, Callable[[str | Path | None, bool, str | None], Extractor]] = {
    INCEPTION: _inception,
    **{name: functools.partial(dinov2.load, name) for name in dinov2.NETWORKS},
    **{name: functools.partial(clip_vision.load, name) for name in clip_vision.NETWORKS},
    efficientnet.NAME: _efficientnet,
    DIGITS_CLASSIFIER: _digits,
}
NAMES = tuple(_LOADERS)

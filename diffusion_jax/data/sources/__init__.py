"""Sources by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, Literal

from diffusion_jax.data.source import Source
from diffusion_jax.data.sources import digits, haar_digits, image_folder, latents, tfds

Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of source: a file beside this one, and a line of KINDS.

    Attributes:
        load: opens a split, load(split, image_size=..., channels=...), with what else it takes in between.
        path: what it needs a path of; None for a source that takes none.
        is_of: what stands behind a colon in its name and is given to `load` first; None for nothing.
        takes_data_dir: whether it takes data_dir.
        is_latent: whether its images are latents.
    """

    load: Callable[..., Source]
    path: str | None = None
    is_of: str | None = None
    takes_data_dir: bool = False
    is_latent: bool = False


KINDS: dict[str, Kind] = {
    "digits": Kind(digits.load),
    "image_folder": Kind(image_folder.load, path="the folder with the images"),
    "latents": Kind(latents.load, path="what ./launch/local.sh encode wrote, or an .npz", is_latent=True),
    "haar_digits": Kind(haar_digits.load, is_latent=True),
    "tfds": Kind(tfds.load, is_of="<dataset name>", takes_data_dir=True),
}
SOURCES = tuple(f"{name}:{kind.is_of}" if kind.is_of else name for name, kind in KINDS.items())
# Of these the images are latents.
LATENT_SOURCES = tuple(name for name, kind in KINDS.items() if kind.is_latent)
_IN_A_PATH = tuple(name for name, kind in KINDS.items() if kind.path)


def load_source(
    name: str,
    split: Split,
    *,
    image_size: int,
    channels: int = 3,
    path: str | None = None,
    data_dir: str | None = None,
) -> Source:
    """Opens one split of a source; nothing is downloaded, and files are decoded only when asked for.

    Args:
        name: "digits", "image_folder", "latents" (of images that were encoded), or "tfds:" and the name of a TFDS
            dataset ("tfds:cifar10", "tfds:name/config:version"); "haar_digits" are latents without an autoencoder.
        split: "train", or "test" for the images that training never sees.
        image_size: side of the square images in pixels, or of the latents.
        channels: 3 (RGB) or 1 (grey); of latents any number.
        path: the folder; image_folder and latents only, which need it.
        data_dir: where TFDS keeps prepared datasets; tfds only, None for TFDS's own default.

    Returns:
        The source.

    Raises:
        ValueError: with one line that says which argument is wrong, what it got and what it could be.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if channels not in (1, 3) and name not in LATENT_SOURCES:
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size must be a positive number of pixels, got {image_size!r}")
    first, _, dataset = name.partition(":")
    kind = KINDS.get(first)
    if path is not None and name not in _IN_A_PATH:
        taking = " and ".join(map(repr, _IN_A_PATH))
        raise ValueError(f"path={path!r} is for the sources {taking} only, not for {name!r}")
    if data_dir is not None and not (kind and kind.takes_data_dir):
        taking = ", ".join(repr(f"{known}:...") for known, other in KINDS.items() if other.takes_data_dir)
        raise ValueError(f"data_dir={data_dir!r} is for the sources {taking} only, not for {name!r}")
    if kind is None or bool(dataset) != bool(kind.is_of):
        raise _unknown(name, first, dataset)
    given: list[Any] = [dataset] if kind.is_of else []
    if kind.path is not None:
        if path is None:
            raise ValueError(f"the source {name!r} needs path: {kind.path}")
        given.append(path)
    others = {"data_dir": data_dir} if kind.takes_data_dir else {}
    return kind.load(*given, split, image_size=image_size, channels=channels, **others)


def _unknown(name: str, first: str, dataset: str) -> ValueError:
    close = difflib.get_close_matches(first.lower(), list(KINDS), n=1)
    hint = ""
    if close:
        behind = KINDS[close[0]].is_of
        hint = f"; did you mean {(f'{close[0]}:{dataset or behind}' if behind else close[0])!r}?"
    return ValueError(f"unknown data source {name!r}{hint} (sources: {', '.join(SOURCES)})")

"""What the networks refuse before anything is compiled, in one place and one wording.

Every function raises ValueError, one line, that names the field, what it got and what it could be.
"""

import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike


def check_counts(module: nn.Module, fields: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Fields of the module that must be integers from 1 up; the optional ones may be None."""
    for field in (*fields, *(name for name in optional if getattr(module, name) is not None)):
        value = getattr(module, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{field}={value!r}: it must be an integer from 1 up")


def check_choice(field: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{field}={value!r}: it could be {' or '.join(map(repr, choices))}")


def check_positive(field: str, value: object) -> None:
    """A number above zero that is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{field}={value!r}: it must be a positive number")


def check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r}: it must be at least 0 and less than 1")


def check_dtype(dtype: DTypeLike) -> None:
    """The compute dtype must be a floating-point one."""
    choices = "'float32', 'bfloat16', 'float16' or 'float64'"
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        raise ValueError(f"dtype={dtype!r}: it could be {choices}") from None
    if not floating:
        raise ValueError(f"dtype={dtype!r}: it could be {choices}")


def check_image(image_size: int, channels: int) -> None:
    if channels < 1 or image_size < 1:
        raise ValueError(f"images of {image_size} pixels and {channels} channels: both must be from 1 up")


def check_multiple(sample: jax.Array, factor: int) -> None:
    """Images [B, H, W, C] whose sides an autoencoder divides by a factor."""
    for side in sample.shape[1:3]:
        if side % factor:
            raise ValueError(f"image of {side} pixels: the autoencoder needs multiples of {factor}")


def check_norm_groups(widths: Sequence[int], norm_groups: int) -> None:
    """Channels of levels, at least one, that are normalised in so many groups."""
    if not widths or any(width % norm_groups for width in widths):
        raise ValueError(f"widths={widths}: each must be a multiple of norm_groups={norm_groups}")


def check_labels(num_classes: int | None, class_labels: object) -> None:
    """Class labels are given exactly when the network has classes."""
    if (class_labels is None) != (num_classes is None):
        got = "none were given" if class_labels is None else "class_labels were given"
        raise ValueError(f"num_classes={num_classes}, but {got}")


def check_resample_filter(taps: Sequence[float]) -> None:
    if not taps or len(taps) % 2 or sum(taps) <= 0:
        raise ValueError(
            f"resample_filter={tuple(taps)}: it must hold an even number of weights with a positive sum, for example"
            " (1, 1)"
        )


def level_attention(image_size: int, levels: int, attention_resolutions: Sequence[int]) -> tuple[bool, ...]:
    """Whether each level of a U-Net has attention; level l has resolution image_size / 2^l."""
    return tuple(
        image_size % 2**level == 0 and image_size // 2**level in attention_resolutions for level in range(levels)
    )


def check_levels(
    image_size: int,
    reference: int | None,
    channel_mults: Sequence[float],
    attention_resolutions: Sequence[int],
) -> None:
    """Images must halve evenly down the levels, and attention be at resolutions that some level has.

    Args:
      image_size: of the images.
      reference: the network's own image_size, from which attention_resolutions count; None takes the images'.
      channel_mults: one factor for each level.
      attention_resolutions: where the network has attention.
    """
    if not channel_mults or min(channel_mults) <= 0:
        raise ValueError(f"channel_mults={channel_mults!r}: it must hold one positive number per level")
    levels = len(channel_mults)
    step = 2 ** (levels - 1)
    for field, size in (("image_size", image_size), ("model image_size", reference or step)):
        if size % step:
            below, above = size // step * step, -(-size // step) * step
            choices = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"{field}={size}: the {levels} levels of channel_mults={tuple(channel_mults)} halve it"
                f" {levels - 1} times, so it must be a multiple of {step}, for example {choices}"
            )
    reference = reference or image_size
    resolutions = tuple(reference // 2**level for level in range(levels))
    for resolution in attention_resolutions:
        if resolution not in resolutions:
            raise ValueError(
                f"attention_resolutions={tuple(attention_resolutions)}: no level has resolution"
                f" {resolution}; images of {reference} pixels have levels at {', '.join(map(str, resolutions))}"
            )


def level_widths(channels: int, channel_mults: Sequence[float]) -> tuple[int, ...]:
    """Channels of each level, highest resolution first."""
    widths = tuple(round(mult * channels) for mult in channel_mults)
    for mult, width in zip(channel_mults, widths, strict=True):
        if abs(width - mult * channels) > 1e-6:
            raise ValueError(f"channel_mults: {mult} times channels={channels} is not a whole number")
    return widths

"""What the report says of a flow: how noise and images become one another, and what the loss counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusion_jax.figures import page, report
from diffusion_jax.figures.formulas import inline
from diffusion_jax.figures.page import Picture

_X, _Z, _F = "<mi>x</mi>", "<mi>z</mi>", "<mi>f</mi>"
_DETERMINANT = (
    f"<mo>|</mo><mi>det</mi><mfrac><mrow><mi>&part;</mi>{_F}</mrow><mrow><mi>&part;</mi>{_X}</mrow></mfrac><mo>|</mo>"
)
_DENSITY = (
    f'<math display="block"><mrow><mi>log</mi><mi>p</mi><mo>(</mo>{_X}<mo>)</mo><mo>=</mo><mi>log</mi><mi>N</mi>'
    f"<mo>(</mo>{_F}<mo>(</mo>{_X}<mo>)</mo><mo>;</mo><mn>0</mn><mo>,</mo><mi>I</mi><mo>)</mo><mo>+</mo><mi>log</mi>"
    f"{_DETERMINANT}</mrow></math>"
)


def _bits(pixel_levels: int) -> str:
    return (
        '<math display="block"><mrow><mi>b</mi><mo>=</mo><mo>-</mo><mfrac><mrow><mi>log</mi><mi>p</mi><mo>(</mo>'
        f"{_X}<mo>)</mo></mrow><mrow><mi>D</mi><mi>log</mi><mn>2</mn></mrow></mfrac><mo>+</mo>"
        f"<msub><mi>log</mi><mn>2</mn></msub><mfrac><mn>{pixel_levels}</mn><mn>2</mn></mfrac></mrow></math>"
    )


def parts(
    pixel_levels: int, temperature: float, animation: Picture | None = None, interpolation: Picture | None = None
) -> Mapping[str, Any]:
    """Fields of `report.Report`. animation, interpolation: pictures, as files or in memory."""
    return {
        "before_training": {"flow": ("From image to noise", _flow())},
        "training_words": _training(pixel_levels),
        "curves": {"latent_variance": "Mean square of the latents"},
        "after_training": {"sampling": ("From noise to image", _sampling(temperature, animation, interpolation))},
    }


def _flow() -> str:
    return (
        f"<p>A flow is a network {inline('f')} that can be run backwards. Forwards it takes an image {inline('x')} to "
        f"as many values {inline('z')}, which shall look like Gaussian noise. Every layer is invertible: a shift and a "
        "scale, a mixing of channels, or a coupling, which leaves one half of the values as it is, and shifts and "
        "scales the other half by what it sees in the first. How much each layer stretches space is known, so the "
        f"likelihood of an image is known exactly, too:</p>{_DENSITY}"
    )


def _training(pixel_levels: int) -> str:
    return (
        "<p>The loss is the number of bits that an image costs under the model, divided by its number of values "
        f"{inline('D')}. Pixels have {pixel_levels} levels, and a density can be any height on single points; so each "
        "value is spread evenly over its level, whose width of 2 in as many parts is the second term (uniform "
        f"dequantisation):</p>{_bits(pixel_levels)}<p>Without a model a value costs {math.log2(pixel_levels):.4g} "
        "bits. "
        "The mean square of the latents is 1 where they are Gaussian noise, as they should be.</p>"
    )


def _sampling(temperature: float, animation: Picture | None, interpolation: Picture | None) -> str:
    content = (
        f"<p>A new image is Gaussian noise {inline('z')} that goes through the same network backwards, once. The noise "
        f"here has standard deviation {temperature:g}, the temperature; below 1 images are likelier and less "
        "varied.</p>"
    )
    if interpolation is not None:
        caption = "From the image of one draw of noise on the left to that of another on the right, of the same class."
        alt = "Images that change into others from left to right"
        content += page.picture_figure(interpolation, alt, caption, wide=True)
    if animation is not None:
        caption = "All images at once on the way from other noise to their own; the bar shows how far it is."
        content += report.animated(animation, "An animation in which a grid of images changes", caption)
    return content

"""What the report of a diffusion run has of its own: the way to noise, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.figures import explanations, page, report
from diffusion_jax.figures.page import Picture


def parts(
    prediction: str,
    sampler: str,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    classifier_scale: float | None = None,
    animation: Picture | None = None,
    denoising: Picture | None = None,
    noising: Picture | None = None,
) -> Mapping[str, Any]:
    """Fields of `report.Report`.

    Args:
      prediction, sampler, num_steps: what the explanations speak of.
      guidance_scale: of classifier-free guidance, told only if it is not 1.
      classifier_scale: of the classifier that guided, if one did.
      animation, denoising, noising: the GIF and the two strips, as files or in memory.
    """
    before, after = _noising(noising), _sampling(sampler, num_steps, animation, denoising)
    if guidance_scale is not None and guidance_scale != 1:
        after += f"<h3>Guidance</h3>{explanations.guidance(guidance_scale)}"
    if classifier_scale is not None:
        after += f"<h3>Guidance by a classifier</h3>{explanations.classifier_guidance(classifier_scale)}"
    return {
        "before_training": {"noise": ("From image to noise", before)},
        "training_words": explanations.training(prediction),
        "after_training": {"sampling": ("From noise to image", after)},
    }


def _noising(noising: Picture | None) -> str:
    if noising is None:
        return ""
    caption = "Real images on their way to noise, from left to right: what the network is trained on."
    return explanations.forward() + page.picture_figure(
        noising, "Real images that become noisier from left to right", caption, wide=True
    )


def _sampling(sampler: str, num_steps: int | None, animation: Picture | None, denoising: Picture | None) -> str:
    content = explanations.sampling(sampler, num_steps)
    if denoising is not None:
        caption = "From pure noise on the left to the finished image on the right; the time stands above."
        alt = "Noise that becomes images from left to right"
        content += page.picture_figure(denoising, alt, caption, wide=True)
    if animation is not None:
        content += report.animated(
            animation,
            "An animation in which a grid of noise becomes a grid of images",
            "The whole reverse process, all images at once; the bar shows how far it is.",
        )
    return content

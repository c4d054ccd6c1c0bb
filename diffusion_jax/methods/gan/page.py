"""What the report of a game says: who plays, what each side loses, and a walk through the latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.figures import page, report
from diffusion_jax.figures.formulas import inline
from diffusion_jax.methods.gan.adaptive import AdaptiveAugmentation
from diffusion_jax.methods.gan.settings import Settings

_REAL, _FAKE = "D(<i>x</i>)", "D(G(<i>z</i>))"
# (what the discriminator minimises, what the generator does, and what that is), as HTML.
_GAMES = {
    "non_saturating": (
        f"log(1 + e<sup>&minus;{_REAL}</sup>) + log(1 + e<sup>{_FAKE}</sup>)",
        f"log(1 + e<sup>&minus;{_FAKE}</sup>)",
        "the loss of a classifier of real and generated images; the generator wants its images to be called real "
        "(Goodfellow et al. 2014)",
    ),
    "wasserstein": (
        f"{_FAKE} &minus; {_REAL}",
        f"&minus;{_FAKE}",
        "a distance between the two kinds of images: how much work it is to move one onto the other, where the "
        "discriminator is not steeper than one (Arjovsky et al. 2017)",
    ),
    "hinge": (
        f"max(0, 1 &minus; {_REAL}) + max(0, 1 + {_FAKE})",
        f"&minus;{_FAKE}",
        "the loss of a support vector machine: images that are told apart clearly enough cost nothing more (Lim and Ye "
        "2017)",
    ),
    "relativistic": (
        f"log(1 + e<sup>{_FAKE} &minus; {_REAL}</sup>)",
        f"log(1 + e<sup>{_REAL} &minus; {_FAKE}</sup>)",
        "the loss of telling which image of a pair is the real one, so that no real image can be forgotten "
        "(R3GAN, Huang et al. 2024)",
    ),
}
_CURVES = {
    "loss_generator": "Loss of the generator",
    "logits_real": "What the discriminator says of real images",
    "logits_fake": "What the discriminator says of generated images",
    "r1": "Squared slope of the discriminator at real images",
    "r2": "Squared slope of the discriminator at generated images",
    "gradient_penalty": "Gradient penalty",
    "augmentation_probability": "Probability of augmentation",
    "path_length": "Length of paths",
}


def parts(
    chosen: Settings,
    augmentation: AdaptiveAugmentation,
    truncation: float,
    animation: Path | None = None,
    interpolation: Path | None = None,
) -> Mapping[str, Any]:
    """Fields of `report.Report`.

    Args:
      chosen: the fields of config.method.
      augmentation: of what the discriminator sees.
      truncation: that the images were drawn with.
      animation, interpolation: walks through the latents, as files.
    """
    return {
        "before_training": {"game": ("Two networks and a game", _game(chosen, augmentation))},
        "training_words": _training(),
        "curves": _CURVES,
        "after_training": {"sampling": ("From latent to image", _sampling(truncation, animation, interpolation))},
    }


def _game(chosen: Settings, augmentation: AdaptiveAugmentation) -> str:
    discriminator, generator, meaning = _GAMES[chosen.game]
    content = (
        f"<p>The generator G makes an image of random numbers {inline('z')}, the latent. The discriminator D sees real "
        f"images {inline('x')} and generated ones and gives each a number, high for what it takes to be real. They are "
        "trained in turn: D to tell the two apart, G to be mistaken. G never sees a real image; all that it knows of "
        "them comes through D's gradient. Where neither can do better, generated images are distributed like real "
        "ones.</p>"
        f"<p>This run's game is {meaning}. The discriminator minimises</p><p><strong>{discriminator}</strong></p>"
        f"<p>and the generator</p><p><strong>{generator}</strong></p>"
    )
    for sentence in (*_penalties(chosen), *_augmented(augmentation)):
        content += f"<p>{sentence}</p>"
    return content


def _penalties(chosen: Settings) -> list[str]:
    found = []
    slopes = {"real": chosen.r1, "generated": chosen.r2}
    if sides := [side for side, gamma in slopes.items() if gamma]:
        weights = " and ".join(f"{slopes[side] / 2:g}" for side in sides)
        found.append(
            f"Steepness costs: the discriminator's squared gradient at {' and '.join(sides)} images is added to its "
            f"loss, weighing {weights} (Mescheder et al. 2018). Without it the two may circle each other forever."
        )
    if chosen.gradient_penalty:
        found.append(
            "Between real and generated images the discriminator's slope is held near one, by a penalty of weight "
            f"{chosen.gradient_penalty:g} (Gulrajani et al. 2017)."
        )
    if chosen.path_length:
        found.append(
            "Steps of one size in the style should change images by one size: path length regularisation of weight "
            f"{chosen.path_length:g} (Karras et al. 2020)."
        )
    return found


def _augmented(augmentation: AdaptiveAugmentation) -> list[str]:
    if augmentation.is_off:
        return []
    sentence = (
        "The discriminator sees real and generated images moved, turned and recoloured at random, so that it cannot "
        "learn the few real ones by heart (Karras et al. 2020)."
    )
    if augmentation.target is not None:
        sentence += (
            " How often follows from how sure it is of real images: the mean sign of its verdicts is brought to "
            f"{augmentation.target:g}."
        )
    return [sentence]


def _training() -> str:
    return (
        "<p>These losses do not fall like others: each side's depends on how good the other is at the time; the "
        "first one here is the discriminator's. What to "
        "look for is balance. Where the numbers for real and generated images move apart without end, the "
        "discriminator has won and teaches nothing more; where they meet, it has been fooled.</p>"
    )


def _sampling(truncation: float, animation: Path | None, interpolation: Path | None) -> str:
    content = (
        "<p>An image is one evaluation of the generator, at a latent drawn from a Gaussian. Latents near each other "
        "give images near each other: on the arc from one latent to another, every image should look real.</p>"
    )
    if truncation != 1:
        content += (
            f"<p>Truncation {truncation:g}: every style is moved towards the mean one, so that only this share of its "
            "distance is left. Below one, images are more typical and less varied.</p>"
        )
    if interpolation is not None:
        caption = "From another latent on the left to the image's own on the right; the class stays."
        content += page.picture_figure(interpolation, "Images that change from left to right", caption, wide=True)
    if animation is not None:
        content += report.animated(
            animation,
            "An animation in which a grid of images turns into another one",
            "The same walks for all images at once; the bar shows how far they are.",
        )
    return content

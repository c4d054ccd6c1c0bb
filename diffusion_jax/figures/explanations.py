"""What the report says about each idea, for a reader who meets it for the first time."""

import html

from diffusion_jax.figures import formulas
from diffusion_jax.figures.formulas import EPSILON_HAT, X_HAT, inline

_TARGETS = {
    "epsilon": f"the noise {inline('&epsilon;')} that was mixed in",
    "sample": f"the clean image {inline('x', '0')}",
    "v": "the velocity v, a mixture of noise and image that is well scaled at every noise level",
    "score": "the score, the direction in which noisy images become more likely",
    "velocity": "the velocity, the straight line from the image to the noise",
}

_SAMPLERS = {
    "ddpm": (
        "DDPM (Ho et al. 2020) draws each state at random from the forward process seen backwards, as if the estimate "
        f"{X_HAT} were the image: it steps back and adds a little fresh noise."
    ),
    "ddim": (
        "DDIM (Song et al. 2021) mixes the estimated image and the estimated noise again, with less noise than before. "
        "It draws nothing at random on the way (with η = 0), so far fewer steps are enough."
    ),
}


def forward() -> str:
    """Text and formula of the forward process."""
    return (
        "<p>The network learns from images with every amount of noise, and the forward process makes them: at time "
        f"{inline('t')} an image is scaled by {inline('&alpha;', 't')} and Gaussian noise is added with standard "
        f"deviation {inline('&sigma;', 't')}. At the start nothing is lost; at the end nothing is left but noise. "
        "The mixture for any time comes in one step:</p>" + formulas.FORWARD
    )


def training(prediction: str) -> str:
    """Text and formula of the loss."""
    target = _TARGETS.get(prediction, "the clean image")
    return (
        f"<p>The network sees a noisy image {inline('x', 't')}, the time {inline('t')} and, where there are classes, "
        f"the class {inline('c')}. It learns to predict {target}; the loss is the squared error, averaged over images, "
        f"noise and times, with a weight {inline('w')} for each time:</p>"
        + formulas.loss(prediction)
        + "<p>The loss does not go to zero: from a very noisy image nobody can tell the original exactly, and in a "
        "nearly clean one nobody can tell which speck is noise. How low it can go depends on the noise, so it is also "
        "shown for each noise level; each part should fall, then flatten.</p>"
    )


def sampling(sampler: str, num_steps: int | None) -> str:
    """Text and formula of the reverse process."""
    steps = f" in {num_steps} steps" if num_steps else ""
    method = _SAMPLERS.get(sampler, f"The sampler used here is “{html.escape(sampler)}”." if sampler else "")
    return (
        f"<p>A new image begins as pure noise and is taken back{steps}. In each step the network's output at time "
        f"{inline('t')} gives an estimate {X_HAT} of the finished image and {EPSILON_HAT} of its noise, from which the "
        f"sampler makes the state at the earlier time {inline('s')}. {method}</p>" + formulas.sampler_step(sampler)
    )


def guidance(scale: float) -> str:
    """Text and formula of classifier-free guidance."""
    return (
        "<p>Classifier-free guidance (Ho and Salimans 2022) evaluates the network twice, with the class and without it "
        f"({inline('∅')}), and follows the difference further than the network would. The scale {inline('g')} is "
        f"{scale:g} here; 1 is no guidance, more makes images more typical of their class and less varied.</p>"
        + formulas.GUIDANCE
    )


def classifier() -> str:
    """Text and formula of the loss of a classifier of noisy images."""
    return (
        f"<p>The classifier sees a noisy image {inline('x', 't')} and the time {inline('t')}, and gives a probability "
        f"to every class. The loss is the negative logarithm of what it gives to the right class {inline('y')}, "
        "averaged over images, noise and times:</p>"
        + formulas.CLASSIFIER_LOSS
        + "<p>Clean images can be told apart nearly always, pure noise never: there the best that can be done is to "
        "give every class its share of the images, and the loss ends at the entropy of the classes.</p>"
    )


def classifier_guidance(scale: float | None = None) -> str:
    """Text and formula of classifier guidance, with its scale where it is known."""
    known = "" if scale is None else f", which is {scale:g} here"
    return (
        "<p>Classifier guidance (Dhariwal and Nichol 2021) asks a classifier of noisy images how the image would have "
        f"to change to look more like the class {inline('y')}. Each step moves its mean that way, by the variance of "
        f"the step times a scale {inline('g')}{known}; samplers that draw nothing on the way move the score by the "
        "same gradient. More makes images more typical of their class and less varied.</p>"
        + formulas.CLASSIFIER_GUIDANCE
    )


def frechet() -> str:
    """Text and formula of the Frechet distance and of the baseline beside it."""
    return (
        "<p>The Fréchet distance describes each set of images by the mean and covariance of their features and "
        "measures how far apart the two Gaussians are. Zero would be perfect, but even real images do not reach it, "
        "because a finite sample never matches another one exactly. So the distance between training and test images, "
        "measured in the same way with equally many images, stands beside it: generated images that are as far from "
        "the test images as the training images are cannot be told from real ones in this way.</p>" + formulas.FRECHET
    )

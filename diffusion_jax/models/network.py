"""Networks of a config promise this: they are called alike, and they check themselves."""

from __future__ import annotations

from typing import Any, Protocol

import jax


class Network(Protocol):
    """A network is a Flax module of one of the tables in :mod:`diffusion_jax.models.registry`.

    Its fields are options with defaults of plain types, and `described`; configs make a field of each. Images are
    channels last. Parameters are float32, and what it gives is float32, whatever it computes in (`dtype`).
    """

    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work together or with images of that size."""
        ...

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Makes the variables, {"params": ...} and nothing else: no statistics are carried from batch to batch."""
        ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the network with these variables."""
        ...


class DenoisingNetwork(Network, Protocol):
    """It denoises, one of MODELS; the code fills in its out_channels, num_classes and dtype."""

    def __call__(
        self, sample: jax.Array, /, timestep: jax.Array, class_labels: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Gives the raw output [B, H, W, out_channels], float32; what it means is the prediction's affair.

        Args:
          sample: [B, H, W, C], given by its place: some networks call it as diffusers does.
          timestep: scalar or [B], integer or real, on the scale that the network is trained with.
          class_labels: int32 [B] for a network with classes, of which num_classes means none; None for one without.
          train: applies dropout, from the PRNG stream "dropout".

        Raises:
          ValueError: in one line, labels missing or unexpected, sizes that do not fit.
        """
        ...


class NoisyImageClassifier(Network, Protocol):
    """It tells the class of noisy images, one of CLASSIFIERS; the code fills in its num_classes and dtype."""

    def __call__(self, sample: jax.Array, /, timestep: jax.Array, train: bool = False) -> jax.Array:
        """Gives unnormalised log-probabilities [B, num_classes], float32; the arguments are a denoiser's."""
        ...

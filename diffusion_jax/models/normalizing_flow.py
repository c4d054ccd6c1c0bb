"""Normalising flows of images: RealNVP (Dinh et al. 2017, arXiv:1605.08803) and Glow (Kingma and Dhariwal 2018).

An image x becomes z of the same number of values, invertibly, where z is standard normal if x is like the data; so
log p(x) = log N(z; 0, I) + log |det dz/dx|, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.flow_couplings import CHECKERBOARDS, COUPLINGS, HALVES, AffineCoupling, GaussianPrior
from diffusion_jax.models.flow_layers import (
    CONVOLUTIONS,
    ActNorm,
    InvertibleConv,
    Logit,
    Transformed,
    squeeze,
    unsqueeze,
)
from diffusion_jax.options import described

_LARGEST_DENSE = 4096

_TEXTS = {
    "levels": "times that the image is squeezed to half its side and half of its values leave",
    "width": "of the hidden layers of the couplings",
    "coupling": "layers of the couplings: convolutional, or dense, which are fast on a CPU and for small images",
    "dropout": "share of activations that training drops inside the couplings",
    "logit": "values are mapped to logits, this margin away from infinity, such as 0.05; None: they are not",
}


class NormalizingFlow(nn.Module):
    """What RealNVP and Glow share: levels that each squeeze, transform, and split off half of the channels.

    What is split off goes straight into z, standardised by what is left (Dinh et al. 2017, section 3.6; the prior that
    is learnt is Glow's), and so does the rest after the last level. Subclasses give the transforms of one level. The
    couplings compute in `dtype`, and everything else in the precision of the image, float32 at least: the way back is
    as exact as that.
    """

    levels: int = 2
    depth: int = 8
    width: int = 64
    coupling: str = "convolutional"
    dropout: float = 0.0
    logit: float | None = 0.05
    num_classes: int | None = None
    dtype: DTypeLike = "float32"

    def level(self, index: int) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        """The transforms of a level before it squeezes, and those after."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, x: jax.Array, class_labels: jax.Array | None = None, reverse: bool = False, train: bool = False
    ) -> Transformed:
        """(z, log |det dz/dx| [B]) of x [B, H, W, C] in [-1, 1]; with reverse=True (x, log |det dx/dz|) of z.

        z has the shape of x and holds, one after the other, what each level split off and what was left. class_labels:
        int32 [B], for a flow with classes only; train applies dropout, from the PRNG stream "dropout". The first call
        is the one that `ActNorm` starts from. Raises ValueError for labels missing or unexpected.
        """
        checks.check_labels(self.num_classes, class_labels)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        plan = [self.level(index) for index in range(self.levels)]
        priors = [GaussianPrior(self.coupling, self.num_classes, name=f"prior_{index}") for index in range(self.levels)]
        first = [] if self.logit is None else [Logit(self.logit, name="logit")]
        total = jnp.zeros(len(x), x.dtype)
        if reverse:
            x, total = self._reverse(x, total, class_labels, plan, priors)
            return _run(first, x, total, class_labels, reverse=True)
        shape, parts = x.shape, []
        x, total = _run(first, x, total, class_labels)
        for index, ((before, after), prior) in enumerate(zip(plan, priors, strict=True)):
            x, total = _run(before, x, total, class_labels, train=train)
            x, total = _run(after, squeeze(x), total, class_labels, train=train)
            kept = None
            if index < self.levels - 1:
                kept, x = jnp.split(x, 2, axis=-1)
            part, log_det = prior(x, kept, class_labels)
            parts.append(part.reshape(len(part), -1))
            if kept is not None:
                x = kept
            total = total + log_det
        return jnp.concatenate(parts, axis=1).reshape(shape), total

    def _reverse(
        self,
        z: jax.Array,
        total: jax.Array,
        class_labels: jax.Array | None,
        plan: Sequence[tuple[Sequence[nn.Module], Sequence[nn.Module]]],
        priors: Sequence[nn.Module],
    ) -> Transformed:
        batch, height, width, channels = z.shape
        values = height * width * channels
        # Half of what reaches a level is split off there, and everything at the last.
        starts = [values - values // 2**index for index in range(self.levels)]
        parts = jnp.split(z.reshape(batch, -1), starts[1:], axis=1)
        x = jnp.zeros((batch, 0))
        for index in reversed(range(self.levels)):
            scale, (before, after) = 2 ** (index + 1), plan[index]
            part = parts[index].reshape(batch, height // scale, width // scale, -1)
            is_last = index == self.levels - 1
            part, log_det = priors[index](part, None if is_last else x, class_labels, reverse=True)
            x = part if is_last else jnp.concatenate([x, part], axis=-1)
            x, total = _run(after, x, total + log_det, class_labels, reverse=True)
            x, total = _run(before, unsqueeze(x), total, class_labels, reverse=True)
        return x, total

    def _coupling(self, mask: str, scaling: str, name: str) -> AffineCoupling:
        return AffineCoupling(
            mask, scaling, self.coupling, self.width, self.num_classes, self.dropout, self.dtype, name=name
        )

    def _norm(self, name: str) -> ActNorm:
        return ActNorm(by_value=self.coupling == "dense", name=name)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work with images of that size."""
        checks.check_counts(self, ("levels", "depth", "width"), optional=("num_classes",))
        checks.check_choice("coupling", self.coupling, COUPLINGS)
        checks.check_dropout(self.dropout)
        checks.check_dtype(self.dtype)
        checks.check_image(image_size, channels)
        if self.logit is not None and not 0 < self.logit < 0.5:
            raise ValueError(f"logit={self.logit!r}: it must be above 0 and below 0.5, or None")
        if image_size % 2**self.levels:
            raise ValueError(
                f"levels={self.levels}: each halves the image, and {image_size} pixels cannot be halved so often"
            )
        if self.coupling == "dense" and image_size**2 * channels > _LARGEST_DENSE:
            raise ValueError(
                f"images of {image_size}x{image_size}x{channels}: dense couplings take at most {_LARGEST_DENSE} values "
                "an image; use 'convolutional'"
            )


@described(_TEXTS, depth="couplings before a level squeezes, over a checkerboard, and as many after, over channels")
class RealNVP(NormalizingFlow):
    """Couplings over a checkerboard before the squeeze and over channels after it (Dinh et al. 2017, section 3.4).

    They change one half of the values and the other in turn. Between them stands `ActNorm` where the paper has batch
    normalisation, so that an image's likelihood does not hang on the other images of its batch.
    """

    depth: int = 4

    def level(self, index: int) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        def couplings(masks: Sequence[str], place: str) -> list[nn.Module]:
            return [
                module
                for i in range(self.depth)
                for module in (
                    self._norm(f"norm_{place}_{index}_{i}"),
                    self._coupling(masks[i % 2], "tanh", f"coupling_{place}_{index}_{i}"),
                )
            ]

        return couplings(CHECKERBOARDS, "before"), couplings(HALVES, "after")

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work with images of that size."""
        super().validate(image_size, channels)
        if self.depth < 2:
            raise ValueError(f"depth={self.depth}: it must be 2 or more, as a coupling changes half of the values")


@described(
    _TEXTS,
    depth="steps of ActNorm, 1x1 convolution and coupling in each level",
    convolution="parameters of the invertible 1x1 convolutions: their LU factors (lu), or the kernel itself (plain)",
)
class Glow(NormalizingFlow):
    """After the squeeze `depth` steps of ActNorm, an invertible 1x1 convolution and a coupling (figure 2)."""

    convolution: str = "lu"

    def level(self, index: int) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        return (), [
            module
            for i in range(self.depth)
            for module in (
                self._norm(f"norm_{index}_{i}"),
                InvertibleConv(self.convolution, seed=index * self.depth + i, name=f"mix_{index}_{i}"),
                self._coupling("last_channels", "sigmoid", f"coupling_{index}_{i}"),
            )
        ]

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work with images of that size."""
        super().validate(image_size, channels)
        checks.check_choice("convolution", self.convolution, CONVOLUTIONS)


def _run(
    layers: Sequence[nn.Module],
    x: jax.Array,
    total: jax.Array,
    class_labels: jax.Array | None,
    reverse: bool = False,
    train: bool = False,
) -> Transformed:
    """The layers in their order, or backwards in the other, adding up their log-determinants."""
    for layer in reversed(layers) if reverse else layers:
        training = {"train": train} if isinstance(layer, AffineCoupling) else {}
        x, log_det = layer(x, class_labels, reverse=reverse, **training)
        total = total + log_det
    return x, total

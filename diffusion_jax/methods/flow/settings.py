"""The sections of a flow's config."""

from __future__ import annotations

import dataclasses

from flax import linen as nn

from diffusion_jax.methods.settings import LikelihoodEvaluation, Sampling
from diffusion_jax.models.normalizing_flow import Glow, RealNVP
from diffusion_jax.options import Variants, check_least, described, section

NETWORKS: dict[str, type[nn.Module]] = {"glow": Glow, "realnvp": RealNVP}


@described(
    class_conditional="the flow is told the classes of the data",
    pixel_levels="values that a pixel can have, evenly spaced; images are rounded to them. 256: those of 8 bits",
)
@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of config.method."""

    class_conditional: bool = False
    pixel_levels: int = 256

    def __post_init__(self) -> None:
        check_least(2, pixel_levels=self.pixel_levels)


@described(temperature="standard deviation of the noise that becomes images; below 1 they are likelier and less varied")
@dataclasses.dataclass(frozen=True)
class FlowSampling(Sampling):
    """The fields of config.sampling."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more")


SECTIONS = {
    **dict.fromkeys(("data", "method"), True),
    "model": Variants(NETWORKS, "glow", ("num_classes", "dtype"), text="the network"),
    **dict.fromkeys(("training", "optimizer", "ema", "posthoc_ema", "mesh"), True),
    "sampling": section(FlowSampling),
    "evaluation": section(LikelihoodEvaluation),
}

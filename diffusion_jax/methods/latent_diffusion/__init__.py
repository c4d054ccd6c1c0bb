"""Diffusion of an autoencoder's latents (Rombach et al. 2022); images are encoded beforehand and decoded afterwards."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax.numpy as jnp

from diffusion_jax.data.sources import haar_digits
from diffusion_jax.methods.diffusion import DiffusionMethod
from diffusion_jax.methods.diffusion.settings import SECTIONS
from diffusion_jax.methods.latent_diffusion.model import DiffusionOfLatents
from diffusion_jax.methods.latent_space import Decoder, LatentSpace, decode
from diffusion_jax.methods.method import Config, Context
from diffusion_jax.options import described, section


@described(
    mean="of the autoencoder's latents, a number for each channel; None: what the data say",
    std="standard deviation of the autoencoder's latents, a number for each channel; None: what the data say",
    final_std="standard deviation of what the network works on",
    unit_range="the autoencoder's images are in [0, 1], as EDM2's; otherwise in [-1, 1]",
    vae="folder of the autoencoder; None: what the data say",
)
@dataclasses.dataclass(frozen=True)
class Latents:
    """The fields of config.latents."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    final_std: float = 1.0
    unit_range: bool = False
    vae: str | None = None

    def __post_init__(self) -> None:
        if not self.final_std > 0:
            raise ValueError(f"final_std is {self.final_std}; it must be above 0")


class LatentDiffusionMethod(DiffusionMethod):
    """As diffusion of images, but for what is of images only."""

    sections: ClassVar = {
        "data": True,
        "latents": section(Latents),
        **{name: value for name, value in SECTIONS.items() if name not in ("data", "augmentation")},
    }
    of_latents = True

    def check(self, config: Config) -> None:
        super().check(config)
        for path, value, off in (
            ("evaluation.num_likelihood_images", config.evaluation.num_likelihood_images, 0),
            ("data.flip", config.data.flip, False),
            ("sampling.classifier", config.sampling.classifier, None),
        ):
            if value != off:
                raise ValueError(f"config.{path} is {value!r}, which is for images; set it to {off} for latents")

    def shrink(self, config: Config) -> None:
        if config.data.name == "digits":
            config.data.name = "haar_digits"
            config.latents.update({"mean": None, "std": None, "vae": None, "unit_range": False})

    def _model(self, config: Config, context: Context, fields: dict[str, Any]) -> DiffusionOfLatents:
        return DiffusionOfLatents(**fields, space=latent_space(config, context))

    def decoder(self, config: Config, model: Any, context: Context) -> Decoder:
        space = model.space
        with config.latents.errors():
            if context.record.get("decoder") == "haar":
                return Decoder(lambda _, x: jnp.clip(haar_digits.decode(space.to_latents(x)), -1, 1), None, space)
            folder = config.latents.vae or context.record.get("vae")
            if folder is None:
                raise ValueError("vae is None, and the data do not say it; it is the folder of the autoencoder")
            autoencoder, params = context.load(folder)
            if getattr(autoencoder, "latent_channels", None) != config.data.channels:
                raise ValueError(
                    f"vae {folder!r} holds {type(autoencoder).__name__}, which is no autoencoder with latents of "
                    f"{config.data.channels} channels"
                )
            return Decoder(functools.partial(decode, autoencoder, space=space), params, space)


def latent_space(config: Config, context: Context) -> LatentSpace:
    """What the network works on, by the config or else by what the latents say of themselves."""
    section, record = config.latents, context.record
    with section.errors():
        statistics = {}
        for field in ("mean", "std"):
            given = record.get(field) if section[field] is None else section[field]
            if given is None:
                raise ValueError(f"{field} is None, and the data do not say it; give a number for each channel")
            statistics[field] = tuple(float(value) for value in given)
        asked, found = section.unit_range, record.get("unit_range", False)
        if record and asked != found:
            names = {True: "[0, 1]", False: "[-1, 1]"}
            raise ValueError(
                f"unit_range is {asked}, but the data are latents of images in {names[found]}; set it to {found}, or "
                f"encode images {'with' if asked else 'without'} --unit_range"
            )
        space = LatentSpace(**statistics, final_std=section.final_std, unit_range=asked)
        if len(space.mean) != config.data.channels:
            raise ValueError(
                f"mean is {space.mean}, but config.data.channels is {config.data.channels}; it needs as many"
            )
        return space


METHOD = LatentDiffusionMethod()

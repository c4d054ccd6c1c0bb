"""The default experiment: the fields that every run has, and the sections that its method asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from diffusion_jax.config.experiment import Experiment
from diffusion_jax.data.sources import SOURCES
from diffusion_jax.methods.registry import METHODS
from diffusion_jax.options import Variants, check_choice, check_least, described, section
from diffusion_jax.training import ema, loop, optimizer, power_ema, sharding

DEFAULT_METHOD = "diffusion"
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
# The training takes larger ones modulo 2^32, and would so repeat the run of a smaller one.
LARGEST_SEED = 2**32 - 1


@described(
    name="of the experiment, and of its work directory runs/<name>",
    seed="of everything that is drawn",
    quick="the whole experiment in miniature, in about a minute, to see that it runs",
    init_from="run, folder or file whose parameters it begins with, where names and shapes fit; DIR:PART of a pipeline",
    debug="stop at the first value that is not a number and say where it came from; reproducible sums on GPUs",
)
@dataclasses.dataclass(frozen=True)
class Run:
    """The fields that are in no section."""

    name: str = "experiment"
    seed: int = 0
    quick: bool = False
    init_from: str | None = None
    debug: bool = False

    def __post_init__(self) -> None:
        if not self.name or self.name in (".", "..") or set(self.name) & set("/\\"):
            raise ValueError(f"name is {self.name!r}; it names a folder in runs/, so it cannot have slashes")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to {LARGEST_SEED}")


@described(
    name=f"{', '.join(SOURCES)}, such as tfds:cifar10",
    path="folder of image_folder or latents",
    data_dir="where TFDS keeps prepared datasets; None: TFDS's own place",
    image_size="side of the square images in pixels, or of the latents",
    channels="3 (RGB) or 1 (grey); of latents any number",
    flip="training images are mirrored at random",
    num_workers="processes that decode images; 0: threads of the main one",
)
@dataclasses.dataclass(frozen=True)
class Data:
    """The fields of config.data; what they name is opened by `build.source`."""

    name: str = "digits"
    path: str | None = None
    data_dir: str | None = None
    image_size: int | None = None
    channels: int = 3
    flip: bool = False
    num_workers: int = 0

    def __post_init__(self) -> None:
        check_least(1, image_size=self.image_size, channels=self.channels)
        check_least(0, num_workers=self.num_workers)


@described(
    batch_size="images of an update, over all devices and hosts",
    compute_dtype="of activations: float32, bfloat16 or float16; parameters stay float32",
)
@dataclasses.dataclass(frozen=True)
class Batches:
    """The fields of config.training beside those of the loop."""

    batch_size: int = 128
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_least(1, batch_size=self.batch_size)
        check_choice("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)


# What a method can ask for by name.
KNOWN: dict[str, Variants] = {
    "data": section(Data),
    "training": Variants({"": loop.TrainingOptions}, filled=("seed", "debug"), common=Batches),
    "optimizer": Variants(optimizer.OPTIMIZERS, "adam", common=optimizer.Descent, text="the rule of the updates"),
    "ema": Variants(ema.KINDS, "ddpm", ("batch_size",), key="kind", text="how the decay follows from the step"),
    "posthoc_ema": section(power_ema.PosthocEMA),
    "mesh": section(sharding.make_mesh, "devices"),
}
METHOD = Variants({name: method.settings for name, method in METHODS.items()}, DEFAULT_METHOD, text="what is trained")


def _sections(asked: Mapping[str, Variants | bool | str]) -> dict[str, Variants]:
    known = KNOWN | {"method": METHOD}
    return {
        name: known[name] if value is True else known[value] if isinstance(value, str) else value  # pyright: ignore
        for name, value in asked.items()
    }


_SECTIONS = {name: _sections(method.sections) for name, method in METHODS.items()}


def default() -> Experiment:
    """A new config with every field at its default; experiments change what differs."""
    return Experiment(section(Run), METHOD, _SECTIONS)

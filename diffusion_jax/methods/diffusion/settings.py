"""What a config says of diffusion: its sections, each a constructor that checks itself."""

from __future__ import annotations

import dataclasses

from diffusion_jax.conditions.registry import CONDITIONS
from diffusion_jax.diffusion.coupling import COUPLINGS
from diffusion_jax.diffusion.objective import BOUNDS
from diffusion_jax.diffusion.preconditioning import PRECONDITIONINGS
from diffusion_jax.diffusion.prediction import PREDICTIONS
from diffusion_jax.diffusion.process import PROCESSES
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.diffusion.time_sampler import TIME_SAMPLERS
from diffusion_jax.diffusion.weighting import WEIGHTINGS
from diffusion_jax.methods.augmentation import Augmentation
from diffusion_jax.methods.diffusion.guiding import Guidance
from diffusion_jax.methods.settings import LikelihoodEvaluation, Sampling
from diffusion_jax.models.registry import MODELS
from diffusion_jax.options import Variants, check_choice, check_least, described, section


@described(
    prediction="of the network: epsilon, sample, v, score or velocity; or with EDM's scalings edm, vp, ve or iddpm",
    bound="hybrid, hybrid_unscaled and vlb also learn the variance, as improved DDPM; none does not",
    class_conditional="the network is told the classes of the data",
    conditions="further names of what the network is told of the images, as the data have them; () for none",
    label_dropout="share of labels, or of conditions, that training drops, as classifier-free guidance needs",
    coupling="of noise and images: independent; optimal_transport matches them in each whole batch",
    adaptive_weighting="noise levels weigh by a loss that the network learns for each, as EDM2",
)
@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of config.method."""

    prediction: str = "epsilon"
    bound: str = "none"
    class_conditional: bool = False
    conditions: tuple[str, ...] = ()
    label_dropout: float = 0.1
    coupling: str = "independent"
    adaptive_weighting: bool = False

    def __post_init__(self) -> None:
        check_choice("prediction", self.prediction, (*PREDICTIONS, *PRECONDITIONINGS))
        check_choice("bound", self.bound, BOUNDS)
        for name in self.conditions:
            check_choice("conditions", name, CONDITIONS)
        check_choice("coupling", self.coupling, COUPLINGS)
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout is {self.label_dropout}; it must be from 0 to 1")


@described(
    guidance_scale="of classifier-free guidance, or away from a guide; 1: none",
    guidance_interval="(low, high) of noise to signal, between which guidance acts; None: always",
    guidance_rescale="share of the contrast without guidance that is kept, against overexposure",
    guidance_channels="only the first so many channels are guided; None: all",
    guide="work directory of a weaker network, away from which samples are moved (autoguidance)",
    guide_step="step of the guide's snapshot of its averages; None: its newest checkpoint",
    guide_ema_width="width of the guide's average, from its snapshots",
    classifier="that guides: the work directory of a run that trained one, or a folder that hub.load opens",
    classifier_scale="of the classifier's gradient; 0: no guidance by it",
)
@dataclasses.dataclass(frozen=True)
class DiffusionSampling(Sampling):
    """The fields of config.sampling beside those of the solver."""

    guidance_scale: float = 1.0
    guidance_interval: tuple[float, ...] | None = None
    guidance_rescale: float = 0.0
    guidance_channels: int | None = None
    guide: str | None = None
    guide_step: int | None = None
    guide_ema_width: float | None = None
    classifier: str | None = None
    classifier_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        Guidance(self.guidance_interval, self.guidance_rescale, self.guidance_channels)  # pyright: ignore
        for field in ("guidance_interval", "guidance_rescale", "guidance_channels", "guide"):
            if getattr(self, field) and self.guidance_scale == 1:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}, but config.sampling.guidance_scale is 1, which is no "
                    "guidance; set it to another number"
                )
        for field in ("guide_step", "guide_ema_width"):
            if getattr(self, field) is not None and not self.guide:
                raise ValueError(
                    f"{field} is {getattr(self, field)}, which is of a guide; set config.sampling.guide to the work "
                    "directory of a run"
                )
        if self.guide_step is not None and self.guide_ema_width is None:
            raise ValueError(
                f"guide_step is {self.guide_step}, one of the guide's EMA snapshots; set "
                "config.sampling.guide_ema_width to the sigma_rel of their average, such as 0.05"
            )
        if self.classifier_scale != 1 and not self.classifier:
            raise ValueError(
                f"classifier_scale is {self.classifier_scale}, which is of a classifier; set "
                "config.sampling.classifier to the work directory of its run"
            )
        check_least(1, guidance_channels=self.guidance_channels)


@described(
    sweep_samplers="samplers that evaluate also scores, such as ddim,dpmpp; none: the one of sampling.name",
    sweep_steps="numbers of steps that evaluate also scores each of them with, such as 10,20,50",
    sweep_guidance="guidance scales that evaluate also scores each of them with, such as 1,1.5,2",
)
@dataclasses.dataclass(frozen=True)
class DiffusionEvaluation(LikelihoodEvaluation):
    """The fields of config.evaluation."""

    sweep_samplers: tuple[str, ...] = ()
    sweep_steps: tuple[int, ...] = ()
    sweep_guidance: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.sweep_samplers:
            if name not in SAMPLERS:
                raise ValueError(f"sweep_samplers has {name!r}; it can have {', '.join(SAMPLERS)}")
        for steps in self.sweep_steps:
            if steps < 1:
                raise ValueError(f"sweep_steps has {steps!r}, which is no number of steps; each must be 1 or more")


SECTIONS = {
    "data": True,
    "method": True,
    "model": Variants(MODELS, "unet", ("out_channels", "num_classes", "null_class", "dtype"), text="the network"),
    "process": Variants(PROCESSES, "linear", text="the forward process"),
    "weighting": Variants(WEIGHTINGS, "simple", text="of the loss by the noise level"),
    "time_sampler": Variants(
        TIME_SAMPLERS,
        "process",
        ("num_timesteps",),
        text="of training's times: by the process, or by their losses",
    ),
    "augmentation": section(Augmentation),
    "training": True,
    "optimizer": True,
    "ema": True,
    "posthoc_ema": True,
    "mesh": True,
    "sampling": Variants(SAMPLERS, "ddim", ("process", "prediction"), DiffusionSampling, text="the solver"),
    "evaluation": section(DiffusionEvaluation),
}

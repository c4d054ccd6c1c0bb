"""A request says what is asked of a pipeline that draws from texts, and is checked before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.samplers import Sampler
from diffusion_jax.options import described
from diffusion_jax.pipelines.inputs import check_finite, prompt_list, refuse_foreign

OUTPUTS = ("images", "latents")
# diffusers' defaults of image-to-image and of inpainting.
STRENGTH, STRENGTH_WITH_MASK = 0.8, 1.0


@described(
    prompts="what to draw; words are weighted as in (word:1.3)",
    negative_prompts="what to keep away from; one, or one for each prompt",
    num_steps="steps of the sampler",
    guidance_scale="scale of classifier-free guidance; 1 and less is none",
    guidance_rescale="share of the result that is rescaled against overexposure",
    latents="the starts of all images, unit normal [N, h, w, C]",
    key="one key, from which image i uses fold_in(key, i), or one for each image; None is key(0)",
    size="height and width; the checkpoint's if not given, or the image's",
    image="an image to start from",
    strength="share of the steps that is run on the image: 0 keeps it, 1 hardly uses it",
    mask="where the image is painted",
    keep_unmasked="the image's own pixels stay where nothing is painted",
    control_images="the image of each ControlNet",
    control_scale="how strong each ControlNet is: the factor on its residuals; one value, or one for each",
    control_start="share of the steps at which each ControlNet begins; one value, or one for each",
    control_end="share of the steps at which each ControlNet ends; one value, or one for each",
    clip_skip="how many of CLIP's last layers are left out",
    original_size="SDXL is told that the image was made from one of this height and width; the size if not given",
    crop="SDXL is told that the image was cut out at this top and left",
    target_size="SDXL is told that the image is wanted in this height and width; the size if not given",
    sampler="another sampler than the schedule's; num_steps is not used then",
    attention="words of the prompts whose attention maps are wanted",
    output="images, or latents for what the autoencoder would decode",
)
@dataclasses.dataclass(frozen=True, eq=False)
class ImageRequest:
    """A request asks for one image of each text. It holds its texts as lists, and refuses what no pipeline could do.

    Pictures are arrays in [0, 1] or uint8: image and control_images [H, W, 3] or [B, H, W, 3], mask [H, W] or
    [B, H, W, 1], 1 where to paint. A network with channels for a mask gets it with the image, any other one is held to
    the image outside (:mod:`diffusion_jax.pipelines.known`). Strength is 0.8 if not given, and 1 with a mask.

    Guidance is that of Ho and Salimans 2022, eq. 6, and guidance_rescale phi of Lin et al. 2024, eq. 16; latent
    consistency models are told the scale, and are not guided besides. Negative prompts are used with guidance only.

    Raises:
      ValueError: what cannot be, in one line. What depends on the checkpoint is refused where it is known.
    """

    prompts: str | Sequence[str]
    negative_prompts: str | Sequence[str] | None = None
    num_steps: int = 50
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    latents: jax.Array | np.ndarray | None = None
    key: jax.Array | None = None
    size: tuple[int, int] | None = None
    image: Any = None
    strength: float | None = None
    mask: Any = None
    keep_unmasked: bool = True
    control_images: Sequence[Any] = ()
    control_scale: float | Sequence[float] = 1.0
    control_start: float | Sequence[float] = 0.0
    control_end: float | Sequence[float] = 1.0
    clip_skip: int = 0
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    sampler: Sampler | None = None
    attention: Sequence[str] = ()
    output: str = "images"

    def __post_init__(self) -> None:
        numbers = ("guidance_scale", "guidance_rescale", "strength", "control_scale", "control_start", "control_end")
        total = None if self.latents is None else float(jnp.sum(jnp.asarray(self.latents, jnp.float32)))
        check_finite(**{name: getattr(self, name) for name in numbers}, latents=total)
        texts = prompt_list(self.prompts, "prompts")
        object.__setattr__(self, "prompts", texts)
        if self.negative_prompts is not None:
            negatives = prompt_list(self.negative_prompts, "negative_prompts")
            negatives = negatives * len(texts) if len(negatives) == 1 else negatives
            if len(negatives) != len(texts):
                raise ValueError(
                    f"there are {len(negatives)} negative_prompts for {len(texts)} prompts; give 1 or {len(texts)}"
                )
            object.__setattr__(self, "negative_prompts", negatives)
        if self.mask is not None and self.image is None:
            raise ValueError("a mask needs the image that it belongs to")
        if not 0 <= self.share_of_steps <= 1:
            raise ValueError(f"strength is {self.strength}; it can be 0 (the image as it is) to 1")
        if self.output not in OUTPUTS:
            raise ValueError(f"output is {self.output!r}; it can be {' or '.join(map(repr, OUTPUTS))}")
        if self.sampler is None and self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; it must be 1 or more")

    @classmethod
    def of(cls, **given: Any) -> ImageRequest:
        """Makes the request with these fields; raises TypeError for other names, with ours for those of diffusers."""
        fields = {field.name for field in dataclasses.fields(cls)}
        refuse_foreign({name: value for name, value in given.items() if name not in fields})
        return cls(**given)

    @property
    def batch(self) -> int:
        """Counts the images that are drawn."""
        return len(self.prompts)

    @property
    def share_of_steps(self) -> float:
        """Gives the strength, or its default: all steps where a mask says what is painted."""
        if self.strength is not None:
            return self.strength
        return STRENGTH if self.mask is None else STRENGTH_WITH_MASK

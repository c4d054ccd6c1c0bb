"""The programs of a pipeline that draws from texts are compiled here: encoding, and all from noise to images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.diffusion import guidance, samplers
from diffusion_jax.diffusion.arrays import noised
from diffusion_jax.diffusion.samplers import Sampler
from diffusion_jax.models.conditional_unet import guidance_embedding
from diffusion_jax.pipelines import adapters, latents, text
from diffusion_jax.pipelines.attention_maps import along
from diffusion_jax.pipelines.denoiser import Control, Denoiser
from diffusion_jax.pipelines.families import FAMILIES, Family, TextOptions
from diffusion_jax.pipelines.known import hold_known, latent_mask, replace_known
from diffusion_jax.pipelines.text import TextEncoder

# Where numbers can be lost, in the order of the work.
PARTS = ("text encoder", "autoencoder's encoder", "network", "autoencoder's decoder")
Changes = tuple[Sequence[adapters.Adapter], jax.Array]  # low-rank changes and their weights


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan says what a program is compiled for, beside the shapes.

    Attributes:
      guided: classifier-free guidance, with a negative prompt. rescaled: its output is rescaled.
      no_negative: the negative conditions are zeros, as SDXL takes them for an empty prompt.
      clip_skip: see :func:`diffusion_jax.pipelines.text.encode`.
      image: there is an image to start from. paint: None; "channels" of an inpainting network; of any other one
        "hold" (its states are held to the image outside) or "replace" (its estimates are, for samplers that go back).
      sampled: whether there are any steps; without, the image goes through the autoencoder alone.
      maps: attention maps are returned.
      latents_out: latents are returned instead of images.
    """

    guided: bool
    rescaled: bool
    no_negative: bool
    clip_skip: int
    image: bool
    paint: str | None
    sampled: bool
    maps: bool
    latents_out: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """Each program of these networks is compiled once a plan and shape; parameters are its arguments.

    Attributes: see :class:`diffusion_jax.pipelines.latent.LatentDiffusion`.
    """

    network: nn.Module
    autoencoder: Any
    encoders: tuple[TextEncoder, ...]
    options: TextOptions
    controls: tuple[Control, ...] = ()

    @property
    def family(self) -> Family:
        """Gives the adapter of the network's family."""
        return FAMILIES[self.options.family]

    @property
    def told_channels(self) -> int | None:
        """Gives the width of the embedded guidance scale of networks that take it, as latent consistency models do."""
        return getattr(self.network, "guidance_channels", None)

    @functools.cached_property
    def encode(self) -> Any:
        """encode(plan, params, tokens, changes) is (conditions, negative conditions or None) of the tokens."""
        return jax.jit(self._conditions, static_argnums=0)

    @functools.cached_property
    def sample(self) -> Any:
        """sample(plan, shape, params, conditions, sampler, settings, arrays) is (images or latents, maps, finite).

        finite tells whether each of PARTS gave finite numbers, bool [4].
        """
        return jax.jit(self._draw, static_argnums=(0, 1))

    @functools.cached_property
    def whole(self) -> Any:
        """Does what `sample` does, of tokens in the place of conditions."""

        def whole(
            plan: Plan, shape: tuple[int, ...], params: Any, tokens: Any, sampler: Sampler, settings: Any, arrays: Any
        ) -> Any:
            conditions = self._conditions(plan, params, tokens, settings["adapters"])
            return self._draw(plan, shape, params, conditions, sampler, settings, arrays)

        return jax.jit(whole, static_argnums=(0, 1))

    @functools.cached_property
    def encode_images(self) -> Any:
        """encode_images(parameters of the autoencoder, images in [0, 1]) is their latents."""
        return jax.jit(lambda params, images: latents.encode(self.autoencoder, params, 2 * images - 1))

    def _conditions(self, plan: Plan, params: Any, tokens: Any, changes: Changes) -> tuple[Any, Any]:
        params = _changed(params, changes)
        positive = text.encode(self.encoders, self.options, params, tokens[0], plan.clip_skip)
        if not plan.guided:
            return positive, None
        if plan.no_negative:
            return positive, jax.tree.map(jnp.zeros_like, positive)
        return positive, text.encode(self.encoders, self.options, params, tokens[1], plan.clip_skip)

    def _draw(
        self, plan: Plan, shape: tuple[int, ...], params: Any, conditions: Any, sampler: Sampler, settings: Any,
        arrays: Any,
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:  # fmt: skip
        params = _changed(params, settings["adapters"])
        encode = functools.partial(latents.encode, self.autoencoder, params["autoencoder"])
        known = encode(2 * arrays["image"] - 1) if plan.image else None
        extra = self._shared_conditions(plan, arrays, encode)
        if self.told_channels is not None:
            told = jnp.broadcast_to(settings["scale"] - 1, conditions[0]["encoder_hidden_states"].shape[:1])
            extra["timestep_cond"] = guidance_embedding(told, self.told_channels)
        positive = {**conditions[0], **extra}
        negative = None if conditions[1] is None else {**conditions[1], **extra}
        if negative is not None and any(control.of_the_prompt for control in self.controls):
            ones = jnp.ones(positive["encoder_hidden_states"].shape[0])
            positive["prompted"], negative["prompted"] = ones, 0 * ones
        if "latents" in arrays:
            noise = arrays["latents"]
        else:
            unit = dataclasses.replace(sampler, init_noise_sigma=1.0)
            noise = samplers.initial_noise(unit, arrays["keys"], shape)
        alpha, sigma = settings["level"]
        start = sigma * noise if known is None else noised(known, noise, alpha, sigma)

        denoiser = Denoiser(self.network, self.family, self.controls)
        call = functools.partial(denoiser.predict, params, sampler, settings["control"])
        if negative is None:
            predict = guidance.conditional(call, positive)
        else:
            rescale = settings["rescale"] if plan.rescaled else 0.0
            predict = guidance.classifier_free(call, positive, negative, settings["scale"], rescale=rescale)
        mask, held = None, None
        if plan.paint in ("hold", "replace"):
            mask = latent_mask(arrays["mask"], self.autoencoder.factor)
        if mask is not None and known is not None:
            if plan.paint == "hold":
                held = hold_known(known, noise, mask, settings["levels"])
            else:
                predict = replace_known(sampler, predict, known, mask)

        maps: dict[str, jax.Array] = {}
        end = start if known is None else known
        if plan.sampled:
            end, states = samplers.sample(
                sampler, predict, start, arrays["keys"], return_trajectory=plan.maps, after=held
            )
            if plan.maps and states is not None:
                looks = functools.partial(denoiser.maps, params, sampler, settings["control"])
                maps = along(looks, sampler, states, positive, arrays["words"], shape)
        if mask is not None and known is not None:  # without the noise that some schedules leave
            end = mask * end + (1 - mask) * known
        before = conditions if known is None else (conditions, known)
        if plan.latents_out:
            return end, maps, jnp.stack([_finite(conditions), _finite(before), _finite(end), _finite(end)])
        decoded = latents.decode(self.autoencoder, params["autoencoder"], end)
        finite = jnp.stack([_finite(conditions), _finite(before), _finite(end), _finite(decoded)])
        return jnp.clip(decoded / 2 + 0.5, 0, 1).astype(jnp.float32), maps, finite

    def _shared_conditions(self, plan: Plan, arrays: Any, encode: Any) -> dict[str, Any]:
        """What the network is told with either prompt."""
        extra: dict[str, Any] = {"control": arrays["control"]} if self.controls else {}
        if "time_ids" in arrays:
            extra["time_ids"] = arrays["time_ids"]
        if plan.paint == "channels":
            mask = arrays["mask"]
            hidden = encode((2 * arrays["image"] - 1) * (1 - mask))
            extra["extra"] = jnp.concatenate([latent_mask(mask, self.autoencoder.factor), hidden], axis=-1)
        return extra


def _finite(tree: Any) -> jax.Array:
    """Whether all numbers of a tree are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _changed(params: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The parameters of the networks that a program has, with the changes that concern them."""
    present = [{name: kernels for name, kernels in one.items() if name in params} for one in changes[0]]
    return adapters.apply(params, present, changes[1])

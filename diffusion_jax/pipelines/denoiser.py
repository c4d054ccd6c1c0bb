"""The network of a pipeline as the function that a sampler calls: conditions, ControlNets, extra channels, maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.diffusion.samplers import Sampler
from diffusion_jax.pipelines.families import Family
from diffusion_jax.pipelines.known import row_of

MAPS = "attention"  # the collection of the U-Net's cross-attention maps


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet of a pipeline: its name among the parameters, and its network."""

    name: str
    model: nn.Module

    @property
    def of_the_prompt(self) -> bool:
        """Whether it acts on the prompt alone, not on the negative one: one does that pools its residuals."""
        return getattr(self.model, "global_pool", False)


@dataclasses.dataclass(frozen=True, eq=False)
class Denoiser:
    """A network and its ControlNets.

    Attributes:
      network: U-Net or transformer; family: the adapter that knows its arguments.
      controls: applied one after the other, their residuals added.
    """

    network: nn.Module
    family: Family
    controls: tuple[Control, ...] = ()

    def predict(
        self,
        params: Mapping[str, Any],
        sampler: Sampler,
        control_rule: jax.Array,
        x: jax.Array,
        t: jax.Array,
        conditions: Mapping[str, Any],
    ) -> jax.Array:
        """The network's raw output [B, h, w, C].

        Args:
          control_rule: [controls, 3], of each the factor on its residuals and the share of the steps at which it
            begins and ends.
          x: the scaled state [B, h, w, C]; t: scalar.
          conditions: the text's; also ``control`` (images in [0, 1]), ``extra`` (channels beside x), ``timestep_cond``
            (the embedded guidance scale) and ``prompted`` ([B], 1 for prompts and 0 for negative ones), if any.
        """
        arguments = self._arguments(params, sampler, control_rule, x, t, conditions)
        return self.network.apply({"params": params["network"]}, **arguments)  # pyright: ignore[reportReturnType]

    def maps(self, *arguments: Any) -> dict[str, jax.Array]:
        """Where each pixel looks: transformer block -> float32 [B, pixels, tokens]; arguments as for predict."""
        params = arguments[0]
        given = self._arguments(*arguments)
        _, sown = self.network.apply({"params": params["network"]}, **given, mutable=[MAPS])
        leaves = jax.tree.flatten_with_path(sown[MAPS])[0]
        return {_block_name(path): leaf for path, leaf in leaves}

    def _arguments(
        self,
        params: Mapping[str, Any],
        sampler: Sampler,
        control_rule: jax.Array,
        x: jax.Array,
        t: jax.Array,
        conditions: Mapping[str, Any],
    ) -> dict[str, Any]:
        state, told = self.family.arguments(x, t, conditions)
        images, prompted = conditions.get("control", ()), conditions.get("prompted")
        residuals = self._residuals(params, sampler, control_rule, x, told, images, prompted)
        if "timestep_cond" in conditions:  # of the network alone
            residuals["timestep_cond"] = conditions["timestep_cond"]
        extra = conditions.get("extra")
        return {state: x if extra is None else jnp.concatenate([x, extra], axis=-1), **told, **residuals}

    def _residuals(
        self,
        params: Mapping[str, Any],
        sampler: Sampler,
        control_rule: jax.Array,
        x: jax.Array,
        told: Mapping[str, Any],
        images: Any,
        prompted: jax.Array | None,
    ) -> dict[str, Any]:
        if not self.controls:
            return {}
        total: Any = None
        step, count = row_of(sampler, told["timestep"]), sampler.num_evaluations
        for control, image, (scale, begin, end) in zip(self.controls, images, control_rule, strict=True):
            active = (step / count >= begin) & ((step + 1) / count <= end)
            residuals = control.model.apply(
                {"params": params[control.name]},
                sample=x,
                controlnet_cond=image,
                conditioning_scale=jnp.where(active, scale, 0.0),
                **told,
            )
            if prompted is not None and control.of_the_prompt:
                residuals = jax.tree.map(lambda residual: residual * prompted[:, None, None, None], residuals)
            total = residuals if total is None else jax.tree.map(jnp.add, total, residuals)
        down, middle = total
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def _block_name(path: Any) -> str:
    """down_blocks_0.attentions_1.transformer_blocks_0 of the path of a map."""
    names = [str(getattr(key, "key", "")) for key in path]
    return ".".join(name for name in names if name and name not in ("attn2", "map"))

"""Pixel-space diffusion as a method: what the one training loop and the sampling job need to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.conditions.condition import Conditions, arguments, nulls
from diffusion_jax.conditions.label import Label
from diffusion_jax.data.source import LABEL
from diffusion_jax.diffusion import coupling, guidance, samplers
from diffusion_jax.diffusion.objective import Objective
from diffusion_jax.methods.augmentation import Augmentation
from diffusion_jax.methods.diffusion.guiding import Guidance, interval_in_timesteps, log_probability_of
from diffusion_jax.methods.examples import Batch, Metrics, by_noise_level, example_keys


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """A denoising network, how it is trained and how it is sampled.

    Attributes:
      network: called as network(sample, timestep, train=...) -> raw output, with the conditions as their keywords and
        augment_labels [B, 9] if images are augmented; with a method log_variance(timestep) -> [B] if the weighting is
        adaptive.
      objective: the loss on the raw output.
      sampler: the table of steps that `sample` runs.
      image_shape: (height, width, channels).
      told: the conditions that the network is told, by name; {} for an unconditional network.
      label_dropout: share of training examples whose conditions are dropped, all together, which is what
        classifier-free guidance needs.
      augmentation: of training images; None leaves them as they are. Samples are never told of any.
      coupling: "independent" noise, or the noise of a batch brought to the images by "optimal_transport".
      adaptive_weighting: noise levels weigh alike, by a loss that is learnt for each (Karras et al. 2024, eq. 21).
      guidance: what a guidance scale acts on.
      clip: samples are clipped to this magnitude; None never.
    """

    network: nn.Module
    objective: Objective
    sampler: samplers.Sampler | samplers.AdaptiveSampler
    image_shape: tuple[int, int, int]
    told: Conditions = dataclasses.field(default_factory=dict)
    label_dropout: float = 0.0
    augmentation: Augmentation | None = None
    coupling: str = coupling.INDEPENDENT
    adaptive_weighting: bool = False
    guidance: Guidance = dataclasses.field(default_factory=Guidance)
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.coupling not in coupling.COUPLINGS:
            raise ValueError(f"coupling is {self.coupling!r}; it can be {', '.join(coupling.COUPLINGS)}")

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Parameters for images like those of `batch`."""
        image = jnp.zeros((1, *self.image_shape), batch["image"].dtype)
        told = jax.tree.map(jnp.zeros_like, nulls(self.told, 1))
        return self.network.init(key, image, jnp.zeros(1, jnp.int32), **arguments(self.told, told))["params"]

    def init_state(self) -> Any:
        """What the objective's time sampler remembers; () if there is none."""
        return self.objective.init_state()

    def prepare(self, state: Any, batch: Batch, key: jax.Array) -> Batch:
        """The batch with all that the network will see: conditions dropped, images augmented, times and noise drawn.

        batch: "image" float [B, H, W, C] in [-1, 1], the "condition" of each name, "position" int32 [B], the place of
        each example in the global batch, from which its randomness follows. Only what the whole batch decides needs the
        whole of it: the coupling of noise and images, and the losses that times are drawn by.
        """
        keys = example_keys(key, batch)
        objective_keys, drop_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        prepared = dict(batch)
        if self.told:
            dropped = jax.vmap(lambda k: jax.random.bernoulli(k, self.label_dropout))(drop_keys)
            known = batch["condition"]
            prepared["condition"] = {
                name: condition.drop(known[name], dropped) for name, condition in self.told.items()
            }
        if self.augmentation is not None:
            augmentation_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 2)
            augmented = jax.vmap(self.augmentation)(augmentation_keys, batch["image"])
            prepared["image"], prepared["augment_labels"] = augmented
        draws = self.objective.draw(objective_keys, prepared["image"], state)
        prepared.update(draws._asdict())
        if self.coupling == coupling.OPTIMAL:
            prepared["noise"] = coupling.optimal_noise(prepared["image"], draws.noise)
        return prepared

    def loss(self, params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """The mean loss of a batch, and what is reported of it as name -> (values [B], weights [B]).

        A batch that has not been prepared is taken for a whole one, before anything was remembered.
        """
        del step
        if "noise" not in batch:
            batch = self.prepare(self.init_state(), batch, key)
        told = arguments(self.told, batch.get("condition", {}))
        if self.augmentation is not None:
            told["augment_labels"] = batch["augment_labels"]
        dropout = {"dropout": jax.random.fold_in(example_keys(key, batch)[0], 1)}

        def network(x: jax.Array, t: jax.Array) -> jax.Array:
            return self.network.apply({"params": params}, x, t, train=True, rngs=dropout, **told)  # pyright: ignore

        def log_variance(t: jax.Array) -> jax.Array:
            return self.network.apply({"params": params}, t, method="log_variance")  # pyright: ignore

        uncertainty = log_variance if self.adaptive_weighting else None
        loss = self.objective.at(network, batch["image"], batch["noise"], batch["time"], uncertainty)
        importance = batch["importance"]
        metrics = {"loss": (loss, importance)}
        metrics |= by_noise_level("loss", loss, importance, batch["quantile"])
        return jnp.mean(loss * importance), metrics

    def update_state(self, state: Any, batch: Batch, metrics: Metrics) -> Any:
        """What is remembered after an update, from the losses of its examples."""
        return self.objective.update_state(state, batch["time"], metrics["loss"][0])

    @property
    def num_classes(self) -> int | None:
        """Of the labels that the network is told, where the next one stands for "no class"; None if it is told none."""
        label = self.told.get(LABEL)
        return label.num_classes if isinstance(label, Label) else None

    @property
    def conditions(self) -> Conditions:
        """What samples can be asked for: what the network is told, and the class by the classifier that guides it."""
        classifier: Any = self.guidance.classifier
        return self.told if classifier is None else {**self.told, LABEL: Label(classifier.num_classes)}

    def frames(self, count: int) -> tuple[int, list[str]]:
        """(stride, captions) of about `count` states of the reverse process."""
        steps = self.sampler.num_evaluations
        stride = max(1, steps // count)
        timesteps = self.sampler.timesteps[np.minimum(samplers.frames_kept(steps, stride), steps - 1)]
        return stride, [f"t = {t:.0f}" for t in timesteps[:-1]] + ["image"]

    def draw(
        self, params: Any, keys: jax.Array, condition: Any, given: Any, frame_stride: int | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """`sample`, with what guides it by name in `given`."""
        return self.sample(params, keys, condition, trajectory_stride=frame_stride, **given)

    def sample(
        self,
        params: Any,
        keys: jax.Array,
        condition: Mapping[str, Any],
        guidance_scale: jax.Array | None = None,
        trajectory_stride: int | None = None,
        guide_params: Any = None,
        classifier_params: Any = None,
        classifier_scale: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Images float32 [N, H, W, C] in [-1, 1], image i from keys[i] alone.

        Args:
          params: of the network, usually the EMA's.
          keys: [N] PRNG keys.
          condition: what each image is asked for, name -> a tree of [N, ...]; {} of an unconditional network without a
            classifier.
          guidance_scale: scalar; None evaluates the network alone, without the null condition or the guide.
          trajectory_stride: also return every so many states of the reverse process [frames, N, H, W, C].
          guide_params: of `guidance.guide`, if there is one.
          classifier_params, classifier_scale: of `guidance.classifier`, if there is one; a scale of 0 is no guidance.
        """

        channels, labels = self.image_shape[-1], condition.get(LABEL)
        told = arguments(self.told, condition)

        def predict(x: jax.Array, t: jax.Array, told: Mapping[str, Any]) -> jax.Array:
            output: Any = self.network.apply({"params": params}, x, t, **told)
            return output if self.sampler.learned_variance else output[..., :channels]

        def weak(x: jax.Array, t: jax.Array) -> jax.Array:
            known = told if self.guidance.guide_is_conditional else {}
            return self.guidance.guide.apply({"params": guide_params}, x, t, **known)  # pyright: ignore

        x_T = samplers.initial_noise(self.sampler, keys, self.image_shape)
        interval = interval_in_timesteps(self.guidance.interval, self.objective.process, self.objective.prediction)
        how = (self.guidance.channels or channels, interval, self.guidance.rescale)
        denoise = guidance.conditional(predict, told)
        if guidance_scale is not None and self.guidance.guide is not None:
            denoise = guidance.autoguidance(denoise, weak, guidance_scale, *how)
        elif guidance_scale is not None and told:
            null = arguments(self.told, nulls(self.told, len(keys)))
            denoise = guidance.classifier_free(predict, told, null, guidance_scale, *how)
        sampler, tilt = self.sampler, None
        if self.guidance.classifier is not None and labels is not None and classifier_scale is not None:
            log_probability = log_probability_of(self.guidance.classifier, classifier_params, labels)
            if sampler.has_variance:
                tilt = guidance.classifier_gradient(log_probability, classifier_scale)
            else:
                process, prediction = self.objective.process, self.objective.prediction
                denoise = guidance.classifier(
                    denoise, log_probability, classifier_scale, process, prediction, sampler.clip
                )
                if sampler.clip is not None:
                    sampler = dataclasses.replace(sampler, clip=None)
        x, trajectory = samplers.sample(
            sampler,
            denoise,
            x_T,
            key=keys,
            return_trajectory=trajectory_stride is not None,
            trajectory_stride=trajectory_stride or 1,
            tilt=tilt,
        )
        return x if self.clip is None else jnp.clip(x, -self.clip, self.clip), trajectory

"""Pixel-space diffusion as a method: what the one training loop and the sampling job need to know."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.diffusion import coupling, guidance, samplers
from diffusion_jax.diffusion.objective import Objective
from diffusion_jax.methods.augmentation import Augmentation
from diffusion_jax.methods.diffusion.guiding import Guidance, interval_in_timesteps, log_probability_of
from diffusion_jax.methods.examples import Batch, Metrics, by_noise_level, example_keys


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """A denoising network, how it is trained and how it is sampled.

    Attributes:
      network: called as network(sample, timestep, class_labels, train) -> raw output; with augment_labels [B, 9] too if
        images are augmented, and with a method log_variance(timestep) -> [B] if the weighting is adaptive.
      objective: the loss on the raw output.
      sampler: the table of steps that `sample` runs.
      image_shape: (height, width, channels).
      num_classes: None for an unconditional network; otherwise the label num_classes stands for "no class".
      label_dropout: share of training examples whose label is dropped, which is what classifier-free guidance needs.
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
    num_classes: int | None = None
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
        labels = None if self.num_classes is None else jnp.zeros(1, jnp.int32)
        return self.network.init(key, image, jnp.zeros(1, jnp.int32), labels)["params"]

    def init_state(self) -> Any:
        """What the objective's time sampler remembers; () if there is none."""
        return self.objective.init_state()

    def prepare(self, state: Any, batch: Batch, key: jax.Array) -> Batch:
        """The batch with everything drawn that the network will see: labels dropped, images augmented, times and noise.

        batch: "image" float [B, H, W, C] in [-1, 1], "label" int32 [B], "position" int32 [B], the place of each example
        in the global batch, from which its randomness follows. Only what the whole batch decides needs the whole of it:
        the coupling of noise and images, and the losses that times are drawn by.
        """
        keys = example_keys(key, batch)
        objective_keys, label_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        prepared = dict(batch)
        if self.num_classes is not None:
            dropped = jax.vmap(lambda k: jax.random.bernoulli(k, self.label_dropout))(label_keys)
            prepared["label"] = jnp.where(dropped, self.num_classes, batch["label"])
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
        labels = None if self.num_classes is None else batch["label"]
        told = {"augment_labels": batch["augment_labels"]} if self.augmentation is not None else {}
        dropout = {"dropout": jax.random.fold_in(example_keys(key, batch)[0], 1)}

        def network(x: jax.Array, t: jax.Array) -> jax.Array:
            return self.network.apply({"params": params}, x, t, labels, True, rngs=dropout, **told)  # pyright: ignore

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
    def num_requests(self) -> int | None:
        """How many classes samples can be asked to be of, by the network or by the classifier that guides it."""
        classifier: Any = self.guidance.classifier
        return self.num_classes if classifier is None else classifier.num_classes

    def frames(self, count: int) -> tuple[int, list[str]]:
        """(stride, captions) of about `count` states of the reverse process."""
        steps = self.sampler.num_evaluations
        stride = max(1, steps // count)
        timesteps = self.sampler.timesteps[np.minimum(samplers.frames_kept(steps, stride), steps - 1)]
        return stride, [f"t = {t:.0f}" for t in timesteps[:-1]] + ["image"]

    def draw(
        self, params: Any, keys: jax.Array, labels: jax.Array | None, given: Any, frame_stride: int | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """`sample`, with what guides it by name in `given`."""
        return self.sample(params, keys, labels, trajectory_stride=frame_stride, **given)

    def sample(
        self,
        params: Any,
        keys: jax.Array,
        labels: jax.Array | None,
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
          labels: int32 [N], None for an unconditional network without a classifier.
          guidance_scale: scalar; None evaluates the network alone, without the null class or the guide.
          trajectory_stride: also return every so many states of the reverse process [frames, N, H, W, C].
          guide_params: of `guidance.guide`, if there is one.
          classifier_params, classifier_scale: of `guidance.classifier`, if there is one; a scale of 0 is no guidance.
        """

        channels = self.image_shape[-1]

        def predict(x: jax.Array, t: jax.Array, condition: jax.Array | None) -> jax.Array:
            output: Any = self.network.apply({"params": params}, x, t, condition)
            return output if self.sampler.learned_variance else output[..., :channels]

        def weak(x: jax.Array, t: jax.Array) -> jax.Array:
            condition = labels if self.guidance.guide_is_conditional else None
            return self.guidance.guide.apply({"params": guide_params}, x, t, condition)  # pyright: ignore

        x_T = samplers.initial_noise(self.sampler, keys, self.image_shape)
        interval = interval_in_timesteps(self.guidance.interval, self.objective.process, self.objective.prediction)
        how = (self.guidance.channels or channels, interval, self.guidance.rescale)
        denoise = guidance.conditional(predict, None if self.num_classes is None else labels)
        if guidance_scale is not None and self.guidance.guide is not None:
            denoise = guidance.autoguidance(denoise, weak, guidance_scale, *how)
        elif guidance_scale is not None and self.num_classes is not None and labels is not None:
            null = jnp.full_like(labels, self.num_classes)
            denoise = guidance.classifier_free(predict, labels, null, guidance_scale, *how)
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

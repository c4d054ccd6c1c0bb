"""Two networks that play against each other, as the training loop and the sampling job need them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.conditions.condition import Conditions
from diffusion_jax.conditions.label import Label
from diffusion_jax.data.source import LABEL
from diffusion_jax.methods import latent_walk
from diffusion_jax.methods.examples import Batch, Metrics, example_keys
from diffusion_jax.methods.gan import penalties
from diffusion_jax.methods.gan.adaptive import AdaptiveAugmentation, Strength
from diffusion_jax.methods.gan.losses import Game
from diffusion_jax.turn import Turn

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
# Points of a latent walk, of which frames are every so many.
_WALK = 64
# Share of a new mean length of paths in the one that is remembered (Karras et al. 2020, appendix B).
_LENGTH_DECAY = 0.01
# Names of what `prepare` adds to a batch, [B], and `update_state` reads from the metrics.
_PROBABILITY, _MEAN_LENGTH = "augmentation_probability", "mean_path_length"
_VERDICT, _LENGTH = "verdict_sign", "path_length"


class Memory(NamedTuple):
    """What is remembered from update to update.

    Attributes:
      augmentation: how strong it is, and the verdicts since that was last changed.
      path_length: float32 scalar, the mean length of paths.
    """

    augmentation: Strength
    path_length: jax.Array


@dataclasses.dataclass(frozen=True)
class Weights:
    """How much what is added to the game weighs, and how often: see `settings.Settings`."""

    r1: float = 0.0
    r2: float = 0.0
    gradient_penalty: float = 0.0
    penalties_every: int = 1
    path_length: float = 0.0
    path_length_every: int = 4
    generator_every: int = 1

    @property
    def has_penalties(self) -> bool:
        """Whether the discriminator's gradients cost anything."""
        return any((self.r1, self.r2, self.gradient_penalty))


@dataclasses.dataclass(frozen=True)
class GAN:
    """A generator and a discriminator, how they are trained in turns, and how images are drawn.

    Attributes:
      network: the generator, a `latent_networks.Generator`.
      discriminator: called as discriminator(image, class_labels) -> logits [B].
      game: the two losses.
      image_shape: (height, width, channels).
      num_classes: None without classes.
      weights: of penalties and of the length of paths.
      augmentation: of real and generated images, alike.
    """

    network: Any
    discriminator: nn.Module
    game: Game
    image_shape: tuple[int, int, int]
    num_classes: int | None = None
    weights: Weights = dataclasses.field(default_factory=Weights)
    augmentation: AdaptiveAugmentation = dataclasses.field(default_factory=AdaptiveAugmentation)

    drawn_with = GENERATOR

    def init(self, key: jax.Array, batch: Batch) -> dict[str, Any]:
        """The parameters of both, for images like those of `batch`."""
        image = jnp.zeros((1, *self.image_shape), batch["image"].dtype)
        labels = None if self.num_classes is None else jnp.zeros(1, jnp.int32)
        keys = jax.random.split(key)
        latent = jnp.zeros((1, self.network.latent_dim))
        return {
            GENERATOR: self.network.init(keys[0], latent, labels)["params"],
            DISCRIMINATOR: self.discriminator.init(keys[1], image, labels)["params"],
        }

    @property
    def turns(self) -> Sequence[Turn]:
        """The discriminator's, the penalties' where they have one of their own, the generator's, the paths'."""
        weights = self.weights
        turns = [Turn("discriminator", DISCRIMINATOR, self.discriminator_loss)]
        if weights.has_penalties and weights.penalties_every > 1:
            turns.append(Turn("penalties", DISCRIMINATOR, self.penalties_loss, weights.penalties_every))
        turns.append(Turn("generator", GENERATOR, self.generator_loss, weights.generator_every))
        if weights.path_length:
            turns.append(Turn("path_length", GENERATOR, self.path_length_loss, weights.path_length_every))
        return turns

    def init_state(self) -> Memory:
        """What is remembered before the first update."""
        return Memory(self.augmentation.begin(), jnp.zeros(()))

    def prepare(self, state: Memory, batch: Batch, key: jax.Array) -> Batch:
        """The batch with what is remembered beside every example."""
        del key
        rows = len(batch["image"])
        return {
            **batch,
            _PROBABILITY: jnp.broadcast_to(state.augmentation.probability, rows),
            _MEAN_LENGTH: jnp.broadcast_to(state.path_length, rows),
        }

    def update_state(self, state: Memory, batch: Batch, metrics: Metrics) -> Memory:
        """What is remembered after an update, from the verdicts on its real images and its lengths of paths."""
        del batch
        length = state.path_length
        if _LENGTH in metrics:
            lengths, taken = metrics[_LENGTH]
            length += _LENGTH_DECAY * jnp.mean(taken * (lengths - length))
        return Memory(self.augmentation.adapt(state.augmentation, metrics[_VERDICT][0]), length)

    def discriminator_loss(
        self, params: Any, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The discriminator's side of the game, with the penalties where they are of every update."""
        del step
        batch, keys = self._begin(batch, key, 0)
        fake = self._generated(params, batch, keys)
        judge_real, judge_fake = (self._judge(params, batch, keys, side) for side in (0, 1))
        weights, is_penalised = self.weights, self.weights.penalties_every == 1
        real_logits, r1 = _judged(judge_real, batch["image"], is_penalised and weights.r1 > 0)
        fake_logits, r2 = _judged(judge_fake, fake, is_penalised and weights.r2 > 0)
        losses = self.game.discriminator(real_logits, fake_logits)
        metrics = {"logits_real": real_logits, "logits_fake": fake_logits}
        metrics[_VERDICT] = jnp.sign(real_logits - fake_logits if self.game.is_relative else real_logits)
        if not self.augmentation.is_off:
            metrics[_PROBABILITY] = batch[_PROBABILITY]
        if is_penalised:
            penalised, found = self._penalties(params, batch, keys, r1, r2, fake)
            losses, metrics = losses + penalised, {**metrics, **found}
        return jnp.mean(losses), _each(metrics)

    def penalties_loss(self, params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """The penalties alone, as many times as strong as they are rarer (Karras et al. 2020, section 3.1)."""
        del step
        (batch, keys), weights = self._begin(batch, key, 1), self.weights
        fake = self._generated(params, batch, keys)
        judge_real, judge_fake = (self._judge(params, batch, keys, side) for side in (0, 1))
        r1 = penalties.logits_and_slopes(judge_real, batch["image"])[1] if weights.r1 else None
        r2 = penalties.logits_and_slopes(judge_fake, fake)[1] if weights.r2 else None
        penalised, metrics = self._penalties(params, batch, keys, r1, r2, fake)
        return weights.penalties_every * jnp.mean(penalised), _each(metrics)

    def generator_loss(self, params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """The generator's side of the game."""
        del step
        batch, keys = self._begin(batch, key, 2)
        fake = self._generated(params, batch, keys)
        real_logits = self._judge(params, batch, keys, 0)(batch["image"])
        fake_logits = self._judge(params, batch, keys, 1)(fake)
        return jnp.mean(self.game.generator(real_logits, fake_logits)), {}

    def path_length_loss(self, params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """How far paths' lengths are from their mean, squared."""
        del step
        (batch, keys), weights = self._begin(batch, key, 3), self.weights
        styles = self._style(params[GENERATOR], keys, self._labels(batch))

        def generate(styles: jax.Array) -> jax.Array:
            return self._apply(params[GENERATOR], styles, _folded(keys, 1), method="synthesize")

        height, width, _ = self.image_shape
        directions = _normal(_folded(keys, 2), self.image_shape) / (height * width) ** 0.5
        lengths = penalties.path_lengths(generate, styles, directions)
        penalised = penalties.path_length_penalty(lengths, batch[_MEAN_LENGTH])
        factor = weights.path_length * weights.path_length_every
        return factor * jnp.mean(penalised), _each({_LENGTH: lengths})

    @property
    def conditions(self) -> Conditions:
        """The class, if the networks are told of it."""
        return {} if self.num_classes is None else {LABEL: Label(self.num_classes)}

    def frames(self, count: int) -> tuple[int, list[str]]:
        """(stride, captions) of about `count` images on a walk from other latents."""
        stride = max(1, _WALK // count)
        return stride, [f"{place / _WALK:.0%}" for place in _places(stride)[:-1]] + ["image"]

    def draw(
        self, params: Any, keys: jax.Array, condition: Mapping[str, Any], given: Any, frame_stride: int | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """See `methods.method.Drawing`; params are the generator's.

        given: "truncation", scalar, and "mean_styles" [classes, D], [1, D] without classes; {} for no truncation.
        """
        latents, labels = _normal(_folded(keys, 0), (self.network.latent_dim,)), condition.get(LABEL)

        def images(latents: jax.Array) -> jax.Array:
            styles = self._apply(params, latents, labels, method="style")
            if given:
                middle = given["mean_styles"][jnp.zeros(len(keys), jnp.int32) if labels is None else labels]
                styles = middle + given["truncation"] * (styles - middle)
            drawn = self._apply(params, styles, _folded(keys, 1), method="synthesize")
            return jnp.clip(drawn.astype(jnp.float32), -1, 1)

        if frame_stride is None:
            return images(latents), None
        others = _normal(_folded(keys, 2), (self.network.latent_dim,))
        walk = latent_walk.spherical(others, latents, _WALK + 1)[jnp.array(_places(frame_stride)[:-1])]
        drawn = images(latents)
        return drawn, jnp.concatenate([jax.lax.map(images, walk), drawn[None]])

    def mean_styles(self, params: Any, key: jax.Array, count: int) -> jax.Array:
        """The mean style of `count` latents for each class [classes, D], [1, D] without: what truncation is towards."""
        latents = jax.random.normal(key, (count, self.network.latent_dim))

        def of_class(label: jax.Array) -> jax.Array:
            labels = None if self.num_classes is None else jnp.full(count, label)
            return self._apply(params, latents, labels, method="style").mean(0)

        return jax.lax.map(of_class, jnp.arange(self.num_classes or 1))

    def _begin(self, batch: Batch, key: jax.Array, turn: int) -> tuple[Batch, jax.Array]:
        """(the batch, a key [B] for each example that is another one in each turn).

        A batch that has not been prepared is taken for one before anything was remembered.
        """
        if _PROBABILITY not in batch:
            batch = self.prepare(self.init_state(), batch, key)
        return batch, example_keys(jax.random.fold_in(key, turn), batch)

    def _labels(self, batch: Batch) -> jax.Array | None:
        return None if self.num_classes is None else batch["condition"][LABEL]

    def _apply(self, params: Any, *arguments: Any, method: str) -> jax.Array:
        return self.network.apply({"params": params}, *arguments, method=method)

    def _style(self, params: Any, keys: jax.Array, labels: jax.Array | None) -> jax.Array:
        return self._apply(params, _normal(_folded(keys, 0), (self.network.latent_dim,)), labels, method="style")

    def _generated(self, params: Any, batch: Batch, keys: jax.Array) -> jax.Array:
        styles = self._style(params[GENERATOR], keys, self._labels(batch))
        return self._apply(params[GENERATOR], styles, _folded(keys, 1), method="synthesize")

    def _judge(self, params: Any, batch: Batch, keys: jax.Array, side: int) -> penalties.Discriminator:
        """The discriminator of images as they are before augmentation; side: 0 for real ones, 1 for generated ones."""

        def judge(images: jax.Array) -> jax.Array:
            if not self.augmentation.is_off:
                images = jax.vmap(self.augmentation.augment)(_folded(keys, 3 + side), images, batch[_PROBABILITY])
            return self.discriminator.apply(  # pyright: ignore[reportReturnType]
                {"params": params[DISCRIMINATOR]}, images, self._labels(batch)
            )

        return judge

    def _penalties(
        self,
        params: Any,
        batch: Batch,
        keys: jax.Array,
        r1: jax.Array | None,
        r2: jax.Array | None,
        fake: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(what they cost [B], what is reported of them [B])."""
        found, weights = {}, self.weights
        total = jnp.zeros(len(fake))
        if r1 is not None:
            found["r1"], total = r1, total + weights.r1 / 2 * r1
        if r2 is not None:
            found["r2"], total = r2, total + weights.r2 / 2 * r2
        if weights.gradient_penalty:
            shares = jax.vmap(jax.random.uniform)(_folded(keys, 5))
            judge = self._judge(params, batch, keys, 0)
            slopes = penalties.gradient_penalty(judge, batch["image"], fake, shares)
            found["gradient_penalty"], total = slopes, total + weights.gradient_penalty * slopes
        return total, found


def _judged(judge: penalties.Discriminator, images: jax.Array, with_slopes: bool) -> tuple[jax.Array, jax.Array | None]:
    return penalties.logits_and_slopes(judge, images) if with_slopes else (judge(images), None)


def _folded(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _places(stride: int) -> list[int]:
    """The points of a walk that are shown, its end among them."""
    return [*range(0, _WALK, stride), _WALK]


def _each(values: dict[str, jax.Array]) -> Metrics:
    return {name: (value, jnp.ones_like(value)) for name, value in values.items()}

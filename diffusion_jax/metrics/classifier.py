"""A small classifier, trained in seconds, that reads the class of an image and gives features to compare.

For data sets on which Inception's features mean little (8x8 digits, logos). Its network, its training set and
its seed belong beside every value computed with it.
"""

import dataclasses
import functools
import math
import sys
from typing import Any

import jax
import numpy as np
import optax
import tqdm
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike, NDArray

from diffusion_jax import batching
from diffusion_jax.metrics import devices
from diffusion_jax.metrics.pixels import average_down, checked_images

FEATURES = 64
# Larger images are averaged down to this side: enough to tell classes apart, and seconds to train on two CPU
# cores.
LARGEST_SIDE = 32
# Convolutions halve the image until it is this small.
_SMALLEST_SIDE = 4
# Up to this side the first convolution keeps the size; it would take most of the time of a larger image.
_SMALL_SIDE = 16
# How much training few images get, whatever their size.
_MOST_EPOCHS, _LEAST_STEPS = 100, 60
_EVALUATION_BATCH = 512


class ClassifierNetwork(nn.Module):
    """Convolutions down to 4x4, `FEATURES` features, and logits that are linear in their GELU.

    __call__: images float [N, H, W, C] in [-1, 1] -> (features [N, 64], logits [N, num_classes]).
    """

    num_classes: int
    dropout: float = 0.3

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        side = max(images.shape[1:3])
        strides = [1 if side <= _SMALL_SIDE else 2]
        strides += [2] * max(0, math.ceil(math.log2(side / strides[0] / _SMALLEST_SIDE)))
        x = images
        for level, stride in enumerate(strides):
            x = nn.gelu(nn.Conv(min(32 * 2**level, 128), (3, 3), strides=stride, precision="highest")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(len(x), -1))
        features = nn.Dense(FEATURES, precision="highest", name="features")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.gelu(features))
        return features, nn.Dense(self.num_classes, precision="highest", name="logits")(x)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained classifier of uint8 images [N, H, W, C] of the size that it was trained on.

    Attributes:
      network, params: the Flax module and its parameters.
      image_shape: (H, W, C) of the images that it reads.
      description: JSON-able facts of its training (images, steps, batch size, shifts, seed) for protocols.
      mesh: whose devices share the images that it reads; where they are of several processes, all have to call it, with
        the same images. None for the default device alone.
    """

    network: ClassifierNetwork
    params: Any
    image_shape: tuple[int, int, int]
    description: dict[str, int | float]
    mesh: Mesh | None = None

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    def features(self, images: ArrayLike) -> NDArray[np.float32]:
        """Features [N, 64], before the last nonlinearity; raises ValueError for images of another shape."""
        return self._forward(images)[0]

    def logits(self, images: ArrayLike) -> NDArray[np.float32]:
        """Unnormalised log-probabilities [N, num_classes]."""
        return self._forward(images)[1]

    def classify(self, images: ArrayLike) -> NDArray[np.int32]:
        """The likeliest class of each image [N]."""
        return self.logits(images).argmax(axis=1).astype(np.int32)

    def accuracy(self, images: ArrayLike, labels: ArrayLike) -> float:
        """The share of images that are read as their label [N]."""
        return float((self.classify(images) == np.asarray(labels)).mean())

    def _forward(self, images: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        images = checked_images(images, "images")
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"the classifier reads images {self.image_shape}, got {images.shape[1:]}")
        whole = None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())
        size = _EVALUATION_BATCH if self.mesh is None else devices.rounded_up(_EVALUATION_BATCH, self.mesh)

        def of_batch(batch: NDArray[np.uint8]) -> Any:
            inputs = _network_input(batch)
            placed = inputs if self.mesh is None else devices.split_rows(self.mesh, inputs)
            return _apply(self.network, whole, self.params, placed)

        return batching.mapped(of_batch, images, size)


def train_classifier(
    images: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float = 3e-3,
    label_smoothing: float = 0.05,
) -> Classifier:
    """Trains a classifier on the training split; the same arguments give the same parameters.

    AdamW with one cycle of the learning rate; images are shifted by up to 1/8 of their side (at most 2
    pixels), never flipped or turned, which would change the class of a digit or a letter.

    Args:
      images: uint8 [N, H, W, C].
      labels: integers [N] from 0 to num_classes - 1.
      num_classes: of the data set, whether or not all of them occur.
      seed: of the parameters, the batches, the shifts and the dropout.
      steps, batch_size: 400 of 64 images for sides up to 16 pixels, 1200 of 128 beyond, unless given; of few images
        so many steps that each is seen 100 times.
      learning_rate: the largest one.
      label_smoothing: probability spread over all classes in the target, which keeps the features of images
        seen in training comparable with those of new ones.

    Raises:
      ValueError: images that are not uint8 [N, H, W, C], labels that do not fit, or a value out of range.
    """
    images = checked_images(images, "images")
    labels = _checked_labels(labels, len(images), num_classes)
    small = max(images.shape[1:3]) <= _SMALL_SIDE
    batch_size = min(64 if small else 128, len(images)) if batch_size is None else batch_size
    if steps is None:
        enough = max(_LEAST_STEPS, -(-_MOST_EPOCHS * len(images) // max(batch_size, 1)))
        steps = min(400 if small else 1200, enough)
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")

    inputs = _network_input(images)
    shift = min(2, max(inputs.shape[1:3]) // 8)
    network = ClassifierNetwork(num_classes)
    key = jax.random.key(seed)
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, learning_rate), weight_decay=1e-2)
    generator = np.random.default_rng(seed)
    params = _initial_params(network, inputs[:1], generator)
    opt_state = jax.jit(optimizer.init)(params)

    # A Python loop, because XLA runs convolutions inside a compiled loop several times slower on the CPU.
    @jax.jit
    def update(params: Any, opt_state: Any, batch: jax.Array, targets: jax.Array, key: jax.Array) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            logits: Any = network.apply({"params": params}, batch, train=True, rngs={"dropout": key})[1]
            smoothed = optax.smooth_labels(jax.nn.one_hot(targets, num_classes), label_smoothing)
            return optax.softmax_cross_entropy(logits, smoothed).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    title = "classifier of the scores"
    for step in tqdm.tqdm(range(steps), title, unit="step", file=sys.stderr, disable=not sys.stderr.isatty()):
        chosen = generator.integers(len(inputs), size=batch_size)
        batch = _shifted(inputs[chosen], generator.integers(0, 2 * shift + 1, size=(batch_size, 2)), shift)
        params, opt_state = update(params, opt_state, batch, labels[chosen], jax.random.fold_in(key, step))

    description: dict[str, int | float] = {
        "training_images": len(images),
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "label_smoothing": label_smoothing,
        "shift_pixels": shift,
        "seed": seed,
    }
    height, width, channels = images.shape[1:]
    return Classifier(network, jax.block_until_ready(params), (height, width, channels), description)


def _network_input(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return average_down(images, LARGEST_SIDE) / np.float32(127.5) - np.float32(1)


def _initial_params(network: ClassifierNetwork, inputs: NDArray[np.float32], generator: np.random.Generator) -> Any:
    """Normal kernels of variance 1 / fan-in, zero biases; by NumPy, as XLA takes seconds to compile this."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), inputs)["params"]

    def draw(leaf: jax.ShapeDtypeStruct) -> NDArray[np.float32]:
        if len(leaf.shape) == 1:
            return np.zeros(leaf.shape, np.float32)
        return generator.standard_normal(leaf.shape, np.float32) / np.float32(math.sqrt(math.prod(leaf.shape[:-1])))

    return jax.tree.map(draw, shapes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(
    network: ClassifierNetwork, whole: NamedSharding | None, params: Any, batch: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    outputs: Any = network.apply({"params": params}, batch)  # pyright: ignore[reportArgumentType]
    return outputs if whole is None else jax.lax.with_sharding_constraint(outputs, whole)


def _shifted(batch: NDArray[np.float32], offsets: NDArray[np.int64], shift: int) -> NDArray[np.float32]:
    """Each image moved by its offset (0 to 2 shift, `shift` being none), its border pixels repeated."""
    padded = np.pad(batch, [(0, 0), (shift, shift), (shift, shift), (0, 0)], mode="edge")
    rows = offsets[:, 0, None] + np.arange(batch.shape[1])
    columns = offsets[:, 1, None] + np.arange(batch.shape[2])
    return padded[np.arange(len(batch))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _checked_labels(labels: ArrayLike, count: int, num_classes: int) -> NDArray[np.int32]:
    array = np.asarray(labels)
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels must be integers [{count}], one for each image, got {array.dtype} {array.shape}")
    if count == 0:
        raise ValueError("there are no images to train a classifier on")
    if array.min() < 0 or array.max() >= num_classes:
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, got {array.min()} to {array.max()}")
    return array.astype(np.int32)

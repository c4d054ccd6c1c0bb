"""Images with labels: sources (`load_source`), batches to train on (`train_iterator`), whole splits (`load_arrays`)."""

from diffusion_jax.data.images import to_float, to_uint8
from diffusion_jax.data.pipeline import TrainIterator, train_iterator
from diffusion_jax.data.source import ArraySource, Source, batches, load_arrays, spaced
from diffusion_jax.data.sources import load_source

__all__ = [
    "ArraySource",
    "Source",
    "TrainIterator",
    "batches",
    "load_arrays",
    "load_source",
    "spaced",
    "to_float",
    "to_uint8",
    "train_iterator",
]

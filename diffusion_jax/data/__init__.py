"""Images with labels: sources (`load_source`), training batches (`train_iterator`), whole splits (`load_arrays`)."""

from diffusion_jax.data.images import to_float, to_uint8
from diffusion_jax.data.pipeline import TrainIterator, train_iterator
from diffusion_jax.data.source import ArraySource, Source, load_arrays
from diffusion_jax.data.sources import load_source

__all__ = [
    "ArraySource",
    "Source",
    "TrainIterator",
    "load_arrays",
    "load_source",
    "to_float",
    "to_uint8",
    "train_iterator",
]

"""Images and what is known of them: sources (`load_source`), training batches (`train_iterator`), whole splits."""

from diffusion_jax.data.images import to_float, to_uint8
from diffusion_jax.data.pipeline import TrainIterator, train_iterator
from diffusion_jax.data.source import ArraySource, Source, batches, gather, load_arrays, spaced
from diffusion_jax.data.sources import load_source

__all__ = [
    "ArraySource",
    "Source",
    "TrainIterator",
    "batches",
    "gather",
    "load_arrays",
    "load_source",
    "spaced",
    "to_float",
    "to_uint8",
    "train_iterator",
]

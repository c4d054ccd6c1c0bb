"""Other frameworks' files without other frameworks: tensors and plain containers, and nothing that could run."""

from diffusion_jax.readers.errors import ReadError
from diffusion_jax.readers.read import read_tensors, read_tree

__all__ = ["ReadError", "read_tensors", "read_tree"]

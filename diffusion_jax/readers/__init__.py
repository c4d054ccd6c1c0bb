"""Other frameworks' files without other frameworks: tensors and plain containers, and nothing that could run."""

from diffusion_jax.readers.archives import Npz
from diffusion_jax.readers.documents import parse_json, parse_object, read_json, read_object, read_rows
from diffusion_jax.readers.errors import ReadError, decoding, few, one_line, reason
from diffusion_jax.readers.read import read_tensors, read_tree

__all__ = [
    "Npz",
    "ReadError",
    "decoding",
    "few",
    "one_line",
    "parse_json",
    "parse_object",
    "read_json",
    "read_object",
    "read_rows",
    "read_tensors",
    "read_tree",
    "reason",
]

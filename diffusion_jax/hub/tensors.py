"""Between a parameter tree and the named tensors of a PyTorch state dict.

A format describes itself as a list of :class:`Tensor`: name and shape in the file, the parameters it holds, and
the two conversions. Loading and saving are then the same few lines for every network, and so are the errors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.readers import few

Path = tuple[str, ...]
Shapes = Mapping[Path, tuple[int, ...]]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file and the parameters stored in it (several where the file fuses them; none for a constant,
    which is optional in files that are read).
    """

    name: str
    shape: tuple[int, ...]
    paths: tuple[Path, ...]
    unpack: Callable[[np.ndarray], Sequence[np.ndarray]]
    pack: Callable[[Sequence[np.ndarray]], np.ndarray]
    optional: bool = False


def parameter(name: str, path: Path, shape: tuple[int, ...], extra_axes: int = 0) -> Tensor:
    """A parameter that the file holds alone, in PyTorch's axis order.

    Convolutions are HWIO here and OIHW there, matrices transposed; vectors and embeddings are the same.
    ``extra_axes`` counts axes of length one behind a matrix (a 1x1 convolution that is a dense layer here).
    """
    if path[-1] == "kernel":
        order = (*range(len(shape) - 1, len(shape) - 3, -1), *range(len(shape) - 2))
    else:
        order = tuple(range(len(shape)))
    there = (*(shape[axis] for axis in order), *(1,) * extra_axes)
    inverse = tuple(int(axis) for axis in np.argsort(order))

    def unpack(tensor: np.ndarray) -> Sequence[np.ndarray]:
        return (tensor.reshape(there[: len(shape)]).transpose(inverse),)

    def pack(values: Sequence[np.ndarray]) -> np.ndarray:
        return values[0].transpose(order).reshape(there)

    return Tensor(name, there, (path,), unpack, pack)


def as_stored(name: str, path: Path, shape: tuple[int, ...]) -> Tensor:
    """A parameter whose axes have the same order in the file."""
    return Tensor(name, shape, (path,), lambda tensor: (tensor,), lambda values: values[0])


def fused_attention(
    name: str, paths: tuple[Path, ...], shape: tuple[int, ...], heads: int, axis: int, extra_axes: int
) -> Tensor:
    """Query, key and value, three dense layers here, as one tensor with 3C output channels.

    Args:
      name: of the tensor.
      paths: of the three parameters, kernels [in, C] or biases [C].
      shape: of each.
      heads: attention heads in C.
      axis: where "query, key or value" stands among (head, width within the head) in the order of the file's
        channels: 0, 1 or 2.
      extra_axes: axes of length one behind a kernel (1x1 convolutions).
    """
    inner = shape[:-1]
    sizes = [heads, shape[-1] // heads]
    sizes.insert(axis, len(paths))
    there = (len(paths) * shape[-1], *inner, *(1,) * (extra_axes if inner else 0))

    def unpack(tensor: np.ndarray) -> Sequence[np.ndarray]:
        parts = np.moveaxis(tensor.reshape(*sizes, *inner), axis, 0)
        return [part.reshape(shape[-1], *inner).T for part in parts]

    def pack(values: Sequence[np.ndarray]) -> np.ndarray:
        parts = [value.T.reshape(heads, -1, *inner) for value in values]
        return np.stack(parts, axis=axis).reshape(there)

    return Tensor(name, there, paths, unpack, pack)


def leaf_name(path: Path) -> str:
    """PyTorch's name of a parameter's last component."""
    return "bias" if path[-1] == "bias" else "weight"


def flatten(params: Any) -> dict[Path, Any]:
    """{path: leaf} of a nested dictionary of arrays (or of shapes)."""
    leaves, _ = jax.tree.flatten_with_path(params)
    return {tuple(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def to_params(
    layout: Iterable[Tensor], tensors: dict[str, np.ndarray], *, where: str, dtype: DTypeLike = "float32"
) -> dict[str, Any]:
    """The parameter tree from the tensors of a file.

    Args:
      layout: the tensors that the network needs.
      tensors: the tensors that there are; emptied on the way, so that not all are held twice.
      where: the file or folder, for the error.
      dtype: of the parameters.

    Raises:
      CheckpointError: counting the missing, left-over and wrongly shaped tensors, and naming the first of each.
    """
    wanted = {tensor.name: tensor for tensor in layout}
    missing = [name for name, tensor in wanted.items() if name not in tensors and not tensor.optional]
    left_over = [name for name in tensors if name not in wanted]
    wrong = [
        f"{name} is {list(tensors[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} {what}: {few(names, 80)}"
        for what, names in (("missing", missing), ("left over", left_over), ("of the wrong shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(f"{where}: the tensors do not fit config.json; {'; '.join(problems)}")
    leaves: dict[Path, np.ndarray] = {}
    kind = jnp.dtype(dtype)
    for name, tensor in wanted.items():
        if tensor.optional and name not in tensors:
            continue
        for path, value in zip(tensor.paths, tensor.unpack(tensors.pop(name)), strict=True):
            leaves[path] = np.asarray(value, dtype=kind, order="C")
    return unflatten(leaves)


def from_params(layout: Iterable[Tensor], params: Any, dtype: DTypeLike = "float32") -> dict[str, np.ndarray]:
    """The tensors of a file, of this dtype, from the parameter tree (the inverse of :func:`to_params`)."""
    leaves, kind = flatten(params), jnp.dtype(dtype)
    return {
        tensor.name: tensor.pack([np.asarray(leaves[path], dtype=kind) for path in tensor.paths]).astype(kind)
        for tensor in layout
    }

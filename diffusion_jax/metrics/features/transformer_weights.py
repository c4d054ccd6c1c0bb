"""Weights of vision transformers under the names of the files that publish them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Tensors = Mapping[str, np.ndarray]
_BLOCKS_LIMIT = 100


@dataclass(frozen=True)
class Names:
    """Names of one layout; those of a block follow `block`, with its number in place of {}.

    `joint` names the projections to query, key and value, which may be one; `mlp_in` and `mlp_out` the alternatives.
    """

    patch: str
    class_token: str
    positions: str
    norm: str
    block: str
    norm1: str
    joint: tuple[str, ...]
    attention_out: str
    norm2: str
    mlp_in: tuple[str, ...]
    mlp_out: tuple[str, ...]
    scale1: str | None = None
    scale2: str | None = None
    pre_norm: str | None = None
    projection: str | None = None


def to_params(tensors: Tensors, layouts: tuple[Names, ...], *, where: str, covers: str) -> dict[str, np.ndarray]:
    """The parameters of :class:`VisionTransformer`, float32, by their path joined with "/".

    Args:
      tensors: of the file; what belongs to other parts of the model is ignored.
      layouts: the names to try.
      where, covers: the file and the network, for the error.

    Raises:
      ValueError: a file of another network, or one that lacks tensors.
    """
    if "class_token" in tensors:  # a conversion from the cache
        return dict(tensors)
    names = next((names for names in layouts if names.class_token in tensors), None)
    if names is None:
        expected = " or ".join(names.class_token for names in layouts)
        raise ValueError(f"{where}: holds no {covers}: no {expected} among its {len(tensors)} tensors")
    try:
        return {path: np.asarray(array, np.float32, order="C") for path, array in _renamed(tensors, names).items()}
    except KeyError as error:
        raise ValueError(f"{where}: holds no tensor {error} of {covers}") from None


def _renamed(tensors: Tensors, names: Names) -> dict[str, np.ndarray]:
    kernel = tensors[f"{names.patch}.weight"]  # [width, 3, patch, patch]
    params = {
        "class_token": tensors[names.class_token].reshape(-1),
        "positions": tensors[names.positions].reshape(-1, kernel.shape[0]),
        "patch/kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0]),
    }
    if f"{names.patch}.bias" in tensors:
        params["patch/bias"] = tensors[f"{names.patch}.bias"]
    if names.pre_norm:
        params |= _norm(tensors, names.pre_norm, "pre_norm")
    params |= _norm(tensors, names.norm, "norm")
    for index in range(_depth(tensors, names)):
        prefix, block = names.block.format(index), f"block_{index}"
        params |= _norm(tensors, prefix + names.norm1, f"{block}/norm1")
        params |= _linear(tensors, tuple(prefix + name for name in names.joint), f"{block}/attention_in")
        params |= _linear(tensors, (prefix + names.attention_out,), f"{block}/attention_out")
        params |= _norm(tensors, prefix + names.norm2, f"{block}/norm2")
        for part, alternatives in (("mlp_in", names.mlp_in), ("mlp_out", names.mlp_out)):
            spellings = [prefix + name for name in alternatives]
            found = next((name for name in spellings if f"{name}.weight" in tensors), spellings[0])
            params |= _linear(tensors, (found,), f"{block}/{part}")
        if names.scale1 and names.scale2:
            params[f"{block}/scale1"] = tensors[prefix + names.scale1]
            params[f"{block}/scale2"] = tensors[prefix + names.scale2]
    if names.projection:
        bare = tensors.get(names.projection)  # OpenAI's own files have it as [width, out]
        params["projection/kernel"] = tensors[f"{names.projection}.weight"].T if bare is None else bare
    return params


def _depth(tensors: Tensors, names: Names) -> int:
    prefixes = (names.block.format(index) + names.norm1 for index in range(_BLOCKS_LIMIT))
    return sum(f"{prefix}.weight" in tensors for prefix in prefixes)


def _norm(tensors: Tensors, name: str, path: str) -> dict[str, np.ndarray]:
    return {f"{path}/scale": tensors[f"{name}.weight"], f"{path}/bias": tensors[f"{name}.bias"]}


def _linear(tensors: Tensors, names: tuple[str, ...], path: str) -> dict[str, np.ndarray]:
    """One linear layer of one or several, side by side."""
    # PyTorch's own attention calls its joint projection in_proj_weight
    mark = "_" if f"{names[0]}_weight" in tensors else "."
    kernels = [tensors[f"{name}{mark}weight"].T for name in names]
    biases = [tensors[f"{name}{mark}bias"] for name in names]
    return {f"{path}/kernel": np.concatenate(kernels, axis=1), f"{path}/bias": np.concatenate(biases)}

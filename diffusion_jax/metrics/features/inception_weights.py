"""The weights of FID's Inception under the names of every file that holds them.

All describe the same 94 units of convolution and batch normalisation and one dense layer:
pytorch-fid's .pth (torchvision's names; also the .safetensors and .npz written here), the frozen TensorFlow graph,
NVIDIA's .pt and .pkl (the graph's names flattened, no gamma) with the state dict of openai/consistency_models, and
the pickle of jax-fid.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.metrics import weights
from diffusion_jax.metrics.features.extractor import unflattened
from diffusion_jax.metrics.features.folding import folded

SOURCE = weights.Source(
    name="inception-2015-12-05",
    file="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    others={
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4": "NVIDIA's inception-2015-12-05.pt",
        "4e030efa5bccac3222d975f658d1884f9e00fab24f2812082884539220b90d77": "jax-fid's inception_v3_weights_fid.pickle",
    },
)
CLASSES = 1008
# Our (torchvision's) name of each unit of a block -> its scope in the TensorFlow graph.
_STEM = {
    "Conv2d_1a_3x3": "conv",
    "Conv2d_2a_3x3": "conv_1",
    "Conv2d_2b_3x3": "conv_2",
    "Conv2d_3b_1x1": "conv_3",
    "Conv2d_4a_3x3": "conv_4",
}
_A = {
    "branch1x1": "conv",
    "branch5x5_1": "tower/conv",
    "branch5x5_2": "tower/conv_1",
    "branch3x3dbl_1": "tower_1/conv",
    "branch3x3dbl_2": "tower_1/conv_1",
    "branch3x3dbl_3": "tower_1/conv_2",
    "branch_pool": "tower_2/conv",
}
_B = {
    "branch3x3": "conv",
    "branch3x3dbl_1": "tower/conv",
    "branch3x3dbl_2": "tower/conv_1",
    "branch3x3dbl_3": "tower/conv_2",
}
_C = {
    "branch1x1": "conv",
    "branch7x7_1": "tower/conv",
    "branch7x7_2": "tower/conv_1",
    "branch7x7_3": "tower/conv_2",
    "branch7x7dbl_1": "tower_1/conv",
    "branch7x7dbl_2": "tower_1/conv_1",
    "branch7x7dbl_3": "tower_1/conv_2",
    "branch7x7dbl_4": "tower_1/conv_3",
    "branch7x7dbl_5": "tower_1/conv_4",
    "branch_pool": "tower_2/conv",
}
_D = {
    "branch3x3_1": "tower/conv",
    "branch3x3_2": "tower/conv_1",
    "branch7x7x3_1": "tower_1/conv",
    "branch7x7x3_2": "tower_1/conv_1",
    "branch7x7x3_3": "tower_1/conv_2",
    "branch7x7x3_4": "tower_1/conv_3",
}
_E = {
    "branch1x1": "conv",
    "branch3x3_1": "tower/conv",
    "branch3x3_2a": "tower/mixed/conv",
    "branch3x3_2b": "tower/mixed/conv_1",
    "branch3x3dbl_1": "tower_1/conv",
    "branch3x3dbl_2": "tower_1/conv_1",
    "branch3x3dbl_3a": "tower_1/mixed/conv",
    "branch3x3dbl_3b": "tower_1/mixed/conv_1",
    "branch_pool": "tower_2/conv",
}
_BLOCKS = dict(zip(("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"), "AAABCCCCDEE", strict=True))
_UNITS = {"A": _A, "B": _B, "C": _C, "D": _D, "E": _E}

Tensors = Mapping[str, np.ndarray]


def units() -> Iterator[tuple[tuple[str, ...], str]]:
    """(path in the parameters, scope in the TensorFlow graph) of the 94 units."""
    for name, scope in _STEM.items():
        yield (name,), scope
    for index, (block, kind) in enumerate(_BLOCKS.items()):
        mixed = f"mixed_{index}" if index else "mixed"
        for name, scope in _UNITS[kind].items():
            yield (f"Mixed_{block}", name), f"{mixed}/{scope}"


def load_params(path: str | Path | None) -> dict[str, Any]:
    """The parameters of :class:`Inception` from a file of any of the formats; None for the cached or downloaded one.

    Raises:
      ValueError: in one line: no file (with the one to put and where), one that cannot be read, or another network.
    """
    file = weights.find(SOURCE, path)
    return unflattened(weights.load(SOURCE, file, lambda tensors: to_params(tensors, where=str(file))))


def to_params(tensors: Tensors, *, where: str) -> dict[str, np.ndarray]:
    """The parameters, float32, by their path joined with "/"; batch normalisation is folded in float64.

    Args:
      tensors: of any of the files, as :func:`diffusion_jax.readers.read_tensors` gives them.
      where: the file, for the error.

    Raises:
      ValueError: tensors that are missing, or of another network.
    """
    if _CONVERTED in tensors:
        return dict(tensors)
    layout = next((layout for layout in _LAYOUTS if layout.marker in tensors), None)
    if layout is None:
        raise ValueError(
            f"{where}: holds no Inception of 2015-12-05 (the network of FID): none of "
            f"{', '.join(layout.marker for layout in _LAYOUTS)} among its {len(tensors)} tensors"
        )
    try:
        params: dict[str, np.ndarray] = {}
        for path, scope in units():
            for leaf, array in folded(*layout.unit(tensors, path, scope)).items():
                params["/".join((*path, leaf))] = array
        kernel, bias = layout.logits(tensors)
    except KeyError as error:
        raise ValueError(f"{where}: holds no tensor {error} of the Inception of 2015-12-05") from None
    except ValueError as error:
        raise ValueError(f"{where}: its tensors do not fit together ({error})") from None
    if kernel.shape != (2048, CLASSES):
        raise ValueError(
            f"{where}: an Inception of {kernel.shape[-1]} classes; the network of FID has {CLASSES}, and torchvision's "
            "is another one"
        )
    last = {"fc/kernel": np.asarray(kernel, np.float32, order="C"), "fc/bias": np.asarray(bias, np.float32)}
    return params | last


class _PytorchFid:
    """torchvision's names; kernels OIHW."""

    marker = "Conv2d_1a_3x3.conv.weight"

    @staticmethod
    def unit(tensors: Tensors, path: tuple[str, ...], scope: str) -> tuple[np.ndarray, ...]:
        name = ".".join(path)
        statistics = (tensors[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
        return (tensors[f"{name}.conv.weight"].transpose(2, 3, 1, 0), *statistics)

    @staticmethod
    def logits(tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
        return tensors["fc.weight"].T, tensors["fc.bias"]


class _TensorFlow:
    """Constants of the graph; kernels HWIO."""

    marker = "conv/conv2d_params"

    @staticmethod
    def unit(tensors: Tensors, path: tuple[str, ...], scope: str) -> tuple[np.ndarray, ...]:
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        return (tensors[f"{scope}/conv2d_params"], *(tensors[f"{scope}/batchnorm/{part}"] for part in parts))

    @staticmethod
    def logits(tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
        return tensors["softmax/weights"], tensors["softmax/biases"]


class _Nvidia:
    """The graph's scopes with "." below the block, and "_" within; kernels OIHW."""

    marker = "layers.conv.weight"

    @staticmethod
    def unit(tensors: Tensors, path: tuple[str, ...], scope: str) -> tuple[np.ndarray, ...]:
        block, _, rest = scope.partition("/")
        # the blocks E are flat below their own name
        spellings = [f"layers.{scope.replace('/', '.')}", f"layers.{block}.{rest.replace('/', '_')}"]
        name = next((spelling for spelling in spellings if f"{spelling}.weight" in tensors), spellings[0])
        kernel = tensors[f"{name}.weight"].transpose(2, 3, 1, 0)
        return (kernel, np.ones(kernel.shape[-1]), *(tensors[f"{name}.{part}"] for part in ("beta", "mean", "var")))

    @staticmethod
    def logits(tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
        return tensors["output.weight"].T, tensors["output.bias"]


class _JaxFid:
    """torchvision's names with Flax's leaves; kernels HWIO."""

    marker = "Conv2d_1a_3x3.conv.kernel"

    @staticmethod
    def unit(tensors: Tensors, path: tuple[str, ...], scope: str) -> tuple[np.ndarray, ...]:
        name = ".".join(path)
        statistics = (tensors[f"{name}.bn.{part}"] for part in ("scale", "bias", "mean", "var"))
        return (tensors[f"{name}.conv.kernel"], *statistics)

    @staticmethod
    def logits(tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
        return tensors["fc.kernel"], tensors["fc.bias"]


# What conversions in the cache have.
_CONVERTED = "Conv2d_1a_3x3/kernel"
_LAYOUTS = (_PytorchFid, _TensorFlow, _Nvidia, _JaxFid)

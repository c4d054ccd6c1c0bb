"""The globals that a pickle may name: all of them, and what inert thing stands for each."""

from typing import Any

from diffusion_jax.readers import numpy_pickles, torch_tensors
from diffusion_jax.readers.errors import ReadError
from diffusion_jax.readers.pickle_machine import Constructor, Global, Holder, Instance, dictionary

# Classes of modules that checkpoints hold whole; their attributes are read, their code is not needed.
_CONTAINERS = ("ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential")
_TORCH_CLASSES = {
    "torch.nn.modules.container": _CONTAINERS,
    "torch.nn.modules.activation": ("GELU", "LeakyReLU", "ReLU", "ReLU6", "SiLU", "Sigmoid", "Softmax", "Tanh"),
    "torch.nn.modules.batchnorm": ("BatchNorm1d", "BatchNorm2d"),
    "torch.nn.modules.conv": ("Conv1d", "Conv2d", "ConvTranspose2d"),
    "torch.nn.modules.dropout": ("Dropout", "Dropout2d"),
    "torch.nn.modules.linear": ("Identity", "Linear"),
    "torch.nn.modules.normalization": ("GroupNorm", "LayerNorm"),
    "torch.nn.modules.pooling": ("AdaptiveAvgPool2d", "AvgPool2d", "MaxPool2d"),
    "torch.nn.modules.sparse": ("Embedding",),
    "torch.nn.modules.upsampling": ("Upsample",),
}
_OTHER_CLASSES = (
    Global("argparse", "Namespace"),
    # named, never made, in the checkpoints of Stable Diffusion
    Global("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
)
# TorchScript writes its modules under this name, followed by their own.
_TORCHSCRIPT = "__torch__"


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    """OrderedDict and EasyDict: empty, of a dictionary, or of pairs."""
    if not arguments:
        return {}
    (items,) = arguments
    pairs = list(items.items()) if isinstance(items, dict) else items
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ReadError("a dictionary made of something else than pairs")
    return dictionary((pair[0], pair[1]) for pair in pairs)


def _default_dictionary(*factory: Any) -> dict[Any, Any]:
    return {}


def _list(*items: Any) -> list[Any]:
    """Sets, as the old protocols write them."""
    if len(items) > 1 or not all(isinstance(item, (list, tuple)) for item in items):
        raise ReadError("a set made of something else than a list")
    return list(items[0]) if items else []


class PersistentObject(Holder):
    """An object of the EDM and StyleGAN repositories, pickled with the source of its class, which is dropped."""

    def __init__(self, meta: Any):
        if not (isinstance(meta, dict) and isinstance(meta.get("class_name"), str)):
            raise ReadError("a persistent object without a class name")
        if not isinstance(meta.get("state"), dict):
            raise ReadError(f"a persistent object {meta['class_name'][:60]!r} without a state")
        self.meta = meta

    def value(self) -> Any:
        return {"__class__": self.meta["class_name"]} | self.meta["state"]


CONSTRUCTORS: dict[Global, Constructor] = {
    Global("collections", "OrderedDict"): _dictionary,
    Global("collections", "defaultdict"): _default_dictionary,
    Global("dnnlib.util", "EasyDict"): _dictionary,
    Global("__builtin__", "set"): _list,
    Global("builtins", "set"): _list,
    Global("torch_utils.persistence", "_reconstruct_persistent_obj"): PersistentObject,
    **numpy_pickles.CONSTRUCTORS,
    **torch_tensors.CONSTRUCTORS,
}


def find(wanted: Global) -> Constructor:
    """What stands for calling this global; raises ReadError if it is not on the list."""
    if wanted in CONSTRUCTORS:
        return CONSTRUCTORS[wanted]
    torchscript = wanted.module == _TORCHSCRIPT or wanted.module.startswith(f"{_TORCHSCRIPT}.")
    if torchscript or wanted in _OTHER_CLASSES or wanted.name in _TORCH_CLASSES.get(wanted.module, ()):
        return lambda *_: Instance(str(wanted))
    raise ReadError(f"forbidden global {str(wanted)[:100]!r}: only tensors, arrays and plain containers are read")

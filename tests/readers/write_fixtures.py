"""Writes tests/readers/fixtures with PyTorch: `python -m tests.readers.write_fixtures [FOLDER]` (made with torch 2.13).

The readers are tested on these files where there is no PyTorch, and on freshly written ones where there is.
"""

import pickle
import sys
import types
from pathlib import Path

import numpy as np
import torch

from tests.readers.expected import EXPECTED, MODULE


class Network(torch.nn.Module):
    def __init__(self, channels, name="network"):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, channels, (1, 2))
        layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        self.blocks = torch.nn.ModuleDict({"first": layers})
        self.register_buffer("filter", torch.zeros(2, dtype=torch.float16))

    def forward(self, x):
        return self.conv(x)


class PersistentNetwork(Network):
    """Pickles itself as the classes of the EDM and StyleGAN repositories do: source, class name and state."""

    def __init__(self, channels, name="network"):
        super().__init__(channels, name)
        self._init_args = (channels,)
        self._init_kwargs = EasyDict(name=name, sizes=[8, 16])

    def __reduce__(self):
        state = super().__reduce__()[2]
        meta = dict(type="class", version=6, module_src="raise SystemExit", class_name="Network", state=state)
        return (_reconstruct_persistent_obj, (meta,))


class EasyDict(dict):
    pass


def _reconstruct_persistent_obj(meta):
    raise NotImplementedError


def tensors():
    """The tensors of `EXPECTED`."""
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 8
    made = {name: torch.from_numpy(np.array(array)) for name, array in EXPECTED.items()}
    made |= {"float32": base, "transposed": base.T, "slice": base[1:, 1:3]}
    made["bfloat16"] = made["bfloat16"].to(torch.bfloat16)
    made["parameter"] = torch.nn.Parameter(made["parameter"])
    return made


def network(kind=Network):
    """A module that holds `MODULE`."""
    module = kind(2)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in MODULE.items()})
    return module


def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(), folder / "zip.pth")
    torch.save(tensors(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    # a training checkpoint: a state dict (with its _metadata) among other things
    checkpoint = {"epoch": 3, "model": network().state_dict(), "lr": 1e-3, "best": None, "shape": torch.Size([2, 3])}
    torch.save(checkpoint, folder / "checkpoint.pth")
    torch.jit.script(network()).save(str(folder / "script.pt"))
    for module, kind in (("torch_utils.persistence", _reconstruct_persistent_obj), ("dnnlib.util", EasyDict)):
        # pickled under the names that those repositories have
        kind.__module__ = module
        for name in (module.split(".")[0], module):
            sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[module], kind.__name__, kind)
    (folder / "persistent.pkl").write_bytes(pickle.dumps({"ema": network(PersistentNetwork), "loss_fn": None}))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "fixtures")

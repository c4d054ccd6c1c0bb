"""Writes files as PyTorch does, without PyTorch; and such as it never would."""

import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np

GLOBALS = {
    "torch": ("FloatStorage", "LongStorage", "QuantizedStorage"),
    "torch._utils": ("_rebuild_tensor_v2", "_rebuild_parameter"),
    "torch.storage": ("_load_from_bytes",),
    "torch_utils": (),
    "torch_utils.persistence": ("_reconstruct_persistent_obj",),
}
KINDS = {"float32": "FloatStorage", "int64": "LongStorage"}


class Call:
    """Pickles as a call of a function, and perhaps a state for its result."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


class Storage:
    def __init__(self, kind="FloatStorage", count=4, key="0", extra=(None,)):
        self.identifier = ("storage", kind, key, "cpu", count, *extra)


def stand_in(monkeypatch):
    """Functions and types that pickle under PyTorch's names, as attributes (leading underscores left out)."""
    found = types.SimpleNamespace()
    for module, names in GLOBALS.items():
        stub = types.ModuleType(module)
        monkeypatch.setitem(sys.modules, module, stub)
        for name in names:
            kind = type(name, (), {"__module__": module})
            setattr(stub, name, kind)
            setattr(found, name.strip("_"), kind)
    return found


def program(tree, torch):
    """data.pkl."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, Storage):
                mark, kind, *rest = obj.identifier
                return (mark, getattr(torch, kind), *rest)
            return None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(tree)
    return stream.getvalue()


def zipped(tree, torch=None, **storages):
    """A file of the zip layout; `s0` holds the bytes of storage "0"."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", program(tree, torch))
        for key, data in storages.items():
            archive.writestr(f"x/data/{key.removeprefix('s')}", data)
    return file.getvalue()


def save(path, arrays, torch, *, legacy=False):
    """What torch.save writes of a state dict."""
    tree, data = collections.OrderedDict(), {}
    for index, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides)
        storage = Storage(KINDS[array.dtype.name], array.size, str(index))
        tree[name] = Call(torch.rebuild_tensor_v2, storage, 0, array.shape, strides, False, collections.OrderedDict())
        data[str(index)] = np.asarray(array, order="C").tobytes()
    if not legacy:
        path.write_bytes(zipped(tree, torch, **{f"s{key}": bytes_ for key, bytes_ in data.items()}))
        return
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with path.open("wb") as file:
        for header in (0x1950A86A20F9469CFC6C, 1001, system):
            pickle.dump(header, file, protocol=2)
        file.write(program(tree, torch))
        pickle.dump(list(data), file, protocol=2)
        for key, array in zip(data, arrays.values(), strict=True):
            file.write(array.size.to_bytes(8, "little"))
            file.write(data[key])

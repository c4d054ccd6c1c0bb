"""Pickles without Python's unpickler.

A pickle is a program for a stack machine, whose instructions can import and call whatever Python can import. This
machine runs such programs with inert objects only: a global is a pair of names that must be on a list, and calling
it makes a record of what was to be called. So nothing of the file reaches Python's own objects, and a file
that asks for anything else is refused with the name of what it asked for.
"""

import pickletools
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, NamedTuple

from diffusion_jax.readers.errors import ReadError

MAX_DEPTH = 64


class Global(NamedTuple):
    """A name that the program imports; inert."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Holder:
    """A thing that the program makes by a call, and completes or not by a later instruction."""

    def build(self, state: Any) -> None:
        raise ReadError(f"a state {_shown(state)} for a {type(self).__name__.lower()}, which takes none")

    def value(self) -> Any:
        """The plain thing (which may contain further holders), once the program has ended."""
        raise NotImplementedError


class Instance(Holder):
    """An object of some class: its attributes as a dictionary, with the name of its class under "__class__"."""

    def __init__(self, class_name: str, attributes: Mapping[str, Any] | None = None):
        self.class_name, self.attributes = class_name, dict(attributes or {})

    def build(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, dict):
                self.attributes.update(part)
            elif part is not None:
                raise ReadError(f"a state {_shown(part)} for an object {self.class_name!r}; it could be a dictionary")

    def value(self) -> Any:
        return {"__class__": self.class_name} | self.attributes


Constructor = Callable[..., Any]
# From a global to what stands for calling it; raises ReadError for a global that is not allowed.
Find = Callable[[Global], Constructor]

_MARK = object()
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_BYTES = ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_TEXTS = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_PUSHED = frozenset((*_NUMBERS, *_BYTES, *_TEXTS))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = frozenset(("PROTO", "FRAME"))


def run(stream: IO[bytes], find: Find, persistent: Callable[[Any], Any] | None = None) -> Any:
    """Runs one pickle from where the stream stands, and leaves the stream behind it.

    Args:
      stream: the bytes, in memory or mapped.
      find: the allowed globals.
      persistent: what a persistent id stands for; without it there may be none.

    Returns:
      Plain objects and holders (sets are lists); :func:`resolve` finishes them when all holders are complete.

    Raises:
      ReadError: a global or an instruction that is not allowed, or a broken program.
    """
    machine = _Machine(find, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except ReadError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError, struct.error) as error:
        raise ReadError(f"a broken pickle ({_one_line(error)})") from None
    raise ReadError("a pickle without an end")


class _Machine:
    def __init__(self, find: Find, persistent: Callable[[Any], Any] | None):
        self.find, self.persistent = find, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self.stack[-_TUPLES[name] :] = [tuple(self.pop_many(_TUPLES[name]))]
        elif name not in _NOTHING:
            operation = getattr(self, f"op_{name.lower()}", None)
            if operation is None:
                raise ReadError(f"the pickle instruction {name}, which is not allowed")
            operation(argument)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ReadError("a broken pickle (a mark in place of a value)")
        return value

    def pop_many(self, count: int) -> list[Any]:
        """The last values, which stay on the stack until they are replaced."""
        values = self.stack[-count:]
        if len(values) < count or any(value is _MARK for value in values):
            raise ReadError("a broken pickle (too few values)")
        return values

    def pop_to_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while place >= 0 and self.stack[place] is not _MARK:
            place -= 1
        if place < 0:
            raise ReadError("a broken pickle (no mark)")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    # the stack and the memo

    def op_mark(self, _: None) -> None:
        self.stack.append(_MARK)

    def op_pop(self, _: None) -> None:
        self.stack.pop()

    def op_pop_mark(self, _: None) -> None:
        self.pop_to_mark()

    def op_dup(self, _: None) -> None:
        self.stack.append(self.pop_many(1)[0])

    def op_put(self, index: int) -> None:
        self.memo[index] = self.pop_many(1)[0]

    op_binput = op_long_binput = op_put

    def op_memoize(self, _: None) -> None:
        self.op_put(len(self.memo))

    def op_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    op_binget = op_long_binget = op_get

    # collections

    def op_tuple(self, _: None) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def op_list(self, _: None) -> None:
        self.stack.append(self.pop_to_mark())

    op_frozenset = op_list

    def op_dict(self, _: None) -> None:
        self.stack.append(_paired(self.pop_to_mark()))

    def op_append(self, _: None) -> None:
        self._extend([self.pop()])

    def op_appends(self, _: None) -> None:
        self._extend(self.pop_to_mark())

    op_additems = op_appends

    def op_setitem(self, _: None) -> None:
        value, key = self.pop(), self.pop()
        self._update([key, value])

    def op_setitems(self, _: None) -> None:
        self._update(self.pop_to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ReadError(f"items appended to {_shown(target)}")
        target.extend(values)

    def _update(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ReadError(f"items set in {_shown(target)}")
        target.update(_paired(pairs))

    # objects

    def op_global(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self._push_global(Global(module, name))

    def op_stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ReadError("a broken pickle (a global whose name is not a string)")
        self._push_global(Global(module, name))

    def _push_global(self, wanted: Global) -> None:
        self.find(wanted)
        self.stack.append(wanted)

    def op_reduce(self, _: None) -> None:
        arguments, function = self.pop(), self.pop()
        self._call(function, arguments, {})

    op_newobj = op_reduce

    def op_newobj_ex(self, _: None) -> None:
        keywords, arguments, function = self.pop(), self.pop(), self.pop()
        self._call(function, arguments, keywords)

    def _call(self, function: Any, arguments: Any, keywords: Any) -> None:
        if not isinstance(function, Global) or not isinstance(arguments, tuple) or keywords != {}:
            raise ReadError(f"a call of {_shown(function)} with {_shown(arguments)}")
        try:
            made = self.find(function)(*arguments)
        except TypeError:
            raise ReadError(f"a call of {str(function)!r} with {len(arguments)} arguments that do not fit") from None
        self.stack.append(made)

    def op_build(self, _: None) -> None:
        state = self.pop()
        target = self.stack[-1]
        if isinstance(target, Holder):
            target.build(state)
        elif not (isinstance(target, dict) and isinstance(state, dict)):  # attributes of a dictionary are dropped
            raise ReadError(f"a state {_shown(state)} for {_shown(target)}")

    def op_binpersid(self, _: None) -> None:
        if self.persistent is None:
            raise ReadError("a persistent id, which only files of PyTorch have")
        self.stack.append(self.persistent(self.pop()))


def resolve(tree: Any) -> Any:
    """The plain objects of a finished program: dictionaries, lists, tuples, scalars, strings, bytes and NumPy arrays.

    Raises:
      ReadError: a structure that contains itself or is nested deeper than any checkpoint, or an array that cannot be.
    """
    try:
        return _Resolver().plain(tree, 0)
    except ReadError:
        raise
    except (ValueError, OverflowError, MemoryError) as error:  # of NumPy, for absurd shapes and strides
        raise ReadError(f"an array that cannot be ({_one_line(error)})") from None


class _Resolver:
    def __init__(self) -> None:
        # by identity; the values of holders are kept, so that no identity is used twice
        self.done: dict[int, Any] = {}
        self.kept: list[Any] = []
        self.active: set[int] = set()

    def plain(self, node: Any, depth: int) -> Any:
        if isinstance(node, Global):
            return str(node)
        if not isinstance(node, (dict, list, tuple, Holder)):
            return node
        if id(node) in self.done:
            return self.done[id(node)]
        if id(node) in self.active:
            raise ReadError("a structure that contains itself")
        if depth > MAX_DEPTH:
            raise ReadError(f"a structure nested deeper than {MAX_DEPTH}")
        self.active.add(id(node))
        self.done[id(node)] = result = self._finished(node, depth + 1)
        self.active.discard(id(node))
        return result

    def _finished(self, node: Any, depth: int) -> Any:
        if isinstance(node, Holder):
            value = node.value()
            self.kept.append(value)
            return self.plain(value, depth)
        if isinstance(node, dict):
            return {self.plain(key, depth): self.plain(value, depth) for key, value in node.items()}
        items = [self.plain(item, depth) for item in node]
        return tuple(items) if isinstance(node, tuple) else items


def dictionary(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """The dictionary of these pairs, its keys scalars, strings or names."""
    result: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, (str, int, float, bool, bytes, Global, type(None))):
            raise ReadError(f"a dictionary with the key {_shown(key)}")
        result[key] = value
    return result


def _paired(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ReadError("a broken pickle (a key without a value)")
    return dictionary(zip(items[::2], items[1::2], strict=True))


def _shown(value: Any) -> str:
    """A value of the file in few words of one line."""
    if isinstance(value, Global):
        return repr(str(value))
    if isinstance(value, (str, bytes, int, float, bool, type(None))):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:60]}..."
    return f"of type {type(value).__name__}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__

"""Reads what a pickle says without making anything of it.

In: the bytes of a pickle, plain or of joblib, which lays arrays between the opcodes. Out: strings,
numbers, lists, tuples, mappings, and a `Record` for each object: the name of its class or function,
what it would be called with, its state. No name is looked up, imported or called, so that nothing a
pickle holds can run. Names that no codebook has need of are refused all the same, by name.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Global(NamedTuple):
    """A name in a module, not looked up."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class Record:
    """An object that was not made."""

    of: Global
    """Class, or function that would make it."""
    args: Any
    state: Any = None
    raw: bytes = b""
    """What followed it in the file, of one of joblib's arrays."""


_PASSED = (
    (r"sklearn(\.\w+)*", r"\w+"),
    (r"(sklearn\.externals\.)?joblib\.numpy_pickle", "NumpyArrayWrapper"),
    (r"numpy", "dtype|ndarray"),
    (r"numpy\._?core\.(multiarray|numeric)", "_reconstruct|scalar|_frombuffer"),
    (r"numpy\.random(\.\w+)*", r"\w+"),
    (r"copyreg|copy_reg", "_reconstructor"),
    (r"builtins|__builtin__", "object"),
    (r"_codecs", "encode"),
    (r"collections", "OrderedDict"),
)
"""Modules and names that fitted estimators consist of."""
_WRAPPER, _RECONSTRUCT, _FROM_BUFFER = "NumpyArrayWrapper", "_reconstruct", "_frombuffer"
_TYPE = re.compile(r"([a-zA-Z])(\d*)")
_MARK = object()
_DAMAGED = "it is damaged, or no pickle"


def read_inert(data: bytes) -> Any:
    """What a pickle says. Raises ValueError for what is none, or asks for more than data."""
    try:
        return _Machine(data).run()
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(_DAMAGED) from error


def class_of(value: Any) -> Global | None:
    """The class that an object would be of; None for plain data."""
    if not isinstance(value, Record):
        return None
    if value.of.name == "_reconstructor" and value.args and isinstance(value.args[0], Global):
        return value.args[0]
    return value.of


def array_of(value: Any) -> Array:
    """The array of numbers that a record stands for. Raises ValueError when it is none."""
    try:
        shape, dtype, order, raw = _layout(value)
        return np.frombuffer(raw, dtype).reshape(shape, order=order)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError("an array in it is no array of numbers") from error


def _layout(value: Any) -> tuple[tuple[int, ...], Any, Any, bytes]:
    """Shape, type, order in memory and bytes of an array, in either of numpy's ways or joblib's."""
    if value.of.name == _WRAPPER:
        state = value.state
        return _shape(state["shape"]), _dtype(state["dtype"]), _order(state["order"]), value.raw
    if value.of.name == _FROM_BUFFER:
        raw, dtype, shape, order = value.args
        return _shape(shape), _dtype(dtype), _order(order), _bytes(raw)
    if value.of.name != _RECONSTRUCT:
        raise TypeError(value.of.name)
    _version, shape, dtype, is_fortran, raw = value.state
    return _shape(shape), _dtype(dtype), "F" if is_fortran else "C", _bytes(raw)


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(n) is int and n >= 0 for n in value):
        raise TypeError("shape")
    return value


def _order(value: Any) -> Any:
    if value not in ("C", "F"):
        raise TypeError("order")
    return value


def _type_of(value: Record) -> tuple[str, int]:
    """Letter and bytes of a record of ``numpy.dtype``. Raises ValueError for objects."""
    match = _TYPE.fullmatch(value.args[0]) if value.of == Global("numpy", "dtype") else None
    if match is None:
        raise TypeError("dtype")
    letter, size = match[1], int(match[2] or 1)
    if letter not in "fiubcVSU":
        raise ValueError(f"it holds an array of type {value.args[0]}, which is no array of numbers")
    return letter, size * (4 if letter == "U" else 1)


def _dtype(value: Record) -> np.dtype[Any]:
    letter, size = _type_of(value)
    byte_order = value.state[1] if value.state else "="
    if byte_order not in ("<", ">", "=", "|"):
        raise TypeError("byte order")
    return np.dtype(f"{byte_order}{letter}{size}")


def _bytes(value: Any) -> bytes:
    """Bytes as protocols write them: 2 as an encoded string, those of Python 2 as a string."""
    if isinstance(value, Record) and value.of == Global("_codecs", "encode"):
        value = value.args[0]
    raw: bytes = value.encode("latin-1") if isinstance(value, str) else value
    if not isinstance(raw, bytes | bytearray):
        raise TypeError("bytes")
    return bytes(raw)


class _Machine:
    """The stack and memo of one pickle."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self._num_bytes = len(data)
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What is on the stack in the end."""
        for opcode, argument, _ in pickletools.genops(self._file):
            name = opcode.name
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _EMPTY:
                self._stack.append(_EMPTY[name]())
            elif name in _OPERATIONS:
                _OPERATIONS[name](self, argument)
            elif name not in _NOTHING:
                raise ValueError(f"it asks for {name}, which no codebook has need of")
        return self._stack.pop()

    def since_mark(self) -> list[Any]:
        """What was pushed since the last mark, which goes with it."""
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def drop(self) -> None:
        self.pop()

    def drop_mark(self) -> None:
        self.since_mark()

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def extend(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Of a mapping; what keys other than strings lead to is left out."""
        if isinstance(self._stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self._stack[-1].update((key, value) for key, value in pairs if isinstance(key, str))

    def dict_of(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)

    def put(self, number: int | None) -> None:
        self._memo[len(self._memo) if number is None else number] = self._stack[-1]

    def get(self, number: int) -> None:
        self.push(self._memo[number])

    def name(self, module: Any, name: Any) -> Global:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("it asks for a name that is no text")
        if not any(re.fullmatch(m, module) and re.fullmatch(n, name) for m, n in _PASSED):
            raise ValueError(f"it asks for {module}.{name}, which no codebook has need of")
        return Global(module, name)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.push(self.name(module, name))

    def record(self, of: Any, args: Any) -> None:
        if not isinstance(of, Global):
            raise ValueError("it calls what is no name")
        self.push(Record(of, args))

    def reduce(self) -> None:
        args, of = self.pop(), self.pop()
        self.record(of, args)

    def reduce_with_names(self) -> None:
        self.pop()
        self.reduce()

    def instance(self, argument: str) -> None:
        items = self.since_mark()
        self.record(self.name(*argument.split(" ", 1)), tuple(items))

    def object_of(self) -> None:
        of, *args = self.since_mark()
        self.record(of, tuple(args))

    def build(self) -> None:
        state, target = self.pop(), self._stack[-1]
        if isinstance(target, Record):
            target.state = state
            if target.of.name == _WRAPPER:
                target.raw = self._array_bytes(state)

    def _array_bytes(self, state: Mapping[str, Any]) -> bytes:
        """What joblib writes after the wrapper of an array: padding after its length, the array."""
        if "numpy_array_alignment_bytes" in state:
            self._read(self._read(1)[0])
        _, size = _type_of(state["dtype"])
        return self._read(math.prod(_shape(state["shape"])) * size)

    def _read(self, count: int) -> bytes:
        if count > self._num_bytes - self._file.tell():
            raise ValueError("it ends before its arrays do")
        return self._file.read(count)


_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_NOTHING = frozenset({"PROTO", "FRAME", "STOP"})
_EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
    "MARK": lambda: _MARK,
}
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "LIST": lambda m, _: m.push(m.since_mark()),
    "FROZENSET": lambda m, _: m.push(m.since_mark()),
    "DICT": lambda m, _: m.dict_of(m.since_mark()),
    "APPEND": lambda m, _: m.extend([m.pop()]),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "ADDITEMS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "POP": lambda m, _: m.drop(),
    "POP_MARK": lambda m, _: m.drop_mark(),
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": lambda m, text: m.push(m.name(*text.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.reduce(),
    "NEWOBJ_EX": lambda m, _: m.reduce_with_names(),
    "INST": lambda m, text: m.instance(text),
    "OBJ": lambda m, _: m.object_of(),
    "BUILD": lambda m, _: m.build(),
}

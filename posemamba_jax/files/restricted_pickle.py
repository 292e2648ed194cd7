"""Reads pickle files that hold NumPy arrays and plain containers, and nothing else.

Loading a pickle calls whatever it names, so an ordinary load of a downloaded file runs its code.
Here only the few names that arrays and containers need are known, and even those do not reach
NumPy: an array's shape, data type and bytes are collected as inert values and checked before an
array is made of them. Files written under NumPy 1 and 2, Python 2 and 3 and all pickle protocols
are understood.
"""

import io
import math
import os
import pickle
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from posemamba_jax.errors import DataError
from posemamba_jax.files.pickle_guard import GuardedReader
from posemamba_jax.files.reading import CountingReader, check_regular

# Booleans, integers, floats, text; objects are allowed as a list of plain values.
_KINDS = "biufSUO"
_PLAIN = (str, bytes, int, float)


def load(
    path: str | os.PathLike,
    progress: Callable[[int], None] | None = None,
    *,
    nested: bool = False,
):
    """Loads a pickle file of arrays and plain containers.

    Arrays share the memory they were read into, so what is held is about the size of the file.

    Args:
      path: the file.
      progress: called with the number of bytes read since the last call.
      nested: admit arrays of objects that hold containers and arrays in their turn, as
        `np.save` writes a dictionary. Otherwise they hold text and numbers only.

    Returns:
      dict, list, tuple, set, str, bytes, number or None, and NumPy arrays inside them.

    Raises:
      DataError: the file is missing, is not a complete pickle, or names anything that is neither
        a plain container nor part of a NumPy array.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        check_regular(path)
    try:
        raw = open(path, "rb", buffering=0)  # noqa: SIM115  (closed below)
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror or error}") from error
    with raw:
        file = io.BufferedReader(CountingReader(raw, progress or (lambda _: None)), 1 << 20)
        return load_stream(file, str(path), nested=nested)


def load_stream(file: BinaryIO, what: str, *, nested: bool = False):
    """Loads a pickle from an open binary file, for instance one inside an archive.

    Args:
      file: stands at the pickle's first byte.
      what: what messages call it.
      nested: as for `load`.

    Returns and raises: as `load`.
    """
    try:
        guarded = io.BufferedReader(GuardedReader(file, what), 1 << 20)
        return _to_arrays(_Unpickler(guarded, what).load(), nested, {})
    except DataError:
        raise
    # A damaged pickle can raise nearly anything; all of it means the same here.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{what} is not a complete pickle file ({reason}); is it the right file, and was "
            "it downloaded to the end?"
        ) from error


class _Refused(Exception):
    """A part of an array that does not make sense."""


class _DType:
    """Stands for numpy.dtype while a file is read."""

    __slots__ = ("dtype",)

    def __init__(self, text, align=False, copy=False):
        if isinstance(text, bytes):
            text = text.decode("ascii")
        dtype = np.dtype(text) if isinstance(text, str) and "," not in text else None
        if dtype is None or dtype.kind not in _KINDS or dtype.subdtype is not None:
            raise _Refused(f"arrays of type {reprlib.repr(text)} are not supported")
        self.dtype = dtype

    def __setstate__(self, state):
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise _Refused(f"unknown byte order {reprlib.repr(order)}")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for numpy.ndarray while a file is read."""

    __slots__ = ("array",)

    def __init__(self):
        self.array = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.array = _build_array(data, dtype, shape, "F" if fortran else "C")


def _build_array(data, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
    if not isinstance(dtype, _DType) or not isinstance(shape, tuple) or order not in ("C", "F"):
        raise _Refused("an array without a type, a shape or an order")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise _Refused(f"an array of shape {reprlib.repr(shape)}")
    size, dtype = math.prod(shape), dtype.dtype
    if isinstance(data, list):
        if dtype.kind != "O" or len(data) != size:
            raise _Refused(f"a list of {len(data)} values for an array of shape {shape}")
        array = np.empty(size, object)
        for i, value in enumerate(data):  # one by one, else NumPy unpacks lists
            array[i] = value
        return array.reshape(shape, order=order)
    if isinstance(data, str):  # written by Python 2
        data = data.encode("latin1")
    if dtype.kind == "O" or not isinstance(data, (bytes, bytearray)):
        raise _Refused(f"an array of type {dtype} made of {type(data).__name__}")
    if len(data) != size * dtype.itemsize:
        raise _Refused(f"{len(data)} bytes for an array of shape {shape} and type {dtype}")
    if not data:
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _reconstruct(subtype, shape, typecode):
    if subtype is not _Array:
        raise _Refused("an array of an unknown class")
    return _Array()


def _frombuffer(data, dtype, shape, order):
    array = _Array()
    array.array = _build_array(data, dtype, shape, order)
    return array


def _scalar(dtype, data):
    return _build_array(data, dtype, (), "C").item()


def _encode(text, encoding):
    # How Python 3 writes bytes under pickle protocols below 3.
    if encoding != "latin1":
        raise _Refused(f"text in the encoding {reprlib.repr(encoding)}")
    return text.encode("latin1")


def _copy_bytes(data=b""):
    if not isinstance(data, bytes):
        raise _Refused("bytes made of other values")
    return data


class _Callable:
    """A function that a pickle may call but not change."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)

    def __setstate__(self, state):
        raise _Refused("a change to a function")


_ADMITTED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _Callable(_encode),
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytes"): _Callable(_copy_bytes),
    ("builtins", "bytearray"): _Callable(_copy_bytes),
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
    ("__builtin__", "bytes"): _Callable(_copy_bytes),
    ("__builtin__", "bytearray"): _Callable(_copy_bytes),
    ("collections", "OrderedDict"): dict,
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Callable(_reconstruct)
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _Callable(_scalar)
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _Callable(_frombuffer)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, what):
        super().__init__(file, encoding="latin1")
        self._what = what

    def find_class(self, module, name):
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise DataError(
                f"{self._what} asks for {module}.{name}, and loading that could run code; only "
                "NumPy arrays and plain containers are read. Do not open this file by other means "
                "unless you trust where it came from"
            ) from None

    def persistent_load(self, pid):
        raise DataError(f"{self._what} refers to an object outside the file ({reprlib.repr(pid)})")


def _to_arrays(value, nested: bool, done: dict):
    """Replaces the stand-ins for arrays, inside containers too.

    Args:
      value: what was unpickled.
      nested: as for `load`.
      done: id -> (container, its replacement), so that a container that is in many places, as in a
        file made to take for ever, is gone through once.
    """
    if isinstance(value, (_DType, _Callable, type)):
        raise _Refused("something other than arrays and plain containers")
    if not isinstance(value, (_Array, dict, list, tuple)):
        return value
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, tuple):
        replaced = tuple(_to_arrays(item, nested, done) for item in value)
        done[id(value)] = value, replaced
        return replaced
    if isinstance(value, _Array):
        if value.array is None:
            raise _Refused("an array without content")
        done[id(value)] = value, value.array
        if value.array.dtype == object:
            _replace_items(value.array, nested, done)
        return value.array
    done[id(value)] = value, value
    if isinstance(value, dict):
        for key in list(value):
            value[key] = _to_arrays(value[key], nested, done)
        return value
    for i, item in enumerate(value):
        if not isinstance(item, _PLAIN):
            value[i] = _to_arrays(item, nested, done)
    return value


def _replace_items(array: np.ndarray, nested: bool, done: dict) -> None:
    items = array.ravel(order="K")  # a view: the array was just made, in one piece
    for i, item in enumerate(items):
        if item is None or isinstance(item, _PLAIN):
            continue
        if not nested:
            raise _Refused("an array of objects other than text and numbers")
        items[i] = _to_arrays(item, nested, done)

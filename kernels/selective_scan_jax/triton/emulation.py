"""Runs Triton kernels with NumPy, all programs of a grid at once, and checks their memory accesses.

Triton's own interpreter runs one program after the other and takes about 0.1 ms an operation, which
is hours for a scan of real length. Here the same source runs with another `tl`: a tensor is an
array with an axis of programs in front, a pointer an array of offsets into a flat buffer. It
covers what the kernels of this package use. Loops and branches have to be the same in all programs
that run together: the caller says which do. A load or a store outside of its buffer raises, and so
does a store of two programs to one place.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Mapping, Sequence

import numpy as np


class Tensor:
    """A tensor of every program: data (programs or 1, *shape)."""

    def __init__(self, data: np.ndarray):
        self.data = data

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape[1:]

    def to(self, dtype) -> Tensor:
        return Tensor(self.data.astype(dtype))

    def __getitem__(self, index) -> Tensor:
        return Tensor(self.data[(slice(None), *index)])

    def __neg__(self):
        return Tensor(-self.data)

    def __index__(self) -> int:
        values = np.unique(self.data)
        if values.size != 1:
            raise TypeError(f"a loop or branch differs between programs: {values[:4]}")
        return int(values[0])

    def __bool__(self) -> bool:
        return bool(self.__index__())


def _data(x, ndim: int):
    """Returns the array of a tensor, with axes of length one in place of those it lacks; numbers as
    is.
    """
    if not isinstance(x, Tensor):
        return x
    missing = ndim - x.data.ndim
    return x.data.reshape(x.data.shape[0], *(1,) * missing, *x.data.shape[1:])


def _apply(function, *operands):
    if isinstance(operands[0], Pointer):
        return NotImplemented
    tensors = [x for x in operands if isinstance(x, Tensor)]
    if not tensors:
        return function(*operands)
    ndim = max(x.data.ndim for x in tensors)
    return Tensor(function(*(_data(x, ndim) for x in operands)))


def _method(function, swapped=False):
    if swapped:
        return lambda self, other: _apply(function, other, self)
    return lambda self, other: _apply(function, self, other)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "and"):
    setattr(Tensor, f"__{_name}__", _method(getattr(operator, _name.replace("and", "and_"))))
    setattr(
        Tensor,
        f"__r{_name}__",
        _method(getattr(operator, _name.replace("and", "and_")), swapped=True),
    )
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Tensor, f"__{_name}__", _method(getattr(operator, _name.replace("and", "and_"))))


class Pointer:
    """Offsets into a flat buffer."""

    def __init__(self, name: str, buffer: np.ndarray, offset):
        self.name, self.buffer, self.offset = name, buffer, offset

    def __add__(self, offset) -> Pointer:
        return Pointer(self.name, self.buffer, self.offset + offset)

    def __sub__(self, offset) -> Pointer:
        return Pointer(self.name, self.buffer, self.offset - offset)

    def __getitem__(self, index) -> Pointer:
        return Pointer(self.name, self.buffer, self.offset[index])

    def places(self, mask, *others):
        """Returns offsets, the mask and others as arrays of one shape, the offsets checked."""
        offset = self.offset if isinstance(self.offset, Tensor) else Tensor(np.array([self.offset]))
        operands = (offset, Tensor(np.array([True])) if mask is None else mask, *others)
        ndim = max(x.data.ndim for x in operands if isinstance(x, Tensor))
        arrays = np.broadcast_arrays(*(_data(x, ndim) for x in operands))
        used = arrays[0][arrays[1]]
        if used.size and (used.min() < 0 or used.max() >= self.buffer.size):
            raise IndexError(
                f"{self.name}: offsets {used.min()} to {used.max()} of {self.buffer.size}"
            )
        return arrays


class Language:
    """What the kernels use of `triton.language`, over some programs of a grid, by their index."""

    float32, int64, uint32, int1 = np.float32, np.int64, np.uint32, np.bool_
    standard = types.SimpleNamespace(_sum_combine=None)
    static_range = range

    def __init__(self, programs: np.ndarray):
        self.programs = programs

    def program_id(self, axis: int) -> Tensor:
        if axis:
            raise IndexError(f"the grid has one axis, not {axis + 1}")
        return Tensor(self.programs)

    def arange(self, start: int, end: int) -> Tensor:
        return Tensor(np.arange(start, end)[None])

    def full(self, shape, value, dtype) -> Tensor:
        return Tensor(np.full((1, *shape), value, dtype))

    def load(self, pointer: Pointer, mask=None, other=0) -> Tensor:
        offset, mask = pointer.places(mask)
        values = pointer.buffer[np.where(mask, offset, 0)]
        return Tensor(np.where(mask, values, np.asarray(other, values.dtype)))

    def store(self, pointer: Pointer, value, mask=None) -> None:
        offset, mask, value = pointer.places(mask, value)
        places = offset[mask]
        if np.unique(places).size != places.size:
            raise IndexError(f"{pointer.name}: two programs or threads store to one place")
        pointer.buffer[places] = value[mask]

    def exp2(self, x):
        return _apply(np.exp2, x)

    def abs(self, x):
        return _apply(np.abs, x)

    def maximum(self, x, y):
        return _apply(np.maximum, x, y)

    def minimum(self, x, y):
        return _apply(np.minimum, x, y)

    def where(self, condition, x, y):
        if isinstance(x, Pointer):
            return x if condition else y
        return _apply(np.where, condition, x, y)

    def reduce(self, x: Tensor, axis: int, _combine) -> Tensor:
        return Tensor(x.data.sum(axis + 1))

    def reshape(self, x: Tensor, shape) -> Tensor:
        return Tensor(x.data.reshape(x.data.shape[0], *shape))

    def permute(self, x: Tensor, axes) -> Tensor:
        return Tensor(x.data.transpose(0, *(axis + 1 for axis in axes)))

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return Tensor(np.stack(np.broadcast_arrays(x.data, y.data), -1))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return Tensor(x.data[..., 0]), Tensor(x.data[..., 1])

    def debug_barrier(self) -> None:
        pass


def run(
    module: types.ModuleType,
    kernel: str,
    together: Sequence[np.ndarray],
    arrays: Sequence[np.ndarray],
    constants: Mapping[str, object],
) -> None:
    """Runs a kernel of a module of `triton.jit` functions; it writes into the arrays.

    Args:
      module: what it calls may be imported from other such modules.
      kernel: its name.
      together: indices of the programs, in pieces whose loops and branches are the same.
      arrays: its pointers, in order.
      constants: its other arguments.

    Raises:
      IndexError: it reads or writes outside of an array, or one place twice in one store.
      TypeError: a loop or a branch differs between programs that were to run together.
    """
    functions = [value.fn for value in vars(module).values() if hasattr(value, "fn")]
    names = {k: v for function in functions for k, v in function.__globals__.items()}
    names |= vars(module)
    for name, value in list(names.items()):
        if hasattr(value, "fn"):  # a function under triton.jit
            names[name] = types.FunctionType(value.fn.__code__, names, name)
        elif type(value).__name__ == "constexpr":
            names[name] = value.value
    arguments = getattr(module, kernel).arg_names
    pointers = [
        Pointer(name, array.reshape(-1), 0) for name, array in zip(arguments, arrays, strict=False)
    ]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for programs in together:
            names["tl"] = Language(programs)
            names[kernel](*pointers, **constants)

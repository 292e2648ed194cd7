"""Reads networks from TFLite files: a flatbuffer of tensors, constants and operations.

A flatbuffer table begins with the distance to its vtable, which lists the place of each field in
the order of the schema. The numbers of fields, operations and types below are those of TensorFlow's
`tensorflow/compiler/mlir/lite/schema/schema.fbs` (version 3). Only what the pose networks use is
known here.
"""

import dataclasses
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from posemamba_jax.errors import UserError

IDENTIFIER = b"TFL3"
_DTYPES = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 9: np.int8}
_ACTIVATIONS = {0: None, 1: "relu", 3: "relu6"}
_PADDINGS = {0: "SAME", 1: "VALID"}

# Builtin operations: their code, and their options as (name, number of the field, type). Types are
# those of `struct`, or a table whose keys are bytes of the file.
_CONVOLUTION = (
    ("padding", 0, _PADDINGS),
    ("stride_w", 1, "i"),
    ("stride_h", 2, "i"),
)
_OPERATIONS: dict[int, tuple[str, tuple]] = {
    0: ("ADD", (("activation", 0, _ACTIVATIONS),)),
    2: ("CONCATENATION", (("axis", 0, "i"), ("activation", 1, _ACTIVATIONS))),
    3: (
        "CONV_2D",
        (*_CONVOLUTION, ("activation", 3, _ACTIVATIONS), ("dilation_w", 4, "i"),
         ("dilation_h", 5, "i")),
    ),
    4: (
        "DEPTHWISE_CONV_2D",
        (*_CONVOLUTION, ("multiplier", 3, "i"), ("activation", 4, _ACTIVATIONS),
         ("dilation_w", 5, "i"), ("dilation_h", 6, "i")),
    ),
    5: ("DEPTH_TO_SPACE", (("block_size", 0, "i"),)),
    6: ("DEQUANTIZE", ()),
    14: ("LOGISTIC", ()),
    17: (
        "MAX_POOL_2D",
        (*_CONVOLUTION, ("filter_w", 3, "i"), ("filter_h", 4, "i"),
         ("activation", 5, _ACTIVATIONS)),
    ),
    22: ("RESHAPE", ()),
    23: ("RESIZE_BILINEAR", (("align_corners", 2, "?"), ("half_pixel_centers", 3, "?"))),
    34: ("PAD", ()),
    124: ("DENSIFY", ()),
}  # fmt: skip
# Defaults of the schema that are not zero.
_DEFAULTS = {"dilation_w": 1, "dilation_h": 1}
# Larger tensors occur in no pose network; a damaged file must not size an allocation.
_MOST_ELEMENTS = 1 << 26


class NetworkError(UserError, ValueError):
    """A file of network weights cannot be used; the message names the file and what is wrong."""


class DamagedNetworkError(NetworkError):
    """A file of network weights is cut short or changed."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a graph: `data` holds its constant values, None where operations make it."""

    name: str
    shape: tuple[int, ...]
    data: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Operation:
    """One step of a graph, between tensors given by their indices; -1 is an absent input."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network: its tensors, its operations in order, and the tensors that go in and come out."""

    tensors: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_graph(content: bytes, name: str) -> Graph:
    """Reads a TFLite network; half-precision and sparse constants become dense float32 ones.

    Args:
      content: the bytes of the file.
      name: what messages call the file.

    Raises:
      DamagedNetworkError: the file is cut short or changed.
      NetworkError: the bytes are no TFLite file, or use what is not known here.
    """
    if content[4:8] != IDENTIFIER:
        raise NetworkError(f"{name}: no TFLite network (the mark TFL3 is missing at byte 4)")
    try:
        return _fold_constants(_read_model(content, name), name)
    except (struct.error, IndexError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, NetworkError):
            raise
        raise DamagedNetworkError(f"{name}: a damaged TFLite network; get the file again") from None


class _Table:
    """A flatbuffer table at a place in the bytes of a file."""

    def __init__(self, content: bytes, place: int):
        self._content, self._place = content, place
        self._vtable = place - self._number("i", place)
        if not 0 <= self._vtable <= len(content) - 4:
            raise IndexError(self._vtable)
        self._size = self._number("H", self._vtable)

    def _number(self, kind: str, place: int) -> Any:
        if place < 0:
            raise IndexError(place)
        return struct.unpack_from(f"<{kind}", self._content, place)[0]

    def _find(self, field: int) -> int:
        """Returns the place of a field's value, 0 where the table leaves it out."""
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        offset = self._number("H", self._vtable + entry)
        return self._place + offset if offset else 0

    def scalar(self, field: int, kind: str, default: Any = 0) -> Any:
        place = self._find(field)
        return self._number(kind, place) if place else default

    def _pointed(self, field: int) -> int:
        place = self._find(field)
        return place + self._number("I", place) if place else 0

    def table(self, field: int) -> "_Table | None":
        place = self._pointed(field)
        return _Table(self._content, place) if place else None

    def tables(self, field: int) -> list["_Table"]:
        start = self._pointed(field)
        if not start:
            return []
        count = self._count(start, 4)
        places = [start + 4 + 4 * i for i in range(count)]
        return [_Table(self._content, at + self._number("I", at)) for at in places]

    def array(self, field: int, dtype: Any) -> np.ndarray:
        """Returns the numbers of a vector, as a view of the file."""
        start = self._pointed(field)
        if not start:
            return np.zeros(0, dtype)
        count = self._count(start, np.dtype(dtype).itemsize)
        return np.frombuffer(self._content, np.dtype(dtype).newbyteorder("<"), count, start + 4)

    def text(self, field: int) -> str:
        return self.array(field, np.uint8).tobytes().decode()

    def _count(self, start: int, size: int) -> int:
        count = self._number("I", start)
        if start + 4 + count * size > len(self._content):
            raise IndexError(count)
        return count


def _read_model(content: bytes, name: str) -> Graph:
    model = _Table(content, struct.unpack_from("<I", content, 0)[0])
    codes = [_operation_code(table) for table in model.tables(1)]
    buffers = model.tables(4)
    (subgraph, *_) = model.tables(2)
    tensors = tuple(_read_tensor(table, buffers, name) for table in subgraph.tables(0))
    operations = []
    for table in subgraph.tables(3):
        code = codes[table.scalar(0, "I")]
        if code not in _OPERATIONS:
            raise NetworkError(f"{name}: operation {code} of the network is not known here")
        word, fields = _OPERATIONS[code]
        options = _read_options(table.table(4), fields, word, name)
        inputs, outputs = (tuple(table.array(f, np.int32).tolist()) for f in (1, 2))
        if not all(-1 <= i < len(tensors) for i in (*inputs, *outputs)):
            raise IndexError(inputs)
        operations.append(Operation(word, inputs, outputs, options))
    ends = [tuple(subgraph.array(f, np.int32).tolist()) for f in (1, 2)]
    if not all(0 <= i < len(tensors) for i in (*ends[0], *ends[1])):
        raise IndexError(ends)
    return Graph(tensors, tuple(operations), *ends)


def _operation_code(table: _Table) -> int:
    # Codes below 127 are in an older field of one byte; the larger of the two counts.
    return max(table.scalar(0, "b"), table.scalar(3, "i"))


def _read_options(table: _Table | None, fields: Sequence, word: str, name: str) -> dict[str, Any]:
    options = {}
    for key, number, kind in fields:
        if isinstance(kind, dict):
            value = table.scalar(number, "b") if table else 0
            if value not in kind:
                raise NetworkError(f"{name}: {key} {value} of a {word} is not known here")
            options[key] = kind[value]
        else:
            default = _DEFAULTS.get(key, 0)
            options[key] = table.scalar(number, kind, default) if table else default
    return options


def _read_tensor(table: _Table, buffers: list[_Table], name: str) -> Tensor:
    shape = tuple(table.array(0, np.int32).tolist())
    label = table.text(3)
    kind = table.scalar(1, "b")
    if kind not in _DTYPES:
        raise NetworkError(f"{name}: tensor {label!r} has type {kind}, which is not known here")
    if any(n < 0 for n in shape) or math.prod(shape) > _MOST_ELEMENTS:
        raise IndexError(shape)
    values = buffers[table.scalar(2, "I")].array(0, np.uint8)
    if not len(values):
        return Tensor(label, shape, None)
    dtype = np.dtype(_DTYPES[kind]).newbyteorder("<")
    if len(values) % dtype.itemsize:
        raise IndexError(len(values))
    data, sparsity = values.view(dtype), table.table(6)
    if sparsity is not None:
        data = _densify(sparsity, data, shape)
    if data.size != math.prod(shape):
        raise IndexError(shape)
    return Tensor(label, shape, data.reshape(shape))


def _densify(sparsity: _Table, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the dense form of a sparse constant.

    A sparse tensor of n dimensions and m blocks is traversed over n + m dimensions in the order
    that the file gives; a block dimension holds the low part of the index of the dimension that it
    belongs to. Each level is dense, or compressed as in a CSR matrix: `segments` says where the
    entries of each parent begin, `indices` where they are (format of the schema's
    SparsityParameters).
    """
    order = sparsity.array(0, np.int32).tolist()
    block_map = sparsity.array(1, np.int32).tolist()
    levels = sparsity.tables(2)
    if sorted(order) != list(range(len(shape) + len(block_map))) or len(levels) != len(order):
        raise IndexError(order)
    # The indices of every stored entry along each level, found level by level.
    sizes, found = [0] * len(order), np.zeros((1, 0), np.int64)
    for dimension, level in zip(order, levels, strict=True):
        if level.scalar(0, "b") == 0:
            size = level.scalar(1, "i")
            if not size > 0 or size * len(found) > _MOST_ELEMENTS:
                raise IndexError(size)
            index = np.tile(np.arange(size), len(found))
            found = np.column_stack([np.repeat(found, size, axis=0), index])
            sizes[dimension] = size
        else:
            segments, index = _index_vector(level, 2), _index_vector(level, 4)
            counts = np.diff(segments)
            if len(counts) != len(found) or (counts < 0).any() or segments[-1] != len(index):
                raise IndexError(counts)
            found = np.column_stack([np.repeat(found, counts, axis=0), index])
    place = np.zeros((len(found), len(order)), np.int64)
    place[:, order] = found
    for block, dimension in enumerate(block_map):
        inner = len(shape) + block
        if not 0 <= dimension < len(shape):
            raise IndexError(dimension)
        place[:, dimension] = place[:, dimension] * sizes[inner] + place[:, inner]
    dense = np.zeros(shape, values.dtype)
    dense[tuple(place[:, : len(shape)].T)] = values[: len(found)]
    return dense


def _index_vector(level: _Table, field: int) -> np.ndarray:
    """Returns the numbers of a union of int32, uint16 and uint8 vectors."""
    kind = {1: np.int32, 2: np.uint16, 3: np.uint8}.get(level.scalar(field, "B"))
    vector = level.table(field + 1)
    if kind is None or vector is None:
        raise IndexError(field)
    return vector.array(0, kind).astype(np.int64)


def _fold_constants(graph: Graph, name: str) -> Graph:
    """Returns the same network without the operations that unpack constants."""
    tensors, kept = list(graph.tensors), []
    for operation in graph.operations:
        if operation.name not in ("DEQUANTIZE", "DENSIFY"):
            kept.append(operation)
            continue
        source, target = operation.inputs[0], operation.outputs[0]
        data = tensors[source].data
        if data is None or data.dtype.kind != "f":
            raise NetworkError(f"{name}: a quantised network; expected one of floating point")
        if operation.name == "DEQUANTIZE":
            data = data.astype(np.float32)
        tensors[target] = dataclasses.replace(tensors[target], data=data)
    return Graph(tuple(tensors), tuple(kept), graph.inputs, graph.outputs)

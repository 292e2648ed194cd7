"""Writes small TFLite networks, as the schema describes them, for tests of the reader."""

import flatbuffers
import numpy as np

_WRITERS = {"b": "Int8", "i": "Int32", "I": "Uint32", "?": "Bool", "B": "Uint8"}
_TYPES = {"float32": 0, "float16": 1, "int32": 2}


class Writer:
    """Collects tensors and operations; `finish` gives the bytes."""

    def __init__(self):
        self._b = flatbuffers.Builder(1024)
        self._tensors, self._buffers, self._operations, self._codes = [], [], [], []
        self._buffers.append(self._table({}))

    def tensor(self, name, shape, data=None, dtype="float32", sparsity=None) -> int:
        buffer = 0
        if data is not None:
            raw = self._b.CreateNumpyVector(np.frombuffer(data.tobytes(), np.uint8))
            self._buffers.append(self._table({0: ("offset", raw)}))
            buffer = len(self._buffers) - 1
        fields = {
            0: ("offset", self._ints(shape)),
            1: ("b", _TYPES[dtype]),
            2: ("I", buffer),
            3: ("offset", self._b.CreateString(name)),
        }
        if sparsity is not None:
            fields[6] = ("offset", sparsity)
        self._tensors.append(self._table(fields))
        return len(self._tensors) - 1

    def sparsity(self, order, block_map, levels) -> int:
        """Levels: a dense size, or (segments, indices) of a compressed one."""
        tables = []
        for level in levels:
            if isinstance(level, int):
                tables.append(self._table({0: ("b", 0), 1: ("i", level)}))
                continue
            vectors = [self._table({0: ("offset", self._ints(v))}) for v in level]
            tables.append(self._table({
                0: ("b", 1), 2: ("B", 1), 3: ("offset", vectors[0]), 4: ("B", 1),
                5: ("offset", vectors[1]),
            }))  # fmt: skip
        return self._table({
            0: ("offset", self._ints(order)), 1: ("offset", self._ints(block_map)),
            2: ("offset", self._tables(tables)),
        })  # fmt: skip

    def operation(self, code, inputs, outputs, options=None) -> None:
        """Options: {number of the field: (kind, value)}."""
        self._codes.append(self._table({0: ("b", code), 3: ("i", code)}))
        fields = {
            0: ("I", len(self._codes) - 1),
            1: ("offset", self._ints(inputs)),
            2: ("offset", self._ints(outputs)),
        }
        if options is not None:
            fields[4] = ("offset", self._table(options))
        self._operations.append(self._table(fields))

    def finish(self, inputs, outputs) -> bytes:
        graph = self._table({
            0: ("offset", self._tables(self._tensors)), 1: ("offset", self._ints(inputs)),
            2: ("offset", self._ints(outputs)), 3: ("offset", self._tables(self._operations)),
        })  # fmt: skip
        model = self._table({
            0: ("I", 3), 1: ("offset", self._tables(self._codes)),
            2: ("offset", self._tables([graph])), 4: ("offset", self._tables(self._buffers)),
        })  # fmt: skip
        self._b.Finish(model, file_identifier=b"TFL3")
        return bytes(self._b.Output())

    def _ints(self, values) -> int:
        return self._b.CreateNumpyVector(np.array(values, np.int32))

    def _tables(self, offsets) -> int:
        self._b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._b.PrependUOffsetTRelative(offset)
        return self._b.EndVector()

    def _table(self, fields) -> int:
        self._b.StartObject(max(fields, default=-1) + 1)
        for number, (kind, value) in fields.items():
            if kind == "offset":
                self._b.PrependUOffsetTRelativeSlot(number, value, 0)
            else:
                # A default that no value has, so that every field is written.
                getattr(self._b, f"Prepend{_WRITERS[kind]}Slot")(number, value, None)
        return self._b.EndObject()

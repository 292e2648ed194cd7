"""Bounds what a pickle makes Python do, while it is read and before Python sees it.

Python hashes the keys of a dictionary and the members of a set while it unpickles them. The hash of
a tuple goes through all that is in it, each time anew and with no limit of depth: a file of a few
hundred bytes, with pairs of pairs of pairs, would take longer than the age of the universe, and one
of nested tuples would overflow the machine's stack. A place in the memo is reserved up to the index
that the file says, however large. So the file's instructions are followed here, with the size and
the depth of each value in its place.
"""

import io
import pickletools
from typing import BinaryIO

from posemamba_jax.errors import DataError

# A second or two of hashing; files of data hash a few thousand short names.
MAX_HASHED = 1 << 26
MAX_DEPTH = 200
# Places of the memo that may be skipped; picklers skip none.
MAX_SKIPPED = 1 << 16
_LONGEST_NUMBER = 24  # digits of an index that is written as text

# How many values an instruction takes from the stack to make one.
_TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "REDUCE": 2}
_TAKES |= {"NEWOBJ": 2, "NEWOBJ_EX": 3, "STACK_GLOBAL": 2, "BINPERSID": 1, "BUILD": 1}
_TAKES_ALL = {"TUPLE", "LIST", "DICT", "FROZENSET", "OBJ", "INST", "POP_MARK"}  # down to the mark
_TAKES_ALL |= {"APPENDS", "SETITEMS", "ADDITEMS"}
_PUTS_INTO = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"}
# What is hashed of the values taken; `set` and its like are called by REDUCE and the others.
_KEYS = {"SETITEM": slice(0, 1), "SETITEMS": slice(0, None, 2), "DICT": slice(0, None, 2)}
_KEYS |= dict.fromkeys(
    ("ADDITEMS", "FROZENSET", "OBJ", "INST", "REDUCE", "NEWOBJ", "NEWOBJ_EX"), slice(None)
)
_EMPTY = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "EMPTY_TUPLE"}
_NOTHING = {"PROTO", "FRAME", "READONLY_BUFFER"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_INDEX_AS_TEXT = {"GET", "PUT"}

_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


def _layout(op: pickletools.OpcodeInfo) -> tuple[str, int, bool, int]:
    """Describes an instruction: its name, bytes, whether they are a length, and lines of text."""
    if op.arg is None:
        return op.name, 0, False, 0
    if op.name in _INDEX_AS_TEXT:
        return op.name, 0, False, 0
    if op.arg.n == pickletools.UP_TO_NEWLINE:
        return op.name, 0, False, 2 if op.name in ("GLOBAL", "INST") else 1
    return op.name, _LENGTH_BYTES.get(op.arg.n, op.arg.n), op.arg.n in _LENGTH_BYTES, 0


_LAYOUTS = {ord(op.code): _layout(op) for op in pickletools.opcodes}
# Text and bytes by the width of their length; places of the memo by that of the index.
_TEXT = {code: width for code, (_, width, is_length, _) in _LAYOUTS.items() if is_length}
_PLACES = {code: width for code, (name, width, _, _) in _LAYOUTS.items() if name in _PUTS}
del _PLACES[ord("p")]  # PUT, whose index is text
_MEMOIZE = 0x94
_OTHERS = {*_TAKES, *_TAKES_ALL, *_EMPTY, *_NOTHING, *_GETS, *_PUTS, "MARK", "POP", "DUP", "STOP"}

# A value is [size, depth]: how many values a hash would go through, and how deep. Those without
# parts are one and the same.
_ATOM = [1, 0]


class GuardedReader(io.RawIOBase):
    """Reads a pickle from another file, and refuses it before what it must not do is handed on.

    Args:
      file: stands at the pickle's first byte; it stays open.
      what: what messages call it.
    """

    def __init__(self, file: BinaryIO, what: str):
        self._file, self._what = file, what
        self._stack, self._marks = [], []
        # Of each place of the memo whether it is taken; the values with parts are in `_memo`.
        self._places, self._taken, self._memo = bytearray(), 0, {}
        self._hashed = 0
        self._rest, self._skip, self._lines, self._done = b"", 0, 0, False

    def readable(self) -> bool:
        """Tells that this can be read."""
        return True

    def readinto(self, buffer) -> int | None:
        """Reads into a buffer; returns the number of bytes, 0 at the end.

        Raises:
          DataError: these bytes would make Python hash or reserve more than any data needs.
          ValueError: they are no pickle.
        """
        count = self._file.readinto(buffer)
        if count and not self._done:
            try:
                self._follow(memoryview(buffer)[:count])
            except IndexError:
                raise ValueError("it takes a value that is not there") from None
        return count

    def _follow(self, chunk: memoryview) -> None:
        """Follows the instructions of the next bytes; an unfinished one waits for more."""
        if self._skip >= len(chunk):  # in the middle of an array, say
            self._skip -= len(chunk)
            return
        data, self._rest = self._rest + bytes(chunk[self._skip :]), b""
        self._skip, at, end = 0, 0, len(data)
        stack, places = self._stack, self._places
        while not self._done:
            while self._lines:
                at = data.find(b"\n", at) + 1
                if not at:
                    return
                self._lines -= 1
            if at >= end:
                self._skip = at - end
                return
            code = data[at]
            # Most of a large file is text, each with its place in the memo.
            width = _TEXT.get(code)
            if width is not None and at + 1 + width <= end:
                stack.append(_ATOM)
                at += 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "little")
                continue
            if code in _PLACES and stack and stack[-1] is _ATOM and self._taken == len(places):
                after = at + 1 + _PLACES[code]
                number = int.from_bytes(data[at + 1 : after], "little")
                if after <= end and (code == _MEMOIZE or number == self._taken):
                    places.append(1)
                    self._taken += 1
                    at = after
                    continue
            layout = _LAYOUTS.get(code)
            if layout is None:
                raise ValueError(f"unknown instruction {data[at : at + 1]!r}")
            name, width, is_length, lines = layout
            number, after = 0, at + 1 + width
            if name in _INDEX_AS_TEXT:
                line = data[at + 1 : at + 2 + _LONGEST_NUMBER]
                after = at + 2 + line.find(b"\n")
                if after == at + 1 and len(line) <= _LONGEST_NUMBER:
                    self._rest = data[at:]
                    return
                number = int(data[at + 1 : after])  # fails where there is no end of the line
            elif after > end:
                self._rest = data[at:]
                return
            elif width:
                number = int.from_bytes(data[at + 1 : after], "little")
                after += number if is_length else 0
            self._lines = lines
            at = after
            if name in _OTHERS:
                self._execute(name, number)
            else:
                stack.append(_ATOM)

    def _execute(self, name: str, number: int) -> None:
        """Does to the sizes of values what an instruction does to the values."""
        stack = self._stack
        if name in _GETS:
            stack.append(self._memo.get(number, _ATOM))
        elif name in _PUTS:
            self._put(self._taken if name == "MEMOIZE" else number, stack[-1])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _TAKES or name in _TAKES_ALL:
            start = self._marks.pop() if name in _TAKES_ALL else len(stack) - _TAKES[name]
            if not 0 <= start <= len(stack):
                raise IndexError
            parts = stack[start:]
            del stack[start:]
            self._make(name, parts)
        elif name in _EMPTY:
            stack.append([1, 0])
        elif name == "POP":
            if self._marks and self._marks[-1] == len(stack):
                self._marks.pop()
            else:
                stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            self._done = True

    def _put(self, index: int, value: list[int]) -> None:
        """Keeps a value in the memo, as `pickle` does."""
        if not 0 <= index <= self._taken + MAX_SKIPPED:
            raise DataError(f"{self._what} asks for {index} places of memory at once; refused")
        if index >= len(self._places):
            self._places.extend(bytes(index + 1 - len(self._places)))
        self._taken += not self._places[index]
        self._places[index] = 1
        if value is _ATOM:
            self._memo.pop(index, None)
        else:
            self._memo[index] = value

    def _make(self, name: str, parts: list) -> None:
        """Makes one value of others, or puts them into the container that lies below them."""
        if name in _KEYS:
            keys = parts[_KEYS[name]]
            self._hashed += sum(size for size, _ in keys)
            if self._hashed > MAX_HASHED or max((deep for _, deep in keys), default=0) > MAX_DEPTH:
                raise DataError(
                    f"{self._what} nests keys or members in one another more than any data does; "
                    "refused"
                )
        if name in ("POP_MARK", "BUILD"):
            return
        if name in _PUTS_INTO:
            whole = self._stack[-1]
        else:
            whole = [1, 0]
            self._stack.append(whole)
        if parts and whole is not _ATOM:
            whole[0] = min(whole[0] + sum(size for size, _ in parts), 2 * MAX_HASHED)
            whole[1] = max(whole[1], 1 + max(deep for _, deep in parts))

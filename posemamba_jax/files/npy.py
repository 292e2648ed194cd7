"""Reads .npy and .npz files of others without ever letting NumPy unpickle."""

import contextlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from rich.console import Console
from rich.progress import Progress

from posemamba_jax.errors import DataError, KeypointError, UserError
from posemamba_jax.files import restricted_pickle
from posemamba_jax.files.reading import CountingReader, check_regular, read_whole, user_path

# An hour of a hundred people needs less.
MAX_BYTES = 2 << 30
# Several times what any data set's file of one object unpacks to.
MAX_OBJECT_BYTES = 16 << 30
# Measured numbers do not shrink this much; what does and is large is a decompression bomb.
_BOMB_RATIO = 100
_BOMB_BYTES = 64 << 20

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError)
_BROKEN_ZIP = (
    *_DAMAGED,
    NotImplementedError,  # a compression method this Python lacks
    RuntimeError,  # encrypted
)


def read_arrays(path: Path) -> dict[str, Any]:
    """Reads the arrays of a .npy file (under the name "") or a .npz file (by name).

    Arrays of objects, which VideoPose3D's files hold, go through the restricted unpickler and come
    back as plain containers and arrays; anything else in them is an error.

    Raises:
      KeypointError: the file is missing, damaged, too large, or its objects could run code.
    """
    check_regular(path, MAX_BYTES, KeypointError)
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise KeypointError(f"{path}: cannot be read ({error.strerror})") from None
    if not is_zip:
        return {"": _read_array(read_whole(path, MAX_BYTES, KeypointError), f"{path}: the file")}
    with _open_archive(path, KeypointError) as archive:
        members = archive.infolist()
        _check_bomb(path, members, MAX_BYTES, KeypointError)
        names = [member.filename.removesuffix(".npy") for member in members]
        return {
            name: _read_array(archive.read(member), f"{path}: array {ascii(name)}")
            for name, member in zip(names, members, strict=True)
        }


def load_object(path: str | os.PathLike, key: str, hint: str = ""):
    """Reads the object saved under a key of a .npz file, with progress on stderr.

    `np.savez(path, data=dictionary)` writes the dictionary as a pickle inside a .npy file inside a
    zip archive. It goes through the restricted unpickler straight from the archive, so that memory
    holds the arrays and nothing else.

    Args:
      path: a .npz file.
      key: the name that the object was saved under.
      hint: what to do where the file is missing.

    Returns:
      Plain containers with arrays in them; the arrays are read-only.

    Raises:
      DataError: the file is missing or damaged, has no such key, holds something else under it, or
        asks for anything but arrays and plain containers.
    """
    path = user_path(path)
    if path.exists() and not path.is_dir():
        check_regular(path)
    try:
        path.open("rb").close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot open {path}: {reason}" + (f"; {hint}" if hint else "")) from error
    console = Console(stderr=True)
    with (
        _open_archive(path, DataError) as archive,
        Progress(console=console, transient=console.is_terminal) as progress,
    ):
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if key not in names:
            raise DataError(f"{path} has no array {key!r}; it has {sorted(names)}")
        member = archive.infolist()[names.index(key)]
        _check_bomb(path, [member], MAX_OBJECT_BYTES, DataError)
        task = progress.add_task(f"reading {path.name}", total=member.file_size)
        with archive.open(member) as raw:
            counted = CountingReader(raw, lambda count: progress.advance(task, count))
            return _read_object(io.BufferedReader(counted), f"{path}: {key}")


@contextlib.contextmanager
def _open_archive(path: Path, error: type[UserError]) -> Iterator[zipfile.ZipFile]:
    """Opens a .npz file; what is damaged in it, found while it is read too, raises `error`."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _BROKEN_ZIP as reason:
        raise error(
            f"{path}: not a complete .npz file ({reason}); is it the right file, and was it copied "
            "to the end?"
        ) from reason


def _check_bomb(
    path: Path, members: list[zipfile.ZipInfo], max_bytes: int, error: type[UserError]
) -> None:
    """Refuses an archive that would unpack to far more than it is, before it is unpacked.

    Args:
      path: the archive, for the message.
      members: those that are going to be read.
      max_bytes: the most that they may unpack to, together.
      error: what to raise.

    Raises:
      UserError: of the class `error`.
    """
    unpacked = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if unpacked > max_bytes:
        raise error(f"{path}: would unpack to more than {max_bytes >> 30} GiB; refused")
    if unpacked > _BOMB_BYTES and unpacked > _BOMB_RATIO * packed:
        raise error(
            f"{path}: {packed / 2**20:.3g} MiB that would unpack to {unpacked / 2**20:.0f}, which "
            "measured numbers never do; refused. If it is right, save it again without compression"
        )


def _read_header(
    file: BinaryIO, what: str, error: type[UserError]
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads an array's header.

    Args:
      file: stands at the first byte; afterwards at the array's first byte.
      what: what messages call the array.
      error: what to raise.

    Returns:
      (shape, whether the order is Fortran's, data type).

    Raises:
      UserError: of the class `error`: this is no header.
    """
    try:
        version = npy_format.read_magic(file)
        read_header = {
            (1, 0): npy_format.read_array_header_1_0,
            (2, 0): npy_format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"version {version} of the format is not supported")
        return read_header(file)
    except _DAMAGED:  # the archive's to say
        raise
    # A damaged header can raise nearly anything; all of it means the same here.
    except Exception as reason:
        text = " ".join(str(reason).split())[:120]
        raise error(f"{what} is no complete .npy array ({text})") from None


def _read_object(file: io.BufferedReader, what: str):
    _, _, dtype = _read_header(file, what, DataError)
    if dtype != np.dtype(object):
        raise DataError(f"{what} is an array of {dtype}, expected a pickled dictionary")
    array = restricted_pickle.load_stream(file, what, nested=True)
    # To the end, so that the archive's checksum is compared.
    while file.read(1 << 20):
        pass
    if not isinstance(array, np.ndarray) or array.size != 1:
        raise DataError(f"{what} holds more than one object, expected a pickled dictionary")
    return array.reshape(1)[0]


def _read_array(data: bytes, what: str) -> Any:
    file = io.BytesIO(data)
    shape, fortran, dtype = _read_header(file, what, KeypointError)
    if dtype.hasobject:
        try:
            return restricted_pickle.load_stream(file, what, nested=True)
        except DataError as error:
            raise KeypointError(" ".join(str(error).split())) from None
    payload = memoryview(data)[file.tell() :]
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or len(payload) != size:
        raise KeypointError(
            f"{what} has {len(payload)} bytes for shape {list(shape)} of {dtype}, expected {size} "
            "(truncated?)"
        )
    if not size:
        return np.empty(shape, dtype)
    return np.frombuffer(payload, dtype).reshape(shape, order="F" if fortran else "C")

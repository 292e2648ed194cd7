"""Reads one pickled object out of a .npz file without running what is in it.

`np.savez(path, data=dictionary)` writes the dictionary as a pickle inside a .npy file inside a zip
archive. `np.load(allow_pickle=True)` would run that pickle; here it goes through
`restricted_pickle`, straight from the archive, so that memory holds the arrays and nothing else.
"""

import io
import os
import zipfile
import zlib

import numpy as np
from numpy.lib import format as npy_format
from rich.console import Console
from rich.progress import Progress

from posemamba_jax.errors import DataError
from posemamba_jax.files import restricted_pickle
from posemamba_jax.files.npy import check_bomb
from posemamba_jax.files.reading import check_regular, user_path

# Several times what any known file unpacks to; more is a decompression bomb.
MAX_BYTES = 16 << 30

_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def load_object(path: str | os.PathLike, key: str, hint: str = ""):
    """Reads the object saved under a key, with progress on stderr.

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
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if key not in names:
                raise DataError(f"{path} has no array {key!r}; it has {sorted(names)}")
            member = archive.infolist()[names.index(key)]
            check_bomb(path, [member], MAX_BYTES, DataError)
            console = Console(stderr=True)
            with (
                archive.open(member) as raw,
                Progress(console=console, transient=console.is_terminal) as progress,
            ):
                task = progress.add_task(f"reading {path.name}", total=member.file_size)
                file = io.BufferedReader(_Counting(raw, lambda n: progress.advance(task, n)))
                return _read_object(file, f"{path}: {key}")
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot open {path}: {reason}" + (f"; {hint}" if hint else "")) from error
    except _BROKEN_ZIP as error:
        raise DataError(
            f"{path} is not a complete .npz file ({error}); is it the right file, and was it "
            "downloaded to the end?"
        ) from error


def _read_object(file: io.BufferedReader, what: str):
    try:
        version = npy_format.read_magic(file)
        header = {
            (1, 0): npy_format.read_array_header_1_0,
            (2, 0): npy_format.read_array_header_2_0,
        }[version](file)
    except _BROKEN_ZIP:
        raise
    # A damaged header can raise nearly anything; all of it means the same here.
    except Exception as error:
        raise DataError(f"{what} is no .npy array ({error})") from error
    dtype = header[2]
    if dtype != np.dtype(object):
        raise DataError(f"{what} is an array of {dtype}, expected a pickled dictionary")
    array = restricted_pickle.load_stream(file, what, nested=True)
    # To the end, so that the archive's checksum is compared.
    while file.read(1 << 20):
        pass
    if not isinstance(array, np.ndarray) or array.size != 1:
        raise DataError(f"{what} holds more than one object, expected a pickled dictionary")
    return array.reshape(1)[0]


class _Counting(io.RawIOBase):
    """Reports how much was read."""

    def __init__(self, file, progress):
        self._file, self._progress = file, progress

    def readable(self):
        return True

    def readinto(self, buffer):
        # In steps small enough for a progress bar.
        data = self._file.read(min(len(buffer), 1 << 20))
        buffer[: len(data)] = data
        self._progress(len(data))
        return len(data)

"""Reading untrusted .npy and .npz files without ever letting NumPy unpickle."""

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from posemamba_jax.errors import DataError, KeypointError
from posemamba_jax.files import restricted_pickle

# An hour of a hundred people needs less; more is a decompression bomb.
MAX_BYTES = 4 << 30

_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression method this Python lacks
    RuntimeError,  # encrypted
    OSError,
)


def read_arrays(path: Path) -> dict[str, Any]:
    """Arrays of a .npy file (under the name "") or a .npz file (by name).

    Arrays of objects, which VideoPose3D's files hold, go through the restricted unpickler and come
    back as plain containers and arrays; anything else in them is an error.

    Raises:
      KeypointError: the file is missing, damaged, too large, or its objects could run code.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise KeypointError(f"{path}: cannot be read ({error.strerror})") from None
    if not is_zip:
        return {"": _read_array(path.read_bytes(), path, "the file")}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(m.file_size for m in members) > MAX_BYTES:
                raise KeypointError(f"{path}: would unpack to more than {MAX_BYTES >> 30} GiB")
            return {
                m.filename.removesuffix(".npy"): _read_array(
                    archive.read(m), path, f"array {ascii(m.filename.removesuffix('.npy'))}"
                )
                for m in members
            }
    except _BROKEN_ZIP as error:
        raise KeypointError(
            f"{path}: not a complete .npz file ({error}); was it copied to the end?"
        ) from None


def _read_array(data: bytes, path: Path, where: str) -> Any:
    file = io.BytesIO(data)
    try:
        version = npy_format.read_magic(file)
        read_header = {
            (1, 0): npy_format.read_array_header_1_0,
            (2, 0): npy_format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"version {version} of the format is not supported")
        shape, fortran, dtype = read_header(file)
    # A damaged header can raise nearly anything; all of it means the same here.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise KeypointError(f"{path}: {where} is no complete .npy array ({reason})") from None
    if dtype.hasobject:
        try:
            return restricted_pickle.load_stream(file, f"{path}: {where}", nested=True)
        except DataError as error:
            raise KeypointError(" ".join(str(error).split())) from None
    payload = memoryview(data)[file.tell() :]
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or len(payload) != size:
        raise KeypointError(
            f"{path}: {where} has {len(payload)} bytes for shape {list(shape)} of {dtype}, "
            f"expected {size} (truncated?)"
        )
    if not size:
        return np.empty(shape, dtype)
    return np.frombuffer(payload, dtype).reshape(shape, order="F" if fortran else "C")

"""Reading untrusted .npy and .npz files without ever letting NumPy unpickle."""

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from posemamba_jax.errors import DataError, KeypointError, UserError
from posemamba_jax.files import restricted_pickle
from posemamba_jax.files.reading import check_regular, read_whole

# An hour of a hundred people needs less.
MAX_BYTES = 2 << 30
# Measured numbers do not shrink this much; what does and is large is a decompression bomb.
_BOMB_RATIO = 100
_BOMB_BYTES = 64 << 20

_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression method this Python lacks
    RuntimeError,  # encrypted
    OSError,
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
        return {"": _read_array(read_whole(path, MAX_BYTES, KeypointError), path, "the file")}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_bomb(path, members, MAX_BYTES, KeypointError)
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


def check_bomb(
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

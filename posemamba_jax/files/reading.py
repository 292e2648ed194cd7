"""Opening files that a user names: regular files of a bounded size, and nothing that never ends.

A pipe waits for a writer that may never come, and `/dev/zero` has no end, so what is neither a file
nor a folder is refused before it is opened.
"""

import io
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from posemamba_jax.errors import DataError, UserError

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


# Steps of a progress bar, of files that are read in a minute or so.
_LARGEST_READ = 1 << 24


def user_path(text: str | os.PathLike) -> Path:
    """Turns a path as a user wrote it into one to open: `~` becomes the home folder.

    Raises:
      UserError: the text cannot be a path on this machine (a NUL, or a scheme such as gs:// in it),
        or there is no home folder to put in.
    """
    name = os.fspath(text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        raise UserError(
            f"{ascii(name)}: only folders and files of this machine can be used; mount what is "
            "elsewhere, or copy it here"
        )
    if "\0" in name:
        raise UserError(f"{ascii(name)}: holds a NUL character, which no file name can")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(
            f"{name}: no home folder is known to put in the place of ~; set HOME, or write the "
            "path in full"
        ) from None


def check_regular(
    path: Path, max_bytes: int | None = None, error: type[UserError] = DataError
) -> int:
    """Returns the size of a regular file in bytes, before anything of it is read.

    Args:
      path: the file.
      max_bytes: the largest size that can be a file of this kind; None for any.
      error: what to raise.

    Raises:
      UserError: of the class `error`: there is no such file, it is a folder, a pipe or a device, or
        it is larger than `max_bytes`.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as reason:
        text = getattr(reason, "strerror", None) or reason
        raise error(f"{path}: cannot be read ({text})") from None
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        advice = "" if kind == "a folder" else "; copy what it gives into a file first"
        raise error(f"{path}: {kind}, expected a file{advice}")
    if max_bytes is not None and found.st_size > max_bytes:
        raise error(
            f"{path}: {found.st_size / 2**30:.3g} GiB, and at most {max_bytes / 2**30:.3g} GiB are "
            "read; is it the right file?"
        )
    return found.st_size


def read_whole(path: Path, max_bytes: int, error: type[UserError] = DataError) -> bytes:
    """Returns the content of a regular file of at most `max_bytes`.

    Raises:
      UserError: as `check_regular`, or the file cannot be read.
    """
    check_regular(path, max_bytes, error)
    try:
        with open(path, "rb") as file:
            # A file that grows while it is read stops at the limit too.
            return file.read(max_bytes + 1)[:max_bytes]
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror})") from None


class CountingReader(io.RawIOBase):
    """Reads from another file and reports how much, in steps small enough for a progress bar.

    Args:
      file: open for reading bytes; it stays open.
      progress: is called with the number of bytes read since the last call.
    """

    def __init__(self, file: BinaryIO, progress: Callable[[int], None]):
        self._file, self._progress = file, progress

    def readable(self) -> bool:
        """Tells that this can be read."""
        return True

    def readinto(self, buffer) -> int | None:
        """Reads into a buffer; returns the number of bytes, 0 at the end."""
        count = self._file.readinto(memoryview(buffer)[:_LARGEST_READ])
        self._progress(count or 0)
        return count

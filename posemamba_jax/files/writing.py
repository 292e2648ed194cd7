"""Writes files and folders that are whole, or as they were before, whenever the program is killed.

Everything is written under a temporary name beside its place and renamed when it is complete.
"""

import contextlib
import fcntl
import glob
import itertools
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from posemamba_jax.errors import UserError, describe_error

# A temporary file or folder that was made this moment may not be locked yet.
_ABANDONED_SECONDS = 60


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces a file by one with this text (UTF-8), in one step.

    Raises:
      OSError: it cannot be written; what was there stays.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Replaces a file by one with these bytes, in one step.

    Raises:
      OSError: it cannot be written; what was there stays.
    """
    with replacing(path) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path whose file takes the place of `path` when the block ends.

    The temporary name is hidden, lies in the same folder and ends in the same suffix, by which
    many writers choose a format. The file reaches the disk before it gets its name. What a killed
    program left when it wrote `path` is removed.

    Args:
      path: the file to write or replace; its folder is made where it is missing.

    Yields:
      Where to write, an empty file that may be overwritten but not replaced. If the block raises,
      that file is removed and `path` stays as it was.

    Raises:
      OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name.removesuffix(path.suffix), path.suffix)
    part = _temporary(path, path.suffix)
    in_use = None
    try:
        part.touch(exist_ok=False)
        in_use = _hold(part)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        # The name that a user knows; a write that fails does not say any.
        if isinstance(error, OSError) and error.filename in (None, str(part)):
            error.filename = str(path)
        raise
    finally:
        if in_use is not None:
            os.close(in_use)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary folder that gets the name `path` when the block ends.

    Args:
      path: the folder to make; there must be none, or an empty one.

    Yields:
      The temporary folder, empty. If the block raises, it is removed with all that is in it.

    Raises:
      OSError: the folder cannot be written, or another one has the name by now.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    part = _temporary(path)
    in_use = None
    try:
        part.mkdir()
        in_use = _hold(part)
        yield part
        os.rename(part, path)
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(part)):
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if in_use is not None:
            os.close(in_use)


def remove_abandoned(parent: Path, stem: str, suffix: str = "") -> None:
    """Removes temporary files or folders of writers that were killed.

    Args:
      parent: the folder they lie in; nothing happens where there is none.
      stem: of a file, its name without the suffix; of folders, how their names begin.
      suffix: of the file; empty for folders, and for files without one.
    """
    drawn = "*" if not suffix else f".{'[0-9a-f]' * 8}"
    for part in parent.glob(f".{glob.escape(stem)}{drawn}.part{glob.escape(suffix)}"):
        try:
            fresh = time.time() - part.stat().st_mtime < _ABANDONED_SECONDS
            in_use = None if fresh or part.is_symlink() else _hold(part)
        except OSError:
            continue
        if in_use is not None:  # Nobody is writing it.
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)
            os.close(in_use)


def _hold(part: Path) -> int | None:
    """Locks a temporary file or folder until the result is closed, or this process ends.

    Returns:
      An open descriptor; None where another process holds it, or the file system has no locks.
    """
    descriptor = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def reported_as(what: str) -> Iterator[None]:
    """Turns an error of the file system inside the block into a one-line message to the user.

    Args:
      what: the option or key that names the place, and the place.

    Raises:
      UserError: something could not be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be written: {describe_error(error)}") from error


def _temporary(path: Path, suffix: str = "") -> Path:
    # Drawn, so that two processes that write the same file, on any machine, do not meet in one.
    stem = path.name.removesuffix(suffix) if suffix else path.name
    return path.with_name(f".{stem}.{secrets.token_hex(4)}.part{suffix}")


def unused(path: Path) -> Path:
    """Returns a path, with a number behind it if there is something already."""
    numbered = (path.with_name(f"{path.name}.{n}") for n in itertools.count(2))
    return next(name for name in itertools.chain([path], numbered) if not os.path.lexists(name))

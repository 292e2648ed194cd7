"""A lock on a folder: one writer at a time, and word of who it is.

The lock is the operating system's on an open file (flock), so it ends with its owner however that
ends, and holds between machines on file systems that pass it on (NFS since Linux 2.6.12, Lustre
with `-o flock`, most others). The file's content says who owns it. Where a file system has no
locks, only an owner on the same machine can be found out.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from posemamba_jax.errors import UserError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


class InUseError(UserError):
    """Another program writes into the folder; the message says which, where and since when."""


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike, name: str = "the folder") -> Iterator[None]:
    """Holds a folder for this program alone while the block runs.

    Args:
      folder: the folder; it is made where it is missing.
      name: what messages call it, such as a key of the configuration.

    Raises:
      InUseError: another program holds it.
      OSError: the folder cannot be written.
    """
    path = Path(folder) / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path, name)
    try:
        _write_owner(descriptor)
        yield
    finally:
        # Removed while it is held; who opens the old file meanwhile sees that it has no name.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path, name: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = _lock(descriptor)
            owner = _read_owner(descriptor)
            if locked is None:
                if _runs_here(owner):
                    raise _in_use(path, name, owner)
                logger.warning(
                    "%s: this file system has no locks; no other machine may write here",
                    path.parent,
                )
                return descriptor
            if not locked:
                raise _in_use(path, name, owner)
            if _is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # Its owner removed it between opening and locking; try the new one.


def _lock(descriptor: int) -> bool | None:
    """Tries to take the lock; gives False if another has it, None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        return None
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int) -> None:
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _read_owner(descriptor: int) -> dict:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _runs_here(owner: dict) -> bool:
    """Tells whether the owner is a process of this machine that still runs."""
    pid = owner.get("pid")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _in_use(path: Path, name: str, owner: dict) -> InUseError:
    who = "another program"
    if owner:
        who = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"
    return InUseError(
        f"{name}: {path.parent} is in use by {who}; wait for it, stop it, or give another folder"
    )

"""The cache of parsed motion capture files: what is in it, and emptying it.

`python -m posemamba_jax.motion_cache` is the program.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from posemamba_jax.errors import DataError
from posemamba_jax.files.reading import user_path

DEFAULT_FOLDER = "~/.cache/posemamba_jax/mocap"
# What `RecordingReader` calls its entries: the recording's name and a part of a hash.
_ENTRY = re.compile(r".+-[0-9a-f]{16}\.npz")


class Entry(NamedTuple):
    """One parsed recording in the cache.

    Attributes:
      path: the file in the cache.
      size: bytes of it.
      source: the motion file that it was read from; None where it cannot be read.
    """

    path: Path
    size: int
    source: Path | None

    @property
    def unused(self) -> bool:
        """True if its motion file is gone, or unknown."""
        return self.source is None or not self.source.exists()


def list_entries(folder: str | Path) -> list[Entry]:
    """Returns the entries of a cache folder, by name; files of other kinds are not looked at."""
    folder = user_path(folder)
    found = sorted(p for p in folder.glob("*.npz") if _ENTRY.fullmatch(p.name))
    return [Entry(path, path.stat().st_size, _read_source(path)) for path in found]


def empty(folder: str | Path, *, unused: bool = False) -> list[Entry]:
    """Deletes entries, and nothing else, from a cache folder.

    Args:
      folder: the cache.
      unused: only those whose motion file is gone.

    Returns:
      What was deleted.

    Raises:
      DataError: an entry cannot be deleted.
    """
    gone = [entry for entry in list_entries(folder) if entry.unused or not unused]
    for entry in gone:
        try:
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"cannot delete {entry.path}: {error.strerror or error}") from error
    return gone


def _read_source(path: Path) -> Path | None:
    try:
        with np.load(path, allow_pickle=False) as content:
            return Path(str(content["source"])) if "source" in content else None
    except Exception:  # A damaged file can raise nearly anything; it is of no use either way.
        return None


def main(argv: Sequence[str]) -> int:
    """Lists or empties the cache.

    Args:
      argv: the command line, without the program's name.
    """
    parser = argparse.ArgumentParser(
        prog="python -m posemamba_jax.motion_cache",
        description="Lists or empties the cache of parsed motion capture files.",
    )
    parser.add_argument("command", choices=("list", "empty"))
    parser.add_argument("--cache_dir", default=DEFAULT_FOLDER)
    parser.add_argument("--unused", action="store_true", help="only entries no run can use")
    options = parser.parse_args(argv)
    if options.command == "list":
        entries = [e for e in list_entries(options.cache_dir) if e.unused or not options.unused]
        for entry in entries:
            state = " (gone)" if entry.unused else ""
            print(f"{entry.size:>10}  {entry.path.name}  {entry.source or 'unknown'}{state}")
    else:
        entries = empty(options.cache_dir, unused=options.unused)
    done = "deleted from" if options.command == "empty" else "in"
    total = sum(entry.size for entry in entries)
    print(f"{len(entries)} recordings, {total / 1e6:.1f} MB, {done} {options.cache_dir}")
    return 0

"""Tells whether a run that is resumed has the clips before it that it was trained on.

The identity of a split is a digest of the options that say what is cut out of the files, and of the
files themselves: their sizes and their first, middle and last bytes. Their places and times do not
count, so data that was moved or copied is the same.
"""

import dataclasses
import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from posemamba_jax.data.config import DataConfig
from posemamba_jax.data.formats.recordings import MotionFiles
from posemamba_jax.files.reading import user_path

_SAMPLE = 1 << 16
_MOTION = (".amc", ".asf", ".bvh")


def identify(config: DataConfig, split: str) -> str:
    """Computes the identity of a split's clips.

    Args:
      config: of the data, whose files are there.
      split: "train" or "test".

    Returns:
      16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    mixture = config.mixture
    if config.source == "mixture":
        names = mixture.sources if split == "train" else (mixture.test or mixture.sources[0],)
        digest.update(repr(mixture if split == "train" else names).encode())
    else:
        names = (config.source,)
    common = (config.clip_len, config.input_2d, config.train_stride if split == "train" else None)
    digest.update(repr(common).encode())
    for name in names:
        options = getattr(config, name)
        digest.update(repr((name, _what_is_cut(options, split))).encode())
        for file in _FILES.get(name, lambda *_: ())(options, split):
            digest.update(sample_file(file))
    return digest.hexdigest()[:16]


def sample_file(path: Path) -> bytes:
    """Digests a file's size and its first, middle and last 64 KiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(str(size).encode())
        for start in (0, max(0, size // 2 - _SAMPLE // 2), max(0, size - _SAMPLE)):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
    return digest.digest()


# Options that say where files are, and not what is taken from them.
_PLACES = (
    *("path", "cache_dir", "train", "test", "train_path", "test_path", "folder"),
    *("motion_path", "id_path"),
)


def _what_is_cut(options: Any, split: str) -> list[tuple[str, Any]]:
    """Lists the options of a source that its clips depend on."""
    other = {"train": ("num_test_clips", "cover_ends"), "test": ("num_train_clips",)}[split]
    taken = [
        (field.name, getattr(options, field.name))
        for field in dataclasses.fields(options)
        if field.init and field.name not in (*_PLACES, *other)
    ]
    # What is said of some files beside where they are.
    files = [x for x in getattr(options, split, ()) if isinstance(x, MotionFiles)]
    if files:
        taken.append((split, [(entry.fps, entry.weight) for entry in files]))
    return taken


def _paths(files: Sequence[str | MotionFiles]) -> list[str]:
    return [x.path if isinstance(x, MotionFiles) else x for x in files]


def _matches(patterns: Sequence[str], suffixes: Sequence[str]) -> Iterator[Path]:
    """Files of some kinds that patterns match or that lie in folders which they match."""
    found = set()
    for pattern in patterns:
        for name in glob.glob(str(user_path(pattern)), recursive=True):
            path = Path(name)
            inside = path.rglob("*") if path.is_dir() else [path]
            found.update(p for p in inside if p.suffix.lower() in suffixes and p.is_file())
            if path.suffix.lower() == ".amc":  # Its skeleton lies beside it.
                found.update(p for p in path.parent.iterdir() if p.suffix.lower() == ".asf")
    return iter(sorted(found, key=lambda path: (path.name, str(path))))


_FILES: dict[str, Callable[[Any, str], Any]] = {
    "h36m": lambda options, split: [user_path(options.path)],
    "mocap": lambda options, split: _matches(_paths(getattr(options, split)), _MOTION),
    "arrays": lambda options, split: _matches(getattr(options, split), (".npz",)),
    "mpi_inf_3dhp": lambda options, split: [user_path(getattr(options, f"{split}_path"))],
    "posetrack": lambda options, split: _matches([options.folder], (".json",)),
    "instavariety": lambda options, split: map(user_path, (options.motion_path, options.id_path)),
}

"""Block sizes: a kernel's own heuristic, unless a table knows better for this shape and device.

A kernel keeps its sizes in a frozen dataclass whose `candidates(shape)` lists what is worth trying,
and asks `choose` for the one to use. `python -m selective_scan_jax.tune` measures and writes the
table. Two tables are read: tuning.json of this package, and over it the user's own, at the path in
the environment variable SELECTIVE_SCAN_TUNING, else tuning.json in the user's cache folder.

    {"NVIDIA H100 80GB HBM3": {"KERNEL": {"batch=1,channels=256,...": {"block": 64, ...}}}}
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

from selective_scan_jax.target import current_target

Config = TypeVar("Config")

VARIABLE = "SELECTIVE_SCAN_TUNING"
PACKAGED = pathlib.Path(__file__).parent / "tuning.json"

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Request:
    """What a kernel asked `choose` for: its default and the shape."""

    default: object
    shape: dict[str, int]


_trying: contextvars.ContextVar[dict[str, object] | None] = contextvars.ContextVar(
    "selective_scan_trying", default=None
)
_requests: contextvars.ContextVar[dict[str, Request] | None] = contextvars.ContextVar(
    "selective_scan_requests", default=None
)


def choose(kernel: str, default: Config, shape: Mapping[str, int]) -> Config:
    """Chooses the configuration for a kernel at a shape on the current target.

    Args:
      kernel: its name in the tables.
      default: the heuristic's choice, a frozen dataclass; what is returned if no table knows the
        shape. Fields that a table leaves out are taken from it.
      shape: sizes by name.

    Raises:
      ValueError: a table is not of the form above.
    """
    if (requests := _requests.get()) is not None:
        requests[kernel] = Request(default, dict(shape))
    if (trying := _trying.get()) is not None and kernel in trying:
        return trying[kernel]
    device = current_target().device_kind
    for path in filter(None, (user_table(), PACKAGED)):
        found = read_table(path).get(device or "", {}).get(kernel, {}).get(shape_key(shape))
        if found is not None:
            return _merge(path, kernel, default, found)
    return default


def shape_key(shape: Mapping[str, int]) -> str:
    """Writes a shape as a key of a table, whatever the order of its names."""
    return ",".join(f"{name}={int(size)}" for name, size in sorted(shape.items()))


def user_table() -> pathlib.Path | None:
    """Returns the path of the user's own table, which need not be there.

    It is None where no home folder is known, as in containers under a number that has no user.
    """
    if named := os.environ.get(VARIABLE):
        return pathlib.Path(named)
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError:
        return None
    return pathlib.Path(cache) / "selective_scan_jax" / "tuning.json"


def read_table(path: pathlib.Path) -> dict:
    """Reads the table in a file, empty if there is no such file.

    Raises:
      ValueError: it is not a table.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return {}
    return _read(path, changed)


@functools.lru_cache
def _read(path: pathlib.Path, changed: int) -> dict:
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: not a tuning table ({error}); delete it or tune again"
        ) from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: expected a tuning table by device; delete it or tune again")
    return table


def _merge(path: pathlib.Path, kernel: str, default: Config, found: Mapping) -> Config:
    try:
        return dataclasses.replace(default, **found)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: {kernel}: expected some of the fields of {default}, got {found}; tune again"
        ) from error


def record(path: pathlib.Path, device: str, kernel: str, shape: Mapping[str, int], config) -> None:
    """Writes a configuration into a table file, keeping what else is in it."""
    table = json.loads(json.dumps(read_table(path)))
    entry = table.setdefault(device, {}).setdefault(kernel, {})
    entry[shape_key(shape)] = dataclasses.asdict(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    partial.replace(path)


@contextlib.contextmanager
def trying(configs: Mapping[str, object]) -> Iterator[None]:
    """Makes `choose` return these, by kernel name, in whatever is traced inside."""
    token = _trying.set(dict(configs))
    try:
        yield
    finally:
        _trying.reset(token)


@contextlib.contextmanager
def recording() -> Iterator[dict[str, Request]]:
    """Collects what `choose` is asked for, by kernel name, in whatever is traced inside."""
    requests: dict[str, Request] = {}
    token = _requests.set(requests)
    try:
        yield requests
    finally:
        _requests.reset(token)

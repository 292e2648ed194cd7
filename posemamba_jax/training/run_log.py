"""What a run leaves in its folder to be read: metrics, TensorBoard, configuration and versions."""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from posemamba_jax import config as config_lib
from posemamba_jax.config.schema import Config, DistributedConfig
from posemamba_jax.errors import UserError, describe_error
from posemamba_jax.files import writing
from posemamba_jax.files.json_report import JsonReport
from posemamba_jax.files.metrics_file import METRICS_FILE, read_metrics
from posemamba_jax.files.skeleton_file import save_skeleton
from posemamba_jax.model.checkpoint import CheckpointError, read_json
from posemamba_jax.skeleton import Skeleton
from posemamba_jax.training import resuming

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
VERSIONS_FILE = "versions.json"
SKELETON_FILE = "skeleton.yaml"

_FLUSH_SECONDS = 30.0

_PACKAGES = (
    *("posemamba-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
    *("jax-triton", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu"),
)


class RunLog:
    """metrics.jsonl and TensorBoard's event files.

    Lines of metrics.jsonl hold `step`, `epoch` and either the means of the training losses since
    the line before, or the figures of an evaluation.

    Args:
      run_dir: the run's folder.
      step: where the run goes on; what an interrupted run recorded after it is dropped, because
          those steps are about to be taken again.
      enabled: whether to write at all; of several processes one does.
    """

    def __init__(self, run_dir: str | Path, step: int, *, enabled: bool = True):
        run_dir = Path(run_dir)
        self._enabled = enabled
        if not enabled:
            return
        self._path = run_dir / METRICS_FILE
        kept = [row for row in read_metrics(run_dir) if row["step"] <= step]
        writing.write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._events = EventFile(run_dir / "tensorboard", step + 1)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if not self._enabled:
            return
        try:
            with contextlib.ExitStack() as files_to_close:
                files_to_close.callback(self._file.close)
                files_to_close.callback(self._events.close)
        except OSError as error:
            if kind is None:  # Otherwise this is likely the consequence of what is being raised.
                raise UserError(
                    f"{self._path.parent} cannot be written: {describe_error(error)}"
                ) from error

    def write(self, step: int, epoch: float, values: Mapping[str, float], group: str) -> None:
        """Records scalars; those that are not finite are left out.

        Args:
          step: optimiser steps taken.
          epoch: the same in epochs.
          values: name -> number.
          group: heading in TensorBoard, such as `train` or `test`.
        """
        if not self._enabled:
            return
        finite = {name: float(v) for name, v in values.items() if math.isfinite(v)}
        line = json.dumps({"step": step, "epoch": round(epoch, 6), **finite}) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
            self._events.write(step, {f"{group}/{name}": v for name, v in finite.items()})
        except OSError as error:
            raise UserError(
                f"{self._path.parent} cannot be written: {describe_error(error)}"
            ) from error


class EventFile:
    """Scalars for TensorBoard, on disk within `_FLUSH_SECONDS`.

    TensorBoard's own writer hands them to a thread, so a full disk is met by whoever writes next.

    Args:
      folder: made where it is missing.
      purge_step: TensorBoard is to forget what earlier files hold from this step on.

    Raises:
      OSError: here and in `write`: the file cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        self._flushed = -math.inf

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds name -> value at a step."""
        for name, value in values.items():
            scalar = Summary.Value(tag=name, simple_value=value)
            self._write(step=step, summary=Summary(value=[scalar]))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._records.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._records.close()

    def _write(self, **event: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **event).SerializeToString())


def to_floats(window: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Fetches the metrics of several steps from the device, for which it waits."""
    return [{k: float(v) for k, v in row.items()} for row in jax.device_get(window)]


def mean_of_finite(rows: list[dict[str, float]]) -> dict[str, float]:
    """Takes the mean of each metric over the rows in which it is finite, if there are any."""
    means = {}
    for name in rows[0] if rows else ():
        finite = [row[name] for row in rows if math.isfinite(row[name])]
        if finite:
            means[name] = sum(finite) / len(finite)
    return means


def figures(report: JsonReport) -> dict[str, float]:
    """Picks the overall figures of a report."""
    return {name: value for name, value in report.to_dict().items() if isinstance(value, float)}


def check_run_dir(config: Config) -> list[str]:
    """Refuses a folder that holds a run, unless that is to be resumed.

    Returns:
      What differs from the configuration of the run that is resumed, one line each.

    Raises:
      UserError: the folder holds a run that was not asked to be resumed.
      ConfigError: the configuration of the run that is resumed cannot be read.
    """
    saved = Path(config.run_dir) / CONFIG_FILE
    if not saved.is_file():
        return []
    if not config.train.resume:
        raise UserError(
            f"{config.run_dir} already holds a run; continue it with --resume, or start another "
            "with --run_dir FOLDER"
        )
    return resuming.compare(_read_stored(config.run_dir, saved), config)


def _read_stored(run_dir: str, saved: Path) -> Config:
    """Reads the configuration of the newest checkpoint, or that of the folder where there is none.

    The folder's may have been edited, and the checkpoint's says what its numbers mean.
    """
    steps = [p for p in (Path(run_dir) / "checkpoints").glob("*") if re.fullmatch("[0-9]+", p.name)]
    for step in sorted(steps, key=lambda path: int(path.name), reverse=True):
        try:
            return config_lib.from_dict(read_json(step / "config"), f"{step}/config: ")
        except CheckpointError:
            continue  # Damaged; it is set aside when it is read as a whole.
    return config_lib.load_config(["--config", str(saved)])


def read_course(run_dir: str | Path) -> str | None:
    """Reads which course the files in a run's folder belong to; None where they do not say."""
    try:
        found = json.loads((Path(run_dir) / VERSIONS_FILE).read_text(encoding="utf-8"))
        return found.get("course")
    except (OSError, ValueError, AttributeError):
        return None


def set_aside_other_course(run_dir: str | Path, course: str | None) -> None:
    """Renames what the folder has of another course of the run, with a warning.

    A course is what one state after the other came from; a run that starts at step 0 again in the
    same folder begins another one.
    """
    run_dir = Path(run_dir)
    if read_course(run_dir) == course:
        return
    for name in (METRICS_FILE, "report.json"):
        path, aside = run_dir / name, writing.unused(run_dir / f"{name}.aside")
        if path.is_file() and path.stat().st_size:
            path.rename(aside)
            logger.warning("%s is of another course of this run; renamed to %s", path, aside.name)


def write_run_files(config: Config, skeleton: Skeleton, course: str | None = None) -> None:
    """Makes the run's folder and writes the configuration and the versions into it.

    A skeleton that the configuration names is written too, for when its file is gone.

    Raises:
      UserError: the folder cannot be written.
    """
    run_dir = Path(config.run_dir)
    with writing.reported_as(f"run_dir: {run_dir}"):
        writing.write_text(run_dir / CONFIG_FILE, config_lib.to_yaml(_for_the_record(config)))
        if config.data.skeleton is not None:
            save_skeleton(run_dir / SKELETON_FILE, skeleton)
        versions = json.dumps({**collect_versions(), "course": course}, indent=2) + "\n"
        writing.write_text(run_dir / VERSIONS_FILE, versions)


def collect_versions() -> dict[str, Any]:
    """Versions of packages, the source's commit where there is one, and the devices."""
    versions: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    devices = jax.devices()
    return {
        **versions,
        "commit": _commit(),
        "system": platform.platform(),
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _for_the_record(config: Config) -> Config:
    """Leaves out of a configuration whether to resume and where, which the command says."""
    train = dataclasses.replace(config.train, resume=False)
    return dataclasses.replace(config, train=train, distributed=DistributedConfig())


def _commit() -> str | None:
    """Returns the commit of the source tree, with `-changed` where files differ from it."""
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty=-changed", "--abbrev=40"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None

"""Runs a writer again and again, each time with another of its system calls failing.

    LD_PRELOAD=faults.so FAULT_STATE=FILE python faulty_writers.py FOLDER WRITER...

prints each writer's name, how many calls it made fail, and how many writes it cut short (half is
written, and nothing more after that). After each of them, what was there before is there as it was,
or what was being written is there complete, and nothing else; what was raised says in a line where
and why; and writing once more, without a fault, ends as if there had been none, but for what
`Writer.again` says.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from matplotlib.figure import Figure

from posemamba_jax.config import Config, from_dict
from posemamba_jax.config.program import quiet_libraries
from posemamba_jax.errors import UserError, describe_error
from posemamba_jax.files import writing
from posemamba_jax.model import PoseMambaConfig
from posemamba_jax.model import checkpoint as model_checkpoint
from posemamba_jax.model.checkpoint import load_arrays, load_model, save_model
from posemamba_jax.pictures import plots
from posemamba_jax.pictures.render import render, video
from posemamba_jax.predict.export import WRITERS as EXPORTS
from posemamba_jax.predict.export import Result
from posemamba_jax.predict.world.contract import Camera
from posemamba_jax.skeleton import H36M17
from posemamba_jax.training import run_log
from posemamba_jax.training.checkpoint import RunCheckpoints
from posemamba_jax.training.state import TrainState

SHIM = ctypes.CDLL(None)
SHIM.fault_calls.restype = ctypes.c_long
# More calls than any writer here makes.
MOST = 2000


def contents(folder: Path) -> dict:
    """Every file below a folder -> its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def text(folder: Path, version: int) -> None:
    writing.write_text(folder / "file.txt", f"version {version}\n" * 1000)


def make_folder(folder: Path, version: int) -> None:
    if version == 0:
        return  # A folder is made once; before, there is none.
    with writing.new_folder(folder / "cache") as part:
        for name in "abc":
            np.save(part / f"{name}.npy", np.full(1000, version))


def result(version: int) -> Result:
    frames = 12
    rng = np.random.default_rng(version)
    return Result(
        track=1,
        poses_3d=rng.normal(size=(frames, 17, 3)).astype(np.float32),
        poses_2d=rng.uniform(100, 400, (frames, 17, 3)).astype(np.float32),
        predicted=np.ones(frames, bool),
        observed=np.ones(frames, bool),
        observed_joints=np.ones((frames, 17), bool),
        segments=[(0, frames)],
        root_translation=np.zeros((frames, 3), np.float32),
        frame_numbers=np.arange(frames),
        fps=30.0,
        image_size=(640, 480),
        units="mm",
        mm_per_unit=np.ones(frames, np.float32),
        source="keys.npy",
        source_format="array",
        joint_set="h36m17",
        world_poses=rng.normal(size=(frames, 17, 3)).astype(np.float32) + [0, 900, 0],
        planted=np.ones((frames, 2), bool),
        camera=Camera(500.0, 0.0, "given", (640, 480), np.diag([1.0, -1, -1]), 1500.0),
    )


def exports(suffix: str):
    return lambda folder, version: EXPORTS[suffix](folder / f"p.{suffix}", result(version))


def page(folder: Path, version: int) -> None:
    poses = result(version).world_poses
    render(folder / "p.html", poses, fps=30, up="y", progress=False)


def picture(folder: Path, version: int) -> None:
    figure = Figure(figsize=(0.5, 0.5))
    figure.text(0, 0, str(version))
    plots.save_figure(figure, folder / "curves.png")


def movie(suffix: str):
    """Writes some frames of noise."""
    write_frames = {"mp4": video.write_mp4, "gif": video.write_gif}[suffix]

    def write(folder: Path, version: int) -> None:
        frames = np.random.default_rng(version).integers(0, 255, (4, 64, 64, 4)).astype(np.uint8)
        write_frames(folder / f"p.{suffix}", frames, (64, 64), Fraction(25))

    return write


def metrics(folder: Path, version: int) -> None:
    """What resuming does: the lines up to a step are kept, and another is added."""
    with run_log.RunLog(folder, 3) as log:
        log.write(4 + version, 1.0, {"loss": float(version)}, "train")


def look_at_metrics(folder: Path) -> dict:
    """The rows before the step at which the run goes on must stay, whatever fails."""
    rows = run_log.read_metrics(folder)
    assert [row["step"] for row in rows[:3]] == [1, 2, 3], rows
    return {"rows": json.dumps(rows[:3])}


def start_metrics(folder: Path, version: int) -> None:
    if version == 0:
        rows = [{"step": n, "epoch": n / 3, "loss": 1.0} for n in (1, 2, 3)]
        (folder / run_log.METRICS_FILE).write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        metrics(folder, version)


def weight(version: int) -> dict[str, np.ndarray]:
    """Stands for a model's parameters, since one array is written as many are."""
    return {"weight": np.full(100, version, np.float32)}


def make_state(step: int) -> TrainState:
    fields = dict.fromkeys(("step", "key", "skipped", "skipped_in_a_row"), np.int32(step))
    state = TrainState(params=weight(step), ema=None, opt_state=weight(step), **fields)
    return jax.device_put(state)


def checkpoint(folder: Path, version: int) -> None:
    """Saves a later state, after which the one before it is pruned."""
    with RunCheckpoints(folder) as checkpoints:
        checkpoints.save(make_state(2 + version), {"proven_step": version}, Config())


def look_at_checkpoint(folder: Path) -> dict:
    """The newest that has a step's name: its arrays, and what the loop needs to go on."""
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    newest = folder / "checkpoints" / str(max(steps))
    arrays = {name: array.tobytes() for name, array in load_arrays(newest).items()}
    with RunCheckpoints(folder) as checkpoints:  # As the next start does.
        assert checkpoints.latest_step() == max(steps)
    return arrays | {"progress": (newest / "progress" / "metadata").read_text()}


def diverged(folder: Path, version: int) -> None:
    """Sets the checkpoints after the last good state aside."""
    with RunCheckpoints(folder, keep_last=3) as checkpoints:
        if version:
            checkpoints.proven_step = 2
            checkpoints.set_aside_unproven()
        else:
            for step in (2, 3, 4):
                checkpoints.save(make_state(step), {}, Config())


def course(folder: Path, version: int) -> None:
    """Begins a run anew where there is one: what it left is set aside, and it gets an identity."""
    data = {"source": "synthetic", "skeleton": "h36m17"}
    config = from_dict({"run_dir": str(folder), "seed": version, "data": data})
    name = f"course {version}"
    run_log.set_aside_other_course(folder, name)
    run_log.write_run_files(config, H36M17, name)
    with RunCheckpoints(folder) as checkpoints:
        if version:
            checkpoints.claim_best(0, {"course": name})
        else:
            checkpoints.save_best(make_state(2), {"course": name}, config, 50.0)
            (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
            (folder / "report.json").write_text("{}\n")


def look_at_what_was(folder: Path) -> dict:
    """All that was there before, under its old name or its new one; identity files are whole."""
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    for path in folder.glob("*.yaml"):
        assert path.read_text().endswith("\n"), path
    kept = {}
    for name, content in contents(folder).items():
        for word in (".aside", ".diverged"):
            name = name.replace(word, "")
        if not name.endswith((".yaml", "versions.json")):
            kept[name] = content
    return kept


def model(folder: Path, version: int) -> None:
    """Replaces a model, as converting does."""
    with mock.patch.object(model_checkpoint, "abstract_params", lambda _: weight(0)):
        save_model(folder / "model", PoseMambaConfig(), weight(version))


def look_at_model(folder: Path) -> dict:
    with mock.patch.object(model_checkpoint, "abstract_params", lambda _: weight(0)):
        _, variables = load_model(folder / "model")
    return {"weight": variables["params"]["weight"].tobytes()}


@dataclasses.dataclass(frozen=True)
class Writer:
    """What is tried.

    Attributes:
      write: called with a folder and a version, 0 for what is there before and 1 for the new one.
      look: gives what a reader finds in the folder, and raises if that is not whole.
      names: whether the files' names count too once all is done.
      again: whether it is tried once more after a fault. A run is resumed by another process;
        in this one Orbax still clears up, in threads, what the failed save left.
    """

    write: Callable[[Path, int], None]
    look: Callable[[Path], dict] = contents
    names: bool = False
    again: bool = True


WRITERS = {
    "text": Writer(text),
    "folder": Writer(make_folder),
    **{suffix: Writer(exports(suffix)) for suffix in EXPORTS},
    "page": Writer(page),
    "picture": Writer(picture),
    "metrics": Writer(start_metrics, look_at_metrics),
    "mp4": Writer(movie("mp4")),
    "gif": Writer(movie("gif")),
    "course": Writer(course, look_at_what_was, names=True),
    "diverged": Writer(diverged, look_at_what_was, names=True),
    "checkpoint": Writer(checkpoint, look_at_checkpoint, again=False),
    "model": Writer(model, look_at_model),
}
# Orbax writes too much for every write to be cut short one by one as well.
WHOLE_CALLS_ONLY = ("checkpoint", "model")


def look_at_end(writer: Writer, folder: Path) -> dict:
    return {"found": writer.look(folder), "names": writer.names and sorted(contents(folder))}


def look_when_settled(writer: Writer, folder: Path, whole: tuple[dict, ...]) -> dict:
    """Looks, and again for ten seconds while Orbax's threads clear up.

    They would have ended with their process: the next start meets nothing that they have half done.
    """
    for _ in range(0 if writer.again else 100):
        with contextlib.suppress(AssertionError, OSError, UserError):
            if (found := writer.look(folder)) in whole:
                return found
        time.sleep(0.1)
    return writer.look(folder)


def run(name: str, parent: Path) -> tuple[int, int]:
    """Fails every call of a writer in turn, then cuts every write short; returns how many each."""
    writer = WRITERS[name]
    (parent / "old").mkdir()
    writer.write(parent / "old", 0)
    shutil.copytree(parent / "old", parent / "new")
    writer.write(parent / "new", 1)
    old, new = writer.look(parent / "old"), writer.look(parent / "new")
    end = look_at_end(writer, parent / "new")
    counts = []
    for half in (0,) if name in WHOLE_CALLS_ONLY else (0, 1):
        met = 0
        for n in range(1, MOST):
            folder = parent / f"{half}-{n}"
            shutil.copytree(parent / "old", folder)
            SHIM.fault_arm(str(folder).encode(), ctypes.c_long(n), half)
            said = None
            try:
                writer.write(folder, 1)
            except (UserError, OSError) as error:
                said = describe_error(error)
            finally:
                calls, was_cut = SHIM.fault_calls(), SHIM.fault_writes()
                SHIM.fault_arm(b"/nowhere", ctypes.c_long(0), 0)
            found = look_when_settled(writer, folder, (old, new))
            where = (name, half, n, said)
            assert found in (old, new), (*where, sorted(found), sorted(old), sorted(new))
            if calls < n:  # There is no n-th call.
                assert said is None and look_at_end(writer, folder) == end, where
                break
            met += was_cut if half else 1
            if found == old != new:
                assert said and "\n" not in said and "Traceback" not in said, where
                assert str(folder) in said, where
            if found == old and writer.again:
                writer.write(folder, 1)
                assert look_at_end(writer, folder) == end, where
            shutil.rmtree(folder, ignore_errors=True)  # Orbax removes what it left, in a thread.
        else:
            raise AssertionError(f"{name} makes more than {MOST} calls")
        counts.append(met)
    return counts[0], sum(counts[1:])


if __name__ == "__main__":
    quiet_libraries()
    for chosen in sys.argv[2:]:
        place = Path(sys.argv[1], chosen)
        place.mkdir()
        print(chosen, *run(chosen, place), flush=True)
    os._exit(0)  # Some of Orbax's threads never end after so many failed saves in one process.

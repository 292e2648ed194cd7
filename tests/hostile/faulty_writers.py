"""Runs a writer again and again, each time with another of its system calls failing.

    LD_PRELOAD=faults.so python faulty_writers.py FOLDER WRITER...

prints each writer's name, how many calls it made fail, and how many writes it cut short (half is
written, and nothing more after that). After each of them, what was there before is there as it was,
or what was being written is there complete, and nothing else; and what was raised says the reason
in a line. `WRITERS` names the writers; each is (write, look), where `look` gives what a reader
finds, and raises if it is not whole.
"""

import ctypes
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from posemamba_jax.config import Config
from posemamba_jax.config.program import quiet_libraries
from posemamba_jax.errors import UserError, describe_error
from posemamba_jax.files import writing
from posemamba_jax.model.checkpoint import load_arrays
from posemamba_jax.pictures import plots
from posemamba_jax.pictures.render import render
from posemamba_jax.predict.export import WRITERS as EXPORTS
from posemamba_jax.predict.export import Result
from posemamba_jax.predict.world.contract import Camera
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


def checkpoint(folder: Path, version: int) -> None:
    """Saves a later state, after which the one before it is pruned."""
    fields = dict.fromkeys(("key", "skipped", "skipped_in_a_row"), np.int32(version))
    state = TrainState(
        step=np.int32(2 + version),
        params={"weight": np.full(100, version, np.float32)},
        ema=None,
        opt_state={"moment": np.full(100, version, np.float32)},
        **fields,
    )
    with RunCheckpoints(folder) as checkpoints:
        checkpoints.save(jax.device_put(state), {"proven_step": version}, Config())


def look_at_checkpoint(folder: Path) -> dict:
    """The newest that has a step's name: its arrays, and what the loop needs to go on."""
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    newest = folder / "checkpoints" / str(max(steps))
    arrays = {name: array.tobytes() for name, array in load_arrays(newest).items()}
    with RunCheckpoints(folder) as checkpoints:  # As the next start does.
        assert checkpoints.latest_step() == max(steps)
    return arrays | {"progress": (newest / "progress" / "metadata").read_text()}


WRITERS = {
    "text": (text, contents),
    "folder": (make_folder, contents),
    **{suffix: (exports(suffix), contents) for suffix in EXPORTS},
    "page": (page, contents),
    "picture": (picture, contents),
    "metrics": (start_metrics, look_at_metrics),
    "checkpoint": (checkpoint, look_at_checkpoint),
}


def run(name: str, parent: Path) -> tuple[int, int]:
    """Fails every call of a writer in turn, then cuts every write short; returns how many each."""
    write, look = WRITERS[name]
    (parent / "old").mkdir()
    write(parent / "old", 0)
    shutil.copytree(parent / "old", parent / "new")
    write(parent / "new", 1)
    old, new = look(parent / "old"), look(parent / "new")
    counts = []
    # A checkpoint's writes take too long to be cut short one by one as well.
    for half in (0,) if name == "checkpoint" else (0, 1):
        met = 0
        for n in range(1, MOST):
            folder = parent / f"{half}-{n}"
            shutil.copytree(parent / "old", folder)
            SHIM.fault_arm(str(folder).encode(), ctypes.c_long(n), half)
            said = None
            try:
                write(folder, 1)
            except (UserError, OSError) as error:
                said = describe_error(error)
            finally:
                calls, was_cut = SHIM.fault_calls(), SHIM.fault_writes()
                SHIM.fault_arm(b"/nowhere", ctypes.c_long(0), 0)
            found = look(folder)
            where = (name, half, n, said)
            assert found in (old, new), (*where, sorted(found), sorted(old), sorted(new))
            if calls < n:  # There is no n-th call.
                assert said is None and found == new, where
                break
            met += was_cut if half else 1
            if found == old and old != new:
                assert said and "\n" not in said and "Traceback" not in said, where
            shutil.rmtree(folder, ignore_errors=True)  # Orbax removes what it left, in a thread.
        else:
            raise AssertionError(f"{name} makes more than {MOST} calls")
        counts.append(met)
    return counts[0], sum(counts[1:])


if __name__ == "__main__":
    quiet_libraries()
    for writer in sys.argv[2:]:
        place = Path(sys.argv[1], writer)
        place.mkdir()
        print(writer, *run(writer, place), flush=True)

"""Runs a writer again and again, each time with another of its system calls failing.

    LD_PRELOAD=faults.so python faulty_writers.py FOLDER WRITER...

prints each writer's name and how many calls it made fail. After each of them, what was there before
is there as it was, or what was being written is there complete, and nothing else; and what was
raised says the reason in a line. `WRITERS` names the writers; each is (write, look), where `look`
gives what a reader finds, and raises if it is not whole.
"""

import ctypes
import json
import shutil
import sys
from pathlib import Path

import numpy as np

from posemamba_jax.errors import UserError, describe_error
from posemamba_jax.files import writing
from posemamba_jax.predict.export import WRITERS as EXPORTS
from posemamba_jax.predict.export import Result
from posemamba_jax.training import run_log

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
    )


def exports(suffix: str):
    return lambda folder, version: EXPORTS[suffix](folder / f"p.{suffix}", result(version))


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


WRITERS = {
    "text": (text, contents),
    "folder": (make_folder, contents),
    **{suffix: (exports(suffix), contents) for suffix in EXPORTS},
    "metrics": (start_metrics, look_at_metrics),
}


def run(name: str, parent: Path) -> int:
    """Fails every call of a writer in turn; returns how many there were."""
    write, look = WRITERS[name]
    (parent / "old").mkdir()
    write(parent / "old", 0)
    shutil.copytree(parent / "old", parent / "new")
    write(parent / "new", 1)
    old, new = look(parent / "old"), look(parent / "new")
    for n in range(1, MOST):
        folder = parent / f"n{n}"
        shutil.copytree(parent / "old", folder)
        SHIM.fault_arm(str(folder).encode(), ctypes.c_long(n))
        said = None
        try:
            write(folder, 1)
        except (UserError, OSError) as error:
            said = describe_error(error)
        finally:
            calls = SHIM.fault_calls()
            SHIM.fault_arm(b"/nowhere", ctypes.c_long(0))
        found = look(folder)
        assert found in (old, new), (n, said, sorted(found), sorted(old), sorted(new))
        if calls < n:  # There is no n-th call.
            assert said is None and found == new, (n, said)
            return n - 1
        if found == old and old != new:
            assert said and "\n" not in said and "Traceback" not in said, (n, said)
        shutil.rmtree(folder)
    raise AssertionError(f"{name} makes more than {MOST} calls")


if __name__ == "__main__":
    for writer in sys.argv[2:]:
        place = Path(sys.argv[1], writer)
        place.mkdir()
        print(writer, run(writer, place), flush=True)

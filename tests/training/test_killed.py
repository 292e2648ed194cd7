"""Runs that are killed without warning go on to the parameters of one that never was."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from posemamba_jax.files.metrics_file import read_metrics
from posemamba_jax.training.checkpoint import load_arrays
from posemamba_jax.training.compare import equal_bits

ROOT = Path(__file__).parents[2]
EPOCHS = 100
KILLS = 20

TINY = {
    "data": {
        "source": "synthetic",
        "clip_len": 9,
        "synthetic": {"num_train_clips": 10, "num_test_clips": 2},
    },
    "model": {"dim": 8, "depth": 1, "state_size": 4},
    "optim": {"learning_rate": 1e-3, "ema": 0.9},
    # Five steps an epoch, so that some checkpoint is being written most of the time.
    "train": {"batch_size": 2, "epochs": EPOCHS, "log_every": 2, "eval_every": 4, "keep_last": 2},
    "eval": {"batch_size": 2},
}


class Trainer:
    """Starts `python train.py` on one run again and again."""

    def __init__(self, folder):
        self.folder = folder
        self.file = folder / "tiny.yaml"
        cache = {"compilation_cache": str(folder / "cache")}
        self.file.write_text(yaml.safe_dump({**TINY, "train": {**TINY["train"], **cache}}))

    def start(self, run_dir):
        # One device, and no time spent on making a program fast that runs for a second.
        environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
        argv = ["--config", str(self.file), "--run_dir", str(run_dir), "--resume"]
        return subprocess.Popen(
            [sys.executable, "train.py", *argv],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def finish(self, run_dir):
        program = self.start(run_dir)
        said, _ = program.communicate(timeout=1200)
        assert program.returncode == 0, said
        assert "Traceback" not in said and "damaged" not in said
        return said


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return Trainer(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def uninterrupted(trainer):
    run_dir = trainer.folder / "uninterrupted"
    trainer.finish(run_dir)
    return run_dir


def steps_saved(run_dir):
    return [int(p.name) for p in (run_dir / "checkpoints").glob("*") if p.name.isdigit()]


def being_written(run_dir):
    """Returns the names of checkpoints under way: each has another name until it is complete."""
    folders = [p for name in ("checkpoints", "best") for p in (run_dir / name).glob("*")]
    return {p.name for p in folders if not p.name.isdigit()}


def kill_at_random(trainer, run_dir, draw, moment):
    """Starts the run and kills it: while it starts, after some steps, or in a write.

    Returns:
      Whether a checkpoint was left half written.
    """
    lines = len(read_metrics(run_dir))
    left_behind = being_written(run_dir)
    program = trainer.start(run_dir)
    try:
        if moment == "start":
            time.sleep(draw.uniform(0, 6))
        else:
            wait_until(program, lambda: len(read_metrics(run_dir)) > lines)
        if moment == "steps":
            time.sleep(draw.uniform(0, 0.3))
        if moment == "write":
            seen, count = set(left_behind), draw.randint(1, 4)
            wait_until(
                program,
                lambda: seen.update(being_written(run_dir)) or len(seen - left_behind) >= count,
            )
            time.sleep(draw.uniform(0, 0.02))
        program.send_signal(signal.SIGKILL)
        said, _ = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == -signal.SIGKILL, said
    return bool(being_written(run_dir) - left_behind)


def wait_until(program, condition):
    deadline = time.monotonic() + 120
    while not condition() and program.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def course(run_dir):
    return [
        {key: value for key, value in row.items() if key != "clips_per_second"}
        for row in read_metrics(run_dir)
    ]


def assert_same_end(run_dir, uninterrupted):
    """Returns parameters, average, moments, key and counters; the best model; the recorded
    figures.
    """
    for which in ("latest", "best"):
        found, expected = (load_arrays(run, which) for run in (run_dir, uninterrupted))
        assert found.keys() == expected.keys()
        assert {name.split("/")[0] for name in found} == {"params", "ema", "rest"}
        different = [name for name in found if not equal_bits(found[name], expected[name])]
        assert different == []
    assert steps_saved(run_dir) == steps_saved(uninterrupted)
    assert course(run_dir) == course(uninterrupted)


@pytest.mark.long
@pytest.mark.slow
def test_killed_run_ends_as_if_it_never_was(trainer, uninterrupted):
    draw = random.Random(0)
    moments = ["write"] * 10 + ["steps"] * 6 + ["start"] * 4
    assert len(moments) == KILLS
    draw.shuffle(moments)
    run_dir = trainer.folder / "killed"
    in_writes = 0
    for number, moment in enumerate(moments):
        in_writes += kill_at_random(trainer, run_dir, draw, moment)
        print(f"kill {number + 1} ({moment}): latest of {steps_saved(run_dir)}", flush=True)
    assert max(steps_saved(run_dir)) < EPOCHS * 5, "it was finished before the last kill"
    said = trainer.finish(run_dir)
    assert "resuming at step" in said
    assert_same_end(run_dir, uninterrupted)
    assert in_writes >= KILLS // 4
    print(f"{KILLS} kills, {in_writes} of them in the middle of writing a checkpoint")

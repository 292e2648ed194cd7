"""A disk that fills up ends the run with one line and leaves the checkpoints before it whole."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from posemamba_jax.training.checkpoint import load_arrays, load_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def train(tiny_file):
    """(run's folder, *options) -> what `python train.py` did and printed; all checkpoints stay."""

    def train(run_dir, *options):
        tree = yaml.safe_load(tiny_file.read_text())
        file = tiny_file.with_name("all_stay.yaml")
        tree["train"] |= {"epochs": 60, "keep_every": 1, "eval_every": 4, "log_every": 1}
        file.write_text(yaml.safe_dump(tree))
        argv = ["--config", str(file), "--run_dir", str(run_dir), *options]
        return subprocess.run(
            [sys.executable, "train.py", *argv],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
            env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        )  # fmt: skip

    return train


def steps_of(run_dir):
    return sorted(int(p.name) for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit())


@pytest.mark.slow
def test_full_disk(small_disk, train):
    run_dir = small_disk / "run"
    done = train(run_dir)
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr and "Make room" in done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    saved = steps_of(run_dir)
    assert saved
    for step in saved:
        assert load_arrays(run_dir / "checkpoints" / str(step))["rest/step"] == step
    load_model(run_dir)

    # With room again, the run goes on from there.
    for step in saved[:-1]:
        shutil.rmtree(run_dir / "checkpoints" / str(step))
    end = saved[-1] + 3
    done = train(run_dir, "--resume", "--train.keep_every", "0", "--train.steps", str(end))
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {saved[-1]}" in done.stdout


@pytest.mark.slow
def test_disk_that_is_full_from_the_start(small_disk, train):
    (small_disk / "filler").write_bytes(bytes((2 << 20) - 4096))
    done = train(small_disk / "run")
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr and "No space left" in done.stderr
    assert "Traceback" not in done.stderr

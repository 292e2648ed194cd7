"""Batches placed ahead: their order, the position that is saved, errors, traces of steps."""

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from posemamba_jax.config import ConfigError, load_config
from posemamba_jax.data import build, pipeline
from posemamba_jax.data.prefetch import DevicePrefetch, read_ahead
from posemamba_jax.errors import UserError
from posemamba_jax.training import profiling

ROOT = Path(__file__).parents[2]


class Numbers:
    """0, 1, 2, ... with a position; raises at `fails_at`."""

    def __init__(self, fails_at=None):
        self.taken, self.fails_at = 0, fails_at

    def __next__(self):
        if self.taken == self.fails_at:
            raise ValueError(f"clip {self.taken} of numbers.npz is not finite")
        self.taken += 1
        return {"number": np.array(self.taken - 1)}

    def get_state(self):
        return {"taken": self.taken}


def test_order_and_position():
    numbers = Numbers()
    with DevicePrefetch(numbers, jax.device_put, ahead=3) as feed:
        assert feed.get_state() == {"taken": 0}
        for expected in range(20):
            batch = next(feed)
            assert int(batch["number"]) == expected
            assert feed.get_state() == {"taken": expected + 1}
        assert isinstance(batch["number"], jax.Array)
        assert feed.waited > 0


def test_reads_ahead_but_not_further():
    placed = threading.Semaphore(0)

    def place(batch):
        placed.release()
        return batch

    numbers = Numbers()
    with DevicePrefetch(numbers, place, ahead=3) as feed:
        next(feed)
        for _ in range(4):
            assert placed.acquire(timeout=10)
        assert not placed.acquire(timeout=0.1)
        assert numbers.taken == 4
        assert feed.get_state() == {"taken": 1}


def test_an_error_comes_with_the_batch_it_belongs_to():
    with DevicePrefetch(Numbers(fails_at=2), lambda batch: batch, ahead=4) as feed:
        assert [int(next(feed)["number"]) for _ in range(2)] == [0, 1]
        with pytest.raises(ValueError, match="clip 2 of numbers.npz"):
            next(feed)
        assert feed.get_state() == {"taken": 2}


def test_a_saved_position_continues_the_stream(make_config):
    source = build(make_config().data, "train")

    def stream(state=None):
        batches = pipeline.train_batches(source, batch_size=4, seed=1)
        if state:
            batches.set_state(state)
        return DevicePrefetch(batches, lambda batch: batch)

    with stream() as feed:
        wanted = [next(feed) for _ in range(5)]
    with stream() as feed:
        for _ in range(2):
            next(feed)
        state = feed.get_state()
    with stream(state) as feed:
        for batch in wanted[2:]:
            jax.tree.map(np.testing.assert_array_equal, next(feed), batch)


@pytest.mark.slow
def test_steps_are_traced(tiny_file, tmp_path):
    """As a process of its own: the profiler brings down one in which libtpu found no TPU."""
    options = ["--train.steps", "3", "--profile", "2..3", "--data.synthetic.num_test_clips", "1"]
    done = subprocess.run(
        [sys.executable, "train.py", "--config", tiny_file, "--run_dir", tmp_path, *options],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.trace.json.gz")
    (xplane,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    names = {
        event.get("name")
        for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    }
    assert "train" in names
    found = jax.profiler.ProfileData.from_file(str(xplane))
    steps = {
        dict(event.stats)["step_num"]
        for plane in found.planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    }
    assert steps == {2, 3}


def test_no_trace_where_the_profiler_would_bring_down_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(profiling, "_libtpu_without_tpu", lambda: True)
    profiling.StepTrace(range(0), tmp_path)
    with pytest.raises(UserError, match=r"^train\.profile: .*set JAX_PLATFORMS=cpu"):
        profiling.StepTrace(range(2, 4), tmp_path)


@pytest.mark.parametrize("steps", ["5", "3..2", "0..4", "a..b"])
def test_steps_to_trace_are_checked(steps):
    with pytest.raises(ConfigError, match=r"train\.profile: .*such as 10\.\.15"):
        load_config(["--profile", steps])


def test_reading_ahead_changes_nothing():
    taken = []

    def items():
        for i in range(7):
            taken.append(i)
            yield i

    assert list(read_ahead(items())) == list(range(7)) == taken
    assert list(read_ahead([])) == []

    def failing():
        yield 0
        raise ValueError("clip 1")

    found = read_ahead(failing())
    assert next(found) == 0
    with pytest.raises(ValueError, match="clip 1"):
        next(found)


def test_reading_ahead_ends_with_its_reader():
    taken = []
    found = read_ahead((taken.append(i) for i in range(100)), ahead=2)
    next(found)
    found.close()
    assert len(taken) <= 4

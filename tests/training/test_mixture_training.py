"""Training on a mixture in which one source has 2D poses only, through the whole loop."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from posemamba_jax.training.loop import train

sys.path.append(str(Path(__file__).parents[1] / "datasets"))
from files_2d import write_instavariety  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mixture(make_config, tmp_path_factory):
    """(*overrides, run_dir=...) -> a run whose second source joins after the first epoch."""
    paths = write_instavariety(tmp_path_factory.mktemp("insta"))
    options = ["--data.source", "mixture"]
    options += ["--data.mixture.sources", "[synthetic, instavariety]"]
    options += ["--data.mixture.weights", "[1, 1]", "--data.mixture.join_epochs", "[0, 1]"]
    options += ["--data.input_2d", "ground_truth", "--data.augment.noise", "true"]
    options += ["--data.augment.mask_joints", "0.05", "--data.augment.mask_frames", "0.1"]
    options += ["--train.log_every", "1"]
    for name, path in paths.items():
        options += [f"--data.instavariety.{name}", path]
    return lambda *more, run_dir: make_config(*options, *more, run_dir=run_dir)


@pytest.fixture(scope="module")
def whole(mixture, one_device, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    return run_dir, train(mixture("--train.steps", "9", run_dir=run_dir), one_device)


def read_metrics(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_the_2d_source_joins_at_its_epoch(whole):
    run_dir, outcome = whole
    rows = read_metrics(run_dir)
    assert outcome.exit_code == 0 and len(rows) == 9
    # 20 positions an epoch are 5 steps: 10 synthetic clips make half of it.
    assert all("projection_2d" not in row and "pos" in row for row in rows[:5])
    assert any("projection_2d" in row for row in rows[5:])
    assert all(np.isfinite(row["loss"]) and row["skipped"] == 0 for row in rows)
    report = json.loads((run_dir / "report.json").read_text())
    assert report["source"] == "synthetic" and report["input_2d"] == "ground_truth"


def test_an_interrupted_run_continues_exactly(whole, mixture, one_device, tmp_path):
    part = tmp_path / "part"
    train(mixture("--train.steps", "6", run_dir=part), one_device)
    train(mixture("--train.steps", "9", "--train.resume", "true", run_dir=part), one_device)
    expected = {row["step"]: row["loss"] for row in read_metrics(whole[0])}
    assert {row["step"]: row["loss"] for row in read_metrics(part)} == expected


@pytest.mark.slow
def test_two_devices_take_the_same_steps(whole, mixture, tmp_path):
    run_dir = tmp_path / "mesh"
    config = mixture("--train.steps", "6", run_dir=run_dir)
    train(config, jax.devices()[:2])
    losses = [row["loss"] for row in read_metrics(run_dir)]
    np.testing.assert_allclose(losses, [r["loss"] for r in read_metrics(whole[0])[:6]], rtol=1e-4)

"""Whole runs: what they leave behind, and that interrupted ones go on as if never stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from posemamba_jax.config import load_config
from posemamba_jax.data.prefetch import DevicePrefetch
from posemamba_jax.errors import UserError
from posemamba_jax.files.metrics_file import read_metrics
from posemamba_jax.model.mesh import make_mesh
from posemamba_jax.pictures.evaluation import main as evaluate_main
from posemamba_jax.training import loop, signals
from posemamba_jax.training.checkpoint import RunCheckpoints, load_model, save_model
from posemamba_jax.training.loop import train
from posemamba_jax.training.state import abstract_state

ROOT = Path(__file__).parents[2]
STEPS = 12


def course(run_dir):
    """Returns the recorded figures without the rate, which no two runs share."""
    rows = read_metrics(run_dir)
    for row in rows:
        row.pop("clips_per_second", None)
    return rows


def final_state(run_dir, config, devices):
    abstract = abstract_state(config, make_mesh(config.mesh, devices))
    with RunCheckpoints(run_dir, keep_last=5) as checkpoints:
        return jax.device_get(checkpoints.restore(abstract)[0])


def stop_at(monkeypatch, step, number):
    """Sends a signal to this process while the step with this number (from 1) is prepared."""
    count, take = 0, DevicePrefetch.__next__

    def count_and_take(self):
        nonlocal count
        count += 1
        if count == step:
            signal.raise_signal(number)
        return take(self)

    monkeypatch.setattr(DevicePrefetch, "__next__", count_and_take)


def test_run_folder(finished_run, make_config):
    run_dir, outcome = finished_run
    assert (outcome.step, outcome.exit_code) == (STEPS, signals.FINISHED)
    names = {path.name for path in run_dir.iterdir()}
    assert names == {
        *("best", "checkpoints", "tensorboard", "config.yaml", "versions.json", "metrics.jsonl"),
        *("report.json", "curves.png", "poses.png"),
    }
    for picture in ("curves.png", "poses.png"):
        assert (run_dir / picture).read_bytes().startswith(b"\x89PNG")
    assert load_config(["--config", str(run_dir / "config.yaml")]) == make_config(run_dir=run_dir)
    versions = json.loads((run_dir / "versions.json").read_text())
    assert versions["jax"] == jax.__version__
    assert any((run_dir / "tensorboard").iterdir())


def test_recorded_figures(finished_run):
    run_dir, outcome = finished_run
    rows = course(run_dir)
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    errors = {row["step"]: row["mpjpe_mm"] for row in rows if "mpjpe_mm" in row}
    assert list(losses) == [2, 4, 6, 8, 10, 12]
    assert list(errors) == [6, 12]
    assert losses[12] < losses[2]
    assert outcome.best_mm == min(errors.values())
    report = json.loads((run_dir / "report.json").read_text())
    assert report["mpjpe_mm"] == errors[12] == outcome.report.mpjpe_mm
    curves = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    for tag, expected in (("train/loss", losses), ("test/mpjpe_mm", errors)):
        found = {event.step: event.value for event in curves.Scalars(tag)}
        assert found == pytest.approx(expected, rel=1e-6), tag


def test_best_and_periodic_checkpoints(finished_run):
    run_dir, _ = finished_run
    assert {p.name for p in (run_dir / "checkpoints").iterdir()} == {"6", "12"}
    errors = {r["step"]: r["mpjpe_mm"] for r in course(run_dir) if "mpjpe_mm" in r}
    best = min(errors, key=errors.get)
    assert [p.name for p in (run_dir / "best").iterdir()] == [str(best)]


def test_a_run_is_not_overwritten(finished_run, make_config, one_device):
    run_dir, _ = finished_run
    before = (run_dir / "config.yaml").read_text()
    with pytest.raises(UserError, match="--resume"):
        train(make_config("--seed", "5", run_dir=run_dir), one_device)
    assert (run_dir / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("number", "exit_code", "step"),
    # In the middle of an epoch and of a window of the log; at the end of an epoch.
    [
        pytest.param(signal.SIGTERM, signals.PREEMPTED, 5, id="SIGTERM"),
        pytest.param(signal.SIGINT, signals.INTERRUPTED, 9, id="SIGINT", marks=pytest.mark.slow),
    ],
)
def test_resumed_run_equals_uninterrupted_one(
    number, exit_code, step, finished_run, make_config, one_device, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_at(patch, step, number)
        outcome = train(make_config(run_dir=tmp_path), one_device)
    assert (outcome.step, outcome.exit_code) == (step, exit_code)
    assert (tmp_path / "checkpoints" / str(step)).is_dir()

    resumed = load_config(["--resume", str(tmp_path)])
    assert train(resumed, one_device).exit_code == signals.FINISHED
    assert course(tmp_path) == course(finished_run[0])
    config = make_config()
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(tmp_path, config, one_device),
        final_state(finished_run[0], config, one_device),
    )


@pytest.mark.slow
def test_stop_during_evaluation_evaluates_when_resumed(
    finished_run, make_config, one_device, tmp_path, monkeypatch
):
    evaluate = loop.evaluate

    def interrupted(predict, source, **options):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(predict, source, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", interrupted)
        outcome = train(make_config(run_dir=tmp_path), one_device)
    assert (outcome.step, outcome.exit_code) == (6, signals.PREEMPTED)
    assert not any("mpjpe_mm" in row for row in course(tmp_path))
    train(load_config(["--resume", str(tmp_path)]), one_device)
    assert course(tmp_path) == course(finished_run[0])


def test_resuming_with_other_data_is_refused(finished_run, one_device):
    run_dir, _ = finished_run
    before = (run_dir / "config.yaml").read_text()
    for change, message in (
        (["--data.synthetic.num_train_clips", "11"], "11"),
        (["--model.dim", "12"], "has to keep model.dim: 8 -> 12"),
    ):
        with pytest.raises(UserError, match=message):
            train(load_config(["--resume", str(run_dir), *change]), one_device)
    assert (run_dir / "config.yaml").read_text() == before


def test_data_that_is_not_finite_ends_the_run(
    make_config, one_device, tmp_path, monkeypatch, capsys
):
    put_batch = loop.put_batch

    def spoil(batch, mesh):
        return put_batch({**batch, "poses_3d": np.full_like(batch["poses_3d"], np.nan)}, mesh)

    monkeypatch.setattr(loop, "put_batch", spoil)
    config = make_config("--train.max_skipped", "4", run_dir=tmp_path)
    outcome = train(config, one_device)
    assert (outcome.step, outcome.exit_code) == (4, signals.DIVERGED)
    said = capsys.readouterr().out
    assert re.search(r"skipped, not finite: .*\bpos\b", said), said
    params = final_state(tmp_path, config, one_device).params
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_saves_and_tells(tiny_file, tmp_path):
    """The real program and a real signal."""
    run_dir = tmp_path / "run"
    argv = ["--config", str(tiny_file), "--run_dir", str(run_dir), "--train.epochs", "100000"]
    # One device, and no time spent on making a program fast that runs for a second.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    program = subprocess.Popen(
        [sys.executable, "train.py", *argv, "--train.eval_every", "0"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while len(read_metrics(run_dir)) < 3 and program.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=120)
    finally:
        program.kill()
    assert program.returncode == signals.INTERRUPTED, err
    assert "Traceback" not in err
    assert f"python train.py --resume {run_dir}" in out
    step = max(int(p.name) for p in (run_dir / "checkpoints").iterdir())
    assert read_metrics(run_dir)[-1]["step"] <= step
    load_model(run_dir)


def test_eval_of_a_run(finished_run, tmp_path, capsys):
    run_dir, _ = finished_run
    output = tmp_path / "results"
    argv = ["--checkpoint", str(run_dir), "--which", "latest", "--output", str(output)]
    assert evaluate_main([*argv, "--mesh.data", "1"], jax.devices()[:1]) == 0
    report = json.loads((output / "report.json").read_text())
    trained = json.loads((run_dir / "report.json").read_text())
    assert report["mpjpe_mm"] == pytest.approx(trained["mpjpe_mm"], abs=1e-3)
    assert report["per_action"].keys() == trained["per_action"].keys()
    assert (output / "poses.png").is_file()
    said = capsys.readouterr().out
    assert all(action in said for action in report["per_action"])


def test_eval_of_a_model_alone(finished_run, tiny_file, tmp_path, capsys):
    """What the converter of the authors' checkpoints writes holds no run's configuration."""
    model, variables = load_model(finished_run[0], "latest")
    save_model(tmp_path / "model", model, variables["params"], {"converted_from": "file.bin"})
    argv = ["--checkpoint", str(tmp_path / "model"), "--config", str(tiny_file)]
    assert evaluate_main([*argv, "--model.dim", "64"], jax.devices()[:1]) == 0
    report = json.loads((tmp_path / "model" / "eval" / "report.json").read_text())
    trained = json.loads((finished_run[0] / "report.json").read_text())
    assert report["mpjpe_mm"] == pytest.approx(trained["mpjpe_mm"], abs=1e-3)
    assert "model.dim is 8, as in the checkpoint, not 64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--checkpoint"),
        (["--checkpont", "x"], "--checkpoint?"),
        (["--checkpoint", "nowhere"], "no such folder"),
        (["--checkpoint", "nowhere", "--which", "worst"], "best or latest"),
        (["--checkpoint", "nowhere", "--pictures", "-1"], "--pictures"),
    ],
)
def test_eval_errors(argv, message):
    with pytest.raises(UserError, match=re.escape(message)):
        evaluate_main(argv)


@pytest.mark.long
@pytest.mark.slow
def test_fewer_devices_go_on_with_the_same_losses(make_config, tmp_path):
    """8 devices, then 2, then 1, each from the checkpoint of the one before."""
    options = ["--train.batch_size", "8", "--train.epochs", "6", "--train.eval_every", "0"]
    alone, moving = tmp_path / "alone", tmp_path / "moving"
    train(make_config(*options, "--train.log_every", "1", run_dir=alone), jax.devices()[:1])
    stages = (
        (4, 8, {"data": 2, "fsdp": 2, "tensor": 2}),
        (8, 2, {"data": 1, "fsdp": 2, "tensor": 1}),
        (12, 1, {"data": 1, "fsdp": 1, "tensor": 1}),
    )
    for end, devices, sizes in stages:
        mesh = [f"--mesh.{axis}={size}" for axis, size in sizes.items()]
        steps = ["--train.steps", str(end), "--train.log_every", "1", "--train.resume", "true"]
        config = make_config(*options, *mesh, *steps, run_dir=moving)
        outcome = train(config, jax.devices()[:devices])
        assert (outcome.step, outcome.exit_code) == (end, signals.FINISHED)
    rows, expected = (
        [row["loss"] for row in course(run) if "loss" in row] for run in (moving, alone)
    )
    assert len(rows) == 12
    np.testing.assert_allclose(rows, expected, rtol=1e-5)


BUG = """
import sys
from posemamba_jax import losses
from posemamba_jax.config import run_program

def total(*arguments, **options):
    raise ValueError("a bug inside the step")

losses.total = total
from train import main
run_program(main)
"""


def test_a_bug_inside_the_step_keeps_its_traceback(tiny_file, tmp_path):
    argv = ["--config", str(tiny_file), "--run_dir", str(tmp_path), "--mesh.data", "1"]
    done = subprocess.run(
        [sys.executable, "-c", BUG, *argv],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ValueError: a bug inside the step" in done.stderr
    assert "in compute_loss" in done.stderr

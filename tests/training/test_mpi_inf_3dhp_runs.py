"""MPI-INF-3DHP through train.py's loop and eval.py."""

import json
import sys
from pathlib import Path

import pytest

from posemamba_jax.pictures.evaluation import main as evaluate_main
from posemamba_jax.training.loop import train

sys.path.append(str(Path(__file__).parents[1] / "datasets"))
from mpi_files import make_test, make_train, write  # noqa: E402


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mpi")
    paths = {
        "train_path": write(make_train(), folder / "data_train_3dhp.npz"),
        "test_path": write(make_test(), folder / "data_test_3dhp.npz"),
    }
    named = [f"--data.mpi_inf_3dhp.{name}={path}" for name, path in paths.items()]
    return [*named, "--data.source", "mpi_inf_3dhp", "--data.input_2d", "ground_truth"]


@pytest.mark.slow
def test_train_and_eval_report_pck_and_auc(make_config, options, one_device, tmp_path, capsys):
    run_dir = tmp_path / "run"
    train(make_config(*options, "--train.steps", "2", run_dir=run_dir), one_device)
    shown = capsys.readouterr().out
    assert "PCK" in shown and "AUC" in shown
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert {"mpjpe_mm", "pck", "auc"} <= rows[-1].keys()

    argv = ["--checkpoint", str(run_dir), "--output", str(tmp_path / "eval")]
    assert evaluate_main([*argv, "--mesh.data", "-1", "--eval.batch_size", "8"]) == 0
    assert "TS5" in capsys.readouterr().out
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    assert report["frames"] == 12 and report["per_sequence"].keys() == {"TS1", "TS5", "TS6"}
    assert report["mpjpe_mm"] == pytest.approx(rows[-1]["mpjpe_mm"], rel=1e-4)
    assert report["pck"] == pytest.approx(rows[-1]["pck"], abs=0.02)
    assert (tmp_path / "eval" / "poses.png").is_file()

"""A model whose predictions are no numbers is refused by everything that would use them."""

import numpy as np
import pytest
import trial
from trial import check_message, copy_template, run_command, snapshot

COMMANDS = [
    "eval --checkpoint run --output out",
    "report run --out out",
    "predict keypoints/h36m17.npy --checkpoint run --image_size 1000x1002 --out out",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_predictions_that_are_not_finite(template, tmp_path, monkeypatch, command):
    flat = trial._flat_poses
    monkeypatch.setattr(trial, "_flat_poses", lambda poses: flat(poses) * np.nan)
    copy_template(template, tmp_path / "world", ["run"])
    before = snapshot(tmp_path / "world")
    program, *arguments = command.split()
    outcome = run_command(program, arguments, tmp_path / "world")
    assert outcome.code == 2 and "not finite" in outcome.stderr, outcome
    check_message(outcome)
    assert snapshot(tmp_path / "world") == before

"""What measures the kernels on a GPU runs whole, at tiny shapes, without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def run(folder, *stages, **environment):
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OUT": str(folder),
    } | environment
    environment |= {"DRY": "1", "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", SCRIPT, *stages], capture_output=True, text=True, env=environment, cwd=folder
    )


def rows(folder, stage):
    return [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_script_runs_whole_without_a_gpu_and_takes_up_where_it_stopped(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = (tmp_path / "stages.txt").read_text()
    assert stages.count(": done") == 6, stages
    # Both operators, by XLA and by the interpreted Triton kernels, forward and with gradients.
    assert len(rows(tmp_path, "times")) == len(rows(tmp_path, "memory")) == 8
    assert not [
        row for stage in ("times", "training") for row in rows(tmp_path, stage) if "error" in row
    ]
    assert "| cross_scan | triton | 1 |" in (tmp_path / "gpu.md").read_text()

    lines = (tmp_path / "times.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "times.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    again = run(tmp_path, "times")
    assert again.returncode == 0 and again.stdout.count("'ms'") == 1, again.stdout


def test_a_stage_that_runs_out_of_time_is_recorded_and_the_next_one_runs(tmp_path):
    done = run(tmp_path, "times", "mamba", LIMIT="1")
    assert done.returncode == 1
    stages = (tmp_path / "stages.txt").read_text()
    assert "times: stopped at its time limit" in stages and "mamba: " in stages
    refused = run(tmp_path, "speed")
    assert refused.returncode == 2 and "no stage is called speed" in refused.stderr

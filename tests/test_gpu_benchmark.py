"""What measures the kernels on a GPU runs at a small size without one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_benchmark_runs_without_a_gpu():
    small = "--batch 1 --frames 3 --joints 2 --channels 4 --state 2 --rank 1 --repeats 1"
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--platform", "cpu"]
    command += [*small.split(), "--implementations", "xla", "--no-results"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "| cross_scan | xla | 1 |" in done.stdout


def test_the_script_names_files_that_are_there():
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    for path in ("kernels/tests/test_gpu_device.py", "benchmarks/gpu.py"):
        assert path in script and (ROOT / path).exists()
    subprocess.run(["bash", "-n", ROOT / "benchmarks" / "gpu.sh"], check=True)

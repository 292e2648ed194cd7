"""The native kernels without XLA or Python: for Arm under an emulator, and for races."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from selective_scan_jax.cpu import call

SOURCES = Path(call.__file__).parent / "native"
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=fast", "-Wno-psabi", "-pthread"]


def build(compiler: list[str], program: Path, *flags: str):
    subprocess.run(
        [*compiler, *FLAGS, *flags, f"-I{SOURCES}", "-DSCAN_LEVEL=baseline", "-DSCAN_LANES=4"]
        + ["-DLEVEL=selective_scan::level_baseline", "-o", str(program)]
        + [str(SOURCES / "scan.cc"), str(Path(__file__).parent / "cpu_selftest.cc")],
        check=True,
    )


def run(command: list[str]):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "selective scan: forward" in done.stdout


@pytest.mark.slow
def test_neon_under_an_emulator(tmp_path):
    compiler = "aarch64-linux-gnu-g++"
    if shutil.which(compiler) is None or shutil.which("qemu-aarch64") is None:
        pytest.skip(f"needs {compiler} and qemu-aarch64")
    build([compiler], tmp_path / "selftest", "-static")
    run(["qemu-aarch64", str(tmp_path / "selftest")])


@pytest.mark.slow
def test_tasks_do_not_race(tmp_path):
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"there is no {compiler[0]}")
    build(compiler, tmp_path / "selftest", "-g", "-fsanitize=thread")
    run([str(tmp_path / "selftest")])

"""The native kernels' tests once more, on a library with address and undefined-behaviour checks."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1]


def runtime_libraries(compiler: list[str]) -> list[str]:
    """Finds the sanitizers' libraries, which must be loaded before Python's own."""
    paths = []
    for name in ("libasan.so", "libubsan.so"):
        command = [*compiler, f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(path):
            pytest.skip(f"{compiler[0]} has no {name}")
        paths.append(os.path.realpath(path))
    return paths


@pytest.mark.long
@pytest.mark.slow
def test_kernels_under_sanitizers(tmp_path):
    if not (SOURCE / "setup.py").exists():
        pytest.skip("needs the source distribution beside the tests: it builds the kernels anew")
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"there is no {compiler[0]}")
    preload = runtime_libraries(compiler)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext"]
        + ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")],
        cwd=SOURCE,
        env={
            **os.environ,
            "CXX": shlex.join(compiler),
            "CXXFLAGS": "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined "
            "-fno-sanitize-recover=undefined",
        },
        check=True,
        capture_output=True,
    )
    library = tmp_path / "lib" / "selective_scan_jax" / "cpu" / "_cpu_scan.so"
    assert library.exists()
    path = [str(SOURCE), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=no"]
        + ["tests/test_cpu_kernel.py", "-k", "not environment and not library"],
        cwd=SOURCE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "SELECTIVE_SCAN_CPU_LIBRARY": str(library),
            "LD_PRELOAD": ":".join(preload),
            # Python and XLA keep memory until they exit, and mix allocators; neither is ours.
            "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout.splitlines()[-1]

"""Every write, rename, flush, mkdir and creation of a file fails in turn, below Python.

After each the old or the new state is whole. docs/recovery.md gives the counts.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "recovery.md"
QUICK = ("text", "folder", "npz", "json", "csv", "bvh", "metrics")


@pytest.fixture(scope="module")
def inject(tmp_path_factory):
    """(writers) -> how many calls of each were made to fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("injecting faults needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    build = [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"]
    subprocess.run(build, check=True)

    def inject(*writers):
        folder = tmp_path_factory.mktemp("writers")
        done = subprocess.run(
            [sys.executable, HERE / "faulty_writers.py", folder, *writers],
            env={**os.environ, "LD_PRELOAD": str(library)},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return {name: int(n) for name, n in re.findall(r"^(\w+) (\d+)$", done.stdout, re.M)}

    return inject


def test_files(inject):
    counts = inject(*QUICK)
    assert sorted(counts) == sorted(QUICK)
    assert all(count >= 4 for count in counts.values()), counts  # Open, write, flush, rename.

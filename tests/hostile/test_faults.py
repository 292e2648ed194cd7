"""Every write, rename, flush, mkdir and creation of a file fails in turn, below Python.

Then every write is cut short in turn, and nothing can be written after it. After each the old or
the new state is whole. docs/recovery.md gives the counts.
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
FILES = (
    *("text", "folder", "npz", "json", "csv", "bvh", "angles.csv", "trc", "mot"),
    *("page", "picture", "metrics"),
)


@pytest.fixture(scope="module")
def inject(tmp_path_factory):
    """(writers) -> how many calls of each failed, and how many writes were cut short."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("injecting faults needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("faults")
    library, state = folder / "faults.so", folder / "state"
    state.write_bytes(bytes(8192))
    build = [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"]
    subprocess.run(build, check=True)

    def inject(*writers):
        folder = tmp_path_factory.mktemp("writers")
        done = subprocess.run(
            [sys.executable, HERE / "faulty_writers.py", folder, *writers],
            env={**os.environ, "LD_PRELOAD": str(library), "FAULT_STATE": str(state)},
            capture_output=True, text=True, timeout=1500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        counts = re.findall(r"^(\S+) (\d+) (\d+)$", done.stdout, re.M)
        return {name: (int(failed), int(cut)) for name, failed, cut in counts}

    return inject


def test_files(inject):
    counts = inject(*FILES)
    assert sorted(counts) == sorted(FILES)
    # New file, write, flush, rename.
    assert all(failed >= 4 and cut >= 1 for failed, cut in counts.values()), counts
    check_page("files", counts.values())


@pytest.mark.slow
def test_movies(inject):
    """FFmpeg, which writes them, is a program of its own, whose calls fail too."""
    counts = inject("mp4", "gif")
    if all(cut == 0 for _, cut in counts.values()):
        pytest.skip("this FFmpeg does not call the C library, so its calls cannot be met")
    check_page("movies", counts.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "writers"),
    [
        ("another course", ("course", "diverged")),
        ("a checkpoint", ("checkpoint",)),
        ("a model", ("model",)),
    ],
)
def test_folders(inject, what, writers):
    check_page(what, inject(*writers).values())


def check_page(what, counts):
    """Holds the page to what was injected; libraries write in a few calls more or less."""
    total = [sum(column) for column in zip(*counts, strict=True)]
    claimed = re.search(rf"{what}: (\d+) calls(?:, (\d+) short writes)?", PAGE.read_text())
    for said, found in zip(claimed.groups("0"), total, strict=True):
        assert 0.9 * int(said) <= found <= 1.1 * int(said), (what, claimed[0], total)

"""Folders that may not be written: one line that names them, and nothing changed."""

import os
import re
import shutil
import subprocess

import pytest
from trial import check_message, run_command, snapshot

REASON = "Permission denied|Operation not permitted"
COMMANDS = [
    ("train --resume sealed/run", "sealed/run"),
    ("train --config tiny.yaml --run_dir sealed/new", "sealed/new"),
    ("eval --checkpoint sealed/run", "sealed/run"),
    (
        "predict keypoints/h36m17.npy --checkpoint sealed/run --image_size 1000x1002 --out sealed",
        "sealed",
    ),
    ("convert weights.bin sealed/model", "sealed"),
    ("report sealed/run --out sealed/p --curves_only", "sealed/p"),
    ("export sealed/run sealed/out.stablehlo", "sealed"),
]


@pytest.fixture(scope="module")
def world(template, tmp_path_factory):
    """A copy of the template whose folder `sealed` can be read but not written."""
    folder = tmp_path_factory.mktemp("read_only") / "world"
    shutil.copytree(template, folder)
    (folder / "sealed").mkdir()
    (folder / "run").rename(folder / "sealed" / "run")
    # The superuser may write where modes forbid it, but not where a file is immutable.
    seal, unseal = (
        ("chattr -R +i", "chattr -R -i") if os.geteuid() == 0 else ("chmod -R a-w", "chmod -R u+w")
    )
    if subprocess.run([*seal.split(), folder / "sealed"], capture_output=True).returncode:
        pytest.skip("as superuser this needs a file system with immutable files")
    yield folder
    subprocess.run([*unseal.split(), folder / "sealed"], check=True)


@pytest.mark.parametrize(("command", "names"), COMMANDS)
def test_read_only(world, command, names):
    if command.startswith("convert"):
        pytest.importorskip("torch")
    program, *arguments = command.split()
    before = snapshot(world)
    outcome = run_command(program, arguments, world)
    assert outcome.code == 2, outcome
    check_message(outcome)
    assert names in outcome.stderr and re.search(REASON, outcome.stderr), outcome
    assert "Traceback" not in outcome.text and "Errno" not in outcome.text, outcome
    assert snapshot(world) == before

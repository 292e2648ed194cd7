"""A terminal that is closed, full or of another alphabet does not end a program."""

import subprocess
import sys

import pytest
from trial import ROOT

PROGRAM = """
import sys
from posemamba_jax.config.program import run_program

def main(argv):
    for n in range(3000):
        print("Größe → \\udcff", n)
    sys.stdout.flush()
    open("result", "w").write("written")
    return 3

run_program(main)
"""


@pytest.mark.parametrize(
    ("redirection", "says"),
    [
        ("| head -n 2 >/dev/null", "cannot be written (Broken pipe)"),
        ("> /dev/full", "cannot be written (No space left on device)"),
        (">&-", ""),
        ("> /dev/full 2> /dev/full", ""),
    ],
)
def test_the_program_goes_on(tmp_path, redirection, says):
    program = f'"{sys.executable}" -c "$PROGRAM" {redirection}; exit ${{PIPESTATUS[0]}}'
    environment = {"PROGRAM": PROGRAM, "PYTHONPATH": f"{ROOT}:{ROOT}/kernels"}
    done = subprocess.run(
        ["bash", "-c", program],
        cwd=tmp_path, env=environment | {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3, done
    assert (tmp_path / "result").read_text() == "written"
    assert says in done.stderr and "Traceback" not in done.stderr

"""A signal in a program's first second ends it as documented, also in the middle of an import."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from trial import ROOT, snapshot

COMMANDS = {
    "train": "train.py --config tiny.yaml",
    "eval": "eval.py --checkpoint run --output out",
    "predict": "predict.py keypoints.npy --checkpoint run --out out",
}
CODES = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGINT: 130}
# The tests may run under nohup, and what is ignored stays so in programs that are started.
WITH_DEFAULTS = """
import os, signal, sys
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def is_caught(pid: int, number: int) -> bool:
    """True once the process has a handler of its own for the signal."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize("program", COMMANDS)
def test_a_signal_in_the_first_second(tiny, tmp_path, program):
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc, to see when the handlers are there")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    (tmp_path / "keypoints.npy").write_bytes(b"")
    before = snapshot(tmp_path)
    script, *arguments = COMMANDS[program].split()
    for number, code in CODES.items():
        for seconds in (0, 0.4):
            process = subprocess.Popen(
                [sys.executable, "-c", WITH_DEFAULTS, str(ROOT / script), *arguments],
                cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            while not is_caught(process.pid, signal.SIGTERM):
                assert process.poll() is None, process.communicate()
                time.sleep(0.005)
            time.sleep(seconds)
            process.send_signal(number)
            outcome = (*process.communicate(), number, seconds)
            assert process.returncode == code, outcome
            assert "stopped" in outcome[1] and "Traceback" not in "".join(outcome[:2]), outcome
    assert snapshot(tmp_path) == before

"""A signal in a program's first second ends it as documented, also in the middle of an import."""

import re
import signal
import subprocess
import sys
import textwrap
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


# What the program does while the signal arrives.
PLACES = {
    "import that drops it": "import dropping",
    "import that reports something else": "import wrapping",
    "finaliser, where Python drops it": "Finalised(); time.sleep(60)",
    "library that reports something else": "wrapping()",
    "program itself": "arrive()",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_the_program_wherever_it_arrives(tmp_path, number, place):
    arrive = f"import signal\ndef arrive(): signal.raise_signal({int(number)})\n"
    wrap = "try: arrive()\nexcept BaseException as error: raise ImportError('bad') from error\n"
    (tmp_path / "dropping.py").write_text(f"{arrive}try: arrive()\nexcept BaseException: pass\n")
    (tmp_path / "wrapping.py").write_text(arrive + wrap)
    (tmp_path / "program.py").write_text(f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]
from posemamba_jax.training.signals import StopRequest
{arrive}
class Finalised:
    def __del__(self):
        arrive()

def wrapping():
{textwrap.indent(wrap, "    ")}
with StopRequest("stopped"):
    {PLACES[place]}
print("went on")
""")
    ended = subprocess.run(
        [sys.executable, "-c", WITH_DEFAULTS, str(tmp_path / "program.py")],
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (CODES[number], "", "stopped\n")

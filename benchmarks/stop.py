"""How long a run takes from a signal to its end, with its checkpoint on disk.

    PYTHONPATH=. python benchmarks/stop.py [--config configs/quickstart.yaml] [--repeats 3]

Trains, sends SIGTERM or SIGINT while steps are being taken, and waits. Results go to
benchmarks/results/stop.{json,md}.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

ROOT = Path(__file__).parent.parent


def measure(config: str, number: signal.Signals, folder: Path) -> tuple[float, int]:
    """(seconds, exit code) of one run that is stopped after its first recorded steps."""
    argv = ["--config", config, "--run_dir", str(folder), "--train.log_every", "4"]
    program = subprocess.Popen(
        [sys.executable, "train.py", *argv], cwd=ROOT, stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    metrics = folder / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size) and program.poll() is None:
        time.sleep(0.02)
    time.sleep(1.0)
    start = time.perf_counter()
    program.send_signal(number)
    code = program.wait()
    return time.perf_counter() - start, code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in (signal.SIGTERM, signal.SIGINT):
            found = [
                measure(args.config, number, Path(folder) / f"{number.name}{n}")
                for n in range(args.repeats)
            ]
            seconds = [time for time, _ in found]
            rows.append(
                {
                    "signal": number.name,
                    "exit_code": found[0][1],
                    "median_s": round(statistics.median(seconds), 2),
                    "worst_s": round(max(seconds), 2),
                    "repeats": args.repeats,
                }
            )
            print(rows[-1], flush=True)
    environment = common.environment("jax", "orbax-checkpoint")
    table = common.table(
        rows,
        {"signal": "signal", "median_s": "s to the end (median)", "worst_s": "worst",
         "exit_code": "exit code"},
    )  # fmt: skip
    text = [
        "# From the signal to the end of the program, checkpoint included",
        "",
        f"`PYTHONPATH=. python benchmarks/stop.py --config {args.config}`, {environment['date']}, "
        f"commit {environment['commit']}, {environment['cpu']}, {environment['cores']} cores, "
        f"JAX {environment['jax']}.",
        "",
        table,
    ]
    common.write_results("stop", {"environment": environment, "rows": rows}, "\n".join(text))


if __name__ == "__main__":
    main()

"""What being able to go on costs: saving checkpoints, and stopping a run on a signal.

    PYTHONPATH=. python benchmarks/recovery.py checkpoint [--preset S B L] [--repeats 7] [--dir DIR]
    PYTHONPATH=. python benchmarks/recovery.py stop [--config configs/quickstart.yaml] [--repeats 3]

`checkpoint` takes how long saving keeps the training loop waiting, and how long it takes in all. A
full checkpoint holds the parameters and both of AdamW's moments. The loop waits while the arrays
are copied to where the next step cannot overwrite them; the rest is written in the background.
`stop` trains, sends SIGTERM or SIGINT while steps are being taken, and waits for the end of the
program. Results go to benchmarks/results/checkpoint.{json,md} and stop.{json,md}.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import jax
import numpy as np

from posemamba_jax.config import load_config
from posemamba_jax.model.mesh import make_mesh
from posemamba_jax.training.checkpoint import RunCheckpoints
from posemamba_jax.training.state import abstract_state, make_state

ROOT = Path(__file__).parent.parent


def measure_checkpoint(preset: str, repeats: int, folder: Path) -> dict:
    """Returns seconds of saves and of a restore of one model's training state."""
    config = load_config(["--model.preset", preset])
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    # Numbers that do not compress, as after some training; moments start as zeros.
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: (
            jax.device_put(rng.normal(size=leaf.shape).astype(leaf.dtype), leaf.sharding)
            if leaf.dtype == np.float32
            else leaf
        ),
        make_state(config, mesh),
    )
    progress = {"pipeline": {}, "evaluated_step": 0, "window": []}
    blocked, whole, again = [], [], []
    with RunCheckpoints(folder, keep_last=2) as checkpoints:
        for step in range(repeats + 1):
            at_step = jax.block_until_ready(state.replace(step=state.step * 0 + step))
            start = time.perf_counter()
            checkpoints.save(at_step, progress, config)
            blocked.append(time.perf_counter() - start)
            checkpoints.wait()
            whole.append(time.perf_counter() - start)
        for step in range(repeats + 1, repeats + 4):
            # The next save asked for while one is being written.
            first = state.replace(step=state.step * 0 + step * 2)
            second = jax.block_until_ready(state.replace(step=state.step * 0 + step * 2 + 1))
            checkpoints.save(first, progress, config)
            start = time.perf_counter()
            checkpoints.save(second, progress, config)
            again.append(time.perf_counter() - start)
            checkpoints.wait()
        start = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(abstract_state(config, mesh))[0])
        restore = time.perf_counter() - start
        latest = folder / "checkpoints" / str(checkpoints.latest_step())
        size = sum(file.stat().st_size for file in latest.rglob("*") if file.is_file())
    # The first one pays for what happens once per process.
    return {
        "preset": preset,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "state_mb": round(sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6, 1),
        "on_disk_mb": round(size / 1e6, 1),
        "blocked_s": round(statistics.median(blocked[1:]), 4),
        "blocked_worst_s": round(max(blocked[1:]), 4),
        "blocked_first_s": round(blocked[0], 4),
        "blocked_while_writing_s": round(statistics.median(again), 4),
        "written_s": round(statistics.median(whole[1:]), 4),
        "restore_s": round(restore, 4),
        "repeats": repeats,
    }


def checkpoint(args) -> None:
    """Writes the results of `checkpoint`."""
    rows = []
    for preset in args.preset:
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=args.dir))
        print(f"{preset}: {args.repeats + 1} saves into {folder}", flush=True)
        try:
            rows.append(measure_checkpoint(preset, args.repeats, folder))
        finally:
            shutil.rmtree(folder)
        print(rows[-1], flush=True)
    environment = common.environment("jax", "orbax-checkpoint", "flax", "optax")
    table = common.table(
        rows,
        {
            "preset": "model",
            "state_mb": "state, MB",
            "blocked_s": "loop waits, s (median)",
            "blocked_worst_s": "worst",
            "blocked_first_s": "first of a process",
            "blocked_while_writing_s": "while the last is being written",
            "written_s": "on disk after, s",
            "restore_s": "restored in, s",
        },
    )
    text = [
        "# Saving checkpoints",
        "",
        f"`PYTHONPATH=. python benchmarks/recovery.py checkpoint`, {environment['date']}, "
        f"commit {environment['commit']}, {environment['cpu']}, {environment['cores']} cores, "
        f"JAX {environment['jax']}, Orbax {environment['orbax-checkpoint']}.",
        "",
        table,
    ]
    common.write_results("checkpoint", {"environment": environment, "rows": rows}, "\n".join(text))


def measure_stop(config: str, number: signal.Signals, folder: Path) -> tuple[float, int]:
    """Returns (seconds, exit code) of one run that is stopped after its first recorded steps."""
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


def stop(args) -> None:
    """Writes the results of `stop`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in (signal.SIGTERM, signal.SIGINT):
            found = [
                measure_stop(args.config, number, Path(folder) / f"{number.name}{n}")
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
        f"`PYTHONPATH=. python benchmarks/recovery.py stop --config {args.config}`, "
        f"{environment['date']}, commit {environment['commit']}, {environment['cpu']}, "
        f"{environment['cores']} cores, JAX {environment['jax']}.",
        "",
        table,
    ]
    common.write_results("stop", {"environment": environment, "rows": rows}, "\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    studies = parser.add_subparsers(required=True)
    one = studies.add_parser("checkpoint")
    one.add_argument("--preset", nargs="+", default=["S", "B", "L"], choices=["S", "B", "L"])
    one.add_argument("--repeats", type=int, default=7)
    one.add_argument("--dir", help="where to write; a temporary folder unless given")
    one.set_defaults(run=checkpoint)
    other = studies.add_parser("stop")
    other.add_argument("--config", default="configs/quickstart.yaml")
    other.add_argument("--repeats", type=int, default=3)
    other.set_defaults(run=stop)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

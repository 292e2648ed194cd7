"""How long saving a checkpoint keeps the training loop waiting, and how long it takes in all.

    PYTHONPATH=. python benchmarks/checkpoint.py [--preset B] [--repeats 7] [--dir FOLDER]

A full checkpoint holds the parameters and both of AdamW's moments. The loop waits while the arrays
are copied to where the next step cannot overwrite them; the rest is written in the background.
Results go to benchmarks/results/checkpoint.{json,md}.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import common
import jax
import numpy as np

from posemamba_jax.config import load_config
from posemamba_jax.training.checkpoint import RunCheckpoints
from posemamba_jax.training.mesh import make_mesh
from posemamba_jax.training.state import abstract_state, make_state


def measure(preset: str, repeats: int, folder: Path) -> dict:
    """Seconds of saves and of a restore of one model's training state."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=["S", "B", "L"], choices=["S", "B", "L"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dir", help="where to write; a temporary folder unless given")
    args = parser.parse_args()
    rows = []
    for preset in args.preset:
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=args.dir))
        print(f"{preset}: {args.repeats + 1} saves into {folder}", flush=True)
        try:
            rows.append(measure(preset, args.repeats, folder))
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
        f"`PYTHONPATH=. python benchmarks/checkpoint.py`, {environment['date']}, "
        f"commit {environment['commit']}, {environment['cpu']}, {environment['cores']} cores, "
        f"JAX {environment['jax']}, Orbax {environment['orbax-checkpoint']}.",
        "",
        table,
    ]
    common.write_results("checkpoint", {"environment": environment, "rows": rows}, "\n".join(text))


if __name__ == "__main__":
    main()

"""What the benchmarks share: the machine and software they ran on, candidates in processes of their
own that take turns, peak memory, the scan and the training step as functions, result files.

Shapes and operands are those of `selective_scan_jax.testing`, as is the wrapper for gradients.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import jax
import numpy as np
from selective_scan_jax import cross_scan, selective_scan
from selective_scan_jax.testing import REFERENCE_BLOCK, BlockShape

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
OPERATIONS = ("cross_scan", "selective_scan")


def environment(*packages: str) -> dict:
    """Collects processor, cores, versions, date (UTC) and git commit of this run."""

    def git(*args):
        done = subprocess.run(["git", "-C", ROOT, *args], capture_output=True, text=True)
        return done.stdout.strip()

    def version(package):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "commit": git("rev-parse", "--short", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def cpu_model() -> str:
    """Returns the processor's name as Linux gives it, with the widest vector extension in
    parentheses.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", "").split()
    vector = next((name for name in ("avx512f", "avx2") if name in flags), "no AVX2")
    name = fields.get("model name", platform.machine())
    return f"{name}, family {fields.get('cpu family')} model {fields.get('model')} ({vector})"


def block_scan(operation: str, implementation: str) -> Callable:
    """Makes a block's scan, by either of OPERATIONS, a function of its arrays alone."""

    def cross(x, *others):
        # Human3.6M's limbs mean nothing on a grid of other joints.
        order = "limbs" if x.shape[2] == REFERENCE_BLOCK.joints else "global"
        return cross_scan(x, *others, order=order, implementation=implementation)

    def selective(u, delta, A, B, C, D, delta_bias):
        options = {"delta_softplus": True, "implementation": implementation}
        return selective_scan(u, delta, A, B, C, D, delta_bias=delta_bias, **options)

    return cross if operation == "cross_scan" else selective


def block_structs(operation: str, block: BlockShape) -> list[jax.ShapeDtypeStruct]:
    """Returns the float32 arrays that `block_scan` takes; its result is like the first one."""
    shapes = block.operand_shapes()
    if operation == "selective_scan":
        shapes = block.selective.operand_shapes().values()
    return [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]


def training_config(model: str, frames: int, *options: str, clips: int = 16, batch: int = 1):
    """Makes the configuration of training a preset on generated clips of so many frames.

    Args:
      options: further ones of train.py.
      clips: how many are generated, at least `batch`.
    """
    from posemamba_jax.config import load_config

    arguments = [
        f"--model.preset={model}",
        "--data.source=synthetic",
        f"--data.clip_len={frames}",
        f"--data.synthetic.num_train_clips={clips}",
        f"--train.batch_size={batch}",
    ]
    return load_config([*arguments, *options])


def step_and_inputs(config) -> tuple:
    """Makes the step of a configuration, its first state and a batch."""
    from posemamba_jax import data
    from posemamba_jax.data import pipeline
    from posemamba_jax.model.mesh import make_mesh
    from posemamba_jax.training.state import make_state
    from posemamba_jax.training.step import make_train_step, put_batch

    mesh = make_mesh(config.mesh)
    source = data.build(config.data, "train")
    size = config.train.batch_size
    batch = put_batch(next(pipeline.train_batches(source, batch_size=size, seed=0)), mesh)
    step = make_train_step(config, mesh, steps_per_epoch=1000, total_steps=100_000)
    return step, make_state(config, mesh), batch


def training_step(config) -> Callable:
    """Compiles the step of a configuration.

    Returns:
      A function without arguments that takes one step, on the same batch each time, and gives the
      step's metrics.
    """
    step, state, batch = step_and_inputs(config)
    latest = [state]  # a step consumes its state

    def run():
        latest[0], metrics = step(latest[0], batch)
        return metrics

    return run


def medians_in_turn(
    candidates: dict[Hashable, Callable], repeats: int, prepare: Callable = lambda name: None
) -> dict[Hashable, float]:
    """Runs candidates in turns, so that a change in the machine's speed meets all.

    Args:
      candidates: functions without arguments, by name. The first run of each is not counted.
      prepare: is called with a candidate's name before each of its runs.

    Returns:
      The median seconds of each.
    """
    seconds = {name: [] for name in candidates}
    for round_ in range(repeats + 1):
        for name, run in candidates.items():
            prepare(name)
            start = time.perf_counter()
            jax.block_until_ready(run())
            if round_:
                seconds[name].append(time.perf_counter() - start)
        print(f"round {round_} of {repeats}", file=sys.stderr, flush=True)
    return {name: statistics.median(found) for name, found in seconds.items()}


def memory_status(field: str) -> int:
    """Reads VmRSS (now) or VmHWM (peak) of this process in bytes, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def reset_peak_memory() -> None:
    """Sets VmHWM back to VmRSS (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def serve(run, sample) -> None:
    """Runs a candidate in its own process; prints one line of JSON per run.

    The first run is at once, its line has its memory and a sample of what run() gave.

    Args:
      run: the candidate, without arguments.
      sample: an index into its result.
    """
    before = memory_status("VmRSS")
    reset_peak_memory()
    y = np.asarray(run())
    peak = memory_status("VmHWM") - before
    answer = {"peak_bytes": peak, "sample": y[sample].tolist()}
    del y
    print(json.dumps(answer), flush=True)
    for _ in sys.stdin:
        start, processor = time.perf_counter(), time.process_time()
        run()
        taken = {
            "seconds": time.perf_counter() - start,
            "processor_seconds": time.process_time() - processor,
        }
        print(json.dumps(taken), flush=True)


class Worker:
    """A candidate's process, idle until asked for a run.

    It runs `script --worker name mode OPTION ...`, which ends in `serve`, with `environ` over the
    environment of this process.
    """

    def __init__(self, name: str, mode: str, script: str, *options: str, environ=None):
        self.name, self.mode, self.seconds, self.processor_seconds = name, mode, [], []
        command = [sys.executable, script, "--worker", name, mode, *options]
        # Threads that wait must not spin: another candidate is being timed meanwhile.
        quiet = os.environ | {"OMP_WAIT_POLICY": "passive", "JAX_PLATFORMS": "cpu"}
        quiet |= environ or {}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet
        )
        first = self._answer()
        self.peak, self.sample = first["peak_bytes"], first["sample"]

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: the process of {self.name!r} ({self.mode}) ended early")
        return json.loads(line)

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.seconds.append(answer["seconds"])
        self.processor_seconds.append(answer["processor_seconds"])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(candidates, repeats: int, script: str, *options: str) -> list[Worker]:
    """Starts a worker of the script for every (name, mode); they take turns, `repeats` times."""
    workers = []
    try:
        for name, mode in candidates:
            print(f"first run of {name}, {mode}", file=sys.stderr, flush=True)
            workers.append(Worker(name, mode, script, *options))
        for repeat in range(repeats):
            for worker in workers:
                worker.run()
            print(f"{repeat + 1} of {repeats} rounds", file=sys.stderr, flush=True)
    finally:
        for worker in workers:
            worker.close()
    return workers


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Gives a folder with the tree of an earlier commit, which exists as long as the context."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def import_path(tree: Path) -> dict[str, str]:
    """Makes the environment in which both packages are imported from a tree."""
    folders = (str(tree), str(tree / "kernels"), os.environ.get("PYTHONPATH"))
    return {"PYTHONPATH": os.pathsep.join(filter(None, folders))}


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """Writes a Markdown table; `columns` maps keys of the rows to headings."""
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[str(row.get(key, "")) for key in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_results(name: str, data: dict, markdown: str, folder: Path = RESULTS) -> None:
    """Writes NAME.json and NAME.md, into results/ unless another folder is given."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown.rstrip() + "\n")
    print(f"wrote {folder / name}.json and .md")

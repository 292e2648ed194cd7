"""The training step of this tree beside that of an earlier commit, taking turns in one run.

usage: python benchmarks/train_step_before.py COMMIT [--models S,B] [--repeats 5] [--frames 243]

Each (tree, model) is a process of its own that takes steps on one clip, and forward passes of it,
in turns with the others, so that a change in the machine's speed meets all. Figures are medians,
and ratios those of wall-clock time; "processor" is the process's time on all cores, which other
programs disturb less. The losses of the first step are compared: the two compute the same. Then a
step of the first model is profiled in both trees: the time of every operation of the compiled
program, by what it is for. The earlier commit is checked out into a temporary folder with this
tree's native library. Writes benchmarks/results/train_step_before.{json,md}.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from common import (
    ROOT,
    Worker,
    checked_out,
    environment,
    import_path,
    serve,
    step_and_inputs,
    table,
    training_config,
    training_step,
    write_results,
)

LIBRARY = Path("kernels/selective_scan_jax/cpu/_cpu_scan.so")
TREES = ("before", "now")
MODES = ("forward", "step")
PROFILED_STEPS = 3

# What an operation is for, by the first pattern that its name in the compiled program and the path
# of the layer it comes from match.
PURPOSES = (
    ("scan, native", r"cross_(forward|backward)"),
    ("layers, native", r"selective_scan_cpu_"),
    ("arrays over depths", r"dynamic_(update|slice|index)|dynamic-(update-)?slice"),
    ("matrix products", r"^\S*(dot|ynn_fusion)\S* .*dot_general|^dot"),
    ("transposed copies", r"^(copy|transpose)\S* "),
    ("convolution, SiLU, GELU", r"conv/|silu|/checkpoint"),
    ("norms", r"norm|reduce_sum"),
    ("between projection and scan", r"scan\._scan"),
    ("rest of the model", r"PoseMamba"),
    ("loss and optimiser", r""),
)


def run_worker(model: str, mode: str, frames: int) -> None:
    """Serves steps or forward passes; see `common.serve`."""
    config = training_config(model, frames, clips=2)
    if mode == "profile":
        print(json.dumps(profile(config)), flush=True)
    elif mode == "step":
        step = training_step(config)
        serve(lambda: np.asarray(step()["loss"]), ())
    else:
        from posemamba_jax.model import PoseMamba

        module = PoseMamba(config.model)
        poses_2d = jax.random.normal(jax.random.key(0), (1, frames, config.model.num_joints, 2))
        variables = jax.jit(module.init)(jax.random.key(1), poses_2d)
        apply = jax.jit(module.apply)
        serve(lambda: np.asarray(apply(variables, poses_2d)), (0, 0, 0))


def profile(config) -> dict[str, float]:
    """Returns milliseconds of a step by purpose, summed over all threads."""
    step, state, batch = step_and_inputs(config)
    step = step.lower(state, batch).compile()
    purposes = purposes_of(step.as_text())
    state, metrics = step(state, batch)
    with tempfile.TemporaryDirectory() as folder:
        jax.block_until_ready(metrics)
        with jax.profiler.trace(folder):
            for _ in range(PROFILED_STEPS):
                state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        found = collections.Counter()
        for event in (e for plane in planes for line in plane.lines for e in line.events):
            name = dict(event.stats).get("hlo_op")
            # A loop's time is that of the operations inside it.
            if name and not name.startswith("while"):
                found[purposes.get(name, "loss and optimiser")] += event.duration_ns
    return {name: found[name] / 1e6 / PROFILED_STEPS for name, _ in PURPOSES}


def purposes_of(program: str) -> dict[str, str]:
    """Maps the operations of a compiled program to names in PURPOSES."""
    found = {}
    for line in program.splitlines():
        if match := re.match(r"\s*(?:ROOT )?%([\w.\-]+) = ", line):
            scope = re.search(r'op_name="([^"]*)"', line)
            target = re.search(r'custom_call_target="([^"]*)"', line)
            text = f"{match[1]} {target[1] if target else ''} {scope[1] if scope else ''}"
            found[match[1]] = next(n for n, pattern in PURPOSES if re.search(pattern, text))
    return found


@contextlib.contextmanager
def trees(commit: str):
    """Gives the folder of each of TREES; the commit's exists as long as the context."""
    with checked_out(commit) as before:
        shutil.copy(ROOT / LIBRARY, before / LIBRARY)
        yield dict(zip(TREES, (before, ROOT), strict=True))


def measure(model: str, folders: dict[str, Path], repeats: int, frames: int) -> dict:
    """Returns medians of both trees, the ratios between them, and both first losses."""
    workers = {}
    try:
        for tree, folder in folders.items():
            for mode in MODES:
                options = ("--frames", str(frames))
                at = import_path(folder)
                workers[tree, mode] = Worker(model, mode, __file__, *options, environ=at)
        for repeat in range(repeats):
            for worker in workers.values():
                worker.run()
            print(f"{model}: round {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    row: dict = {"model": model}
    for (tree, mode), worker in workers.items():
        row[f"{tree}_{mode}_s"] = statistics.median(worker.seconds)
        row[f"{tree}_{mode}_processor_s"] = statistics.median(worker.processor_seconds)
    for mode in MODES:
        for what in ("s", "processor_s"):
            of = f"{mode}_{what}"
            row[f"{of}_ratio"] = row[f"before_{of}"] / row[f"now_{of}"]
    for tree in TREES:
        row[f"{tree}_step_over_forward"] = row[f"{tree}_step_s"] / row[f"{tree}_forward_s"]
        row[f"{tree}_loss"] = workers[tree, "step"].sample
    return row


def profile_tree(model: str, folder: Path, frames: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", model, "profile", "--frames", str(frames)]
    environ = os.environ | import_path(folder)
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def markdown(rows: list[dict], profiles: dict[str, dict], setting: dict) -> str:
    shown = [
        {
            "model": row["model"],
            "step": f"{row['step_s_ratio']:.2f}",
            "step_processor": f"{row['step_processor_s_ratio']:.2f}",
            "forward": f"{row['forward_s_ratio']:.2f}",
            "over": " and ".join(f"{row[f'{tree}_step_over_forward']:.1f}" for tree in TREES),
            "loss": " and ".join(f"{row[f'{tree}_loss']:.7f}" for tree in TREES),
        }
        for row in rows
    ]
    columns = {
        "model": "model", "step": "step: before / now",
        "step_processor": "its processor time: before / now", "forward": "forward: before / now",
        "over": "step / forward, before and now", "loss": "first loss, before and now",
    }  # fmt: skip
    total = sum(profiles["before"].values())
    parts = [
        {"purpose": purpose}
        | {tree: f"{100 * profiles[tree][purpose] / total:.1f}" for tree in TREES}
        for purpose in profiles["before"]
    ]
    parts.append(
        {"purpose": "all"}
        | {tree: f"{100 * sum(profiles[tree].values()) / total:.1f}" for tree in TREES}
    )
    named = {"purpose": "operations", "before": "before", "now": "now"}
    return "\n".join(
        (
            f"Training steps on one clip of {setting['frames']} frames, float32, at commit "
            f"{setting['before']} and {setting['commit']}, taking turns in one run (medians of "
            f"{setting['repeats']}), on {setting['cpu']}, {setting['cores']} cores, JAX "
            f"{setting['jax']}, {setting['date']}.",
            "",
            table(shown, columns),
            "",
            f"Where a step of {rows[0]['model']} goes: time of operations, summed over threads, in "
            "percent of all of it before.",
            "",
            table(parts, named),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", help="to compare with")
    parser.add_argument("--models", default="S,B")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frames", type=int, default=243)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return run_worker(*args.worker, args.frames)
    if not args.commit:
        parser.error("name the commit to compare with")
    setting = environment("jax", "jaxlib") | {"before": args.commit, "repeats": args.repeats}
    setting["frames"] = args.frames
    models = args.models.split(",")
    with trees(args.commit) as folders:
        profiles = {
            tree: profile_tree(models[0], folder, args.frames) for tree, folder in folders.items()
        }
        rows = [measure(model, folders, args.repeats, args.frames) for model in models]
    found = {"setting": setting, "results": rows, "profile_ms": profiles}
    write_results("train_step_before", found, markdown(rows, profiles, setting))


if __name__ == "__main__":
    main()

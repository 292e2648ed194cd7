"""The block's scan and the whole model on a CPU, beside PyTorch and beside unfused scans.

usage: python benchmarks/cross_scan_cpu.py [--repeats 15] [--frames 243] [--candidates ...]

All candidates do the work of one block of PoseMamba-B on one clip (243 frames of 17 joints, 256
channels, 4 directions, 16 states, step projection of rank 8): from x and the projected dt, B, C in
grid order to the merged y, forward and forward with the gradients of all eight arguments.

  cross_cpu, cross_xla    `cross_scan`
  four_cpu, four_xla      `selective_scan` once per direction, the paths and the sum around it
  torch_chunked           PyTorch: the directions stacked, then the scan in chunks of 64 of
                          benchmarks/selective_scan.py, the fastest of its PyTorch candidates
  model_cpu, model_xla    the forward pass of the whole model (B: 20 blocks), flip averaging off

Each runs in a process of its own and they take turns, so that a change in the machine's speed meets
all of them. Reported are medians. Writes benchmarks/results/cross_scan_cpu.{json,md}, if all
candidates ran at the full size.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import statistics
import sys

import numpy as np
import scan_candidates
from common import environment, table, write_results
from selective_scan import MODES, measure, serve
from selective_scan_jax import ScanOrder, implementations
from selective_scan_jax.testing import random_cross_operands

FRAMES, JOINTS, CHANNELS, DIRECTIONS, STATES, RANK = 243, 17, 256, 4, 16, 8
ORDER = ScanOrder.named("limbs")
LABELS = {
    "cross_cpu": "cross_scan, native kernel",
    "cross_xla": "cross_scan, XLA",
    "four_cpu": "four calls of selective_scan, native kernel",
    "four_xla": "four calls of selective_scan, XLA",
    "torch_chunked": "PyTorch, directions stacked, chunks of 64",
    "model_cpu": "PoseMamba-B, native kernel",
    "model_xla": "PoseMamba-B, XLA",
}


def make_operands(frames: int) -> tuple[np.ndarray, ...]:
    """Arguments of `cross_scan`, step sizes and decays as at the start of training."""
    x, dt, B, C, weight, _, _, D = random_cross_operands(
        1, frames, JOINTS, CHANNELS, DIRECTIONS, STATES, RANK
    )
    rng = np.random.default_rng(1)
    step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (DIRECTIONS, CHANNELS)))
    A = -np.broadcast_to(np.arange(1, STATES + 1), (DIRECTIONS, CHANNELS, STATES))
    arrays = (x, dt, B, C, weight, np.log(np.expm1(step)), A, D)
    return tuple(np.ascontiguousarray(a, np.float32) for a in arrays)


def four_scans(x, dt, B, C, dt_weight, dt_bias, A, D, *, implementation):
    """What a user of `selective_scan` writes for a cross scan."""
    import jax
    from selective_scan_jax import limb_term, selective_scan

    total = 0
    for k, direction in enumerate(ORDER.directions):
        u = limb_term(x, ORDER) if ORDER.takes_limb_term(k) else x
        dt_k, B_k, C_k = (direction.to_sequence(a[:, :, :, k]) for a in (dt, B, C))
        y = selective_scan(
            direction.to_sequence(u),
            jax.numpy.einsum("blr,er->ble", dt_k, dt_weight[k], precision="highest"),
            A[k],
            B_k[:, :, None],
            C_k[:, :, None],
            D[k],
            delta_bias=dt_bias[k],
            delta_softplus=True,
            reverse=direction.reverse,
            implementation=implementation,
        )
        total = total + direction.to_grid(y, *x.shape[1:3])
    return total


def load_jax(name: str, with_gradient: bool, arrays):
    import jax
    from selective_scan_jax import cross_scan

    kind, implementation = name.split("_")
    operator = {"cross": cross_scan, "four": four_scans}[kind]
    scan = functools.partial(operator, implementation=implementation)

    def both(*arrays):
        y, pull_back = jax.vjp(scan, *arrays)
        return y, pull_back(arrays[0])

    arrays = [jax.numpy.asarray(a) for a in arrays]
    compiled = jax.jit(both if with_gradient else scan).lower(*arrays).compile()

    def run():
        out = jax.block_until_ready(compiled(*arrays))
        return out[0] if with_gradient else out

    return run


def load_model(name: str, frames: int):
    import jax

    from posemamba_jax.model import PoseMamba, PoseMambaConfig

    model = PoseMamba(PoseMambaConfig.preset("B", implementation=name.split("_")[1]))
    rng = np.random.default_rng(0)
    poses = jax.numpy.asarray(rng.normal(size=(1, frames, JOINTS, 2)), jax.numpy.float32)
    variables = jax.jit(model.init)(jax.random.key(0), poses)
    compiled = jax.jit(model.apply).lower(variables, poses).compile()
    return lambda: jax.block_until_ready(compiled(variables, poses))


def load_torch(with_gradient: bool, arrays):
    import torch

    chunked = scan_candidates._torch_chunked(torch)
    walk = list(ORDER.limb_walk)

    def along(k, a):
        """A grid to the sequence of direction k, flipped if the direction is reversed."""
        direction = ORDER.directions[k]
        a = a if direction.frame_by_frame else a.transpose(1, 2)
        a = a.flatten(1, 2)
        return a.flip(1) if direction.reverse else a

    def back(k, y, frames, joints):
        direction = ORDER.directions[k]
        y = y.flip(1) if direction.reverse else y
        if direction.frame_by_frame:
            return y.unflatten(1, (frames, joints))
        return y.unflatten(1, (joints, frames)).transpose(1, 2)

    def scan(x, dt, B, C, dt_weight, dt_bias, A, D):
        frames, joints, ks = x.shape[1], x.shape[2], range(len(ORDER.directions))
        limbs = x + x[:, :, walk]
        u = torch.cat([along(k, limbs if ORDER.takes_limb_term(k) else x) for k in ks], -1)
        deltas = [along(k, dt[:, :, :, k]) @ dt_weight[k].T for k in ks]
        B, C = (torch.stack([along(k, a[:, :, :, k]) for k in ks], 2) for a in (B, C))
        flat = (A.flatten(0, 1), B, C, D.flatten(), dt_bias.flatten())
        ys = chunked(u, torch.cat(deltas, -1), *flat).unflatten(2, (len(ks), -1))
        return sum(back(k, ys[:, :, k], frames, joints) for k in ks)

    # A first call on a few frames, so that libraries are loaded and threads started.
    for frames in (2, arrays[0].shape[1]):
        few = [a[:, :frames] if i < 4 else a for i, a in enumerate(arrays)]
        args = [torch.tensor(a, requires_grad=with_gradient) for a in few]
        cotangent = args[0].detach()

        def run(args=args, cotangent=cotangent):
            if not with_gradient:
                with torch.no_grad():
                    return scan(*args)
            for a in args:
                a.grad = None
            y = scan(*args)
            y.backward(cotangent)
            return y.detach()

        if frames == 2:
            run()
    return run


def work(name: str, mode: str, frames: int) -> None:
    """A candidate's process."""
    if name.startswith("model"):
        run = load_model(name, frames)
    elif name == "torch_chunked":
        run = load_torch(mode == "both", make_operands(frames))
    else:
        run = load_jax(name, mode == "both", make_operands(frames))
    serve(run, np.s_[0, ::7, ::3, ::31])


def summarise(workers) -> list[dict]:
    rows, expected = {}, {}
    for worker in workers:
        row = rows.setdefault(worker.name, {"name": worker.name, "label": LABELS[worker.name]})
        row[f"{worker.mode}_seconds"] = statistics.median(worker.seconds)
        row[f"{worker.mode}_fastest"] = min(worker.seconds)
        row[f"{worker.mode}_peak_mib"] = round(worker.peak / 2**20)
        y = np.array(worker.sample)
        reference = expected.setdefault(worker.name.startswith("model"), y)
        error = np.linalg.norm(y - reference) / np.linalg.norm(reference)
        assert error < 1e-4, f"{worker.name} computes something else, {error:.1e} away"
    return list(rows.values())


def compare(rows: list[dict]) -> list[str]:
    """Sentences with the ratios of times."""
    by_name = {row["name"]: row for row in rows}
    lines = []
    for one, other in (
        ("cross_xla", "four_xla"),
        ("cross_cpu", "four_cpu"),
        ("cross_xla", "torch_chunked"),
        ("cross_cpu", "torch_chunked"),
    ):
        if one in by_name and other in by_name:
            forward, both = (
                by_name[other][f"{mode}_seconds"] / by_name[one][f"{mode}_seconds"]
                for mode in ("forward", "both")
            )
            lines.append(
                f"- {LABELS[other]}: {forward:.2f} times the time of {LABELS[one]} forward, "
                f"{both:.2f} times with gradients."
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds (default 15)")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--candidates", default=",".join(LABELS), help=f"of {', '.join(LABELS)}")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker, args.frames)
        return

    names = args.candidates.split(",")
    unknown = [name for name in names if name not in LABELS]
    if unknown:
        parser.error(f"--candidates: {unknown[0]!r} is none of {', '.join(LABELS)}")
    missing = [name for name in names if name.endswith("_cpu") and implementations("cpu")["cpu"]]
    if importlib.util.find_spec("torch") is None:
        missing += [name for name in names if name.startswith("torch")]
    if missing:
        print(f"left out, not installed or not built: {', '.join(missing)}", file=sys.stderr)
    names = [name for name in names if name not in missing]

    candidates = [
        (n, mode) for n in names for mode in (MODES[:1] if n.startswith("model") else MODES)
    ]
    workers = measure(candidates, args.repeats, __file__, "--frames", str(args.frames))
    rows = summarise(workers)
    about = environment("jax", "jaxlib", "numpy", "torch") | {"repeats": args.repeats}
    shown = [
        {k: f"{v * 1e3:.1f}" if k.endswith("seconds") else v for k, v in row.items()}
        for row in rows
    ]
    columns = {
        "label": "what",
        "forward_seconds": "forward, ms",
        "both_seconds": "forward and gradients, ms",
        "forward_peak_mib": "memory, MiB",
        "both_peak_mib": "memory with gradients, MiB",
    }
    markdown = "\n".join(
        [
            "# The block's scan and the whole model on a CPU",
            "",
            f"One clip of {args.frames} frames and {JOINTS} joints; the scan of one block has "
            f"{CHANNELS} channels, {DIRECTIONS} directions and {STATES} states, float32. Medians "
            f"of {args.repeats} rounds in which the candidates took turns. Memory is what the "
            "first run added to the process at its peak, results included.",
            "",
            table(shown, columns),
            "",
            *compare(rows),
            "",
            "Made by `python benchmarks/cross_scan_cpu.py`: "
            + ", ".join(f"{k} {v}" for k, v in about.items()),
        ]
    )
    print(markdown)
    if args.frames == FRAMES and names == list(LABELS):
        write_results("cross_scan_cpu", {"environment": about, "rows": rows}, markdown)


if __name__ == "__main__":
    main()

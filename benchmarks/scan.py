"""Time and peak memory of scans on a CPU, beside PyTorch and beside unfused scans.

usage: python benchmarks/scan.py selective [--repeats 5] [--candidates xla,torch_chunked]
       python benchmarks/scan.py block [--repeats 15] [--frames 243] [--candidates ...]

`selective` runs `selective_scan` at the reference shape, forward and forward with gradients, by
implementation, beside scans in PyTorch and the exponentials alone. `block` does the work of one
block of PoseMamba-B on one clip, from x and the projected dt, B, C in grid order to the merged y,
forward and with the gradients of all eight arguments:

  cross_cpu, cross_xla    `cross_scan`
  four_cpu, four_xla      `selective_scan` once per direction, the paths and the sum around it
  torch_chunked           PyTorch: the directions stacked, then its fastest scan
  model_cpu, model_xla    the forward pass of the whole model (B: 20 blocks), flip averaging off

Every candidate runs in a process of its own, and the candidates take turns, so that a change in the
machine's speed meets all of them. Reported are medians, and by how much the process's memory grew
at most in its first run. Writes benchmarks/results/{selective,cross}_scan_cpu.{json,md} if all ran
at the full size; otherwise it only prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys

import numpy as np
import torch_scans
from common import block_scan, environment, measure, serve, table, write_results
from selective_scan_jax import ScanOrder, implementations
from selective_scan_jax.testing import (
    REFERENCE_BLOCK,
    initial_cross_operands,
    initial_operands,
    with_gradients,
)

ORDER = ScanOrder.named("limbs")
MODES = ("forward", "both")
SELECTIVE = {
    "xla": "this package, XLA",
    "cpu": "this package, native kernel",
    "associative": "this package, associative scan",
    "reference": "this package, step by step",
    **torch_scans.LABELS,
    "exps": "the exponentials alone, summed (XLA)",
}
BLOCK = {
    "cross_cpu": "cross_scan, native kernel",
    "cross_xla": "cross_scan, XLA",
    "four_cpu": "four calls of selective_scan, native kernel",
    "four_xla": "four calls of selective_scan, XLA",
    "torch_chunked": "PyTorch, directions stacked, chunks of 64",
    "model_cpu": "PoseMamba-B, native kernel",
    "model_xla": "PoseMamba-B, XLA",
}
COLUMNS = {
    "forward_peak_mib": "memory, MiB",
    "both_peak_mib": "memory with gradients, MiB",
}


def load_jax(scan, with_gradient: bool, arrays):
    """Compiles a scan; returns a function without arguments that runs it and gives y."""
    import jax

    arrays = [jax.numpy.asarray(a) for a in arrays]
    if with_gradient:
        scan, arrays = with_gradients(scan), [arrays[0], *arrays]
    compiled = jax.jit(scan).lower(*arrays).compile()

    def run():
        out = jax.block_until_ready(compiled(*arrays))
        return out[0] if with_gradient else out

    return run


def work_selective(name: str, with_gradient: bool, frames: int) -> None:
    """Serves a candidate of `selective`."""
    block = dataclasses.replace(REFERENCE_BLOCK, frames=frames)
    operands = initial_operands(block.selective)
    if name in torch_scans.LABELS:
        few = [a[:, :4] if a.ndim > 2 else a for a in operands.values()]
        scan = torch_scans.make_scan(name)
        run = torch_scans.runner(scan, few, list(operands.values()), with_gradient)
    else:
        scan = exponentials if name == "exps" else block_scan("selective_scan", name)
        run = load_jax(scan, with_gradient, operands.values())
    serve(run, np.s_[0, ::97, ::31])


def exponentials(u, delta, A, B, C, D, delta_bias):
    """Computes the decays of a selective scan and adds up their states, nothing else."""
    import jax

    steps = jax.nn.softplus(delta + delta_bias)
    return jax.numpy.sum(jax.numpy.exp(steps[:, :, None] * A.T), axis=1)


def work_block(name: str, with_gradient: bool, frames: int) -> None:
    """Serves a candidate of `block`."""
    kind, implementation = name.split("_")
    if kind == "model":
        run = load_model(implementation, frames)
    else:
        arrays = initial_cross_operands(dataclasses.replace(REFERENCE_BLOCK, frames=frames))
        if kind == "torch":
            few = [a[:, :2] if i < 4 else a for i, a in enumerate(arrays)]
            run = torch_scans.runner(torch_block(name), few, arrays, with_gradient)
        else:
            scan = block_scan("cross_scan", implementation)
            if kind == "four":
                scan = functools.partial(four_scans, implementation=implementation)
            run = load_jax(scan, with_gradient, arrays)
    serve(run, np.s_[0, ::7, ::3, ::31])


def four_scans(x, dt, B, C, dt_weight, dt_bias, A, D, *, implementation):
    """Scans as a user of `selective_scan` would write a cross scan."""
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


def torch_block(name: str):
    """Makes a cross scan around a PyTorch scan of all directions stacked."""
    import torch

    scan_stack, walk = torch_scans.make_scan(name), list(ORDER.limb_walk)

    def along(k, a):
        """Rearranges a grid to the sequence of direction k, flipped if the direction is
        reversed.
        """
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
        ys = scan_stack(u, torch.cat(deltas, -1), *flat).unflatten(2, (len(ks), -1))
        return sum(back(k, ys[:, :, k], frames, joints) for k in ks)

    return scan


def load_model(implementation: str, frames: int):
    import jax

    from posemamba_jax.model import PoseMamba, PoseMambaConfig

    model = PoseMamba(PoseMambaConfig.preset("B", implementation=implementation))
    rng = np.random.default_rng(0)
    shape = (1, frames, REFERENCE_BLOCK.joints, 2)
    poses = jax.numpy.asarray(rng.normal(size=shape), jax.numpy.float32)
    variables = jax.jit(model.init)(jax.random.key(0), poses)
    compiled = jax.jit(model.apply).lower(variables, poses).compile()
    return lambda: jax.block_until_ready(compiled(variables, poses))


def summarise(workers, labels) -> list[dict]:
    """Makes a row for each candidate; refuses one that computes something else than the others."""
    rows, expected = {}, {}
    for worker in workers:
        row = rows.setdefault(worker.name, {"name": worker.name, "label": labels[worker.name]})
        row[f"{worker.mode}_seconds"] = statistics.median(worker.seconds)
        row[f"{worker.mode}_fastest"] = min(worker.seconds)
        row[f"{worker.mode}_peak_mib"] = round(worker.peak / 2**20)
        if worker.name == "exps":
            continue
        y = np.array(worker.sample)
        reference = expected.setdefault(worker.name.startswith("model"), y)
        error = np.linalg.norm(y - reference) / np.linalg.norm(reference)
        assert error < 1e-4, f"{worker.name} computes something else, {error:.1e} away"
        row["difference_from_first"] = float(f"{error:.1e}")
    return list(rows.values())


def ratios(rows: list[dict], pairs) -> list[str]:
    """Says how many times the time of one candidate another takes, for pairs of names that ran."""
    by_name = {row["name"]: row for row in rows}
    lines = []
    for one, other in pairs:
        if one in by_name and other in by_name:
            forward, both = (
                by_name[other][f"{mode}_seconds"] / by_name[one][f"{mode}_seconds"]
                for mode in MODES
            )
            lines.append(
                f"- {by_name[other]['label']}: {forward:.2f} times the time of "
                f"{by_name[one]['label']} forward, {both:.2f} times with gradients."
            )
    return lines


def report_selective(rows, frames, about) -> str:
    shown = [
        {k: f"{v:.3f}" if k.endswith("seconds") else v for k, v in row.items()} for row in rows
    ]
    columns = {"label": "scan", "forward_seconds": "forward, s"}
    columns |= {"both_seconds": "forward and gradients, s", **COLUMNS}
    columns |= {"difference_from_first": "difference from XLA"}
    shape = dataclasses.replace(REFERENCE_BLOCK, frames=frames).selective
    lines = [
        "# Selective scan on a CPU",
        "",
        f"batch {shape.batch}, length {shape.length}, {shape.channels} channels in {shape.groups} "
        f"groups, {shape.state} states, float32; medians of {about['repeats']} rounds in which the "
        "candidates took turns. Memory is what the first run added to the process at its peak, "
        "outputs included.",
        "",
        table(shown, columns),
        "",
        *ratios(rows, [("xla", name) for name in torch_scans.LABELS]),
    ]
    by_name = {row["name"]: row for row in rows}
    over = [by_name["xla"][f"{m}_seconds"] / by_name["exps"]["forward_seconds"] for m in MODES]
    lines += [
        f"- The XLA scan takes {over[0]:.1f} times as long as its exponentials alone, "
        f"{over[1]:.1f} times with gradients."
    ]
    return "\n".join(lines)


def report_block(rows, frames, about) -> str:
    shown = [
        {k: f"{v * 1e3:.1f}" if k.endswith("seconds") else v for k, v in row.items()}
        for row in rows
    ]
    columns = {"label": "what", "forward_seconds": "forward, ms"}
    columns |= {"both_seconds": "forward and gradients, ms", **COLUMNS}
    block = REFERENCE_BLOCK
    lines = [
        "# The block's scan and the whole model on a CPU",
        "",
        f"One clip of {frames} frames and {block.joints} joints; the scan of one block has "
        f"{block.channels} channels, {block.directions} directions and {block.state} states, "
        f"float32. Medians of {about['repeats']} rounds in which the candidates took turns. Memory "
        "is what the first run added to the process at its peak, results included.",
        "",
        table(shown, columns),
        "",
    ]
    pairs = [("cross_xla", "four_xla"), ("cross_cpu", "four_cpu")]
    pairs += [("cross_xla", "torch_chunked"), ("cross_cpu", "torch_chunked")]
    return "\n".join(lines + ratios(rows, pairs))


@dataclasses.dataclass(frozen=True)
class Study:
    """What one of the two measurements consists of.

    Attributes:
      labels: every candidate's name and what the table calls it.
      default: those that run when none are named.
      always: those that run whatever is named.
      repeats: rounds by default.
      work: what a candidate's process does.
      report: makes the page of the rows.
      results: name of the files of results.
    """

    labels: dict
    default: tuple
    always: tuple
    repeats: int
    work: object
    report: object
    results: str


STUDIES = {
    "selective": Study(
        SELECTIVE, tuple(name for name in SELECTIVE if name != "mamba_ssm"), ("xla", "exps"), 5,
        work_selective, report_selective, "selective_scan_cpu",
    ),
    "block": Study(
        BLOCK, tuple(BLOCK), (), 15, work_block, report_block, "cross_scan_cpu",
    ),
}  # fmt: skip


def left_out(name: str) -> bool:
    """Tells whether what a candidate needs is not installed or not built."""
    if name in torch_scans.LABELS:
        return torch_scans.missing(name)
    return implementations("cpu").get(name.rpartition("_")[2]) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--repeats", type=int, help="timed rounds")
    parser.add_argument("--frames", type=int, default=REFERENCE_BLOCK.frames)
    parser.add_argument("--candidates", help="names, comma-separated")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    study = STUDIES[args.study]
    if args.worker:
        name, mode = args.worker
        study.work(name, mode == "both", args.frames)
        return

    asked = args.candidates.split(",") if args.candidates else study.default
    unknown = [name for name in asked if name not in study.labels]
    if unknown:
        parser.error(f"--candidates: {unknown[0]!r} is none of {', '.join(study.labels)}")
    wanted = [name for name in study.labels if name in (*study.always, *asked)]
    missing = [name for name in wanted if left_out(name)]
    if missing:
        print(f"left out, not installed or not built: {', '.join(missing)}", file=sys.stderr)
    names = [name for name in wanted if name not in missing]
    one_mode = ("exps", "model_cpu", "model_xla")
    candidates = [(n, mode) for n in names for mode in MODES[: 1 if n in one_mode else 2]]
    repeats = args.repeats or study.repeats
    options = (args.study, "--frames", str(args.frames))
    rows = summarise(measure(candidates, repeats, __file__, *options), study.labels)
    about = environment("jax", "jaxlib", "numpy", "torch", "mambapy") | {"repeats": repeats}
    made = f"Made by `python benchmarks/scan.py {args.study}`: "
    made += ", ".join(f"{k} {v}" for k, v in about.items())
    markdown = f"{study.report(rows, args.frames, about)}\n\n{made}"
    print(markdown)
    if args.frames == REFERENCE_BLOCK.frames and set(study.default) <= set(names):
        write_results(study.results, {"environment": about, "rows": rows}, markdown)


if __name__ == "__main__":
    main()

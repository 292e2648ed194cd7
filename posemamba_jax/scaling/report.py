"""Makes the report and shows it: tables, a JSON file and a plot."""

import dataclasses
import json
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from posemamba_jax.errors import UserError, describe_error
from posemamba_jax.files import writing
from posemamba_jax.files.reading import user_path
from posemamba_jax.model.config import PRESETS, PoseMambaConfig
from posemamba_jax.scaling.advice import advice_text, remedies
from posemamba_jax.scaling.chips import GIB, Topology
from posemamba_jax.scaling.collectives import Collective
from posemamba_jax.scaling.compiled import Step, compile_for_topology, gathered
from posemamba_jax.scaling.kernels import (
    Kernel,
    bundles,
    find_row,
    kernel_notes,
    kernel_seconds,
    memory_traffic,
    table_note,
)
from posemamba_jax.scaling.request import Request, mesh_text
from posemamba_jax.scaling.roofline import NAMES, Estimate, estimate
from posemamba_jax.scaling.study import Point, curves, first_bottleneck
from posemamba_jax.scaling.virtual import AGREES, Comparison, compare
from posemamba_jax.training.run_log import collect_versions

MIB = 2**20
# Columns of text where the output goes to no terminal.
_WIDTH = 132


def run(request: Request) -> int:
    """Makes the report; exit code 1 where virtual devices disagree, 2 where nothing fits."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)

    def say(text: str) -> None:
        console.print(text, style="dim")

    for note in request.notes:
        console.print(f"batch: {note}")
    if request.topology is None:
        return _run_virtual(request, console, say)
    topology = request.topology
    say(f"compiling for {topology.name}, mesh {mesh_text(_sizes(request))}")
    step = compile_for_topology(request.config, topology)
    show_step(console, request, step)
    data = header(request) | {"step": step_dict(step, topology)}
    if not step.fits:
        tried = remedies(request.config, topology, step, say)
        console.print(advice_text(request.config, topology, step, tried))
        data["remedies"] = [dataclasses.asdict(remedy) for remedy in tried]
        write(request, data, None)
        return 2
    if request.largest:
        found = curves(
            request.config, topology, step,
            largest=request.largest, compile_at=request.compile_at, say=say,
        )  # fmt: skip
        data["first_bottleneck"] = {kind: first_bottleneck(p) for kind, p in found.items()}
        data["scaling"] = {kind: [point_dict(p) for p in pts] for kind, pts in found.items()}
        show_curves(console, found)
        write(request, data, found)
    else:
        write(request, data, None)
    console.print(f"written to {request.out}")
    return 0


def _run_virtual(request: Request, console: Console, say: Any) -> int:
    result = compare(request.config, request.virtual_devices, request.steps, say)
    show_step(console, request, result.step)
    verdict = "agree" if result.agrees else "DISAGREE"
    console.print(
        f"losses on {request.virtual_devices} devices and on one {verdict}: at most "
        f"{result.difference:.1e} apart, relative ({AGREES:.0e} allowed), in {request.steps} steps"
    )
    data = header(request) | {"step": step_dict(result.step, None), "losses": losses_dict(result)}
    write(request, data, None)
    console.print(f"written to {request.out}")
    return 0 if result.agrees else 1


def _sizes(request: Request) -> dict[str, int]:
    return dataclasses.asdict(request.config.mesh)


# As data


def header(request: Request) -> dict[str, Any]:
    """Returns what was asked for and with which software."""
    model = request.config.model
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": collect_versions(),
        "topology": request.topology.name if request.topology else None,
        "chip": dataclasses.asdict(request.topology.chip) if request.topology else None,
        "virtual_devices": request.virtual_devices,
        "model": dataclasses.asdict(model),
        "clip_len": request.config.data.clip_len,
        "notes": list(request.notes),
    }


def step_dict(step: Step, topology: Topology | None) -> dict[str, Any]:
    """Returns everything about a compiled step as plain values."""
    data = dataclasses.asdict(step)
    data["collectives"] = [collective_dict(c) for c in step.collectives]
    data["all_gathered_bytes"] = gathered(step.collectives)
    if topology is not None and step.work is not None:
        parts = estimate(step.work, step.kernels, step.collectives, topology)
        data["kernels"] = [kernel_dict(kernel, topology) for kernel in step.kernels]
        data["estimate"] = estimate_dict(parts)
        peak = topology.chip.bf16_flops / topology.chip.devices
        data["estimate"]["model_flop_utilisation"] = step.model_flops / parts.seconds / peak
    return data


def collective_dict(collective: Collective) -> dict[str, Any]:
    return dataclasses.asdict(collective) | {"sent_bytes": collective.sent_bytes}


def kernel_dict(kernel: Kernel, topology: Topology) -> dict[str, Any]:
    row, own = find_row(kernel, topology.chip)
    return dataclasses.asdict(kernel) | {
        "row": row,
        "row_is_its_own": own,
        "bundles": bundles(kernel, topology),
        "seconds": kernel_seconds(kernel, topology),
    }


def estimate_dict(parts: Estimate) -> dict[str, Any]:
    return dataclasses.asdict(parts) | {"seconds": parts.seconds, "bottleneck": parts.bottleneck}


def point_dict(point: Point) -> dict[str, Any]:
    """Returns one size of a curve as plain values."""
    return {
        "chips": point.topology.chips,
        "topology": point.topology.name,
        "mesh": point.mesh,
        "batch": point.batch,
        "accumulate": point.accumulate,
        "made_by": "compiler" if point.compiled else "model",
        "fits": point.fits,
        "estimate": estimate_dict(point.estimate) if point.estimate else None,
        "clips_per_second": point.clips_per_second,
        "efficiency": point.efficiency,
        "modelled": estimate_dict(point.modelled) if point.modelled else None,
        "model_error": point.model_error,
        "slowest_collective": collective_dict(point.slowest) if point.slowest else None,
    }


def losses_dict(result: Comparison) -> dict[str, Any]:
    return dataclasses.asdict(dataclasses.replace(result, step=None)) | {
        "difference": result.difference,
        "agrees": result.agrees,
    }


# As text


def show_step(console: Console, request: Request, step: Step) -> None:
    """Prints the memory, work, communication and estimated time of one step."""
    topology, memory = request.topology, step.memory
    name = topology.name if topology else f"{step.devices} virtual CPU devices"
    title = (
        f"PoseMamba dim {request.config.model.dim}, depth {request.config.model.depth} on {name}, "
        f"mesh {mesh_text(step.mesh)}, batch {step.batch}"
        + (f" in {step.accumulate} parts" if step.accumulate > 1 else "")
    )
    table = Table(title=title, show_header=False)
    table.add_row("scan", step.implementation)
    table.add_row("compiled in", f"{step.compile_seconds:.1f} s")
    table.add_section()
    for label, size in (
        ("parameters", memory.params),
        ("optimiser", memory.optimizer),
        ("batch", memory.batch),
        ("activations, temporary", memory.temporary),
        ("program", memory.program),
    ):
        table.add_row(f"{label}, per device", f"{size / MIB:,.1f} MiB")
    peak = f"{memory.peak / GIB:.2f} GiB"
    if topology:
        room = topology.chip.hbm_bytes / topology.chip.devices
        peak += f" of {room / GIB:.0f} GiB: {'fits' if step.fits else 'DOES NOT FIT'}"
    table.add_row("peak, per device", peak)
    table.add_section()
    table.add_row("model FLOPs, by its layers", _si(step.model_flops))
    if step.work is not None:
        work = step.work
        table.add_row("matrix FLOPs, in the program", _si(work.matrix_flops))
        table.add_row("  in bfloat16 passes", _si(work.matrix_passes))
        table.add_row("element operations, in the program", _si(work.vector_ops))
        table.add_row("memory traffic, in the program", f"{_si(work.memory_bytes)}B")
        if topology and step.kernels:
            issued = sum(kernel.times * bundles(kernel, topology) for kernel in step.kernels)
            table.add_row(f"bundles, in {work.kernels:,} kernel calls", _si(issued))
            table.add_row("  of the memory traffic", f"{_si(memory_traffic(step.kernels))}B")
        if step.xla_flops is not None:
            counted = f"{_si(step.xla_flops)} FLOPs, {_si(step.xla_bytes or 0)}B"
            table.add_row("XLA's count, loops once, no kernels", counted)
    if topology and step.work is not None:
        parts = estimate(step.work, step.kernels, step.collectives, topology)
        table.add_section()
        for part, label in NAMES.items():
            table.add_row(f"estimate: {label}", f"{getattr(parts, part) * 1e3:.2f} ms")
        speed = step.batch / parts.seconds
        peak_flops = topology.chip.bf16_flops / topology.chip.devices
        table.add_row("estimate: step, at least", f"{parts.seconds * 1e3:.2f} ms")
        table.add_row("estimate: at most", f"{speed:,.0f} clips/s")
        table.add_row(
            "estimate: model FLOP utilisation, at most",
            f"{step.model_flops / parts.seconds / peak_flops:.1%}",
        )
        table.add_row("limited by", NAMES[parts.bottleneck])
    console.print(table)
    if topology and step.work is not None:
        notes = kernel_notes(step.kernels, step.work.kernels, topology)
        if step.kernels:
            notes.append(table_note())
        for note in filter(None, notes):
            console.print(f"note: {note}")
    if step.unknown_loops:
        console.print(f"loops counted once, length unknown: {', '.join(step.unknown_loops)}")
    show_collectives(console, step)


def show_collectives(console: Console, step: Step) -> None:
    """Prints the collectives by kind, mesh axes and content, and what is gathered."""
    if not step.collectives:
        console.print("no collectives")
        return
    table = Table(title="collectives in a step, per device; the largest of each sort")
    for heading in ("kind", "over", "of", "sites", "times", "MiB sent", "largest", "for"):
        right = heading in ("sites", "times", "MiB sent")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    sorts: dict[tuple, list[Collective]] = {}
    for c in step.collectives:
        sorts.setdefault((c.kind, "+".join(c.axes) or f"{c.group} devices", c.content), []).append(
            c
        )
    for key, members in sorts.items():
        largest = members[0]
        table.add_row(
            *key, str(len(members)), f"{sum(c.times for c in members):,}",
            f"{sum(c.sent_bytes for c in members) / MIB:,.2f}",
            largest.shape + (f" +{largest.arrays - 1}" if largest.arrays > 1 else ""),
            largest.source,
        )  # fmt: skip
    console.print(table)
    found = gathered(step.collectives)
    told = ", ".join(f"{size / MIB:,.1f} MiB of {name}" for name, size in found.items())
    console.print(f"all-gathered in a step: {told or 'nothing'}")
    if "activations" in found:
        console.print("warning: activations are gathered; the mesh does not divide their work")


def show_curves(console: Console, found: dict[str, list[Point]]) -> None:
    """Prints weak and strong scaling as tables, with their first bottleneck."""
    for kind, points in found.items():
        table = Table(title=f"{kind} scaling (estimate)")
        for heading in (
            "chips",
            "mesh",
            "batch",
            "ms",
            "clips/s",
            "efficiency",
            "limit",
            "made by",
            "model off by",
        ):
            table.add_column(heading, justify="right" if heading != "mesh" else "left")
        for p in points:
            cells = ["does not fit", "", "", ""]
            if p.estimate:
                cells = [
                    f"{p.estimate.seconds * 1e3:.2f}", f"{p.clips_per_second:,.0f}",
                    f"{p.efficiency:.0%}", NAMES[p.estimate.bottleneck],
                ]  # fmt: skip
            batch = f"{p.batch}" + (f" / {p.accumulate}" if p.accumulate > 1 else "")
            made = "compiler" if p.compiled else "model"
            off = "" if p.model_error is None else f"{p.model_error:+.1%}"
            table.add_row(str(p.topology.chips), mesh_text(p.mesh), batch, *cells, made, off)
        console.print(table)
        console.print(f"{kind}: {first_bottleneck(points)}")


def _si(value: float) -> str:
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value:.0f} "


# As files


def model_name(model: PoseMambaConfig) -> str:
    """Names a model by its preset's letter, or by its size."""
    sizes = {(preset["dim"], preset["depth"]): name.lower() for name, preset in PRESETS.items()}
    return sizes.get((model.dim, model.depth), f"dim{model.dim}_depth{model.depth}")


def write(request: Request, data: dict[str, Any], found: dict[str, list[Point]] | None) -> None:
    """Writes NAME.json and, with curves, NAME.png into the report's folder.

    Raises:
      UserError: the folder cannot be written.
    """
    place = f"virtual_{request.virtual_devices}"
    if request.topology:
        place = request.topology.name.replace(":", "_")
    name = f"scaling_{model_name(request.config.model)}_{place}"
    folder = user_path(request.out)
    try:
        writing.write_text(folder / f"{name}.json", json.dumps(data, indent=1) + "\n")
        if found:
            from posemamba_jax.scaling.plot import plot_scaling

            plot_scaling(found, folder / f"{name}.png", title=name.replace("_", " "))
    except OSError as error:
        raise UserError(f"--out: {folder} cannot be written: {describe_error(error)}") from None

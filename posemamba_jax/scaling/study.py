"""Studies weak and strong scaling: some numbers of chips are compiled, those between modelled.

Weak scaling keeps the clips per device, strong scaling the batch. Where strong scaling gives a
device more clips than the step that was asked for, it runs them in parts of that size.
"""

import dataclasses
import math
from collections.abc import Callable

import jax

from posemamba_jax.config.schema import Config
from posemamba_jax.errors import UserError
from posemamba_jax.scaling.chips import Topology, slices
from posemamba_jax.scaling.collectives import Collective
from posemamba_jax.scaling.compiled import Step, compile_for_topology, with_mesh
from posemamba_jax.scaling.request import mesh_text
from posemamba_jax.scaling.roofline import NAMES, Estimate, estimate, latency_seconds

# Below this share of the speed of one chip, per chip, a curve is said to have bent.
BENT = 0.9


@dataclasses.dataclass(frozen=True)
class Point:
    """This holds one size of a scaling curve.

    Attributes:
      topology: the slice.
      mesh: axis -> size.
      batch: clips in a step.
      accumulate: parts of the batch that run one after another.
      compiled: whether this step was compiled, or modelled from one that was.
      fits: whether the compiler found room for it, or for the one it was modelled from.
      estimate: the parts of a step; None where it does not fit.
      efficiency: clips per second and chip, relative to the smallest size that fits.
      slowest: the collective that takes longest, None without any.
      modelled: of a compiled point, what the model makes of it from the step that was asked for,
        to judge the modelled points by; None for others, and for that step itself.
    """

    topology: Topology
    mesh: dict[str, int]
    batch: int
    accumulate: int
    compiled: bool
    fits: bool
    estimate: Estimate | None
    efficiency: float | None
    slowest: Collective | None
    modelled: Estimate | None = None

    @property
    def clips_per_second(self) -> float | None:
        return self.batch / self.estimate.seconds if self.estimate else None

    @property
    def model_error(self) -> float | None:
        """By how much the model is off, as a share of the compiled point's seconds."""
        if self.modelled is None or self.estimate is None:
            return None
        return self.modelled.seconds / self.estimate.seconds - 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """This is a point of a curve whose cost is not known yet."""

    topology: Topology
    mesh: dict[str, int]
    batch: int
    accumulate: int

    @property
    def clips(self) -> float:
        """The clips of a step per device and part."""
        ways = self.mesh["data"] * self.mesh["fsdp"] * self.accumulate
        return self.batch / ways

    @property
    def key(self) -> tuple:
        return (*self.mesh.values(), self.batch, self.accumulate)


def curves(
    config: Config,
    topology: Topology,
    step: Step,
    *,
    largest: int,
    compile_at: frozenset[int] | None,
    say: Callable[[str], None],
) -> dict[str, list[Point]]:
    """Computes the curves of weak and strong scaling.

    Args:
      config: the step that was asked for.
      topology: its slice.
      step: compiled already.
      largest: chips at which the curves end.
      compile_at: numbers of chips to compile at, None for all.
      say: told before every compilation.

    Returns:
      "weak" and "strong" -> points from one chip up.
    """
    sizes = slices(topology.chip, largest)
    if topology.chips <= largest and topology.chips not in (s.chips for s in sizes):
        sizes = sorted([*sizes, topology], key=lambda s: s.chips)
    sizes = [topology if s.chips == topology.chips else s for s in sizes]
    plans = {kind: plan(config, sizes, strong=kind == "strong") for kind in ("weak", "strong")}
    asked = Plan(topology, step.mesh, step.batch, step.accumulate)
    steps: dict[tuple, tuple[Plan, Step]] = {asked.key: (asked, step)}
    todo = {
        point.key: (kind, point)
        for kind, points in plans.items()
        for point in points
        if (compile_at is None or point.topology.chips in compile_at) and point.key not in steps
    }
    for number, (kind, point) in enumerate(todo.values(), 1):
        say(
            f"compiling {number} of {len(todo)}: {kind} scaling for {point.topology.name}, "
            f"mesh {mesh_text(point.mesh)}, batch {point.batch}"
        )
        at = with_mesh(config, point.mesh, point.batch, point.accumulate)
        try:
            steps[point.key] = point, compile_for_topology(at, point.topology)
        except (UserError, jax.errors.JaxRuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            say(f"{point.topology.name} cannot be compiled and is modelled instead: {reason}")
    return {kind: _points(points, steps, asked.key) for kind, points in plans.items()}


def plan(config: Config, sizes: list[Topology], *, strong: bool) -> list[Plan]:
    """Plans what each size of a curve runs; sizes that the batch cannot fill are left out."""
    mesh, train = config.mesh, config.train
    ways = mesh.data * mesh.fsdp
    share = train.batch_size // ways
    part = share // train.accumulate
    plans = []
    for topology in sizes:
        tensor = math.gcd(mesh.tensor, topology.devices)
        fsdp = math.gcd(mesh.fsdp, topology.devices // tensor)
        here = {"data": topology.devices // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}
        ways_here = here["data"] * fsdp
        if not strong:
            plans.append(Plan(topology, here, share * ways_here, train.accumulate))
        elif train.batch_size % ways_here == 0:
            clips = train.batch_size // ways_here
            parts = next(p for p in range(1, clips + 1) if clips % p == 0 and clips // p <= part)
            plans.append(Plan(topology, here, train.batch_size, parts))
    return plans


def _points(plans: list[Plan], steps: dict[tuple, tuple[Plan, Step]], asked: tuple) -> list[Point]:
    points: list[Point] = []
    first: float | None = None
    for wanted in plans:
        compiled = wanted.key in steps
        made, step = steps[wanted.key] if compiled else _nearest(wanted, list(steps.values()))
        parts = slowest = efficiency = modelled = None
        if step.work is not None:
            work, kernels, collectives = _scaled(wanted, made, step)
            parts = estimate(work, kernels, collectives, wanted.topology)
            slowest = max(
                collectives,
                key=lambda c: _seconds(c, wanted.topology),
                default=None,
            )
            speed = wanted.batch / parts.seconds / wanted.topology.chips
            first = first or speed
            efficiency = speed / first
            if compiled and wanted.key != asked and steps[asked][1].work is not None:
                modelled = estimate(*_scaled(wanted, *steps[asked]), wanted.topology)
        points.append(
            Point(
                wanted.topology,
                wanted.mesh,
                wanted.batch,
                wanted.accumulate,
                compiled,
                step.fits,
                parts,
                efficiency,
                slowest,
                modelled,
            )
        )
    return points


def _seconds(collective: Collective, topology: Topology) -> float:
    return latency_seconds(collective, topology) + collective.sent_bytes / topology.send_bandwidth


def _nearest(wanted: Plan, steps: list[tuple[Plan, Step]]) -> tuple[Plan, Step]:
    """Picks the compiled step that is most like the wanted one."""

    def distance(candidate: tuple[Plan, Step]) -> tuple[float, ...]:
        made, step = candidate
        # Axes that the step has no collectives for; those it has too many of are left out.
        missing = sum(wanted.mesh[a] > 1 and made.mesh[a] == 1 for a in wanted.mesh)
        return (
            step.work is None,
            missing,
            abs(math.log(made.clips / wanted.clips)),
            abs(math.log(made.topology.chips / wanted.topology.chips)),
        )

    return min(steps, key=distance)


def _scaled(wanted: Plan, made: Plan, step: Step) -> tuple:
    """Returns work, kernels and collectives of a step, from one that was compiled.

    Work and what is sent of activations follow the clips per device, what is sent of parameters
    and gradients the number of parts; groups follow the mesh.
    """
    if wanted.key == made.key:
        return step.work, step.kernels, step.collectives
    parts = wanted.accumulate / made.accumulate
    clips = parts * wanted.clips / made.clips
    work = dataclasses.replace(
        step.work,
        **{
            field.name: getattr(step.work, field.name) * clips
            for field in dataclasses.fields(step.work)
        },
    )
    kernels = [
        dataclasses.replace(
            kernel,
            times=max(1, round(kernel.times * parts)),
            batch=max(1, round(kernel.batch * wanted.clips / made.clips)),
            bytes=round(kernel.bytes * wanted.clips / made.clips),
        )
        for kernel in step.kernels
    ]
    collectives = []
    for collective in step.collectives:
        group = math.prod(wanted.mesh[axis] for axis in collective.axes) if collective.axes else 0
        if group < 2:
            continue
        moves_clips = collective.content == "activations"
        collectives.append(
            dataclasses.replace(
                collective,
                group=group,
                times=max(1, round(collective.times * parts)),
                bytes=round(collective.bytes * (wanted.clips / made.clips if moves_clips else 1)),
            )
        )
    return work, kernels, collectives


def first_bottleneck(points: list[Point]) -> str:
    """Sums up a curve in a sentence: the limit at the start, where it bends and why."""
    known = [point for point in points if point.estimate]
    if not known:
        return "the step does not fit at any size"
    start, end = known[0], known[-1]
    text = f"limited by {NAMES[start.estimate.bottleneck]} at {_chips(start)}"
    bent = next((point for point in known if point.efficiency < BENT), None)
    if bent is None:
        text += f"; {end.efficiency:.0%} of that speed per chip is left at {_chips(end)}"
    else:
        text += f"; falls below {BENT:.0%} of that speed per chip at {_chips(bent)}"
    at = bent or end
    if at.slowest is not None:
        share = at.estimate.interconnect / at.estimate.seconds
        latency = at.estimate.latency / max(at.estimate.interconnect, 1e-30)
        text += (
            f", where the interconnect takes {share:.0%} of the step ({latency:.0%} of it waiting "
            f"for hops), most of it the {at.slowest.kind} of {at.slowest.content} in "
            f"{at.slowest.source}, {at.slowest.times} times a step"
        )
    return text


def _chips(point: Point) -> str:
    return f"{point.topology.chips} chip{'s' if point.topology.chips > 1 else ''}"

"""Finds what to change where a step does not fit on a chip, by compiling the changes."""

import dataclasses
from collections.abc import Callable

from posemamba_jax.config.schema import Config
from posemamba_jax.scaling.chips import GIB, Topology
from posemamba_jax.scaling.compiled import Step, compile_for_topology


@dataclasses.dataclass(frozen=True)
class Remedy:
    """This holds one change to the step and what the compiler says to it.

    Attributes:
      options: to add to the command line.
      fits: whether the step fits then.
      peak: bytes per device then.
    """

    options: str
    fits: bool
    peak: int


def remedies(
    config: Config, topology: Topology, step: Step, say: Callable[[str], None]
) -> list[Remedy]:
    """Tries recomputation, smaller parts, both, and state split over more devices.

    Stops at the first that fits, cheapest first: recomputing costs a forward pass, parts cost
    nothing but larger loops, `fsdp` only helps where parameters and optimiser are what is large.
    """
    limit = topology.chip.hbm_bytes // topology.chip.devices
    found = []
    for options, changed in _candidates(config, step, limit):
        say(f"does not fit; compiling with {options}")
        tried = compile_for_topology(changed, topology)
        found.append(Remedy(options, tried.fits, tried.memory.peak))
        if tried.fits:
            break
    return found


def _candidates(config: Config, step: Step, limit: int) -> list[tuple[str, Config]]:
    ways = step.mesh["data"] * step.mesh["fsdp"]
    share = step.batch // ways
    held = step.memory.params + step.memory.optimizer
    rematerialised = dataclasses.replace(
        config, model=dataclasses.replace(config.model, remat="block")
    )
    found: list[tuple[str, Config]] = []
    if held > limit // 2 and step.mesh["data"] > 1:
        fsdp = step.mesh["fsdp"] * step.mesh["data"]
        mesh = dataclasses.replace(config.mesh, data=1, fsdp=fsdp)
        found.append((f"--mesh fsdp={fsdp}", dataclasses.replace(config, mesh=mesh)))
    if config.model.remat != "block":
        found.append(("--model.remat block", rematerialised))
    # What is in between shrinks with the part; a tenth is kept free.
    room = max(0.9 * limit - held, 1)
    enough = step.memory.temporary / room * step.accumulate
    parts = [p for p in range(step.accumulate + 1, share + 1) if share % p == 0]
    chosen = next((p for p in parts if p >= enough), parts[-1] if parts else None)
    if chosen:
        train = dataclasses.replace(config.train, accumulate=chosen)
        option = f"--train.accumulate {chosen}"
        found.append((option, dataclasses.replace(config, train=train)))
        if config.model.remat != "block":
            both = dataclasses.replace(rematerialised, train=train)
            found.append((f"{option} --model.remat block", both))
    return found


def advice_text(config: Config, topology: Topology, step: Step, tried: list[Remedy]) -> str:
    """Explains in a few lines why the step does not fit and what would."""
    room = topology.chip.hbm_bytes // topology.chip.devices
    lines = [
        f"does not fit: {step.memory.peak / GIB:.1f} GiB of {room / GIB:.0f} GiB per device, "
        f"{step.memory.temporary / GIB:.1f} GiB of it for activations"
    ]
    for remedy in tried:
        verdict = "fits" if remedy.fits else "does not fit either"
        lines.append(f"  {remedy.options}: {verdict}, {remedy.peak / GIB:.1f} GiB")
    if not any(remedy.fits for remedy in tried):
        share = step.batch // (step.mesh["data"] * step.mesh["fsdp"])
        lines.append(
            f"  fewer clips per device ({share} now) or more devices: activations shrink with them"
        )
    return "\n".join(lines)

"""Estimates how long a step takes at least, from its work and a chip's published speeds.

An estimate, and an optimistic one. A core runs one operation of the program after another. The
scan's kernels take the time of their own schedule, or of their memory traffic where that is longer.
Of all other operations every unit runs at its peak and work on different units overlaps fully.
Communication overlaps with nothing. So it says what limits a step and how that changes with size,
not how long a step will take.
"""

import dataclasses
from collections.abc import Sequence

from posemamba_jax.scaling.chips import HOP_SECONDS, Topology
from posemamba_jax.scaling.collectives import Collective
from posemamba_jax.scaling.counting import Work
from posemamba_jax.scaling.kernels import Kernel, kernel_seconds, memory_traffic

# How the parts are named in reports.
NAMES = {
    "scan": "scan kernels",
    "matrix": "matrix units",
    "vector": "vector units",
    "memory": "memory bandwidth",
    "interconnect": "interconnect",
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """This holds the seconds that each part of a device needs for a step.

    Attributes:
      scan: the scan's kernels, during which nothing else runs.
      matrix: matrix units outside of kernels, in bfloat16 passes.
      vector: vector units outside of kernels: everything elementwise.
      memory: main memory's bandwidth, what kernels read and write left out.
      interconnect: collectives, one after another.
      latency: the part of it that does not depend on how much is sent.
    """

    scan: float
    matrix: float
    vector: float
    memory: float
    interconnect: float
    latency: float

    @property
    def seconds(self) -> float:
        """The seconds of the step: the kernels, the slowest unit for the rest, communication."""
        return self.scan + max(self.matrix, self.vector, self.memory) + self.interconnect

    @property
    def bottleneck(self) -> str:
        """The part that takes longest."""
        return max(NAMES, key=lambda name: getattr(self, name))


def estimate(
    work: Work,
    kernels: Sequence[Kernel],
    collectives: Sequence[Collective],
    topology: Topology,
) -> Estimate:
    """Estimates the parts of a step on one device of a slice.

    Args:
      work: counted from the compiled program.
      kernels: of the compiled program, whose memory traffic `work` includes.
      collectives: of the compiled program.
      topology: the slice.
    """
    chip = topology.chip
    latency = sum(latency_seconds(collective, topology) for collective in collectives)
    sent = sum(collective.sent_bytes for collective in collectives)
    elsewhere = work.memory_bytes - memory_traffic(kernels)
    return Estimate(
        scan=sum(kernel_seconds(kernel, topology) for kernel in kernels),
        matrix=work.matrix_passes / (chip.bf16_flops / chip.devices),
        vector=work.vector_ops / (chip.vector_ops / chip.devices),
        memory=elsewhere / (chip.hbm_bandwidth / chip.devices),
        interconnect=latency + (sent / topology.send_bandwidth if sent else 0.0),
        latency=latency,
    )


def latency_seconds(collective: Collective, topology: Topology) -> float:
    """Estimates a collective's latency in a step: a ring along each axis in turn, without data."""
    axes = sum(length > 1 for length in topology.shape) or 1
    hops = axes * (collective.group ** (1 / axes) - 1)
    return collective.times * collective.rounds * hops * HOP_SECONDS

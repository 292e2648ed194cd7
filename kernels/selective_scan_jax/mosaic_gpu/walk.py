"""A direction of a scan as a kernel sees it: where each step is, and what is loaded there.

The kernels are written with (states, 128) and (128,) arrays of one program. Each of the 128 threads
of a warpgroup owns one channel and holds all its states in registers, so the sum over states needs
no exchange between threads; what belongs to no channel (B, C, the step projection's input) is held
by all threads alike.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from selective_scan_jax.mosaic_gpu.heuristic import CHANNELS, Config

LOG2_E = math.log2(math.e)


class Path(NamedTuple):
    """What a kernel is compiled for of a direction's path; the rest of it is an operand.

    Attributes:
      inner: steps of the path's inner axis.
      limbs: whether the input is read with its limb term.
    """

    inner: int
    limbs: bool


@dataclasses.dataclass(frozen=True)
class Walk:
    """What is fixed when a launch is compiled, of the directions of a scan that it takes.

    The path itself is an operand, so that launches whose directions differ in nothing else share a
    kernel: `path` (directions, 5) int32 has for each direction its index in the arrays that have
    one, three numbers that put step t at position start + (t % inner) * inner_stride + (t // inner)
    * outer_stride, and which of `paths` it is.

    Attributes:
      length: steps.
      states: per channel.
      paths: the different ones.
      directions: that run side by side.
      blocks_per_group: blocks of 128 channels that share a row of B and C.
      softplus: whether step sizes pass through it.
      config: block sizes.
      parts: programs along time.
    """

    length: int
    states: int
    paths: tuple[Path, ...]
    directions: int
    blocks_per_group: int
    softplus: bool
    config: Config
    parts: int

    @property
    def segments(self) -> int:
        return -(-self.length // self.config.segment)

    @property
    def segments_per_part(self) -> int:
        return -(-self.segments // self.parts)


def launch(body, walk: Walk, operands: dict, outputs: dict, *, grid, scratch=(), interpret):
    """Runs `body(program, scratch)` for every program.

    Args:
      operands: arrays by name; those that are None are left out.
      outputs: shape of each float32 output, or a (shape, dtype) pair, by name.
      grid: how many rows (a batch element and direction each) and blocks of channels there are.

    Returns:
      The outputs by name.
    """
    operands = {name: a for name, a in operands.items() if a is not None}
    names = (*operands, *outputs)
    shapes = [jax.ShapeDtypeStruct(*_typed(o)) for o in outputs.values()]

    def kernel(*refs):
        named = dict(zip(names, refs[: len(names)], strict=True))
        direction = lax.rem(lax.axis_index("row"), walk.directions)
        for i, path in enumerate(walk.paths):

            def run(path=path):
                body(Program(walk, path, direction, named), refs[len(names) :])

            # Every path has machine code of its own, of which a program runs one.
            if len(walk.paths) == 1:
                run()
            else:
                pl.when(named["path"][direction, 4] == i)(run)

    kernel.__name__ = body.__name__.strip("_")
    run = plgpu.kernel(
        kernel,
        out_type=shapes,
        scratch_types=scratch,
        grid=(*grid, walk.parts),
        grid_names=("row", "block", "part"),
        compiler_params=_compiler_params(),
        interpret=interpret,
    )
    return dict(zip(outputs, run(*operands.values()), strict=True))


def _compiler_params():
    """Asks for no barriers but our own (`commit_smem`), rather than two around every store.

    Layouts are all given here; where each thread's code can be made from them directly (semantics
    by lane), a kernel is lowered many times faster than by inferring them again.
    """
    semantics = getattr(plgpu.LoweringSemantics, "Lane", plgpu.LoweringSemantics.Warpgroup)
    return plgpu.CompilerParams(
        approx_math=True, unsafe_no_auto_barriers=True, lowering_semantics=semantics
    )


def _typed(output):
    return output if isinstance(output[0], tuple) else (output, jnp.float32)


@functools.cache
def layouts():
    """Layouts of (states, channels), of (states,) and of (channels,)."""
    both = plgpu.Layout.TILED(
        plgpu.Tiling(((1, CHANNELS), (32,), (1,))), warp_dims=(-3,), lane_dims=(-2,), vector_dim=-1
    )
    return both, both.reduce((1,)), both.reduce((0,))


@functools.cache
def _row_layout():
    """Returns the layout of a (128, n) array with a row for each thread."""
    return plgpu.Layout.TILED(
        plgpu.Tiling(((CHANNELS, 4), (32, 4))), warp_dims=(-4,), lane_dims=(-2,), vector_dim=-1
    )


def load_rows(ref):
    """Loads a (128, n) array, n a multiple of four, with a row for each thread."""
    return plgpu.load(ref, layout=_row_layout(), optimized=False)


def load_both(ref):
    return plgpu.load(ref, layout=layouts()[0], optimized=False)


def load_states(ref):
    """Loads a float32 row of which every thread gets all."""
    return plgpu.load(ref, layout=layouts()[1], optimized=False).astype(jnp.float32)


def load_channels(ref):
    return plgpu.load(ref, layout=layouts()[2], optimized=False).astype(jnp.float32)


def over_channels(x, rows: int):
    """Repeats (channels,) to (rows, channels)."""
    return plgpu.layout_cast(lax.broadcast_in_dim(x, (rows, CHANNELS), (1,)), layouts()[0])


def over_states(x):
    """Repeats (states,) to (states, channels)."""
    return plgpu.layout_cast(lax.broadcast_in_dim(x, (x.shape[0], CHANNELS), (0,)), layouts()[0])


def sum_of_products(a, b):
    """Sums a * b over the first axis, (n, channels) to (channels,), as a few chains of FMAs.

    `jnp.sum` would take eight chains, and so an instruction more for almost every second term.
    """
    n = a.shape[0]
    chains = max(2, n // 8)
    if n % chains:
        return jnp.sum(a * b, axis=0)
    total = a[:chains] * b[:chains]
    for i in range(chains, n, chains):
        total = total + a[i : i + chains] * b[i : i + chains]
    return jnp.sum(total, axis=0)


def zeros(rows: int):
    return plgpu.layout_cast(jnp.zeros((rows, CHANNELS), jnp.float32), layouts()[0])


def zero_channels():
    return plgpu.layout_cast(jnp.zeros((CHANNELS,), jnp.float32), layouts()[2])


def softplus(x):
    """Computes softplus and its derivative to float32 precision without log1p.

    log(1 + e) for e = exp(-|x|) is 2 atanh(s) with s = e / (2 + e) <= 1/3, whose power series in
    s^2 is cut where its next term is below 2e-8.
    """
    e = jnp.exp(-jnp.abs(x))
    s = e / (2 + e)
    square = s * s
    series = 1 / 13 * square + 1 / 11
    for k in (9, 7, 5, 3, 1):
        series = series * square + 1 / k
    value = jnp.maximum(x, 0) + 2 * s * series
    return value, jnp.where(x >= 0, jnp.ones_like(e), e) / (1 + e)


def sigmoid(x):
    e = jnp.exp(-jnp.abs(x))
    return jnp.where(x >= 0, jnp.ones_like(e), e) / (1 + e)


class Program:
    """The inputs of one program, by step.

    Attributes:
      batch, row: its batch element, and its place in arrays of batch elements and directions.
      channels: its block of channels.
    """

    def __init__(self, walk: Walk, path: Path, direction, refs: dict):
        self.walk, self.refs = walk, refs
        self.row, self.block = lax.axis_index("row"), lax.axis_index("block")
        self.batch, self.part = lax.div(self.row, walk.directions), lax.axis_index("part")
        self.channels = pl.ds(self.block * CHANNELS, CHANNELS)
        k, *self.strides = (refs["path"][direction, i] for i in range(4))
        self.inner, self.input = path.inner, "u_limbs" if path.limbs else "u"
        self.direction, self.group = k, refs["group_of_block"][direction, self.block]
        self.decay_rate = load_both(refs["A"].at[k, :, self.channels]) * LOG2_E
        self.D = self._weight("D")
        self.bias = self._weight("bias")
        self.step_weight = None
        if "dt" in refs:
            self.step_weight = load_both(refs["step_weight"].at[k, :, self.channels])

    def _weight(self, name):
        if name not in self.refs:
            return None
        return load_channels(self.refs[name].at[self.direction, self.channels])

    def position(self, t):
        """Returns the position of step t in the sequence or grid."""
        start, inner_stride, outer_stride = self.strides
        if self.inner >= self.walk.length:
            return start + t * inner_stride
        inner, outer = lax.rem(t, self.inner), lax.div(t, self.inner)
        return start + inner * inner_stride + outer * outer_stride

    def at(self, name: str, position):
        """Loads a (channels,) row of a (batch, positions, channels) operand."""
        return load_channels(self.refs[name].at[self.batch, position, self.channels])

    def u(self, position):
        return self.at(self.input, position)

    def dt(self, position):
        return load_states(self.refs["dt"].at[self.batch, position, self.direction])

    def load_step(self, position):
        """Loads what the step size is made of."""
        return self.at("delta", position) if self.step_weight is None else self.dt(position)

    def step_size(self, loaded):
        """Computes of what `load_step` returned the step size, and its derivative by the sum before
        softplus (None for 1).
        """
        if self.step_weight is None:
            raw = loaded
        else:
            raw = sum_of_products(self.step_weight, over_states(loaded))
        raw = raw if self.bias is None else raw + self.bias
        return softplus(raw) if self.walk.softplus else (raw, None)

    def B(self, position):
        return load_states(self.refs["B"].at[self.batch, position, self.group])

    def C(self, position):
        return load_states(self.refs["C"].at[self.batch, position, self.group])

    def decay(self, delta):
        return jnp.exp2(over_channels(delta, self.walk.states) * self.decay_rate)

    def advance(self, state, delta, u, B):
        drive = over_channels(delta * u, self.walk.states)
        return self.decay(delta) * state + drive * over_states(B)

    def segments(self):
        """Returns the first segment of this part and how many it has."""
        first = self.part * self.walk.segments_per_part
        return first, jnp.minimum(self.walk.segments_per_part, self.walk.segments - first)

    def steps_of(self, first, count=1):
        """Returns the first step of `count` segments from `first`, and how many they have."""
        size = self.walk.config.segment
        return first * size, jnp.minimum(count * size, self.walk.length - first * size)

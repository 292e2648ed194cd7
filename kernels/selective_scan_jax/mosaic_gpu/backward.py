"""The backward kernels: adjoints at the starts of the parts of time, and the gradients from there.

A part is walked segment by segment from its end. The states of a segment come from the one that the
forward pass kept: one pass finds the states at the starts of its chunks, and each chunk, the last
one first, is run once more with all its states written to shared memory. A thread needs only its
own channel's states, but the compiler may have a warp write them together, hence the barriers.

Gradients by what all channels share (B, C, the step projection's input) are sums over channels,
which different threads own. Their terms of a chunk go to shared memory, one row of 128 for each
number that is wanted; then every thread adds up rows of its own. Rows are four floats longer than
they need to be, which keeps threads that read different rows off each other's memory banks.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from selective_scan_jax.mosaic_gpu.forward import chain, each_step
from selective_scan_jax.mosaic_gpu.heuristic import CHANNELS, ROW_LENGTH, rows_of
from selective_scan_jax.mosaic_gpu.walk import (
    LOG2_E,
    Program,
    Walk,
    launch,
    load_both,
    load_rows,
    over_channels,
    over_states,
    sigmoid,
    sum_of_products,
    zero_channels,
    zeros,
)


def _gated(program: Program, position):
    """Returns the gradient by y before the gate was applied."""
    dy = program.at("dy", position)
    if "z" not in program.refs:
        return dy
    z = program.at("z", position)
    return dy * z * sigmoid(z)


def _backward_ends(walk: Walk, refs, scratch):
    """Finds the adjoint at the start of a part whose end has none, and the sum of its step
    sizes.
    """
    program = Program(walk, refs)

    def visit(inputs, carry):
        (position, delta, dy), (adjoint, total) = inputs, carry
        adjoint = adjoint + over_states(program.C(position)) * over_channels(dy, walk.states)
        return (adjoint * program.decay(delta), total + delta), lambda: None

    def segment(i, carry):
        first, count = program.steps_of(end - 1 - i)

        def prepare(j):
            position = program.position(first + count - 1 - j)
            delta = program.step_size(program.raw_step(position))[0]
            return position, delta, _gated(program, position)

        return each_step(0, count, visit, prepare, carry, walk)

    first, count = program.segments()
    end = first + count
    carry = (zeros(walk.states), zero_channels())
    adjoint, total = lax.fori_loop(0, count, segment, carry)
    refs["ends"][program.batch, program.part, :, program.channels] = adjoint
    refs["steps"][program.batch, program.part, program.channels] = total


class _Rows:
    """Rows of terms in shared memory: dB, dC and, with a step projection, ddt, step by step."""

    def __init__(self, walk: Walk, rank: int):
        self.walk, self.rank = walk, rank
        self.chunk = walk.config.chunk

    @property
    def offsets(self) -> dict[str, tuple[int, int]]:
        """Returns the first row of each gradient, and its rows per step."""
        n, chunk = self.walk.states, self.chunk
        offsets = {"dB": (0, n), "dC": (chunk * n, n)}
        return offsets | ({"ddt": (2 * chunk * n, self.rank)} if self.rank else {})

    @property
    def count(self) -> int:
        return rows_of(self.walk.config, self.walk.states, self.rank)

    @property
    def outputs(self) -> int:
        """Chunks of the whole length."""
        return -(-self.walk.length // self.chunk)

    def put(self, ref, name: str, j: int, terms):
        """Writes the terms of step j of the chunk."""
        first, per_step = self.offsets[name]
        ref[pl.ds(first + j * per_step, per_step), pl.ds(0, CHANNELS)] = terms

    def add_up(self, ref, sums_ref, chunk_index):
        """Adds up all rows and writes the sums of a chunk; `sums_ref` (chunks, rows)."""
        plgpu.commit_smem()  # a barrier: what other threads wrote is read from here on
        whole = range(0, self.count - CHANNELS + 1, CHANNELS)
        for first in dict.fromkeys((*whole, self.count - CHANNELS)):
            rows = pl.ds(first, CHANNELS)
            parts = [
                jnp.sum(load_rows(ref.at[rows, pl.ds(column, 32)]), axis=1)
                for column in range(0, CHANNELS, 32)
            ]
            sums_ref[chunk_index, rows] = (parts[0] + parts[1]) + (parts[2] + parts[3])
        plgpu.commit_smem()  # and overwritten from here on

    def take(self, sums, name: str):
        """Returns the sums called `name` of all steps in the order of the walk, added up over
        blocks.

        (batch, groups, blocks, chunks, rows) to (batch, steps, groups, n).
        """
        first, per_step = self.offsets[name]
        sums = sums[..., first : first + self.chunk * per_step].sum(2)
        batch, groups = sums.shape[:2]
        steps = sums.reshape(batch, groups, -1, per_step)[:, :, : self.walk.length]
        return steps.swapaxes(1, 2)


class _Gradients:
    """The adjoint recurrence over a chunk, and what a part sums up over its steps."""

    def __init__(self, program: Program, rows: _Rows, rows_ref, states_ref):
        self.program, self.refs, self.walk = program, program.refs, program.walk
        self.rows, self.rows_ref, self.states_ref = rows, rows_ref, states_ref

    def sums(self) -> dict:
        program = self.program
        sums = {"dA": zeros(self.walk.states)}
        if program.D is not None:
            sums["dD"] = zero_channels()
        if program.bias is not None:
            sums["dbias"] = zero_channels()
        if program.step_weight is not None:
            sums["dstep_weight"] = zeros(program.step_weight.shape[0])
        return sums

    def _prepare(self, position):
        program, refs = self.program, self.refs
        delta, slope = program.step_size(program.raw_step(position))
        return {
            "position": position,
            "u": program.u(position),
            "delta": delta,
            "slope": slope,
            "dy": program.at("dy", position),
            "z": program.at("z", position) if "z" in refs else None,
            "before": program.at("du_before", position) if "du_before" in refs else None,
        }

    def chunk(self, first, size: int, start_ref, adjoint, sums):
        """Runs the chunk of `size` steps from `first`; `start_ref` has its first state.

        Returns the adjoint before the chunk and the sums.
        """
        steps = [self._prepare(self.program.position(first + j)) for j in range(size)]
        state = load_both(start_ref)
        for j, x in enumerate(steps):
            if j:
                self.states_ref[j - 1] = state
            state = self._recompute(j, x, state)
        plgpu.commit_smem()
        stores = []
        for j in reversed(range(size)):
            before = load_both(self.states_ref.at[j - 1] if j else start_ref)
            adjoint, sums, out = self._step(j, steps[j], before, adjoint, sums)
            stores.append((steps[j]["position"], out))
        for position, out in stores:
            for name, value in out.items():
                ref = self.refs[name]
                ref[self.program.batch, position, self.program.channels] = value.astype(ref.dtype)
        sums_ref = self.refs["rows"].at[self.program.batch, self.program.block]
        self.rows.add_up(self.rows_ref, sums_ref, lax.div(first, jnp.int32(self.rows.chunk)))
        return adjoint, sums

    def _recompute(self, j: int, x: dict, state):
        """Computes the state after a step; replaces dy by the gradient before the gate."""
        program = self.program
        position, u, dy, z = x["position"], x["u"], x["dy"], x["z"]
        state = program.advance(state, x["delta"], u, program.B(position))
        if z is not None:
            gate = sigmoid(z)
            y = sum_of_products(state, over_states(program.C(position)))
            y = y if program.D is None else y + program.D * u
            x["dz"] = dy * y * gate * (1 + z * (1 - gate))
            x["dy"] = dy = dy * z * gate
        self.rows.put(self.rows_ref, "dC", j, state * over_channels(dy, self.walk.states))
        return state

    def _step(self, j: int, x: dict, before, adjoint, sums: dict):
        """Takes one step of the adjoint; `before` is the state before it."""
        program, n = self.program, self.walk.states
        position, u, delta, dy = x["position"], x["u"], x["delta"], x["dy"]
        adjoint = adjoint + over_states(program.C(position)) * over_channels(dy, n)
        self.rows.put(self.rows_ref, "dB", j, adjoint * over_channels(delta * u, n))
        by_drive = sum_of_products(adjoint, over_states(program.B(position)))
        adjoint = adjoint * program.decay(delta)
        carried = adjoint * before  # the gradient by delta A, elementwise
        by_delta = sum_of_products(carried, program.decay_rate) * (1 / LOG2_E)
        draw = by_drive * u + by_delta
        draw = draw if x["slope"] is None else draw * x["slope"]
        du = by_drive * delta

        sums = {**sums, "dA": sums["dA"] + carried * over_channels(delta, n)}
        out = {}
        if program.D is not None:
            du = du + program.D * dy
            sums["dD"] = sums["dD"] + dy * u
        if program.bias is not None:
            sums["dbias"] = sums["dbias"] + draw
        if program.step_weight is None:
            out["ddelta"] = draw
        else:
            draws = over_channels(draw, program.step_weight.shape[0])
            self.rows.put(self.rows_ref, "ddt", j, draws * program.step_weight)
            inputs = over_states(program.dt(position))
            sums["dstep_weight"] = sums["dstep_weight"] + inputs * draws
        out["du"] = du if x["before"] is None else x["before"] + du
        if "dz" in x:
            out["dz"] = x["dz"]
        return adjoint, sums, out


def _rank(walk: Walk, refs: dict) -> int:
    return refs["dt"].shape[-1] if "dt" in refs else 0


def _backward_scan(walk: Walk, refs, scratch):
    """Computes all gradients of a part."""
    starts_ref, states_ref, rows_ref = scratch
    program = Program(walk, refs)
    gradients = _Gradients(program, _Rows(walk, _rank(walk, refs)), rows_ref, states_ref)
    chunk = walk.config.chunk

    def prepare(t):
        position = program.position(t)
        delta = program.step_size(program.raw_step(position))[0]
        return position, program.u(position), delta

    def advance(inputs, state):
        position, u, delta = inputs
        return program.advance(state, delta, u, program.B(position)), lambda: None

    def visit_segment(i, carry):
        index = end - 1 - i
        first, count = program.steps_of(index)
        whole = lax.div(count, jnp.int32(chunk))  # chunks; the sequence may end with part of one
        rest = count - whole * chunk

        def find_start(c, state):
            starts_ref[c] = state
            steps = (first + c * chunk, jnp.int32(chunk))
            return each_step(*steps, advance, prepare, state, walk, unroll=chunk)

        def visit_chunk(c, carry, size):
            return gradients.chunk(first + c * chunk, size, starts_ref.at[c], *carry)

        state = load_both(refs["boundaries"].at[program.batch, index, :, program.channels])
        # The last chunk needs its start only.
        lasts = whole - 1 + (rest > 0).astype(jnp.int32)
        state = lax.fori_loop(0, lasts, find_start, state)
        starts_ref[lasts] = state
        plgpu.commit_smem()
        if walk.length % chunk:
            part = lambda c, carry: visit_chunk(c, carry, walk.length % chunk)  # noqa: E731
            carry = lax.fori_loop(whole, lasts + 1, part, carry)
        return lax.fori_loop(
            0, whole, lambda c, carry: visit_chunk(whole - 1 - c, carry, chunk), carry
        )

    here = (program.batch, program.part, slice(None), program.channels)
    adjoint = load_both(refs["ending"].at[here]) if "ending" in refs else zeros(walk.states)
    begin, count = program.segments()
    end = begin + count
    adjoint, sums = lax.fori_loop(0, count, visit_segment, (adjoint, gradients.sums()))

    for name in ("dA", "dstep_weight"):
        if name in sums:
            refs[name][here] = sums.pop(name)
    for name, value in sums.items():
        refs[name][program.batch, program.part, program.channels] = value
    if "dfirst" in refs:

        @pl.when(program.part == 0)
        def _():
            refs["dfirst"][program.batch, :, program.channels] = adjoint


@functools.partial(jax.jit, static_argnames=("walk", "types", "first", "interpret"))
def backward(
    walk: Walk, operands: dict, boundaries, dy, dlast, du_before, types: tuple, *, first, interpret
):
    """Computes one direction's gradients.

    Args:
      walk, operands: as in `forward`.
      boundaries: what `forward` saved.
      dy: gradient by y, like u.
      dlast: gradient by the last state (batch, states, width), or None for zeros.
      du_before: added to du, or None.
      types: (name, dtype) of u and, if there are gradients by them, of delta and z.
      first: also return the gradient by the first state.

    Returns:
      A dictionary with du and, where there is an operand for it, ddelta and dz, like u. Sums over
      channels: dB and dC (batch, steps, groups, states) and ddt (batch, steps, 1, rank), in the
      order of the walk. Sums over steps: dA (states, width), dD and dbias (width,), dstep_weight
      (rank, width). dfirst (batch, states, width) if asked for.
    """
    batch, _, width = operands["u"].shape
    blocks, states, config = width // CHANNELS, walk.states, walk.config
    ending = None if dlast is None else dlast[:, None]
    if walk.parts > 1:
        inputs = {k: v for k, v in operands.items() if k not in ("B", "D", "limb_walk")}
        outputs = {
            "ends": (batch, walk.parts, states, width),
            "steps": (batch, walk.parts, width),
        }
        inputs["dy"] = dy
        found = launch(_backward_ends, walk, inputs, outputs, blocks=blocks, interpret=interpret)
        A = operands["A"][operands["path"][0]]
        ending = chain(dlast, found["ends"], found["steps"], A, reverse=True)

    rank = _rank(walk, {k: v for k, v in operands.items() if v is not None})
    rows, parts = _Rows(walk, rank), (batch, walk.parts)
    outputs = {f"d{name}": (operands["u"].shape, dtype) for name, dtype in types}
    outputs |= {"rows": (batch, blocks, rows.outputs, rows.count)}
    sums = {"dA": (*parts, states, width)}
    sums |= {f"d{k}": (*parts, width) for k in ("D", "bias") if operands[k] is not None}
    if rank:
        sums["dstep_weight"] = (*parts, rank, width)
    outputs |= sums
    if first:
        outputs["dfirst"] = (batch, states, width)
    inputs = {
        **operands,
        "boundaries": boundaries,
        "dy": dy,
        "ending": ending,
        "du_before": du_before,
    }
    scratch = [
        plgpu.SMEM((config.segment // config.chunk, states, CHANNELS), jnp.float32),
        plgpu.SMEM((max(config.chunk - 1, 1), states, CHANNELS), jnp.float32),
        plgpu.SMEM((rows.count, ROW_LENGTH), jnp.float32),
    ]
    out = launch(
        _backward_scan, walk, inputs, outputs, blocks=blocks, scratch=scratch, interpret=interpret
    )
    by_group = out.pop("rows")
    by_group = by_group.reshape(batch, -1, walk.blocks_per_group, *by_group.shape[2:])
    out |= {name: rows.take(by_group, name) for name in rows.offsets}
    return out | {name: out[name].sum((0, 1)) for name in sums}

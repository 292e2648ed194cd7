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

from selective_scan_jax.mosaic_gpu.forward import Steps, enter_parts
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


def _backward_ends(program: Program, scratch):
    """Finds the adjoint at the start of a part whose end has none, and the sum of its step
    sizes.
    """
    walk, refs = program.walk, program.refs

    def load(t):
        position = program.position(t)
        z = program.at("z", position) if "z" in refs else None
        return position, program.load_step(position), program.at("dy", position), z

    def prepare(position, raw, dy, z):
        # The gradient by y before the gate was applied.
        dy = dy if z is None else dy * z * sigmoid(z)
        return position, program.step_size(raw)[0], dy

    def visit(inputs, carry):
        (position, delta, dy), (adjoint, total) = inputs, carry
        adjoint = adjoint + over_states(program.C(position)) * over_channels(dy, walk.states)
        return (adjoint * program.decay(delta), total + delta), lambda: None

    here = program.steps_of(*program.segments())
    steps = Steps(walk, load, prepare, visit, back=True)
    carry = (zeros(walk.states), zero_channels())
    (adjoint, total), _ = steps.run(*here, carry, steps.ahead(*here))
    refs["ends"][program.row, program.part, :, program.channels] = adjoint
    refs["steps"][program.row, program.part, program.channels] = total


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

        (rows, groups, blocks, chunks, terms) to (rows, steps, groups, n).
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

    def load(self, steps):
        """Loads what the steps of a chunk read that no other chunk changes, and C of the last."""
        loaded = [self._load(t) for t in steps]
        return loaded, self.program.C(loaded[-1]["position"]) if steps else None

    def _load(self, t):
        program, refs = self.program, self.refs
        position = program.position(t)
        return {
            "position": position,
            "u": program.u(position),
            "raw": program.load_step(position),
            "dy": program.at("dy", position),
            "z": program.at("z", position) if "z" in refs else None,
            "before": program.at("du_before", position) if "du_before" in refs else None,
        }

    def chunk(self, first, start_ref, carry, loaded, coming):
        """Runs the chunk from step `first`; `start_ref` has its first state.

        Args:
          carry: the adjoint behind the chunk, and the sums.
          loaded: of its steps.
          coming: steps of the next chunk.

        Returns:
          The carry, and what was loaded of the coming steps.
        """
        program, (adjoint, sums) = self.program, carry
        loaded, *C = loaded
        steps = [self._prepare(x) for x in loaded]
        state = load_both(start_ref)
        for j, x in enumerate(steps):
            if j:
                self.states_ref[j - 1] = state
            state = self._recompute(j, x, state)
            # C is loaded two steps before it is needed; it cannot be moved over a barrier.
            if j == 0 and len(steps) > 1:
                C.append(program.C(steps[-2]["position"]))
        plgpu.commit_smem()
        stores = []
        for j, x in reversed(list(enumerate(steps))):
            before = load_both(self.states_ref.at[j - 1] if j else start_ref)
            adjoint = adjoint + over_states(C.pop(0)) * over_channels(x["dy"], self.walk.states)
            if j > 1:
                C.append(program.C(steps[j - 2]["position"]))
            adjoint, sums, out = self._step(j, x, before, adjoint, sums)
            stores.append((x["position"], out))
        # Any earlier they would take the registers of the steps; the rows are added up meanwhile.
        loaded = self.load(coming)
        for position, out in stores:
            for name, value in out.items():
                ref = self.refs[name]
                ref[program.row, position, program.channels] = value.astype(ref.dtype)
        sums_ref = self.refs["rows"].at[program.row, program.block]
        self.rows.add_up(self.rows_ref, sums_ref, lax.div(first, jnp.int32(self.rows.chunk)))
        return (adjoint, sums), loaded

    def _prepare(self, loaded):
        delta, slope = self.program.step_size(loaded.pop("raw"))
        return {**loaded, "delta": delta, "slope": slope}

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
        """Takes one step of the adjoint, which has the gradient by y already; `before` is the state
        before the step.
        """
        program, n = self.program, self.walk.states
        position, u, delta, dy = x["position"], x["u"], x["delta"], x["dy"]
        dt = None if program.step_weight is None else program.dt(position)
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
            inputs = over_states(dt)
            sums["dstep_weight"] = sums["dstep_weight"] + inputs * draws
        out["du"] = du if x["before"] is None else x["before"] + du
        if "dz" in x:
            out["dz"] = x["dz"]
        return adjoint, sums, out


def _rank(walk: Walk, refs: dict) -> int:
    return refs["dt"].shape[-1] if "dt" in refs else 0


def _backward_scan(program: Program, scratch):
    """Computes all gradients of a part."""
    starts_ref, states_ref, rows_ref = scratch
    walk, refs = program.walk, program.refs
    gradients = _Gradients(program, _Rows(walk, _rank(walk, refs)), rows_ref, states_ref)
    chunk = walk.config.chunk

    def load(t):
        position = program.position(jnp.minimum(t, walk.length - 1))
        return position, program.u(position), program.load_step(position)

    def prepare(position, u, raw):
        return position, u, program.step_size(raw)[0]

    def visit_segment(i, carry):
        index = end - 1 - i
        first, count = program.steps_of(index)
        whole = lax.div(count, jnp.int32(chunk))  # chunks; the sequence may end with part of one
        rest = count - whole * chunk

        def find_start(c, carry):
            state, steps = carry
            starts_ref[c] = state
            loaded = [load(first + (c + 1) * chunk + j) for j in range(chunk)]
            for position, u, delta in steps:
                state = program.advance(state, delta, u, program.B(position))
            return state, [prepare(*x) for x in loaded]

        def steps_of(c, size=chunk):
            # Past the first chunk there is none to load.
            return [jnp.maximum(first + c * chunk + j, 0) for j in range(size)]

        state = load_both(refs["boundaries"].at[program.row, index, :, program.channels])
        # The last chunk needs its start only.
        lasts = whole - 1 + (rest > 0).astype(jnp.int32)
        steps = [prepare(*load(first + j)) for j in range(chunk)]
        state, _ = lax.fori_loop(0, lasts, find_start, (state, steps))
        starts_ref[lasts] = state
        plgpu.commit_smem()

        def visit_chunk(i, carry):
            c = whole - 1 - i
            at = first + c * chunk
            return gradients.chunk(at, starts_ref.at[c], *carry, steps_of(c - 1))

        def visit_rest(c, carry):
            loaded = gradients.load(steps_of(c, walk.length % chunk))
            return gradients.chunk(first + c * chunk, starts_ref.at[c], carry, loaded, ())[0]

        if walk.length % chunk:
            carry = lax.fori_loop(whole, lasts + 1, visit_rest, carry)
        loaded = gradients.load(steps_of(whole - 1))
        return lax.fori_loop(0, whole, visit_chunk, (carry, loaded))[0]

    here = (program.row, program.part, slice(None), program.channels)
    adjoint = load_both(refs["ending"].at[here]) if "ending" in refs else zeros(walk.states)
    begin, count = program.segments()
    end = begin + count
    adjoint, sums = lax.fori_loop(0, count, visit_segment, (adjoint, gradients.sums()))

    for name in ("dA", "dstep_weight"):
        if name in sums:
            refs[name][here] = sums.pop(name)
    for name, value in sums.items():
        refs[name][program.row, program.part, program.channels] = value
    if "dfirst" in refs:

        @pl.when(program.part == 0)
        def _():
            refs["dfirst"][program.row, :, program.channels] = adjoint


@functools.partial(jax.jit, static_argnames=("walk", "types", "first", "interpret"))
def backward(
    walk: Walk, operands: dict, boundaries, dy, dlast, du_before, types: tuple, *, first, interpret
):
    """Computes the gradients of a launch's directions; a row is a batch element and direction.

    Args:
      walk, operands: as in `forward`.
      boundaries: what `forward` saved.
      dy: gradient by y, like u.
      dlast: gradient by the last state (rows, states, width), or None for zeros.
      du_before: added to the du of a single direction, or None.
      types: (name, dtype) of u and, if there are gradients by them, of delta and z.
      first: also return the gradient by the first state.

    Returns:
      A dictionary with du and, where there is an operand for it, ddelta and dz, (rows, positions,
      width). Sums over channels: dB and dC (rows, steps, groups, states) and ddt (rows, steps, 1,
      rank), in the order of the walk. Sums over steps: dA (directions, states, width), dD and dbias
      (directions, width), dstep_weight (directions, rank, width). dfirst (rows, states, width) if
      asked for.
    """
    batch, positions, width = operands["u"].shape
    rows, blocks, states = batch * walk.directions, width // CHANNELS, walk.states
    start = functools.partial(launch, grid=(rows, blocks), interpret=interpret)
    ending = None if dlast is None else dlast[:, None]
    if walk.parts > 1:
        inputs = {k: v for k, v in operands.items() if k not in ("B", "D", "u", "u_limbs")}
        outputs = {"ends": (rows, walk.parts, states, width), "steps": (rows, walk.parts, width)}
        found = start(_backward_ends, walk, {**inputs, "dy": dy}, outputs)
        ending = enter_parts(walk, operands, found, dlast, reverse=True)

    rank = _rank(walk, {k: v for k, v in operands.items() if v is not None})
    terms, parts = _Rows(walk, rank), (rows, walk.parts)
    outputs = {f"d{name}": ((rows, positions, width), dtype) for name, dtype in types}
    outputs |= {"rows": (rows, blocks, terms.outputs, terms.count)}
    sums = {"dA": (*parts, states, width)}
    sums |= {f"d{k}": (*parts, width) for k in ("D", "bias") if operands[k] is not None}
    if rank:
        sums["dstep_weight"] = (*parts, rank, width)
    outputs |= sums
    if first:
        outputs["dfirst"] = (rows, states, width)
    inputs = {**operands, "boundaries": boundaries, "dy": dy, "ending": ending}
    inputs["du_before"] = du_before
    scratch = [
        plgpu.SMEM((walk.config.segment // walk.config.chunk, states, CHANNELS), jnp.float32),
        plgpu.SMEM((max(walk.config.chunk - 1, 1), states, CHANNELS), jnp.float32),
        plgpu.SMEM((terms.count, ROW_LENGTH), jnp.float32),
    ]
    out = start(_backward_scan, walk, inputs, outputs, scratch=scratch)
    by_group = out.pop("rows")
    by_group = by_group.reshape(rows, -1, walk.blocks_per_group, *by_group.shape[2:])
    out |= {name: terms.take(by_group, name) for name in terms.offsets}
    by_direction = (batch, walk.directions, walk.parts)
    return out | {n: out[n].reshape(*by_direction, *out[n].shape[2:]).sum((0, 2)) for n in sums}

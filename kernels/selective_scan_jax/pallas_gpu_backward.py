"""The backward kernels: adjoints at the starts of the parts of time, and the gradients from there.

A part is walked segment by segment from its end. The states of a segment come from the one that the
forward pass kept: one pass finds the states at the starts of its chunks, and each chunk, the last
one first, is run once more with all its states written to shared memory. Every thread reads there
only what it wrote itself, so that no barrier is needed.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from selective_scan_jax.pallas_gpu_config import CHANNELS
from selective_scan_jax.pallas_gpu_forward import chain, each_step
from selective_scan_jax.pallas_gpu_walk import (
    Program,
    Walk,
    launch,
    load_both,
    over_channels,
    over_states,
    sigmoid,
    zero_channels,
    zeros,
)


def _gated(program: Program, position):
    """The gradient by y before the gate."""
    dy = program.at("dy", position)
    if "z" not in program.refs:
        return dy
    z = program.at("z", position)
    return dy * z * sigmoid(z)


def _backward_ends(walk: Walk, refs, scratch):
    """The adjoint at the start of a part whose end has none, and the sum of its step sizes."""
    program = Program(walk, refs)

    def visit(inputs, carry):
        (position, delta, dy), (adjoint, total) = inputs, carry
        adjoint = adjoint + over_states(program.C(position)) * over_channels(dy, walk.states)
        return (adjoint * program.decay(delta), total + delta), lambda: None

    def segment(i, carry):
        first, count = program.steps_of(end - 1 - i)

        def prepare(j):
            position = walk.position(first + count - 1 - j)
            delta = program.step_size(program.raw_step(position))[0]
            return position, delta, _gated(program, position)

        return each_step(0, count, visit, prepare, carry, walk)

    first, count = program.segments()
    end = first + count
    carry = (zeros(walk.states), zero_channels())
    adjoint, total = lax.fori_loop(0, count, segment, carry)
    refs["ends"][program.batch, program.part, :, program.channels] = adjoint
    refs["steps"][program.batch, program.part, program.channels] = total


class _Gradients:
    """One step of the adjoint recurrence, and what a part sums up over its steps."""

    def __init__(self, program: Program, states_ref):
        self.program, self.refs, self.states_ref = program, program.refs, states_ref
        self.walk = program.walk

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

    def prepare(self, position):
        program, refs = self.program, self.refs
        delta, slope = program.step_size(program.raw_step(position))
        return {
            "u": program.u(position),
            "delta": delta,
            "slope": slope,
            "dy": program.at("dy", position),
            "z": program.at("z", position) if "z" in refs else None,
            "before": program.at("du_before", position) if "du_before" in refs else None,
        }

    def step(self, position, slot, x, carry):
        """Gradients of the step at `position` whose state before is in `slot`."""
        program, n = self.program, self.walk.states
        adjoint, state, sums = carry
        u, delta, dy = x["u"], x["delta"], x["dy"]
        B, C = over_states(program.B(position)), over_states(program.C(position))
        out = {}
        if x["z"] is not None:
            gate = sigmoid(x["z"])
            y = jnp.sum(state * C, axis=0)
            y = y if program.D is None else y + program.D * u
            out["dz"] = dy * y * gate * (1 + x["z"] * (1 - gate))
            dy = dy * x["z"] * gate

        adjoint = adjoint + C * over_channels(dy, n)
        rows = {
            "dB": jnp.sum(adjoint * over_channels(delta * u, n), axis=1),
            "dC": jnp.sum(state * over_channels(dy, n), axis=1),
        }
        by_drive = jnp.sum(adjoint * B, axis=0)
        before = load_both(self.states_ref.at[slot])
        adjoint = adjoint * program.decay(delta)
        carried = adjoint * before  # the gradient by delta A, elementwise
        by_delta = jnp.sum(carried * program.A, axis=0)
        draw = by_drive * u + by_delta
        draw = draw if x["slope"] is None else draw * x["slope"]
        du = by_drive * delta

        sums = {**sums, "dA": sums["dA"] + carried * over_channels(delta, n)}
        if program.D is not None:
            du = du + program.D * dy
            sums["dD"] = sums["dD"] + dy * u
        if program.bias is not None:
            sums["dbias"] = sums["dbias"] + draw
        if program.step_weight is None:
            out["ddelta"] = draw
        else:
            rank = program.step_weight.shape[0]
            draws = over_channels(draw, rank)
            rows["ddt"] = jnp.sum(draws * program.step_weight, axis=1)
            sums["dstep_weight"] = sums["dstep_weight"] + over_states(program.dt(position)) * draws
        out["du"] = du if x["before"] is None else x["before"] + du
        return (adjoint, before, sums), lambda: self._store(position, out, rows)

    def _store(self, position, out, rows):
        program = self.program
        for name, value in out.items():
            ref = self.refs[name]
            ref[program.batch, position, program.channels] = value.astype(ref.dtype)
        for name, value in rows.items():
            self.refs[name][program.batch, program.block, position] = value


def _backward_scan(walk: Walk, refs, scratch):
    """All gradients of a part."""
    starts_ref, states_ref = scratch
    program = Program(walk, refs)
    gradients = _Gradients(program, states_ref)
    chunk = walk.config.chunk

    def recompute(first, count, state, keep):
        """The state after `count` steps; writes those before each step if `keep`."""

        def prepare(j):
            position = walk.position(first + j)
            delta = program.step_size(program.raw_step(position))[0]
            return j, position, program.u(position), delta

        def visit(inputs, state):
            j, position, u, delta = inputs
            if keep:
                states_ref[j] = state
            return program.advance(state, delta, u, program.B(position)), lambda: None

        return each_step(0, count, visit, prepare, state, walk, unroll=chunk)

    def visit_chunk(first, count, carry):
        adjoint, state, sums = carry
        state = recompute(first, count, state, keep=True)

        def prepare(j):
            slot = count - 1 - j
            position = walk.position(first + slot)
            return position, slot, gradients.prepare(position)

        carry = (adjoint, state, sums)
        carry = each_step(
            0, count, lambda x, c: gradients.step(*x, c), prepare, carry, walk, unroll=1
        )
        return carry[0], carry[2]

    def visit_segment(i, carry):
        index = end - 1 - i
        first, count = program.steps_of(index)
        chunks = lax.div(count + (chunk - 1), jnp.int32(chunk))
        state = load_both(refs["boundaries"].at[program.batch, index, :, program.channels])

        def forwards(c, state):
            starts_ref[c] = state
            return recompute(first + c * chunk, jnp.int32(chunk), state, keep=False)

        last_start = lax.fori_loop(0, chunks - 1, forwards, state)
        starts_ref[chunks - 1] = last_start

        def backwards(c, carry):
            slot = chunks - 1 - c
            offset = slot * chunk
            state = load_both(starts_ref.at[slot])
            size = jnp.minimum(chunk, count - offset)
            return visit_chunk(first + offset, size, (carry[0], state, carry[1]))

        return lax.fori_loop(0, chunks, backwards, carry)

    here = (program.batch, program.part, slice(None), program.channels)
    adjoint = load_both(refs["ending"].at[here]) if "ending" in refs else zeros(walk.states)
    begin, count = program.segments()
    end = begin + count
    adjoint, sums = lax.fori_loop(0, count, visit_segment, (adjoint, gradients.sums()))

    refs["dA"][here] = sums.pop("dA")
    if "dstep_weight" in sums:
        refs["dstep_weight"][here] = sums.pop("dstep_weight")
    for name, value in sums.items():
        refs[name][program.batch, program.part, program.channels] = value
    if "dfirst" in refs:

        @pl.when(program.part == 0)
        def _():
            refs["dfirst"][program.batch, :, program.channels] = adjoint


def backward(
    walk: Walk, operands: dict, boundaries, dy, dlast, du_before, types: dict, *, first, interpret
):
    """One direction's gradients.

    Args:
      walk, operands: as in `forward`.
      boundaries: what `forward` saved.
      dy: gradient by y, like u.
      dlast: gradient by the last state (batch, states, width), or None for zeros.
      du_before: added to du, or None.
      types: dtypes of du, and of ddelta and dz if there are delta and z.
      first: also return the gradient by the first state.

    Returns:
      A dictionary with du and, where there is an operand for it, ddelta and dz, like u. Sums over
      the channels of a block: dB and dC (batch, blocks, positions, states), ddt (batch, blocks,
      positions, rank). Sums over the steps of a part: dA (batch, parts, states, width), dD and
      dbias (batch, parts, width), dstep_weight (batch, parts, rank, width). dfirst (batch, states,
      width) if asked for.
    """
    batch, positions, width = operands["u"].shape
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
        last = jnp.zeros((batch, states, width), jnp.float32) if dlast is None else dlast
        A = operands["A"][walk.direction]
        ending, _ = chain(last, found["ends"], found["steps"], A, reverse=True)

    rows, parts = (batch, blocks, positions), (batch, walk.parts)
    outputs = {f"d{name}": (operands["u"].shape, dtype) for name, dtype in types.items()}
    outputs |= {"dB": (*rows, states), "dC": (*rows, states), "dA": (*parts, states, width)}
    outputs |= {f"d{k}": (*parts, width) for k in ("D", "bias") if operands[k] is not None}
    if operands.get("dt") is not None:
        rank = operands["dt"].shape[-1]
        outputs |= {"ddt": (*rows, rank), "dstep_weight": (*parts, rank, width)}
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
        plgpu.SMEM((config.chunk, states, CHANNELS), jnp.float32),
    ]
    return launch(
        _backward_scan, walk, inputs, outputs, blocks=blocks, scratch=scratch, interpret=interpret
    )

"""The forward kernels: states at the ends of the parts of time, and the scan from there."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from selective_scan_jax.mosaic_gpu.heuristic import CHANNELS
from selective_scan_jax.mosaic_gpu.walk import (
    Program,
    Walk,
    launch,
    load_both,
    over_states,
    sigmoid,
    sum_of_products,
    zero_channels,
    zeros,
)


def each_step(first, count, visit, prepare, carry, walk: Walk, unroll: int | None = None):
    """Calls `visit(prepared, carry)` for `count` steps from `first`, `unroll` steps at a time.

    `prepare(t)` makes what a step needs; those of a whole group are made before its first visit, so
    that their loads overlap. `visit` returns the carry and a function that stores the step's
    results, which is called after the group. Counts are multiples of `unroll` (by default that of
    the configuration) but for the end of the sequence.
    """
    unroll = unroll or walk.config.unroll

    def group(start, carry, size):
        prepared = [prepare(start + i) for i in range(size)]
        stores = []
        for p in prepared:
            carry, store = visit(p, carry)
            stores.append(store)
        for store in stores:
            store()
        return carry

    whole = lax.div(count, jnp.int32(unroll))
    carry = lax.fori_loop(0, whole, lambda i, c: group(first + i * unroll, c, unroll), carry)
    if walk.length % unroll:
        carry = lax.fori_loop(whole * unroll, count, lambda i, c: group(first + i, c, 1), carry)
    return carry


def _forward_ends(walk: Walk, refs, scratch):
    """Finds the state at the end of a part that starts from zero, and the sum of its step sizes."""
    program = Program(walk, refs)

    def prepare(t):
        position = program.position(t)
        return position, program.u(position), program.step_size(program.raw_step(position))[0]

    def visit(inputs, carry):
        (position, u, delta), (state, total) = inputs, carry
        state = program.advance(state, delta, u, program.B(position))
        return (state, total + delta), lambda: None

    def segment(i, carry):
        first, count = program.steps_of(i)
        return each_step(first, count, visit, prepare, carry, walk)

    first, count = program.segments()
    carry = (zeros(walk.states), zero_channels())
    state, total = lax.fori_loop(first, first + count, segment, carry)
    refs["ends"][program.batch, program.part, :, program.channels] = state
    refs["steps"][program.batch, program.part, program.channels] = total


def _forward_scan(walk: Walk, refs, scratch):
    """Computes a part's outputs, the states at the starts of its segments and the last one."""
    program = Program(walk, refs)
    here = (program.batch, program.part, slice(None), program.channels)

    def prepare(t):
        position = program.position(t)
        delta = program.step_size(program.raw_step(position))[0]
        z = program.at("z", position) if "z" in refs else None
        before = program.at("y_before", position) if "y_before" in refs else None
        return position, program.u(position), delta, z, before

    def visit(inputs, state):
        position, u, delta, z, before = inputs
        state = program.advance(state, delta, u, program.B(position))
        y = sum_of_products(state, over_states(program.C(position)))
        if program.D is not None:
            y = y + program.D * u
        if z is not None:
            y = y * z * sigmoid(z)
        if before is not None:
            y = before + y

        def store():
            out = refs["y"]
            out[program.batch, position, program.channels] = y.astype(out.dtype)

        return state, store

    def segment(i, state):
        if "boundaries" in refs:
            refs["boundaries"][program.batch, i, :, program.channels] = state
        first, count = program.steps_of(i)
        return each_step(first, count, visit, prepare, state, walk)

    state = load_both(refs["starts"].at[here]) if "starts" in refs else zeros(walk.states)
    first, count = program.segments()
    state = lax.fori_loop(first, first + count, segment, state)

    if "last_state" in refs:

        @pl.when(program.part == walk.parts - 1)
        def _():
            refs["last_state"][program.batch, :, program.channels] = state


def chain(first, ends, steps, A, *, reverse: bool = False):
    """Finds the states that enter each part, (batch, parts, states, width), from the parts' own
    ends.

    Args:
      first: (batch, states, width) that enters the first part; None for zeros.
      ends: (batch, parts, states, width), each part's end state if it starts from zero.
      steps: (batch, parts, width), sums of step sizes.
      A: (states, width).
      reverse: parts are passed from the last to the first.
    """

    def join(before, after):
        (decay, end), (next_decay, next_end) = before, after
        return decay * next_decay, next_decay * end + next_end

    decays = jnp.exp(steps[:, :, None] * A)
    decays, ends = lax.associative_scan(join, (decays, ends), axis=1, reverse=reverse)
    ends = ends if first is None else decays * first[:, None] + ends
    first = jnp.zeros_like(ends[:, :1]) if first is None else first[:, None]
    if reverse:
        return jnp.concatenate([ends[:, 1:], first], axis=1)
    return jnp.concatenate([first, ends[:, :-1]], axis=1)


@functools.partial(jax.jit, static_argnames=("walk", "y_type", "save", "last", "interpret"))
def forward(walk: Walk, operands: dict, first_state, y_type, *, save: bool, last: bool, interpret):
    """Computes one direction's outputs.

    Args:
      walk: the direction.
      operands: by name: path (4,) and row_of_block (blocks,), the row of B and C that each block of
        channels has, int32; u (batch, positions, width); delta like it, or dt (batch,
        positions, directions, rank) and step_weight (directions, rank, width); A (directions,
        states, width); B and C (batch, positions, rows, states); D and bias (directions, width); z
        and y_before like u; limb_walk (joints,) int32. Any of delta, D, bias, z, y_before may be
        None.
      first_state: (batch, states, width), or None for zeros.
      y_type: dtype of y.
      save: also return the states at the starts of segments (batch, segments, states, width).
      last: also return the last state (batch, states, width).

    Returns:
      A dictionary with y and, if asked for, boundaries and last_state. `y_before` is added to y.
    """
    batch, _, width = operands["u"].shape
    blocks, states = width // CHANNELS, walk.states
    starts = None if first_state is None else first_state[:, None]
    if walk.parts > 1:
        inputs = {k: v for k, v in operands.items() if k not in ("C", "D", "z", "y_before")}
        outputs = {
            "ends": (batch, walk.parts, states, width),
            "steps": (batch, walk.parts, width),
        }
        found = launch(_forward_ends, walk, inputs, outputs, blocks=blocks, interpret=interpret)
        A = operands["A"][operands["path"][0]]
        starts = chain(first_state, found["ends"], found["steps"], A)
    outputs = {"y": (operands["u"].shape, y_type)}
    if save:
        outputs["boundaries"] = (batch, walk.segments, states, width)
    if last:
        outputs["last_state"] = (batch, states, width)
    inputs = {**operands, "starts": starts}
    return launch(_forward_scan, walk, inputs, outputs, blocks=blocks, interpret=interpret)

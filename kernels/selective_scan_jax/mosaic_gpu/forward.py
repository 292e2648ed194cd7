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


class Steps:
    """Goes through steps in groups, whose loads are issued while the group before is computed.

    `load(t)` returns what a step reads that no other step changes, `prepare(*loaded)` what is
    computed of that alone, and `visit(prepared, carry)` the carry and a function that stores the
    step's results, which is called after the group: a load behind a store would wait for it.
    """

    def __init__(self, walk: Walk, load, prepare, visit, *, back: bool = False):
        self.length, self.size = walk.length, walk.config.unroll
        self.load, self.prepare, self.visit, self.back = load, prepare, visit, back

    def ahead(self, first, count):
        """Returns what the first whole group of `count` steps from `first` needs."""
        return [self.prepare(*x) for x in self._load(first, count, 0)]

    def run(self, first, count, carry, ahead):
        """Takes `count` steps from `first` (the last one first with `back`).

        Counts are multiples of the group but for the end of the sequence, whose rest is taken one
        by one. Returns the carry and what the group after these steps needs.
        """
        if self.back:
            carry = self._rest(first, count, carry)

        def group(g, carry):
            carry, ahead = carry
            loaded = self._load(first, count, g + 1)
            carry, stores = self._visit(ahead, carry)
            ahead = [self.prepare(*x) for x in loaded]
            for store in stores:
                store()
            return carry, ahead

        carry, ahead = lax.fori_loop(0, self._whole(count), group, (carry, ahead))
        return carry if self.back else self._rest(first, count, carry), ahead

    def _whole(self, count):
        return lax.div(count, jnp.int32(self.size))

    def _load(self, first, count, g):
        """Loads group g of `count` steps from `first`; past the ends, the outermost step again."""
        if self.back:
            last = first + (self._whole(count) - g) * self.size - 1
            return [self.load(jnp.maximum(last - i, 0)) for i in range(self.size)]
        start = first + g * self.size
        return [self.load(jnp.minimum(start + i, self.length - 1)) for i in range(self.size)]

    def _visit(self, steps, carry):
        stores = []
        for step in steps:
            carry, store = self.visit(step, carry)
            stores.append(store)
        return carry, stores

    def _rest(self, first, count, carry):
        if not self.length % self.size:
            return carry
        done = self._whole(count) * self.size

        def one(i, carry):
            t = first + (count - 1 - i if self.back else done + i)
            carry, (store,) = self._visit([self.prepare(*self.load(t))], carry)
            store()
            return carry

        return lax.fori_loop(0, count - done, one, carry)


def _forward_ends(program: Program, scratch):
    """Finds the state at the end of a part that starts from zero, and the sum of its step sizes."""
    walk, refs = program.walk, program.refs

    def load(t):
        position = program.position(t)
        return position, program.u(position), program.load_step(position)

    def prepare(position, u, raw):
        return position, u, program.step_size(raw)[0]

    def visit(inputs, carry):
        (position, u, delta), (state, total) = inputs, carry
        state = program.advance(state, delta, u, program.B(position))
        return (state, total + delta), lambda: None

    here = program.steps_of(*program.segments())
    steps = Steps(walk, load, prepare, visit)
    carry = (zeros(walk.states), zero_channels())
    (state, total), _ = steps.run(*here, carry, steps.ahead(*here))
    refs["ends"][program.row, program.part, :, program.channels] = state
    refs["steps"][program.row, program.part, program.channels] = total


def _forward_scan(program: Program, scratch):
    """Computes a part's outputs, the states at the starts of its segments and the last one."""
    walk, refs = program.walk, program.refs

    def load(t):
        position = program.position(t)
        z = program.at("z", position) if "z" in refs else None
        before = program.at("y_before", position) if "y_before" in refs else None
        return position, program.u(position), program.load_step(position), z, before

    def prepare(position, u, raw, z, before):
        return position, u, program.step_size(raw)[0], z, before

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
            out[program.row, position, program.channels] = y.astype(out.dtype)

        return state, store

    def segment(i, carry):
        refs["boundaries"][program.row, i, :, program.channels] = carry[0]
        return steps.run(*program.steps_of(i), *carry)

    steps = Steps(walk, load, prepare, visit)
    first, count = program.segments()
    here = program.steps_of(first, count)
    ahead = steps.ahead(*here)
    state = zeros(walk.states)
    if "starts" in refs:
        state = load_both(refs["starts"].at[program.row, program.part, :, program.channels])
    if "boundaries" in refs:
        state, _ = lax.fori_loop(first, first + count, segment, (state, ahead))
    else:
        state, _ = steps.run(*here, state, ahead)

    if "last_state" in refs:

        @pl.when(program.part == walk.parts - 1)
        def _():
            refs["last_state"][program.row, :, program.channels] = state


def enter_parts(walk: Walk, operands: dict, found: dict, given, *, reverse: bool = False):
    """Finds the states that enter each part, (rows, parts, states, width), from the parts' own
    ends.

    Args:
      found: ends (rows, parts, states, width), each part's end state if it starts from zero, and
        steps (rows, parts, width), sums of step sizes.
      given: (rows, states, width) that enters the first part; None for zeros.
      reverse: parts are passed from the last to the first.
    """

    def join(before, after):
        (decay, end), (next_decay, next_end) = before, after
        return decay * next_decay, next_decay * end + next_end

    ends, steps = found["ends"], found["steps"]
    A = operands["A"][operands["path"][:, 0]]
    A = jnp.tile(A, (len(ends) // walk.directions, 1, 1))
    decays = jnp.exp(steps[:, :, None] * A[:, None])
    decays, ends = lax.associative_scan(join, (decays, ends), axis=1, reverse=reverse)
    ends = ends if given is None else decays * given[:, None] + ends
    given = jnp.zeros_like(ends[:, :1]) if given is None else given[:, None]
    if reverse:
        return jnp.concatenate([ends[:, 1:], given], axis=1)
    return jnp.concatenate([given, ends[:, :-1]], axis=1)


@functools.partial(jax.jit, static_argnames=("walk", "y_type", "save", "last", "interpret"))
def forward(walk: Walk, operands: dict, first_state, y_type, *, save: bool, last: bool, interpret):
    """Computes the outputs of the directions of a launch; a row is a batch element and direction.

    Args:
      walk: the directions.
      operands: by name: path (directions, 5) and group_of_block (directions, blocks), the row of B
        and C that each block of channels has, int32; u and u_limbs, which has the limb term,
        (batch, positions, width); delta like it, or dt (batch, positions, directions, rank) and
        step_weight (directions, rank, width); A (directions, states, width); B and C (batch,
        positions, groups, states); D and bias (directions, width); z and y_before like u. Any of
        u_limbs, delta, D, bias, z, y_before may be None; y_before takes a single direction.
      first_state: (rows, states, width), or None for zeros.
      y_type: dtype of y.
      save: also return the states at the starts of segments (rows, segments, states, width).
      last: also return the last state (rows, states, width).

    Returns:
      A dictionary with y (rows, positions, width) and, if asked for, boundaries and last_state.
      `y_before` is added to y.
    """
    batch, positions, width = operands["u"].shape
    rows, blocks, states = batch * walk.directions, width // CHANNELS, walk.states
    start = functools.partial(launch, grid=(rows, blocks), interpret=interpret)
    starts = None if first_state is None else first_state[:, None]
    if walk.parts > 1:
        inputs = {k: v for k, v in operands.items() if k not in ("C", "D", "z", "y_before")}
        outputs = {"ends": (rows, walk.parts, states, width), "steps": (rows, walk.parts, width)}
        found = start(_forward_ends, walk, inputs, outputs)
        starts = enter_parts(walk, operands, found, first_state)
    outputs = {"y": ((rows, positions, width), y_type)}
    if save:
        outputs["boundaries"] = (rows, walk.segments, states, width)
    if last:
        outputs["last_state"] = (rows, states, width)
    return start(_forward_scan, walk, {**operands, "starts": starts}, outputs)

"""The cross scan read off the grid in chunks, all directions in one loop, compiled by XLA.

A direction is a layout of the grid (frame by frame or joint by joint, the inner axis perhaps
reversed, or a permutation) and a sense, the order in which chunks and steps are visited. Frame by
frame, x is read as it lies, or with its limb term added once; in other layouts the rows of a chunk
are gathered from x.
The step sizes are projected from dt chunk by chunk, and outputs are added into one sequence per
layout. So neither the stacked inputs nor the step sizes nor the outputs of the directions exist as
whole arrays, in the forward pass or in the backward. What the forward pass keeps is its arguments
and one state per chunk.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selective_scan_jax.operands import CrossScanOperands
from selective_scan_jax.order import Direction, Permutation, ScanOrder, limb_term
from selective_scan_jax.xla import chunk
from selective_scan_jax.xla.chunk import Chunks, step_sizes


def cross_scan(operands: CrossScanOperands, *, order: ScanOrder):
    """Implements `selective_scan_jax.cross_scan`."""
    return _scan(operands, order)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _scan(operands, order):
    return _forward(operands, order)[0]


def _scan_fwd(operands, order):
    y, boundaries = _forward(operands, order)
    return y, (operands, boundaries)


def _scan_bwd(order, residuals, dy):
    return (_backward(*residuals, dy, order),)


_scan.defvjp(_scan_fwd, _scan_bwd)


def _layouts(order: ScanOrder) -> tuple[list[tuple[Direction | Permutation, bool]], list[int]]:
    """Finds the distinct (layout, with limb term) pairs of an order, and each direction's index in
    them.
    """
    keys = [
        (dataclasses.replace(d, reverse=False), order.takes_limb_term(k))
        for k, d in enumerate(order.directions)
    ]
    distinct = list(dict.fromkeys(keys))
    return distinct, [distinct.index(key) for key in keys]


def _lies_in_order(direction: Direction | Permutation) -> bool:
    """Tells whether a chunk of the direction's steps is a slice of the grid, not rows to be
    gathered.
    """
    return isinstance(direction, Direction) and direction.frame_by_frame


def _layout_sequences(order: ScanOrder, x):
    """Rearranges x once per layout, to (b, l, e) in the order of the layout."""
    x = x.astype(jnp.float32)
    return [d.to_sequence(limb_term(x, order) if limbs else x) for d, limbs in _layouts(order)[0]]


def _direction_sequences(order: ScanOrder, dt, B, C):
    """Rearranges dt, B and C once per direction, to (b, l, n) in the order of its layout."""
    return tuple(
        [d.to_sequence(a[:, :, :, k]) for k, d in enumerate(order.directions)] for a in (dt, B, C)
    )


class _Reader:
    """The operands of a cross scan, chunk by chunk, with directions (k) in place of groups."""

    def __init__(self, order: ScanOrder, x, sequences, dt_weight, dt_bias, A, D):
        self.order, self.grid = order, x.shape[1:3]
        self.senses = [d.reverse for d in order.directions]
        self.layout_of = _layouts(order)[1]
        self.chunks = Chunks(x.shape[1] * x.shape[2])
        self.rows = [self._rows(k) for k in range(len(order.directions))]
        self.us = self.sources(x.astype(jnp.float32), order)
        self.dt, self.B, self.C = jax.tree.map(self.chunks.pad, sequences)
        self.dt_weight, self.dt_bias, self.D = (
            a.astype(jnp.float32) for a in (dt_weight, dt_bias, D)
        )
        self.A = A.astype(jnp.float32).swapaxes(1, 2)

    def _rows(self, k):
        """Returns the grid positions of the steps to gather (chunks, t), past the end where padded,
        or None.
        """
        direction = self.order.directions[k]
        if _lies_in_order(direction):
            return None
        path = dataclasses.replace(direction, reverse=False).path(*self.grid)
        padding = self.chunks.padded_length - path.size
        path = np.pad(path, (0, padding), constant_values=path.size)
        path = path.reshape(self.chunks.count, -1)
        return path[::-1, ::-1] if direction.reverse else path

    def sources(self, x, order: ScanOrder | None = None):
        """Makes what chunks of (b, frames, joints, e) are read from, per layout; given order, with
        limbs.

        Sequences frame by frame, (b, frames * joints, e) as it lies where rows are gathered.
        """
        sources = []
        for layout, limbs in _layouts(self.order)[0]:
            seen = limb_term(x, order) if limbs and order else x
            if _lies_in_order(layout):
                sources.append(self.chunks.pad(layout.to_sequence(seen)))
            else:
                sources.append(seen.reshape(seen.shape[0], -1, seen.shape[-1]))
        return sources

    def take(self, sources, i):
        """Takes chunk i (b, t, k, ...) of one source per layout."""
        taken, padded = [], self.chunks.padded_length > self.chunks.length
        for layout, rows, reverse in zip(self.layout_of, self.rows, self.senses, strict=True):
            x = sources[layout]
            if rows is None:
                taken.append(self.chunks.take(x, i, reverse))
            else:
                where = lax.dynamic_index_in_dim(jnp.asarray(rows), i, 0, keepdims=False)
                x = x.at[:, where].get(mode="fill" if padded else "promise_in_bounds", fill_value=0)
                taken.append(x.astype(jnp.float32))
        return jnp.stack(taken, axis=2)

    def take_each(self, sequences, i):
        """Takes chunk i (b, t, k, ...) of one sequence per direction."""
        pairs = zip(sequences, self.senses, strict=True)
        return jnp.stack([self.chunks.take(x, i, reverse) for x, reverse in pairs], axis=2)

    def operands(self, i):
        """Takes u, delta, its derivative by the raw one, B, C and dt of chunk i."""
        dt = self.take_each(self.dt, i)
        raw = _einsums("btr,er->bte", _directions(dt), self.dt_weight, 2) + self.dt_bias
        inside = [self.chunks.inside(i, reverse) for reverse in self.senses]
        inside = None if inside[0] is None else jnp.stack(inside, axis=1)[:, :, None]
        B, C = self.take_each(self.B, i), self.take_each(self.C, i)
        return self.take(self.us, i), *step_sizes(raw, True, inside), B, C, dt

    def buffers(self, batch, channels):
        """Makes a sequence (b, l, e) of zeros for each layout."""
        shape = (batch, self.chunks.padded_length, channels)
        return [jnp.zeros(shape, jnp.float32) for _ in _layouts(self.order)[0]]

    def put(self, sequences, i, x):
        """Adds chunk i (b, t, k, e) into one sequence per layout."""
        sequences = list(sequences)
        for k, (layout, reverse) in enumerate(zip(self.layout_of, self.senses, strict=True)):
            sequences[layout] = self.chunks.put(
                sequences[layout], i, reverse, x[:, :, k], accumulate=True
            )
        return sequences

    def put_each(self, buffers, i, x):
        """Writes chunk i (b, t, k, ...) into one buffer per direction."""
        return [
            self.chunks.put(buffer, i, reverse, x[:, :, k])
            for k, (buffer, reverse) in enumerate(zip(buffers, self.senses, strict=True))
        ]


def _einsums(equation, a, b, axis):
    """Multiplies once per direction, from the lists a and b, and stacks along `axis`.

    A batched product would come out of XLA with time as its fastest axis, which slows down
    everything that reads it.
    """
    products = [
        jnp.einsum(equation, a_k, b_k, precision=lax.Precision.HIGHEST)
        for a_k, b_k in zip(a, b, strict=True)
    ]
    return jnp.stack(products, axis=axis)


def _directions(x):
    return jnp.unstack(x, axis=2)


def _forward(inputs, order):
    x, dt, B, C, *weights = inputs
    batch, frames, joints, channels = x.shape
    reader = _Reader(order, x, _direction_sequences(order, dt, B, C), *weights)
    count = reader.chunks.count

    def visit(i, carry):
        state, ys, boundaries = carry
        boundaries = lax.dynamic_update_index_in_dim(boundaries, state, i, 0)
        u, delta, _, B, C, _ = reader.operands(i)
        y, state = chunk.forward(state, u, delta, reader.A, B, C)
        return state, reader.put(ys, i, y + reader.D * u), boundaries

    state = jnp.zeros((batch, *reader.A.shape), jnp.float32)
    ys = reader.buffers(batch, channels)
    carry = (state, ys, jnp.zeros((count, *state.shape), jnp.float32))
    _, ys, boundaries = lax.fori_loop(0, count, visit, carry)
    layouts, _ = _layouts(order)
    y = sum(
        layout.to_grid(reader.chunks.unpad(y), frames, joints)
        for (layout, _), y in zip(layouts, ys, strict=True)
    )
    return y, boundaries


def _backward(inputs, boundaries, dy, order):
    x, dt, B, C, *weights = inputs
    _, to_x = jax.vjp(functools.partial(_layout_sequences, order), x)
    sequences, to_each = jax.vjp(functools.partial(_direction_sequences, order), dt, B, C)
    reader = _Reader(order, x, sequences, *weights)
    chunks = reader.chunks
    dys = reader.sources(dy)

    def visit(step, carry):
        adjoint, dus, (ddt, dB, dC), sums = carry
        i = chunks.count - 1 - step
        u, delta, slope, B, C, dt = reader.operands(i)
        dy_i = reader.take(dys, i)
        adjoint, du, ddelta, dA, dB_i, dC_i, _ = chunk.backward(
            boundaries[i], adjoint, u, delta, reader.A, B, C, dy_i, with_y=False
        )
        draw = ddelta * slope
        draws = _directions(draw)
        each = (_einsums("bte,er->btr", draws, reader.dt_weight, 2), dB_i, dC_i)
        buffers = (ddt, dB, dC)
        new_sums = (
            _einsums("bte,btr->er", draws, _directions(dt), 0),
            draw.sum((0, 1)),
            dA,
            (dy_i * u).sum((0, 1)),
        )
        return (
            adjoint,
            reader.put(dus, i, du + reader.D * dy_i),
            tuple(reader.put_each(b, i, g) for b, g in zip(buffers, each, strict=True)),
            tuple(total + new for total, new in zip(sums, new_sums, strict=True)),
        )

    state = jnp.zeros((x.shape[0], *reader.A.shape), jnp.float32)
    buffers = jax.tree.map(jnp.zeros_like, (reader.dt, reader.B, reader.C))
    sums = tuple(jnp.zeros_like(a) for a in (reader.dt_weight, reader.dt_bias, state, reader.D))
    carry = (state, reader.buffers(x.shape[0], x.shape[-1]), buffers, sums)
    _, dus, each, sums = lax.fori_loop(0, chunks.count, visit, carry)

    dus, each = jax.tree.map(chunks.unpad, (dus, each))
    grads = (*to_x(dus), *to_each(each))
    sums = (sums[0], sums[1], sums[2].sum(0).swapaxes(1, 2), sums[3])
    grads += tuple(total.astype(w.dtype) for total, w in zip(sums, weights, strict=True))
    return CrossScanOperands(*grads)

"""The cross scan read off the grid in chunks, all directions in one loop, compiled by XLA.

A direction is a layout of the grid (frame by frame or joint by joint, the inner axis perhaps
reversed) and a sense. Directions that share a layout share its copy of x, and the frame-by-frame
one is x itself; the sense is the order in which chunks and steps are visited. The step sizes are
projected from dt chunk by chunk, and outputs are added into one sequence per layout. So neither the
stacked inputs nor the step sizes nor the outputs of the directions exist as whole arrays, in the
forward pass or in the backward. What the forward pass keeps is its arguments and one state per
chunk.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from selective_scan_jax import xla_chunk
from selective_scan_jax.grid import Direction, ScanOrder, limb_term
from selective_scan_jax.xla_chunk import Chunks, step_sizes


def cross_scan(x, dt, B, C, dt_weight, dt_bias, A, D, *, order: ScanOrder):
    """See `selective_scan_jax.cross_scan`."""
    return _scan(x, dt, B, C, dt_weight, dt_bias, A, D, order)


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _scan(x, dt, B, C, dt_weight, dt_bias, A, D, order):
    return _forward((x, dt, B, C, dt_weight, dt_bias, A, D), order)[0]


def _scan_fwd(x, dt, B, C, dt_weight, dt_bias, A, D, order):
    inputs = (x, dt, B, C, dt_weight, dt_bias, A, D)
    y, boundaries = _forward(inputs, order)
    return y, (inputs, boundaries)


def _scan_bwd(order, residuals, grad_y):
    return _backward(*residuals, grad_y, order)


_scan.defvjp(_scan_fwd, _scan_bwd)


def _layouts(order: ScanOrder) -> tuple[list[tuple[Direction, bool]], list[int]]:
    """The distinct (layout, with limb term) pairs of an order; each direction's index in them."""
    keys = [
        (Direction(d.frame_by_frame, d.inner_reversed), order.takes_limb_term(k))
        for k, d in enumerate(order.directions)
    ]
    distinct = list(dict.fromkeys(keys))
    return distinct, [distinct.index(key) for key in keys]


def _sequences(order: ScanOrder, x, dt, B, C):
    """x once per layout; dt, B and C once per direction, in its layout; all (b, l, ...)."""
    layouts, _ = _layouts(order)
    x = x.astype(jnp.float32)
    us = [d.to_sequence(limb_term(x, order) if limbs else x) for d, limbs in layouts]
    per_direction = (
        [d.to_sequence(a[:, :, :, k]) for k, d in enumerate(order.directions)] for a in (dt, B, C)
    )
    return us, *per_direction


class _Reader:
    """The operands of a cross scan, chunk by chunk, with directions (k) in place of groups."""

    def __init__(self, order: ScanOrder, us, dt, B, C, dt_weight, dt_bias, A, D):
        self.senses = [d.reverse for d in order.directions]
        self.layout_of = _layouts(order)[1]
        self.chunks = Chunks(us[0].shape[1])
        self.us, self.dt, self.B, self.C = jax.tree.map(self.chunks.pad, (us, dt, B, C))
        self.dt_weight, self.dt_bias, self.D = (
            a.astype(jnp.float32) for a in (dt_weight, dt_bias, D)
        )
        self.A = A.astype(jnp.float32).swapaxes(1, 2)

    def take(self, sequences, i):
        """Chunk i (b, t, k, ...) of one sequence per layout."""
        return self.take_each([sequences[layout] for layout in self.layout_of], i)

    def take_each(self, sequences, i):
        """Chunk i (b, t, k, ...) of one sequence per direction."""
        pairs = zip(sequences, self.senses, strict=True)
        return jnp.stack([self.chunks.take(x, i, reverse) for x, reverse in pairs], axis=2)

    def operands(self, i):
        """u, delta, its derivative by the raw one, B, C and dt of chunk i."""
        dt = self.take_each(self.dt, i)
        raw = _einsums("btr,er->bte", _directions(dt), self.dt_weight, 2) + self.dt_bias
        inside = [self.chunks.inside(i, reverse) for reverse in self.senses]
        inside = None if inside[0] is None else jnp.stack(inside, axis=1)[:, :, None]
        B, C = self.take_each(self.B, i), self.take_each(self.C, i)
        return self.take(self.us, i), *step_sizes(raw, True, inside), B, C, dt

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
    """One product per direction, from the lists a and b, stacked along `axis`.

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
    reader = _Reader(order, *_sequences(order, x, dt, B, C), *weights)
    count = reader.chunks.count

    def visit(i, carry):
        state, ys, boundaries = carry
        boundaries = lax.dynamic_update_index_in_dim(boundaries, state, i, 0)
        u, delta, _, B, C, _ = reader.operands(i)
        y, state = xla_chunk.forward(state, u, delta, reader.A, B, C)
        return state, reader.put(ys, i, y + reader.D * u), boundaries

    state = jnp.zeros((batch, *reader.A.shape), jnp.float32)
    ys = [jnp.zeros_like(u) for u in reader.us]
    carry = (state, ys, jnp.zeros((count, *state.shape), jnp.float32))
    _, ys, boundaries = lax.fori_loop(0, count, visit, carry)
    layouts, _ = _layouts(order)
    y = sum(
        layout.to_grid(reader.chunks.unpad(y), frames, joints)
        for (layout, _), y in zip(layouts, ys, strict=True)
    )
    return y, boundaries


def _backward(inputs, boundaries, grad_y, order):
    x, dt, B, C, *weights = inputs
    sequences, pull_back = jax.vjp(functools.partial(_sequences, order), x, dt, B, C)
    reader = _Reader(order, *sequences, *weights)
    chunks = reader.chunks
    layouts, _ = _layouts(order)
    grad_ys = [chunks.pad(layout.to_sequence(grad_y)) for layout, _ in layouts]

    def visit(step, carry):
        adjoint, dus, (ddt, dB, dC), sums = carry
        i = chunks.count - 1 - step
        u, delta, slope, B, C, dt = reader.operands(i)
        dy = reader.take(grad_ys, i)
        adjoint, du, ddelta, dA, dB_i, dC_i, _ = xla_chunk.backward(
            boundaries[i], adjoint, u, delta, reader.A, B, C, dy, with_y=False
        )
        draw = ddelta * slope
        draws = _directions(draw)
        each = (_einsums("bte,er->btr", draws, reader.dt_weight, 2), dB_i, dC_i)
        buffers = (ddt, dB, dC)
        new_sums = (
            _einsums("bte,btr->er", draws, _directions(dt), 0),
            draw.sum((0, 1)),
            dA,
            (dy * u).sum((0, 1)),
        )
        return (
            adjoint,
            reader.put(dus, i, du + reader.D * dy),
            tuple(reader.put_each(b, i, g) for b, g in zip(buffers, each, strict=True)),
            tuple(total + new for total, new in zip(sums, new_sums, strict=True)),
        )

    state = jnp.zeros((x.shape[0], *reader.A.shape), jnp.float32)
    buffers = jax.tree.map(jnp.zeros_like, (reader.dt, reader.B, reader.C))
    sums = tuple(jnp.zeros_like(a) for a in (reader.dt_weight, reader.dt_bias, state, reader.D))
    carry = (state, [jnp.zeros_like(u) for u in reader.us], buffers, sums)
    _, dus, each, sums = lax.fori_loop(0, chunks.count, visit, carry)

    grads = pull_back(jax.tree.map(chunks.unpad, (dus, *each)))
    sums = (sums[0], sums[1], sums[2].sum(0).swapaxes(1, 2), sums[3])
    return *grads, *(total.astype(w.dtype) for total, w in zip(sums, weights, strict=True))

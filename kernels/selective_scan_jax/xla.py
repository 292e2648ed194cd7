"""The recurrence in chunks of time, compiled by XLA; the default where no kernel is available.

Strategy. A loop over chunks of about 16 steps carries the state, laid out (batch, groups, state,
channels) so that channels are contiguous. Inside a chunk the steps are unrolled into one expression
per output, and all sums over the same axis go into one variadic `lax.reduce`: XLA compiles that
into a single loop over (state, channel) in which the chunk's states live in registers. Separate sums
would each recompute the chunk from its start, or pass every state through memory.

The forward pass keeps its inputs and the state at the start of every chunk. The backward pass walks
the chunks in the opposite sense, recomputes the states of a chunk from its first one and runs the
adjoint recurrence

    g_l = C_l dy_l + exp(delta_{l+1} A) g_{l+1}

beside it. Nothing of size (batch, length, channels, state) exists at any time. Reversal is the
order in which chunks and steps are visited. Every sum is taken in a fixed order.
"""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax

from selective_scan_jax.elementwise import first_state

# Longer chunks mean fewer boundary states and loop iterations, shorter ones less code to compile.
CHUNK_LENGTHS = range(8, 21)
PREFERRED_CHUNK = 16


def chunk_length(length: int) -> int:
    """Steps per chunk: one of CHUNK_LENGTHS that leaves little to pad; `length` if it is short."""
    if length <= max(CHUNK_LENGTHS):
        return length
    return min(CHUNK_LENGTHS, key=lambda t: (-length % t, abs(t - PREFERRED_CHUNK)))


def selective_scan(
    u, delta, A, B, C, D, delta_bias, z, initial_state, *, delta_softplus: bool, reverse: bool
):
    """See `selective_scan_jax.selective_scan`; returns (y, last_state)."""
    batch, _, channels = u.shape
    state = first_state(initial_state, batch, channels, A.shape[1])
    return _scan(u, delta, A, B, C, D, delta_bias, z, state, delta_softplus, reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(9, 10))
def _scan(u, delta, A, B, C, D, delta_bias, z, state, delta_softplus, reverse):
    inputs = (u, delta, A, B, C, D, delta_bias, z, state)
    y, last_state, _ = _forward(inputs, delta_softplus, reverse)
    return y, last_state


def _scan_fwd(u, delta, A, B, C, D, delta_bias, z, state, delta_softplus, reverse):
    inputs = (u, delta, A, B, C, D, delta_bias, z, state)
    y, last_state, boundaries = _forward(inputs, delta_softplus, reverse)
    return (y, last_state), (inputs, boundaries)


def _scan_bwd(delta_softplus, reverse, residuals, grads):
    inputs, boundaries = residuals
    return _backward(inputs, boundaries, *grads, delta_softplus, reverse)


_scan.defvjp(_scan_fwd, _scan_bwd)


class _Chunks:
    """Cuts sequences (batch, length, ...) into float32 chunks (batch, steps, groups, ...)."""

    def __init__(self, length: int, groups: int, reverse: bool):
        self.length, self.groups, self.reverse = length, groups, reverse
        self.steps = chunk_length(length)
        self.count = -(-length // self.steps)

    @property
    def order(self):
        """Steps of a chunk in the order in which the state passes through them."""
        return range(self.steps)[::-1] if self.reverse else range(self.steps)

    def position(self, i):
        """Chunk that the scan visits as its i-th."""
        return self.count - 1 - i if self.reverse else i

    def pad(self, x):
        extra = self.count * self.steps - self.length
        return jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2)) if extra else x

    def take(self, x, chunk):
        x = lax.dynamic_slice_in_dim(x, chunk * self.steps, self.steps, axis=1)
        return x.astype(jnp.float32).reshape(*x.shape[:2], self.groups, -1)

    def buffer(self, batch: int, size: int, dtype):
        return jnp.zeros((batch, self.count * self.steps, size), dtype)

    def put(self, buffer, chunk, parts):
        """Writes one array (batch, groups, ...) per step into the chunk's place."""
        x = jnp.stack(parts, axis=1) if isinstance(parts, list) else parts
        x = x.reshape(x.shape[0], self.steps, -1).astype(buffer.dtype)
        return lax.dynamic_update_slice_in_dim(buffer, x, chunk * self.steps, axis=1)

    def unpad(self, x):
        return x[:, : self.length]


def _sums(terms: list[jax.Array], axis: int) -> list[jax.Array]:
    """The sum of each term over `axis`, all in one loop."""
    zeros = [jnp.zeros((), x.dtype) for x in terms]
    return list(lax.reduce(terms, zeros, lambda a, b: [*map(operator.add, a, b)], (axis,)))


def _state_major(x, groups):  # (..., channels, state) to (..., groups, state, channels per group)
    return x.reshape(*x.shape[:-2], groups, -1, x.shape[-1]).swapaxes(-1, -2)


def _channel_major(x):  # the inverse
    x = x.swapaxes(-1, -2)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _step_sizes(delta, bias, delta_softplus, chunk, chunks):
    """softplus(delta + bias) of a chunk and its derivative, zero past the end of the sequence."""
    raw = delta if bias is None else delta + bias
    value, slope = (jax.nn.softplus(raw), jax.nn.sigmoid(raw)) if delta_softplus else (raw, 1.0)
    if chunks.count * chunks.steps > chunks.length:
        position = chunk * chunks.steps + jnp.arange(chunks.steps)
        inside = (position < chunks.length)[:, None, None]
        value, slope = jnp.where(inside, value, 0), jnp.where(inside, slope, 0)
    return value, slope


def _recur(state, step_sizes, drive, A, B, order):
    """States before and after each step and the decays; lists indexed by step."""
    before, after, decays = {}, {}, {}
    for t in order:
        decays[t] = jnp.exp(step_sizes[:, t, :, None] * A)
        before[t] = state
        state = decays[t] * state + drive[:, t, :, None] * B[:, t, :, :, None]
        after[t] = state
    return before, after, decays, state


def _forward(inputs, delta_softplus, reverse):
    u, delta, A, B, C, D, delta_bias, z, state = inputs
    batch, length, channels = u.shape
    groups = B.shape[2]
    chunks = _Chunks(length, groups, reverse)
    A = _state_major(A.astype(jnp.float32), groups)
    D, delta_bias = (_per_group(x, groups) for x in (D, delta_bias))
    u_, delta_, B_, C_, z_ = (None if x is None else chunks.pad(x) for x in (u, delta, B, C, z))
    state = _state_major(state, groups)

    def visit(i, carry):
        state, y, boundaries = carry
        chunk = chunks.position(i)
        boundaries = lax.dynamic_update_index_in_dim(boundaries, state, chunk, 0)
        u, delta, B, C = (chunks.take(x, chunk) for x in (u_, delta_, B_, C_))
        delta, _ = _step_sizes(delta, delta_bias, delta_softplus, chunk, chunks)
        _, after, _, state = _recur(state, delta, delta * u, A, B, chunks.order)
        out = _sums([after[t] * C[:, t, :, :, None] for t in range(chunks.steps)], axis=2)
        out = jnp.stack(out, axis=1)
        if D is not None:
            out = out + D * u
        if z_ is not None:
            out = out * jax.nn.silu(chunks.take(z_, chunk))
        return state, chunks.put(y, chunk, out), boundaries

    carry = (
        state,
        chunks.buffer(batch, channels, u.dtype),
        jnp.zeros((chunks.count, *state.shape), jnp.float32),
    )
    state, y, boundaries = lax.fori_loop(0, chunks.count, visit, carry)
    return chunks.unpad(y), _channel_major(state), boundaries


def _backward(inputs, boundaries, grad_y, grad_last_state, delta_softplus, reverse):
    u, delta, A, B, C, D, delta_bias, z, state = inputs
    batch, length, channels = u.shape
    groups, states = B.shape[2:]
    chunks = _Chunks(length, groups, reverse)
    A_ = _state_major(A.astype(jnp.float32), groups)
    D_, bias_ = (_per_group(x, groups) for x in (D, delta_bias))
    u_, delta_, B_, C_, z_, dy_ = (
        None if x is None else chunks.pad(x) for x in (u, delta, B, C, z, grad_y)
    )

    def visit(i, carry):
        g, dA, dD, dbias, du, ddelta, dB, dC, dz = carry
        chunk = chunks.position(chunks.count - 1 - i)
        u, raw_delta, B, C, dy = (chunks.take(x, chunk) for x in (u_, delta_, B_, C_, dy_))
        delta, slope = _step_sizes(raw_delta, bias_, delta_softplus, chunk, chunks)
        drive = delta * u
        before, after, decays, _ = _recur(boundaries[chunk], delta, drive, A_, B, chunks.order)
        steps = range(chunks.steps)
        if z_ is not None:
            z = chunks.take(z_, chunk)
            gate = jax.nn.sigmoid(z)
            ungated_dy, dy = dy, dy * z * gate

        # The adjoint state at each step, and `through`, what the state before the step sees of it.
        adjoint, through = {}, {}
        for t in chunks.order[::-1]:
            adjoint[t] = g + C[:, t, :, :, None] * dy[:, t, :, None]
            through[t] = adjoint[t] * decays[t]
            g = through[t]
        by_delta_A = [through[t] * before[t] for t in steps]
        over_states = [adjoint[t] * B[:, t, :, :, None] for t in steps]
        over_states += [by_delta_A[t] * A_ for t in steps]
        if z_ is not None:
            over_states += [after[t] * C[:, t, :, :, None] for t in steps]
        over_channels = [adjoint[t] * drive[:, t, :, None] for t in steps]
        over_channels += [after[t] * dy[:, t, :, None] for t in steps]
        summed = _sums(over_states, axis=2)
        steps_of_each = range(0, len(summed), chunks.steps)
        over = [jnp.stack(summed[t : t + chunks.steps], 1) for t in steps_of_each]
        by_drive, by_step = over[:2]
        dBC = _sums(over_channels, axis=3)
        du_chunk = by_drive * delta
        ddelta_chunk = (by_drive * u + by_step) * slope
        if D_ is not None:
            du_chunk = du_chunk + D_ * dy
            dD = dD + jnp.sum(dy * u, axis=1)
        if bias_ is not None:
            dbias = dbias + jnp.sum(ddelta_chunk, axis=1)
        if z_ is not None:
            y = over[2] if D_ is None else over[2] + D_ * u
            dz = chunks.put(dz, chunk, ungated_dy * y * gate * (1 + z * (1 - gate)))
        dA = dA + sum(by_delta_A[t] * delta[:, t, :, None] for t in steps)
        return (
            g,
            dA,
            dD,
            dbias,
            chunks.put(du, chunk, du_chunk),
            chunks.put(ddelta, chunk, ddelta_chunk),
            chunks.put(dB, chunk, dBC[: chunks.steps]),
            chunks.put(dC, chunk, dBC[chunks.steps :]),
            dz,
        )

    per_channel = jnp.zeros((batch, groups, channels // groups), jnp.float32)
    carry = (
        _state_major(grad_last_state, groups),
        jnp.zeros((batch, *A_.shape), jnp.float32),
        None if D is None else per_channel,
        None if delta_bias is None else per_channel,
        chunks.buffer(batch, channels, u.dtype),
        chunks.buffer(batch, channels, delta.dtype),
        chunks.buffer(batch, groups * states, B.dtype),
        chunks.buffer(batch, groups * states, C.dtype),
        None if z is None else chunks.buffer(batch, channels, z.dtype),
    )
    carry = lax.fori_loop(0, chunks.count, visit, carry)
    g, dA, dD, dbias, du, ddelta, dB, dC, dz = carry
    return (
        chunks.unpad(du),
        chunks.unpad(ddelta),
        _channel_major(dA.sum(0)).astype(A.dtype),
        chunks.unpad(dB).reshape(B.shape),
        chunks.unpad(dC).reshape(C.shape),
        None if D is None else dD.sum(0).reshape(-1).astype(D.dtype),
        None if delta_bias is None else dbias.sum(0).reshape(-1).astype(delta_bias.dtype),
        None if z is None else chunks.unpad(dz),
        _channel_major(g),
    )


def _per_group(x, groups):
    return None if x is None else x.astype(jnp.float32).reshape(groups, -1)

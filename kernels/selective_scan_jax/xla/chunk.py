"""One chunk of the recurrence and of its adjoint, in the form that XLA compiles well.

The state is laid out (batch, groups, state, channels), channels contiguous. The steps of a chunk
are unrolled into one expression per output, and all sums over the same axis go into one variadic
`lax.reduce`: XLA turns that into a single loop over (state, channel) in which the chunk's states
live in registers. Separate sums would each recompute the chunk from its start, or pass every state
through memory. The decays of a chunk are computed first, all at once, and are its only array with
both a time and a state axis.

Shapes use the letters of `selective_scan_jax.operands`.
"""

from __future__ import annotations

import operator

import jax
import jax.numpy as jnp
from jax import lax

# Longer chunks mean fewer boundary states and loop iterations, shorter ones less code to compile.
CHUNK_LENGTHS = range(8, 21)
PREFERRED_CHUNK = 16


def chunk_length(length: int) -> int:
    """Chooses the steps per chunk: one of CHUNK_LENGTHS that leaves little to pad; `length` if it
    is short.
    """
    if length <= max(CHUNK_LENGTHS):
        return length
    return min(CHUNK_LENGTHS, key=lambda t: (-length % t, abs(t - PREFERRED_CHUNK)))


class Chunks:
    """Cuts sequences (batch, length, ...) into chunks, read and written backwards if `reverse`.

    Chunk i of a reversed sequence is its i-th from the end, steps in reverse order, so that time
    always runs forwards within the arrays this class hands out.
    """

    def __init__(self, length: int):
        self.length = length
        self.steps = chunk_length(length)
        self.count = -(-length // self.steps)

    @property
    def padded_length(self) -> int:
        return self.count * self.steps

    def pad(self, x):
        extra = self.padded_length - self.length
        return jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2)) if extra else x

    def unpad(self, x):
        return x[:, : self.length] if self.padded_length > self.length else x

    def _start(self, i, reverse: bool):
        return (self.count - 1 - i if reverse else i) * self.steps

    def take(self, x, i, reverse: bool):
        """Takes chunk i of a padded sequence in float32, (b, t, ...)."""
        x = lax.dynamic_slice_in_dim(x, self._start(i, reverse), self.steps, axis=1)
        x = x.astype(jnp.float32)
        return jnp.flip(x, 1) if reverse else x

    def put(self, buffer, i, reverse: bool, x, *, accumulate: bool = False):
        """Writes (or adds) chunk i into a padded sequence, cast and reshaped to fit."""
        start = self._start(i, reverse)
        x = x.reshape(*x.shape[:2], *buffer.shape[2:]).astype(buffer.dtype)
        x = jnp.flip(x, 1) if reverse else x
        if accumulate:
            x = x + lax.dynamic_slice_in_dim(buffer, start, self.steps, axis=1)
        return lax.dynamic_update_slice_in_dim(buffer, x, start, axis=1)

    def inside(self, i, reverse: bool):
        """Tells which steps of chunk i lie inside the sequence (t,), or None if no chunk is
        padded.
        """
        if self.padded_length == self.length:
            return None
        inside = self._start(i, reverse) + jnp.arange(self.steps) < self.length
        return jnp.flip(inside, 0) if reverse else inside


def state_major(x, groups: int):
    """Rearranges (..., channels, n) to (..., g, n, e)."""
    return x.reshape(*x.shape[:-2], groups, -1, x.shape[-1]).swapaxes(-1, -2)


def channel_major(x):
    """Rearranges (..., g, n, e) to (..., channels, n)."""
    x = x.swapaxes(-1, -2)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def step_sizes(raw, softplus: bool, inside):
    """Computes a chunk's step sizes and their derivative by `raw`, both zero where `inside` is
    false.

    raw (b, t, g, e); inside broadcasts to it, or is None. A step of size zero keeps the state.
    """
    value, slope = raw, None
    if softplus:
        value = jnp.maximum(raw, 0) + jnp.log1p(jnp.exp(-jnp.abs(raw)))
        slope = jax.nn.sigmoid(raw)
    if inside is not None:
        value = jnp.where(inside, value, 0)
        slope = jnp.where(inside, 1.0 if slope is None else slope, 0)
    return value, slope


def _sums(terms: list[jax.Array], axis: int) -> list[jax.Array]:
    """Sums each term over `axis`, all in one loop."""
    zeros = [jnp.zeros((), x.dtype) for x in terms]
    return list(lax.reduce(terms, zeros, lambda a, b: [*map(operator.add, a, b)], (axis,)))


def _recur(state, delta, drive, A, B):
    """Computes the states before the first step and after each one, and the decays (b, t, g, n,
    e).
    """
    decays = jnp.exp(delta[:, :, :, None] * A)
    states = [state]
    for t in range(delta.shape[1]):
        state = decays[:, t] * state + drive[:, t, :, None] * B[:, t, :, :, None]
        states.append(state)
    return states, decays


def forward(state, u, delta, A, B, C):
    """Runs a chunk of state_l = exp(delta_l A) state_{l-1} + delta_l B_l u_l, y_l = <C_l, state_l>.

    Args:
      state: (b, g, n, e) before the chunk.
      u, delta: (b, t, g, e).
      A: (g, n, e).
      B, C: (b, t, g, n).

    Returns:
      y (b, t, g, e) and the state after the chunk.
    """
    states, _ = _recur(state, delta, delta * u, A, B)
    outputs = [states[t + 1] * C[:, t, :, :, None] for t in range(u.shape[1])]
    return jnp.stack(_sums(outputs, axis=2), axis=1), states[-1]


def backward(state, adjoint, u, delta, A, B, C, dy, *, with_y: bool):
    """Runs the chunk's part of the backward pass, with its states recomputed from the first.

    g_l = C_l dy_l + exp(delta_{l+1} A) g_{l+1} is the gradient by the state after step l.

    Args:
      state: (b, g, n, e) before the chunk.
      adjoint: (b, g, n, e) gradient by the state after the chunk.
      u, delta, A, B, C: as in `forward`.
      dy: (b, t, g, e).
      with_y: also recompute y.

    Returns:
      The gradients by the state before the chunk, u, delta (b, t, g, e), A (b, g, n, e; not yet
      summed over the batch), B, C (b, t, g, n); and y or None.
    """
    steps = range(u.shape[1])
    drive = delta * u
    states, decays = _recur(state, delta, drive, A, B)
    adjoints, carried = {}, {}
    for t in reversed(steps):
        adjoints[t] = adjoint + C[:, t, :, :, None] * dy[:, t, :, None]
        adjoint = adjoints[t] * decays[:, t]
        carried[t] = adjoint * states[t]  # the gradient by delta_t A, elementwise

    over_states = [adjoints[t] * B[:, t, :, :, None] for t in steps]
    over_states += [carried[t] * A for t in steps]
    if with_y:
        over_states += [states[t + 1] * C[:, t, :, :, None] for t in steps]
    ddrive, ddecay, *y = _stacked(_sums(over_states, axis=2), len(steps))

    over_channels = [adjoints[t] * drive[:, t, :, None] for t in steps]
    over_channels += [states[t + 1] * dy[:, t, :, None] for t in steps]
    dB, dC = _stacked(_sums(over_channels, axis=3), len(steps))

    dA = sum(carried[t] * delta[:, t, :, None] for t in steps)
    du, ddelta = ddrive * delta, ddrive * u + ddecay
    return adjoint, du, ddelta, dA, dB, dC, y[0] if with_y else None


def _stacked(per_step: list[jax.Array], steps: int) -> list[jax.Array]:
    """Runs of `steps` arrays, each stacked along a new time axis after the batch."""
    return [jnp.stack(per_step[k : k + steps], 1) for k in range(0, len(per_step), steps)]

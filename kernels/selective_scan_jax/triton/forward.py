"""The forward Triton kernels: states at the ends of segments, and the scan from there.

A program takes a block of channels of one direction through a segment of the length. A thread
keeps the states of its channels in registers, one vector over the channels per state, so that the
sum over states needs no exchange between threads; the tuples of vectors are grown in
`tl.static_range` and carried by the loop over time.

Loads take hundreds of cycles. So the operands of a group of steps are in flight while the group
before is computed: each step's place in `ring` is filled again as soon as its values are used. Past
the end of the path loads repeat the last position, and masked steps have a step size of zero, which
leaves the state as it is.

Shapes, in the letters of `Layout`:

    cross scan      u, u_limbs (b, l, e), rows (b, l, k, r + 2 n), weight (k, e, r),
                    y (b, p, k, l, e)
    selective scan  u, delta (b, l, k, e), rows (b, l, k, 2 n), no weight, y (b, p, l, k, e)
    both            bias, D (k, e); A (k, e, n); initial, last (b, k, e, n);
                    ends (b, k, s, n, e) and sums (b, k, s, e); boundaries (b, k, chunks, n, e)

Operands that are absent are any array; the layout says so and keeps the kernels from reading them.
"""

import triton
import triton.language as tl

from selective_scan_jax.triton.primitives import (
    advance,
    inputs_of,
    lanes_and_channels,
    load_channel,
    load_states,
    load_steps,
    path_at,
    position_of,
    program_of,
    step_size,
    store_channels,
    weights_of,
    zeros,
)
from selective_scan_jax.triton.segments import enter_segment, store_end


@triton.jit
def load_forward(at, place, first, lane, inside, L: tl.constexpr, WITH_C: tl.constexpr):
    """Returns everything that a step reads: position, u, what delta is made of, B and C."""
    position = position_of(place, L)
    x, raw = load_steps(at, position, lane, inside, L)
    b = load_states(at, position, L.rank + first, lane, L)
    c = load_states(at, position, L.rank + L.states + first, lane, L) if WITH_C else b
    return position, x, raw, b, c


@triton.jit
def advance_state(state, step, b, c, a, out, L: tl.constexpr):
    """Returns the state after a step, and `out` with what the step adds to it.

    `step` has the step size and, multiplied by u, the drive. Even and odd states are two chains of
    additions.
    """
    N: tl.constexpr = L.block_n
    delta, drive = step
    other = tl.full(out.shape, 0.0, tl.float32)
    new = ()
    for n in tl.static_range(N):
        new += (tl.exp2(delta * a[n]) * state[n] + drive * b[n][:, None],)
        if n % 2 == 0:
            out += c[n][:, None] * new[n]
        else:
            other += c[n][:, None] * new[n]
    return new, out + other


@triton.jit
def scan_ends(u, u_limbs, delta, rows, weight, bias, A, paths, ends, sums, L: tl.constexpr):
    """Computes for every segment but the last: its last state from a first one of zero, and the sum
    of its step sizes.
    """
    N: tl.constexpr = L.block_n
    GROUP: tl.constexpr = L.group
    block, k, part, segment, batch = program_of(L)
    lane, channel, inside = lanes_and_channels(block, L)
    first = part * N
    w, raw_bias, a = weights_of(weight, bias, A, k, first, channel, inside, L)
    at = inputs_of(u, u_limbs, delta, rows, paths, k, batch, first, channel, L)
    place, path = path_at(paths, k, segment * L.segment)
    ring = ()
    for _ in tl.static_range(GROUP):
        ring += (load_forward(at, place, first, lane, inside, L, False),)
        place = advance(place, path)
    state = zeros(channel, N)
    total = tl.full(channel.shape, 0.0, tl.float32)
    for _ in range(tl.where(segment < L.segments - 1, L.segment // GROUP, 0)):
        steps = ()
        for i in tl.static_range(GROUP):
            step, _slope = step_size(ring[i][2], w, raw_bias, L)
            total += step
            steps += ((step, step * ring[i][1]),)
        filled = ()
        for i in tl.static_range(GROUP):
            new = ()
            for n in tl.static_range(N):
                decay = tl.exp2(steps[i][0] * a[n])
                new += (decay * state[n] + steps[i][1] * ring[i][3][n][:, None],)
            state = new
            filled += (load_forward(at, place, first, lane, inside, L, False),)
            place = advance(place, path)
        ring = filled
    store_end(state, total, ends, sums, segment, k, part, batch, channel, inside, L)


@triton.jit
def scan_forward(
    u, u_limbs, delta, rows, weight, bias, A, D, initial, paths, ends, sums, y, last, boundaries,
    L: tl.constexpr,
):  # fmt: skip
    """Returns y, the last states and, if they are kept, the states before every chunk."""
    N: tl.constexpr = L.block_n
    GROUP: tl.constexpr = L.group
    block, k, part, segment, batch = program_of(L)
    lane, channel, inside = lanes_and_channels(block, L)
    first = part * N
    w, raw_bias, a = weights_of(weight, bias, A, k, first, channel, inside, L)
    d = tl.full(channel.shape, 0.0, tl.float32)
    if L.skip:
        d = load_channel(D + k * L.channels + channel, inside) * tl.where(part == 0, 1.0, 0.0)
    at = inputs_of(u, u_limbs, delta, rows, paths, k, batch, first, channel, L)
    begin = segment * L.segment
    end = tl.minimum(begin + L.segment, L.length)
    # Loads of the first group go out before the state that enters the segment is computed.
    place, path = path_at(paths, k, begin)
    ring = ()
    for _ in tl.static_range(GROUP):
        ring += (load_forward(at, place, first, lane, inside, L, True),)
        place = advance(place, path)
    state = enter_segment(
        initial, ends, sums, segment, k, part, batch, channel, inside, a, L, L.initial, False
    )
    if L.cross:
        y_at = y + ((batch * L.parts + part) * L.directions + k) * (L.length * L.channels)
    else:
        y_at = y + (batch * L.parts + part) * (L.length * L.u_row) + k * L.channels
    y_at += channel
    direction = batch * L.directions + k
    for chunk in range(begin, end, L.chunk if L.save else L.segment):
        if L.save:
            boundary = ((direction * L.chunks + chunk // L.chunk) * L.states + first) * L.channels
            store_channels(boundaries + boundary + channel, state, inside, N, L.channels)
        for t in range(chunk, tl.minimum(chunk + L.chunk, end) if L.save else end, GROUP):
            # The step sizes of a group depend on nothing before and are computed side by side.
            steps = ()
            for i in tl.static_range(GROUP):
                step, _slope = step_size(ring[i][2], w, raw_bias, L)
                if not L.whole_groups:
                    step = tl.where(t + i < L.length, step, 0.0)
                steps += ((step, step * ring[i][1]),)
            filled = ()
            for i in tl.static_range(GROUP):
                position, x, _raw, b, c = ring[i]
                state, out = advance_state(state, steps[i], b, c, a, d * x, L)
                filled += (load_forward(at, place, first, lane, inside, L, True),)
                place = advance(place, path)
                here = y_at + position * L.u_row
                if L.whole_groups:
                    tl.store(here, out, mask=inside)
                else:
                    tl.store(here, out, mask=inside & (t + i < L.length))
            ring = filled
    if segment == L.segments - 1:
        at_last = direction * (L.channels * L.states) + channel * L.states + first
        store_channels(last + at_last, state, inside, N, 1)

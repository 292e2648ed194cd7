"""The backward Triton kernels: adjoints at the starts of segments, and the gradients from there.

A program walks its segment chunk by chunk from the end. From the states that the forward pass kept
before a chunk, one pass finds those before each group of its steps and puts them, with delta and
its derivative, into `scratch`, a piece of memory of the program's own. Then the groups are taken
from the last to the first: a group's states and decays are computed again into registers, and the
adjoint recurrence runs back over them. So no exponential is computed a third time, and of the
states only every GROUP-th goes through memory. Loads are issued a group ahead, as in the forward
kernels.

Sums over the channels of a program go to a place of its own, to be added up in a fixed order:

    grad_u (and grad_delta of a selective scan)   like y
    grad_rows (b, l, k, c, p r + 2 n)             by dt, one place for each part, by B and by C
    grad_weight (b, s, p, k, e, r), grad_bias (b, s, p, k, e), grad_D (b, s, k, e)
    grad_A (b, s, k, e, n), grad_initial (b, k, e, n)

For the other operands see the forward kernels; ends (b, k, s, n, e) and sums (b, k, s, e) are here
the adjoints at the starts of the segments and the sums of their step sizes.
"""

import triton
import triton.language as tl

from selective_scan_jax.triton.primitives import (
    advance,
    inputs_of,
    lanes_and_channels,
    load_channel,
    load_channels,
    load_states,
    load_steps,
    path_at,
    position_of,
    program_of,
    retreat,
    step_size,
    store_channels,
    sum_lanes,
    sum_thread,
    weights_of,
    zeros,
)
from selective_scan_jax.triton.segments import enter_segment, store_end


@triton.jit
def gradient_at(grad_y, k, batch, channel, L: tl.constexpr):
    """Pointers to the first position's gradient by y."""
    at = grad_y + batch * (L.length * L.u_row) + channel
    if not L.cross:
        at += k * L.channels
    return at


@triton.jit
def load_adjoint_step(at, grad_at, place, first, lane, inside, L: tl.constexpr):
    """Returns what a step of the adjoint alone reads: raw step size, C and the gradient by y."""
    position = position_of(place, L)
    _x, raw = load_steps(at, position, lane, inside, L)
    c = load_states(at, position, L.rank + L.states + first, lane, L)
    return raw, c, load_channel(grad_at + position * L.u_row, inside)


@triton.jit
def scan_adjoint_ends(
    u, u_limbs, delta, rows, weight, bias, A, paths, grad_y, ends, sums, L: tl.constexpr
):
    """Finds for all segments but the first: the adjoint at its start if there is none at its end,
    and the sum of its step sizes.
    """
    N: tl.constexpr = L.block_n
    GROUP: tl.constexpr = L.group
    block, k, part, segment, batch = program_of(L)
    lane, channel, inside = lanes_and_channels(block, L)
    first = part * N
    w, raw_bias, a = weights_of(weight, bias, A, k, first, channel, inside, L)
    at = inputs_of(u, u_limbs, delta, rows, paths, k, batch, first, channel, L)
    grad_at = gradient_at(grad_y, k, batch, channel, L)
    begin = segment * L.segment
    groups = (tl.minimum(begin + L.segment, L.length) - begin + GROUP - 1) // GROUP
    place, path = path_at(paths, k, begin + groups * GROUP - 1)
    ring = ()
    for _ in tl.static_range(GROUP):
        ring += (load_adjoint_step(at, grad_at, place, first, lane, inside, L),)
        place = retreat(place, path)
    adjoint = zeros(channel, N)
    total = tl.full(channel.shape, 0.0, tl.float32)
    for g in range(tl.where(segment > 0, groups, 0)):
        filled = ()
        for i in tl.static_range(GROUP):
            step, _slope = step_size(ring[i][0], w, raw_bias, L)
            grad = ring[i][2]
            if not L.whole_groups:
                there = begin + (groups - g) * GROUP - 1 - i < L.length
                step, grad = tl.where(there, step, 0.0), tl.where(there, grad, 0.0)
            total += step
            new = ()
            for n in tl.static_range(N):
                decay = tl.exp2(step * a[n])
                new += (decay * (adjoint[n] + ring[i][1][n][:, None] * grad),)
            adjoint = new
            filled += (load_adjoint_step(at, grad_at, place, first, lane, inside, L),)
            place = retreat(place, path)
        ring = filled
    store_end(adjoint, total, ends, sums, segment, k, part, batch, channel, inside, L)


@triton.jit
def load_forward_step(at, place, first, lane, inside, L: tl.constexpr):
    """Returns what the states alone need of a step: u, what delta is made of, and B."""
    position = position_of(place, L)
    x, raw = load_steps(at, position, lane, inside, L)
    return x, raw, load_states(at, position, L.rank + first, lane, L)


@triton.jit
def keep_starts(
    at, place, path, state, chunk, groups, w, raw_bias, a, kept, lane, first, inside,
    L: tl.constexpr,
):  # fmt: skip
    """Writes the states before each group of a chunk, and each step's delta and derivative."""
    N: tl.constexpr = L.block_n
    GROUP: tl.constexpr = L.group
    WIDTH: tl.constexpr = L.width
    ring = ()
    for _ in tl.static_range(GROUP):
        ring += (load_forward_step(at, place, first, lane, inside, L),)
        place = advance(place, path)
    for g in range(groups):
        group_at = kept + g * ((N + 2 * GROUP) * WIDTH)
        store_channels(group_at, state, None, N, WIDTH)
        filled = ()
        for i in tl.static_range(GROUP):
            x, raw, b = ring[i]
            step, slope = step_size(raw, w, raw_bias, L)
            if not L.whole_groups:
                there = chunk + g * GROUP + i < L.length
                step, slope = tl.where(there, step, 0.0), tl.where(there, slope, 0.0)
            tl.store(group_at + (N + 2 * i) * WIDTH, step)
            tl.store(group_at + (N + 2 * i + 1) * WIDTH, slope)
            drive = step * x
            new = ()
            for n in tl.static_range(N):
                new += (tl.exp2(step * a[n]) * state[n] + drive * b[n][:, None],)
            state = new
            filled += (load_forward_step(at, place, first, lane, inside, L),)
            place = advance(place, path)
        ring = filled


@triton.jit
def load_group(at, kept, g, place, path, first, lane, inside, L: tl.constexpr):
    """Returns the first state of a group, and what computing its states again takes: position, u,
    delta and B of each step, the last one first. Returns where the group before ends, too.
    """
    N: tl.constexpr = L.block_n
    GROUP: tl.constexpr = L.group
    WIDTH: tl.constexpr = L.width
    group_at = kept + g * ((N + 2 * GROUP) * WIDTH)
    start = ()
    for n in tl.static_range(N):
        start += (tl.load(group_at + n * WIDTH),)
    steps = ()
    for i in tl.static_range(GROUP):
        position = position_of(place, L)
        x = load_channel(at[0] + position * L.u_row, inside)
        delta = tl.load(group_at + (N + 2 * (GROUP - 1 - i)) * WIDTH)
        b = load_states(at, position, L.rank + first, lane, L)
        steps += ((position, x, delta, b),)
        place = retreat(place, path)
    return (start, steps), place


@triton.jit
def states_again(start, steps, a, L: tl.constexpr):
    """Returns the states before each step of a group, and after the last one, and each step's
    decays.
    """
    N: tl.constexpr = L.block_n
    GROUP: tl.constexpr = L.group
    states, decays = (start,), ()
    for i in tl.static_range(GROUP):
        _position, x, delta, b = steps[GROUP - 1 - i]
        drive = delta * x
        decay, new = (), ()
        for n in tl.static_range(N):
            decay += (tl.exp2(delta * a[n]),)
            new += (decay[n] * states[i][n] + drive * b[n][:, None],)
        states += (new,)
        decays += (decay,)
    return states, decays


@triton.jit
def adjoint_step(step, grad, c, before, after, decay, adjoint, sum_A, a, L: tl.constexpr):
    """Returns the adjoint before a step, and the gradients by u's drive, delta, B, C and A
    there.
    """
    N: tl.constexpr = L.block_n
    _position, x, delta, b = step
    drive = delta * x
    by_drive = tl.full(x.shape, 0.0, tl.float32)
    by_delta = tl.full(x.shape, 0.0, tl.float32)
    by_B, by_C, new, new_sum_A = (), (), (), ()
    for n in tl.static_range(N):
        adjoint_n = adjoint[n] + c[n][:, None] * grad
        by_C += (sum_thread(grad * after[n]),)
        by_B += (sum_thread(adjoint_n * drive),)
        by_drive += adjoint_n * b[n][:, None]
        adjoint_n *= decay[n]
        by_decay = adjoint_n * before[n]
        by_delta += by_decay * a[n]
        new_sum_A += (sum_A[n] + by_decay * delta,)
        new += (adjoint_n,)
    # a is A / log(2), for powers of two.
    return new, new_sum_A, by_drive, by_delta * 0.6931471805599453, by_B + by_C


@triton.jit
def scan_backward(
    u, u_limbs, delta, rows, weight, bias, A, D, paths, boundaries, grad_y, grad_last, ends, sums,
    grad_u, grad_delta, grad_rows, grad_weight, grad_bias, grad_A, grad_D, grad_initial, scratch,
    L: tl.constexpr,
):  # fmt: skip
    """Returns all gradients of a segment."""
    N: tl.constexpr = L.block_n
    GROUP: tl.constexpr = L.group
    RANK: tl.constexpr = L.rank
    WIDTH: tl.constexpr = L.width
    block, k, part, segment, batch = program_of(L)
    lane, channel, inside = lanes_and_channels(block, L)
    first = part * N
    w, raw_bias, a = weights_of(weight, bias, A, k, first, channel, inside, L)
    d = tl.full(channel.shape, 0.0, tl.float32)
    if L.skip:
        d = load_channel(D + k * L.channels + channel, inside) * tl.where(part == 0, 1.0, 0.0)
    at = inputs_of(u, u_limbs, delta, rows, paths, k, batch, first, channel, L)
    grad_at = gradient_at(grad_y, k, batch, channel, L)
    column = channel - block * WIDTH
    kept = scratch + tl.program_id(0).to(tl.int64) * (L.starts * (N + 2 * GROUP) * WIDTH) + column
    direction = batch * L.directions + k
    if L.cross:
        out_at = ((batch * L.parts + part) * L.directions + k) * (L.length * L.channels) + channel
    else:
        out_at = (batch * L.parts + part) * (L.length * L.u_row) + k * L.channels + channel
    # Rows of sums over channels: those by dt, one place for each part, then those by B and by C.
    sums_column, rank_column = tl.arange(0, L.sums_pad), tl.arange(0, L.rank_pad)
    SUMS: tl.constexpr = L.parts * L.rank + 2 * L.states
    sums_at = grad_rows + ((batch * (L.length * L.directions) + k) * L.blocks + block) * SUMS
    rank_at = sums_at + part * L.rank + rank_column
    sums_at += L.parts * L.rank + first + sums_column // N * L.states + sums_column % N

    begin = segment * L.segment
    end = tl.minimum(begin + L.segment, L.length)
    adjoint = enter_segment(
        grad_last, ends, sums, segment, k, part, batch, channel, inside, a, L, L.grad_last, True
    )
    sum_A, sum_w = zeros(channel, N), zeros(channel, RANK)
    sum_bias = tl.full(channel.shape, 0.0, tl.float32)
    sum_D = tl.full(channel.shape, 0.0, tl.float32)
    chunks = (end - begin + L.chunk - 1) // L.chunk
    for before in range(chunks):
        chunk = begin + (chunks - 1 - before) * L.chunk
        groups = (tl.minimum(chunk + L.chunk, end) - chunk + GROUP - 1) // GROUP
        boundary = ((direction * L.chunks + chunk // L.chunk) * L.states + first) * L.channels
        state = load_channels(boundaries + boundary + channel, inside, N, L.channels)
        place, path = path_at(paths, k, chunk)
        keep_starts(
            at, place, path, state, chunk, groups, w, raw_bias, a, kept, lane, first, inside, L
        )
        # Another thread may have written what a thread reads.
        tl.debug_barrier()
        place, path = path_at(paths, k, chunk + groups * GROUP - 1)
        ring, place = load_group(at, kept, groups - 1, place, path, first, lane, inside, L)
        for reversed_g in range(groups):
            g = groups - 1 - reversed_g
            # What the adjoint needs arrives while the states are computed again.
            later = ()
            for i in tl.static_range(GROUP):
                position = ring[1][i][0]
                c = load_states(at, position, L.rank + L.states + first, lane, L)
                grad = load_channel(grad_at + position * L.u_row, inside)
                slope_at = kept + (g * (N + 2 * GROUP) + N + 2 * (GROUP - 1 - i) + 1) * WIDTH
                _x, raw = load_steps(at, position, lane, inside, L)
                later += ((c, grad, tl.load(slope_at), raw),)
            start, steps = ring
            states, decays = states_again(start, steps, a, L)
            ring, place = load_group(
                at, kept, tl.maximum(g - 1, 0), place, path, first, lane, inside, L
            )
            for i in tl.static_range(GROUP):
                position, x, delta_i, _b = steps[i]
                c, grad, slope, raw = later[i]
                there = inside
                sums_there = sums_column < 2 * N
                rank_there = rank_column < RANK
                if not L.whole_groups:
                    # Triton's interpreter takes a comparison alone for an int32.
                    valid = tl.full((1,), True, tl.int1)
                    valid &= chunk + g * GROUP + GROUP - 1 - i < L.length
                    grad = tl.where(valid, grad, 0.0)
                    there, sums_there = there & valid, sums_there & valid
                    rank_there = rank_there & valid
                adjoint, sum_A, by_drive, by_delta, by_rows = adjoint_step(
                    steps[i], grad, c, states[GROUP - 1 - i], states[GROUP - i],
                    decays[GROUP - 1 - i], adjoint, sum_A, a, L,
                )  # fmt: skip
                row = position * (L.directions * L.blocks * SUMS)
                tl.store(sums_at + row, sum_lanes(by_rows, 2 * N, L.sums_pad), mask=sums_there)
                by_raw = (by_drive * x + by_delta) * slope
                sum_D += grad * x
                sum_bias += by_raw
                here = out_at + position * L.u_row
                tl.store(grad_u + here, by_drive * delta_i + d * grad, mask=there)
                if L.cross:
                    by_dt, new = (), ()
                    for r in tl.static_range(RANK):
                        by_dt += (sum_thread(by_raw * w[r]),)
                        new += (sum_w[r] + by_raw * raw[r][:, None],)
                    sum_w = new
                    tl.store(rank_at + row, sum_lanes(by_dt, RANK, L.rank_pad), mask=rank_there)
                else:
                    tl.store(grad_delta + here, by_raw, mask=there)
        tl.debug_barrier()
    by_segment = (batch * L.segments + segment) * L.parts + part
    by_channel = (by_segment * L.directions + k) * L.channels + channel
    store_channels(grad_weight + by_channel * RANK, sum_w, inside, RANK, 1)
    tl.store(grad_bias + by_channel, sum_bias, mask=inside)
    once = (batch * L.segments + segment) * L.directions + k
    store_channels(grad_A + (once * L.channels + channel) * L.states + first, sum_A, inside, N, 1)
    tl.store(grad_D + once * L.channels + channel, sum_D, mask=inside & (part == 0))
    if segment == 0:
        at_first = direction * (L.channels * L.states) + channel * L.states + first
        store_channels(grad_initial + at_first, adjoint, inside, N, 1)

"""Loads, sums over channels and softplus, as the Triton kernels of both passes use them.

Channels are two-dimensional, (LANES, PER): a thread's PER channels are contiguous, and what depends
on the position alone (rows of dt, B and C) is loaded once for all of them, as vectors over the
lanes. `L` is a `Layout`, whose letters the shapes use.

The modules of kernels import nothing else of the package: their source is loaded a second time for
the interpreter.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def load_row(pointer, lane, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """Returns COUNT contiguous numbers, each as a vector over the lanes; WIDTH of them a load."""
    row = ()
    for start in tl.static_range(0, COUNT, WIDTH):
        if WIDTH == 1:
            row += (tl.load(pointer + start + lane * 0).to(tl.float32),)
        else:
            column = tl.arange(0, WIDTH)[None, :]
            block = tl.load(pointer + start + lane[:, None] * 0 + column).to(tl.float32)
            if WIDTH == 2:
                first, second = tl.split(block)
                row += (first, second)
            else:
                even, odd = tl.split(tl.reshape(block, (block.shape[0], 2, 2)))
                first, third = tl.split(even)
                second, fourth = tl.split(odd)
                row += (first, second, third, fourth)
    return row


@triton.jit
def load_channel(pointer, inside):
    """Returns a vector over the channels, zero where `inside` is false."""
    return tl.load(pointer, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_channels(pointer, inside, COUNT: tl.constexpr, STRIDE: tl.constexpr):
    """Returns COUNT vectors over the channels, STRIDE apart."""
    vectors = ()
    for n in tl.static_range(COUNT):
        vectors += (load_channel(pointer + n * STRIDE, inside),)
    return vectors


@triton.jit
def store_channels(pointer, vectors, inside, COUNT: tl.constexpr, STRIDE: tl.constexpr):
    """Stores COUNT vectors over the channels, STRIDE apart."""
    for n in tl.static_range(COUNT):
        tl.store(pointer + n * STRIDE, vectors[n], mask=inside)


@triton.jit
def zeros(channel, COUNT: tl.constexpr):
    """Returns COUNT vectors of zeros over the channels."""
    vectors = ()
    for _ in tl.static_range(COUNT):
        vectors += (tl.full(channel.shape, 0.0, tl.float32),)
    return vectors


@triton.jit
def sum_thread(x):
    """Returns the sums over each thread's channels, a vector over the lanes."""
    return tl.reduce(x, 1, tl.standard._sum_combine)


@triton.jit
def sum_lanes(vectors, COUNT: tl.constexpr, PADDED: tl.constexpr):
    """Returns the sums of COUNT vectors over the lanes as one vector of PADDED numbers.

    A sum over lanes takes five shuffles and five additions for every number. Adding the halves of
    the lanes after a `split`, whose operands lie in one thread, makes the compiler turn the matrix
    of lanes and numbers around in shared memory, so that a thread adds up the lanes of one number.
    """
    parts = ()
    for n in tl.static_range(PADDED):
        # Past the end any vector will do: the sum is not stored.
        parts += (vectors[n if n < COUNT else 0],)
    # Joining x[i] with x[i + half] puts the highest bit of the index first.
    if PADDED >= 64:
        parts = join_halves(parts, 64)
    if PADDED >= 32:
        parts = join_halves(parts, 32)
    if PADDED >= 16:
        parts = join_halves(parts, 16)
    if PADDED >= 8:
        parts = join_halves(parts, 8)
    if PADDED >= 4:
        parts = join_halves(parts, 4)
    if PADDED >= 2:
        parts = join_halves(parts, 2)
    LANES: tl.constexpr = parts[0].shape[0]
    joined = tl.reshape(parts[0], (LANES, PADDED))
    if LANES > 1:
        halves = tl.permute(tl.reshape(joined, (2, LANES // 2, PADDED)), (1, 2, 0))
        first, second = tl.split(halves)
        joined = first + second
    return tl.reduce(joined, 0, tl.standard._sum_combine)


@triton.jit
def join_halves(parts, COUNT: tl.constexpr):
    """Joins the first half of COUNT vectors with the second, pair by pair."""
    joined = ()
    for n in tl.static_range(COUNT // 2):
        joined += (tl.join(parts[n], parts[n + COUNT // 2]),)
    return joined


@triton.jit
def softplus(x):
    """Returns y = log(1 + exp(x)) and its derivative, exp(x - y).

    log1p(e) / e for e in [0, 1] is a polynomial with a relative error of 3e-8: the approximate
    logarithm of the hardware has an absolute error, too large for the small steps.
    """
    e = tl.exp2(-tl.abs(x) * LOG2E)
    p = e * 0.00523269151 - 0.0295052277
    p = p * e + 0.0782259338
    p = p * e - 0.136632443
    p = p * e + 0.19106006
    p = p * e - 0.24842982
    p = p * e + 0.333190968
    p = p * e - 0.499994931
    p = p * e + 1.0
    y = p * e + tl.maximum(x, 0.0)
    return y, tl.exp2((x - y) * LOG2E)


@triton.jit
def program_of(L: tl.constexpr):
    """Returns which block of channels, direction, part of the states, segment and batch element it
    has.
    """
    index = tl.program_id(0)
    block = index % L.blocks
    index = index // L.blocks
    k = index % L.directions
    index = index // L.directions
    part = index % L.parts
    index = index // L.parts
    return block, k, part, index % L.segments, (index // L.segments).to(tl.int64)


@triton.jit
def lanes_and_channels(block, L: tl.constexpr):
    """Returns the lanes, the channels of a program, and which of them there are."""
    lane = tl.arange(0, L.lanes)
    channel = block * L.width + lane[:, None] * L.per_thread + tl.arange(0, L.per_thread)[None, :]
    inside = tl.full(channel.shape, True, tl.int1)
    if not L.whole_blocks:
        # Triton's interpreter takes a comparison alone for an int32.
        inside &= channel < L.channels
    return lane, channel, inside


@triton.jit
def path_at(paths, k, t):
    """Returns where direction k is at step t, (step of the inner axis, position), and how it goes
    on.
    """
    start, stride = tl.load(paths + k * 5), tl.load(paths + k * 5 + 1)
    inner, jump = tl.load(paths + k * 5 + 2), tl.load(paths + k * 5 + 3)
    outer_stride = jump + (inner - 1) * stride
    step = t % inner
    return (step, start + step * stride + t // inner * outer_stride), (inner, stride, jump)


@triton.jit
def advance(place, path):
    """Returns the next step along the inner axis, or the first one of the next turn, and its
    position.
    """
    wraps = place[0] == path[0] - 1
    step = tl.where(wraps, 0, place[0] + 1)
    return (step, place[1] + tl.where(wraps, path[2], path[1]))


@triton.jit
def retreat(place, path):
    """Returns the step before and its position."""
    wraps = place[0] == 0
    step = tl.where(wraps, path[0], place[0]) - 1
    return (step, place[1] - tl.where(wraps, path[2], path[1]))


@triton.jit
def inputs_of(u, u_limbs, delta, rows, paths, k, batch, first, channel, L: tl.constexpr):
    """Pointers to the first position's u, step sizes and row of dt, B and C of a program."""
    u_at = batch * (L.length * L.u_row) + channel
    rows_at = rows + (batch * (L.length * L.directions) + k) * L.row
    if L.cross:
        limbs = tl.load(paths + k * 5 + 4)
        u_at = tl.where(limbs > 0, u_limbs, u) + u_at
        delta_at = u_at
    else:
        delta_at = delta + u_at + k * L.channels
        u_at = u + u_at + k * L.channels
    return u_at, delta_at, rows_at


@triton.jit
def position_of(place, L: tl.constexpr):
    """Returns the position, or the last one for steps past the end of the path: loads run ahead of
    it.
    """
    return tl.minimum(place[1].to(tl.uint32), L.length - 1)


@triton.jit
def load_steps(at, position, lane, inside, L: tl.constexpr):
    """Returns u and what the step size is made of: the row of dt, or the raw step size itself."""
    u_at, delta_at, rows_at = at
    x = load_channel(u_at + position * L.u_row, inside)
    if L.cross:
        RANK: tl.constexpr = L.rank
        row = rows_at + position * (L.directions * L.row)
        raw = load_row(row, lane, RANK, L.rank_width)
    else:
        raw = (load_channel(delta_at + position * L.u_row, inside),)
    return x, raw


@triton.jit
def load_states(at, position, offset, lane, L: tl.constexpr):
    """Returns the program's states of a row of B or C, which starts at `offset` of dt, B and C."""
    N: tl.constexpr = L.block_n
    row = at[2] + position * (L.directions * L.row) + offset
    return load_row(row, lane, N, L.state_width)


@triton.jit
def weights_of(weight, bias, A, k, first, channel, inside, L: tl.constexpr):
    """Loads for the program's channels: step projection, bias and decay rates by powers of two."""
    N: tl.constexpr = L.block_n
    RANK: tl.constexpr = L.rank
    here = k * L.channels + channel
    w = load_channels(weight + here * RANK, inside, RANK, 1)
    if L.bias:
        raw_bias = load_channel(bias + here, inside)
    else:
        raw_bias = tl.full(channel.shape, 0.0, tl.float32)
    rates = load_channels(A + here * L.states + first, inside, N, 1)
    a = ()
    for n in tl.static_range(N):
        a += (rates[n] * LOG2E,)
    return w, raw_bias, a


@triton.jit
def step_size(raw, w, raw_bias, L: tl.constexpr):
    """Returns delta and its derivative by the raw step size, from what `load_steps` gives."""
    RANK: tl.constexpr = L.rank
    if L.cross:
        # Two chains, since each addition waits for the one before.
        total = raw_bias + raw[0][:, None] * w[0]
        if RANK > 1:
            other = raw[1][:, None] * w[1]
            for r in tl.static_range(2, RANK):
                if r % 2 == 0:
                    total += raw[r][:, None] * w[r]
                else:
                    other += raw[r][:, None] * w[r]
            total += other
    else:
        total = raw[0] + raw_bias
    if L.softplus:
        delta, slope = softplus(total)
    else:
        delta, slope = total, tl.full(total.shape, 1.0, tl.float32)
    return delta, slope

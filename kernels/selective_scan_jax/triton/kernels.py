"""The scan as Triton kernels: one forward and one backward serve both operators.

A program takes a block of channels through the whole length. A thread keeps the states of its
channels in registers, one vector over the channels per state, so that the sum over states needs no
exchange between threads; the tuples of vectors are grown in `tl.static_range` and carried by the
loop over time. Channels are two-dimensional, (LANES, PER): a thread's PER channels are contiguous,
and what depends on the position alone (rows of B, C and dt) is loaded once for all of them, as
vectors over the lanes.

The grid is (blocks of channels, slots * parts, batch). A slot is a list of DEPTH directions (or
groups of channels) walked one after the other; a part is BLOCK_N of the STATES. Programs of
different slots and parts write to different places, to be added up in a fixed order.

Shapes, with b batch, l positions, k directions, e channels of each, n states, r rank:

    cross scan      u (b, l, e), steps (b, l, k, r), weight (k, e, r), y (parts, slots, b, l, e)
    selective scan  u (b, l, k, e), steps (b, l, k, e), no weight,     y (parts, b, l, k, e)
    both            B, C (b, l, k, n); bias, D (k, e); A (k, e, n); initial (b, k, e, n)

Arguments that are absent are any array; the HAS_... flags keep the kernels from reading them.

`paths` (slots * DEPTH, 6) holds per direction its index, the first position of its path, the
stride and the length of its inner axis, the stride from the end of one inner axis to the start of
the next, and whether it takes the limb term; `walk` (joints,) how far the joint that is added to a
joint lies from it.

This module imports nothing of the package: its source is loaded a second time for the interpreter.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def load_row(pointer, lane, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """COUNT contiguous numbers, each as a vector over the lanes; WIDTH of them a load."""
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
def load_channels(pointer, inside, COUNT: tl.constexpr, STRIDE: tl.constexpr):
    """COUNT vectors over the channels, STRIDE apart, zero where `inside` is false."""
    vectors = ()
    for n in tl.static_range(COUNT):
        if inside is None:
            vector = tl.load(pointer + n * STRIDE)
        else:
            vector = tl.load(pointer + n * STRIDE, mask=inside, other=0.0)
        vectors += (vector.to(tl.float32),)
    return vectors


@triton.jit
def store_channels(pointer, vectors, inside, COUNT: tl.constexpr, STRIDE: tl.constexpr):
    for n in tl.static_range(COUNT):
        tl.store(pointer + n * STRIDE, vectors[n], mask=inside)


@triton.jit
def zeros(channel, COUNT: tl.constexpr):
    vectors = ()
    for _ in tl.static_range(COUNT):
        vectors += (tl.full(channel.shape, 0.0, tl.float32),)
    return vectors


@triton.jit
def sum_thread(x):
    """The sums over each thread's channels, a vector over the lanes."""
    return tl.reduce(x, 1, tl.standard._sum_combine)


@triton.jit
def sum_lanes(vectors, COUNT: tl.constexpr, PADDED: tl.constexpr):
    """The sums of COUNT vectors over the lanes as one vector of PADDED numbers.

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
    joined = ()
    for n in tl.static_range(COUNT // 2):
        joined += (tl.join(parts[n], parts[n + COUNT // 2]),)
    return joined


@triton.jit
def softplus(x):
    """y = log(1 + exp(x)) and its derivative, exp(x - y).

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
def load_inputs(
    u, steps, walk, weight, bias, lane, channel, inside, takes_limbs, position,
    CHANNELS: tl.constexpr, DIRECTIONS: tl.constexpr, RANK: tl.constexpr, CROSS: tl.constexpr,
    HAS_LIMBS: tl.constexpr, JOINTS: tl.constexpr, SOFTPLUS: tl.constexpr,
    RANK_WIDTH: tl.constexpr,
):  # fmt: skip
    """u, delta, its derivative by the raw step size, and the row of dt at a position."""
    if CROSS:
        x = tl.load(u + position * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
        if HAS_LIMBS:
            other = position + tl.load(walk + position % JOINTS)
            added = tl.load(u + other * CHANNELS + channel, mask=takes_limbs, other=0.0)
            x += added.to(tl.float32)
        dt = load_row(steps + position * (DIRECTIONS * RANK), lane, RANK, RANK_WIDTH)
        raw = bias
        for r in tl.static_range(RANK):
            raw += dt[r][:, None] * weight[r]
    else:
        row = position * (DIRECTIONS * CHANNELS)
        x = tl.load(u + row + channel, mask=inside, other=0.0).to(tl.float32)
        dt = ()
        raw = tl.load(steps + row + channel, mask=inside, other=0.0)
        raw = raw.to(tl.float32) + bias
    if SOFTPLUS:
        delta, slope = softplus(raw)
    else:
        delta, slope = raw, tl.full(raw.shape, 1.0, tl.float32)
    return x, delta, slope, dt


@triton.jit
def part_and_slot(SLOTS: tl.constexpr, ONE_PART: tl.constexpr):
    """Which of the STATES and which of the slots a program has."""
    index = tl.program_id(1)
    if ONE_PART:
        # Without a division the compiler sees that the addresses are the same for all threads.
        part, slot = index * 0, index
    else:
        part, slot = index // SLOTS, index % SLOTS
    return part, slot


@triton.jit
def advance(step, position, inner, stride, jump):
    """The next step along the inner axis, or the first one of the next turn, and its position."""
    wraps = step == inner - 1
    return tl.where(wraps, 0, step + 1), position + tl.where(wraps, jump, stride)


@triton.jit
def retreat(step, position, inner, stride, jump):
    """The step before and its position."""
    wraps = step == 0
    return tl.where(wraps, inner, step) - 1, position - tl.where(wraps, jump, stride)


@triton.jit
def scan_forward(
    u, steps, B, C, weight, bias, A, D, initial, paths, walk,
    y, last, boundaries,
    LENGTH: tl.constexpr, CHANNELS: tl.constexpr, DIRECTIONS: tl.constexpr, STATES: tl.constexpr,
    RANK: tl.constexpr, JOINTS: tl.constexpr, CROSS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_INITIAL: tl.constexpr,
    HAS_LIMBS: tl.constexpr, SAVE: tl.constexpr, SLOTS: tl.constexpr, DEPTH: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, LANES: tl.constexpr, PER: tl.constexpr,
    STATE_WIDTH: tl.constexpr, RANK_WIDTH: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """y, the last states and, if SAVE, the states before every chunk, (b, k, chunks, n, e)."""
    part, slot = part_and_slot(SLOTS, BLOCK_N == STATES)
    batch, batches = tl.program_id(2), tl.num_programs(2)
    lane = tl.arange(0, LANES)
    channel = tl.program_id(0) * (LANES * PER) + lane[:, None] * PER + tl.arange(0, PER)[None, :]
    inside = channel < CHANNELS
    first_part = channel < tl.where(part == 0, CHANNELS, 0)
    CHUNKS: tl.constexpr = (LENGTH + CHUNK - 1) // CHUNK
    first = part * BLOCK_N
    rows = batch.to(tl.int64) * LENGTH
    for turn in range(DEPTH):
        again = channel < tl.where(turn > 0, CHANNELS, 0)
        path = paths + (slot * DEPTH + turn) * 6
        k, position, stride = slot, tl.load(path + 1), tl.load(path + 2)
        inner, jump, limbs = tl.load(path + 3), tl.load(path + 4), tl.load(path + 5)
        if DEPTH > 1:
            k = tl.load(path)
        row = k * CHANNELS
        takes_limbs = channel < CHANNELS * limbs
        state_at = (batch.to(tl.int64) * DIRECTIONS + k) * (CHANNELS * STATES) + first
        if CROSS:
            u_at = u + rows * CHANNELS
            steps_at = steps + (rows * DIRECTIONS + k) * RANK
            y_at = y + ((part * SLOTS + slot) * batches + batch).to(tl.int64) * (LENGTH * CHANNELS)
            Y_ROW: tl.constexpr = CHANNELS
        else:
            u_at = u + rows * (DIRECTIONS * CHANNELS) + k * CHANNELS
            steps_at = steps + rows * (DIRECTIONS * CHANNELS) + k * CHANNELS
            y_at = y + (part * batches + batch).to(tl.int64) * (LENGTH * DIRECTIONS * CHANNELS)
            y_at += k * CHANNELS
            Y_ROW: tl.constexpr = DIRECTIONS * CHANNELS
        B_at = B + (rows * DIRECTIONS + k) * STATES + first
        C_at = C + (rows * DIRECTIONS + k) * STATES + first
        w = load_channels(weight + row * RANK + channel * RANK, inside, RANK, 1)
        d = tl.full(channel.shape, 0.0, tl.float32)
        raw_bias = d
        if HAS_D:
            d = tl.load(D + row + channel, mask=first_part, other=0.0).to(tl.float32)
        if HAS_BIAS:
            raw_bias = tl.load(bias + row + channel, mask=inside, other=0.0).to(tl.float32)
        a = ()
        A_at = A + row * STATES + first
        A_row = load_channels(A_at + channel * STATES, inside, BLOCK_N, 1)
        for n in tl.static_range(BLOCK_N):
            a += (A_row[n] * LOG2E,)
        if HAS_INITIAL:
            state = load_channels(initial + state_at + channel * STATES, inside, BLOCK_N, 1)
        else:
            state = zeros(channel, BLOCK_N)
        step = 0
        for chunk in range(CHUNKS):
            if SAVE:
                at = ((batch.to(tl.int64) * DIRECTIONS + k) * CHUNKS + chunk) * STATES + first
                at = boundaries + at * CHANNELS + channel
                store_channels(at, state, inside, BLOCK_N, CHANNELS)
            for _ in tl.range(
                chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, LENGTH), loop_unroll_factor=UNROLL
            ):
                x, delta, _slope, _dt = load_inputs(
                    u_at, steps_at, walk, w, raw_bias, lane, channel, inside, takes_limbs, position,
                    CHANNELS, DIRECTIONS, RANK, CROSS, HAS_LIMBS, JOINTS, SOFTPLUS, RANK_WIDTH,
                )  # fmt: skip
                b = load_row(B_at + position * (DIRECTIONS * STATES), lane, BLOCK_N, STATE_WIDTH)
                c = load_row(C_at + position * (DIRECTIONS * STATES), lane, BLOCK_N, STATE_WIDTH)
                drive = delta * x
                out = d * x
                new = ()
                for n in tl.static_range(BLOCK_N):
                    new_n = tl.exp2(delta * a[n]) * state[n] + drive * b[n][:, None]
                    out += c[n][:, None] * new_n
                    new += (new_n,)
                state = new
                at = y_at + position * Y_ROW + channel
                if DEPTH > 1:
                    out += tl.load(at, mask=again, other=0.0)
                tl.store(at, out, mask=inside)
                step, position = advance(step, position, inner, stride, jump)
        store_channels(last + state_at + channel * STATES, state, inside, BLOCK_N, 1)
        if DEPTH > 1:
            # The next direction reads what other threads may have written.
            tl.debug_barrier()


@triton.jit
def scan_backward(
    u, steps, B, C, weight, bias, A, D, paths, walk, boundaries, grad_y, grad_last,
    grad_u, grad_steps, grad_C_B, grad_weight, grad_bias, grad_A, grad_D, grad_initial,
    states,
    LENGTH: tl.constexpr, CHANNELS: tl.constexpr, DIRECTIONS: tl.constexpr, STATES: tl.constexpr,
    RANK: tl.constexpr, JOINTS: tl.constexpr, CROSS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_GRAD_LAST: tl.constexpr,
    HAS_LIMBS: tl.constexpr, SLOTS: tl.constexpr, DEPTH: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, LANES: tl.constexpr, PER: tl.constexpr,
    STATE_WIDTH: tl.constexpr, RANK_WIDTH: tl.constexpr, SUMS_PAD: tl.constexpr,
    RANK_PAD: tl.constexpr,
):  # fmt: skip
    """The gradients, from the last chunk to the first.

    A chunk's states are computed again from its boundary and kept, with u, delta and delta's
    derivative, in `states`, a piece of memory of the program's own (chunk, 3 + n, channels); then
    the adjoint recurrence runs backwards over them. Sums over the channels of a program go to a
    place of its own, blocks c of channels and p parts of the states:

        grad_u, grad_steps of a selective scan   like y
        grad_steps of a cross scan               (b, l, k, p, c, r)
        grad_C_B, of C and of B                  (b, l, k, c, 2, n)
        grad_weight (p, b, k, e, r), grad_bias (p, b, k, e), grad_D (b, k, e)
        grad_A, grad_initial (b, k, e, n)
    """
    block, blocks = tl.program_id(0), tl.num_programs(0)
    part, slot = part_and_slot(SLOTS, BLOCK_N == STATES)
    batch, batches = tl.program_id(2), tl.num_programs(2)
    lane = tl.arange(0, LANES)
    column = lane[:, None] * PER + tl.arange(0, PER)[None, :]
    channel = block * (LANES * PER) + column
    inside = channel < CHANNELS
    first_part = channel < tl.where(part == 0, CHANNELS, 0)
    sums_column, rank_column = tl.arange(0, SUMS_PAD), tl.arange(0, RANK_PAD)
    CHUNKS: tl.constexpr = (LENGTH + CHUNK - 1) // CHUNK
    PARTS: tl.constexpr = STATES // BLOCK_N
    WIDTH: tl.constexpr = LANES * PER
    KEPT: tl.constexpr = 3 + BLOCK_N
    first = part * BLOCK_N
    rows = batch.to(tl.int64) * LENGTH
    program = (batch * tl.num_programs(1) + tl.program_id(1)) * blocks + block
    states_at = states + program.to(tl.int64) * (CHUNK * KEPT * WIDTH)
    for turn in range(DEPTH):
        again = channel < tl.where(turn > 0, CHANNELS, 0)
        path = paths + (slot * DEPTH + turn) * 6
        k, start, stride = slot, tl.load(path + 1), tl.load(path + 2)
        inner, jump, limbs = tl.load(path + 3), tl.load(path + 4), tl.load(path + 5)
        outer_stride = jump + (inner - 1) * stride
        if DEPTH > 1:
            k = tl.load(path)
        row = k * CHANNELS
        takes_limbs = channel < CHANNELS * limbs
        batch_row = batch.to(tl.int64) * DIRECTIONS + k
        state_at = batch_row * (CHANNELS * STATES) + first
        if CROSS:
            u_at = u + rows * CHANNELS
            steps_at = steps + (rows * DIRECTIONS + k) * RANK
            grad_y_at = grad_y + rows * CHANNELS
            out_at = ((part * SLOTS + slot) * batches + batch).to(tl.int64) * (LENGTH * CHANNELS)
            OUT_ROW: tl.constexpr = CHANNELS
        else:
            u_at = u + rows * (DIRECTIONS * CHANNELS) + k * CHANNELS
            steps_at = steps + rows * (DIRECTIONS * CHANNELS) + k * CHANNELS
            grad_y_at = grad_y + rows * (DIRECTIONS * CHANNELS) + k * CHANNELS
            out_at = (part * batches + batch).to(tl.int64) * (LENGTH * DIRECTIONS * CHANNELS)
            out_at += k * CHANNELS
            OUT_ROW: tl.constexpr = DIRECTIONS * CHANNELS
        B_at = B + (rows * DIRECTIONS + k) * STATES + first
        C_at = C + (rows * DIRECTIONS + k) * STATES + first
        sums_at = ((rows * DIRECTIONS + k) * blocks + block) * (2 * STATES) + first
        sums_at += sums_column // BLOCK_N * STATES + sums_column % BLOCK_N
        SUMS_ROW = DIRECTIONS * 2 * STATES * blocks
        dt_at = (((rows * DIRECTIONS + k) * PARTS + part) * blocks + block) * RANK
        DT_STEP: tl.constexpr = DIRECTIONS * RANK
        DT_ROW = DIRECTIONS * PARTS * RANK * blocks
        w = load_channels(weight + row * RANK + channel * RANK, inside, RANK, 1)
        d = tl.full(channel.shape, 0.0, tl.float32)
        raw_bias = d
        if HAS_D:
            d = tl.load(D + row + channel, mask=first_part, other=0.0).to(tl.float32)
        if HAS_BIAS:
            raw_bias = tl.load(bias + row + channel, mask=inside, other=0.0).to(tl.float32)
        A_at = A + row * STATES + first
        A_row = load_channels(A_at + channel * STATES, inside, BLOCK_N, 1)
        a = ()
        for n in tl.static_range(BLOCK_N):
            a += (A_row[n] * LOG2E,)
        if HAS_GRAD_LAST:
            adjoint = load_channels(grad_last + state_at + channel * STATES, inside, BLOCK_N, 1)
        else:
            adjoint = zeros(channel, BLOCK_N)
        sum_A, sum_w = zeros(channel, BLOCK_N), zeros(channel, RANK)
        sum_bias, sum_D, grad = raw_bias * 0.0, raw_bias * 0.0, raw_bias * 0.0
        for reversed_chunk in range(CHUNKS):
            chunk = CHUNKS - 1 - reversed_chunk
            count = tl.minimum(LENGTH - chunk * CHUNK, CHUNK)
            step = (chunk * CHUNK) % inner
            position = start + step * stride + (chunk * CHUNK) // inner * outer_stride
            boundary = ((batch_row * CHUNKS + chunk) * STATES + first) * CHANNELS
            state = load_channels(boundaries + boundary + channel, inside, BLOCK_N, CHANNELS)
            for t in range(count):
                x, delta, slope, _dt = load_inputs(
                    u_at, steps_at, walk, w, raw_bias, lane, channel, inside, takes_limbs, position,
                    CHANNELS, DIRECTIONS, RANK, CROSS, HAS_LIMBS, JOINTS, SOFTPLUS, RANK_WIDTH,
                )  # fmt: skip
                b = load_row(B_at + position * (DIRECTIONS * STATES), lane, BLOCK_N, STATE_WIDTH)
                kept = states_at + t * (KEPT * WIDTH) + column
                store_channels(kept, (x, delta, slope) + state, None, KEPT, WIDTH)
                drive = delta * x
                new = ()
                for n in tl.static_range(BLOCK_N):
                    new += (tl.exp2(delta * a[n]) * state[n] + drive * b[n][:, None],)
                state = new
                step, position = advance(step, position, inner, stride, jump)
            tl.debug_barrier()
            step, position = retreat(step, position, inner, stride, jump)
            if reversed_chunk == 0:
                # The gradient by C at a step needs the state after it, which is the one before the
                # next step: it is taken there, and here for the last step.
                grad = tl.load(grad_y_at + position * OUT_ROW + channel, mask=inside, other=0.0)
                grad = grad.to(tl.float32)
                by_C = ()
                for n in tl.static_range(BLOCK_N):
                    by_C += (sum_thread(grad * state[n]),)
                sums = sum_lanes(by_C, BLOCK_N, SUMS_PAD)
                sums_row = grad_C_B + sums_at + position * SUMS_ROW
                tl.store(sums_row, sums, mask=sums_column < BLOCK_N)
            for reversed_t in range(count):
                kept = states_at + (count - 1 - reversed_t) * (KEPT * WIDTH) + column
                x, delta, slope = tl.load(kept), tl.load(kept + WIDTH), tl.load(kept + 2 * WIDTH)
                b_at = B_at + position * (DIRECTIONS * STATES)
                c_at = C_at + position * (DIRECTIONS * STATES)
                t = chunk * CHUNK + count - 1 - reversed_t
                step, next_position = retreat(step, position, inner, stride, jump)
                next_position = tl.where(t > 0, next_position, position)
                next_grad = grad_y_at + next_position * OUT_ROW + channel
                next_grad = tl.load(next_grad, mask=inside, other=0.0).to(tl.float32)
                drive = delta * x
                by_drive, by_delta = raw_bias * 0.0, raw_bias * 0.0
                by_B, by_C, new, new_sum_A = (), (), (), ()
                for n in tl.static_range(BLOCK_N):
                    if n % STATE_WIDTH == 0:
                        b = load_row(b_at + n, lane, STATE_WIDTH, STATE_WIDTH)
                        c = load_row(c_at + n, lane, STATE_WIDTH, STATE_WIDTH)
                    before = tl.load(kept + (3 + n) * WIDTH)
                    adjoint_n = adjoint[n] + c[n % STATE_WIDTH][:, None] * grad
                    by_C += (sum_thread(next_grad * before),)
                    by_B += (sum_thread(adjoint_n * drive),)
                    by_drive += adjoint_n * b[n % STATE_WIDTH][:, None]
                    adjoint_n *= tl.exp2(delta * a[n])
                    by_decay = adjoint_n * before
                    by_delta += by_decay * a[n]
                    new_sum_A += (sum_A[n] + by_decay * delta,)
                    new += (adjoint_n,)
                adjoint, sum_A = new, new_sum_A
                sums = sum_lanes(by_C + by_B, 2 * BLOCK_N, SUMS_PAD)
                sums_row = tl.where(sums_column < BLOCK_N, next_position, position) * SUMS_ROW
                # There is nothing before the first step.
                skipped = tl.where(t > 0, 0, BLOCK_N)
                wanted = (sums_column >= skipped) & (sums_column < 2 * BLOCK_N)
                tl.store(grad_C_B + sums_at + sums_row, sums, mask=wanted)
                # a is A / log(2), for powers of two.
                by_raw = (by_drive * x + by_delta * 0.6931471805599453) * slope
                out = by_drive * delta + d * grad
                sum_D += grad * x
                sum_bias += by_raw
                out_row = out_at + position * OUT_ROW
                if DEPTH > 1:
                    out += tl.load(grad_u + out_row + channel, mask=again, other=0.0)
                tl.store(grad_u + out_row + channel, out, mask=inside)
                if CROSS:
                    dt = load_row(steps_at + position * DT_STEP, lane, RANK, RANK_WIDTH)
                    by_dt, new = (), ()
                    for r in tl.static_range(RANK):
                        by_dt += (sum_thread(by_raw * w[r]),)
                        new += (sum_w[r] + by_raw * dt[r][:, None],)
                    sum_w = new
                    dt_row = grad_steps + dt_at + position * DT_ROW + rank_column
                    tl.store(dt_row, sum_lanes(by_dt, RANK, RANK_PAD), mask=rank_column < RANK)
                else:
                    tl.store(grad_steps + out_row + channel, by_raw, mask=inside)
                position, grad = next_position, next_grad
            tl.debug_barrier()
        store_channels(grad_A + state_at + channel * STATES, sum_A, inside, BLOCK_N, 1)
        initial_at = grad_initial + state_at + channel * STATES
        store_channels(initial_at, adjoint, inside, BLOCK_N, 1)
        tl.store(grad_D + batch_row * CHANNELS + channel, sum_D, mask=first_part)
        part_row = ((part * batches + batch).to(tl.int64) * DIRECTIONS + k) * CHANNELS
        store_channels(grad_weight + part_row * RANK + channel * RANK, sum_w, inside, RANK, 1)
        tl.store(grad_bias + part_row + channel, sum_bias, mask=inside)

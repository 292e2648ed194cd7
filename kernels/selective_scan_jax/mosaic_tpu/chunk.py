"""What the forward and the backward TPU kernel do alike with one chunk.

A kernel gets its references in a `Refs`, absent ones as None. Scratch arrays of rows are
(lane groups, rows, 128): a single row of such an array can be loaded into all sublanes of a
register at once, which is what a step needs of delta and of the drive delta * u.
"""

from __future__ import annotations

import math
import types

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_scan_jax.mosaic_tpu.plan import LANES, SUBLANES, Plan, divide

# exp(x) = exp2(x / ln 2): A is divided once, the hardware has exp2.
LN2 = 0.6931471805599453

# Steps whose B and C are spread over the lanes by one matrix product, at most.
MOST_SPREAD_STEPS = 68

# bfloat16 parts that a float32 is the sum of.
_PARTS = 3

# The compiler's own limit on what a kernel may hold in VMEM, raised for kernels that hold more;
# inputs and outputs are held twice, to be copied while the kernel works.
_LEAST_VMEM_LIMIT = 16 * 2**20
_MOST_BLOCKS_OF_ROWS = 8


class Refs(types.SimpleNamespace):
    """The references of a kernel by name; those that were not passed are None."""

    def __getattr__(self, name):
        return None


def lanes(g: int) -> slice:
    return slice(LANES * g, LANES * (g + 1))


def channel_lanes(plan: Plan, e, g: int):
    """Returns lane group g of channel block e in an array of all channels."""
    return pl.ds(pl.multiple_of(e * plan.channel_block + LANES * g, LANES), LANES)


def shared_scratch(plan: Plan) -> dict:
    rows = pltpu.VMEM((plan.lane_groups, plan.rows, LANES), jnp.float32)
    coefficients = pltpu.VMEM((plan.rows, plan.states, LANES), jnp.float32)
    return {
        "u": rows,
        "delta": rows,
        "drive": rows,
        "B": coefficients,
        "C": coefficients,
        "parts": pltpu.VMEM(
            (2 * plan.states // plan.coefficients_at_once, plan.rows, LANES), jnp.float32
        ),
    }


def walk(plan: Plan, refs: Refs, step, carry, *, put=None, backwards: bool = False):
    """Runs carry, x = step(row, carry) for each step of a chunk, in order.

    Args:
      put: put(places, xs) is called with every step's x (2 * states, 128), several steps at a time.
        It may take longer than a step, so it gets those of one iteration of the loop in the next.
    """
    last = plan.iterations - 1

    def put_those_left(i):
        places = plan.places(i, backwards=backwards)
        put(places, [refs.left[k] for k in range(len(places))])

    if put is not None:
        refs.left[...] = jnp.zeros(refs.left.shape, jnp.float32)

    def iteration(i, carry):
        if put is not None:
            # In the first iteration zeros, which the second one replaces.
            put_those_left(jnp.maximum(i - 1, 0))
        for k, (line, frame) in enumerate(plan.places(i, backwards=backwards)):
            carry, x = step(line * plan.frame_block + frame, carry)
            if put is not None:
                refs.left[k] = x
        return carry

    carry = lax.fori_loop(0, last + 1, iteration, carry)
    if put is not None:
        put_those_left(jnp.int32(last))
    return carry


def prepare_chunk(plan: Plan, refs: Refs, e, *, softplus: bool, limb_walk, valid, slope=None):
    """Computes what the steps of a chunk read: u, delta and drive by rows, B and C spread over the
    lanes, and the derivative of delta into `slope`.

    Args:
      e: the channel block, which says whose B and C they are. The first block of a group spreads
        them for all.
    """
    size = plan.coefficients_at_once
    first = 2 * plan.states * (plan.direction + plan.group_of(e))
    sets = [divide(first + n, LANES) for n in range(0, 2 * plan.states, size)]
    for_group = (lambda f: f()) if plan.blocks_per_group == 1 else pl.when(plan.first_of_group(e))
    projected = None if refs.weight is None else project(plan, refs)

    @for_group
    def _():
        for k, (register, lane) in enumerate(sets):
            refs.parts[k] = _cut_coefficients(plan, refs, register, lane, valid)

    # Between the two, where arithmetic hides the moves of lanes.
    _prepare_rows(plan, refs, projected, softplus, limb_walk, valid, slope)

    @for_group
    def _():
        for k, (_, lane) in enumerate(sets):
            _spread_coefficients(plan, refs, k, lane)


def _spread_coefficients(plan: Plan, refs: Refs, k: int, origin):
    """Spreads the k-th set of every step's coefficients, each over the lanes of its own sublane.

    Moving coefficients from lanes to sublanes is the costliest thing a step asks for, so the matrix
    unit does it: a row, loaded into all sublanes, keeps in sublane i only the lanes of coefficient
    i, and a product with ones puts their sum into all lanes. The unit multiplies bfloat16; a
    float32 is a sum of three of those, which lie side by side in the lanes: the result is exact.

    Args:
      origin: the lane of the first.
    """
    group = plan.unroll(plan.rows, MOST_SPREAD_STEPS)
    size = plan.coefficients_at_once
    ones = jnp.ones((LANES, LANES), jnp.bfloat16)
    lane, sublane = (lax.broadcasted_iota(jnp.int32, (size, LANES), axis) for axis in (1, 0))
    own = lax.rem(lane, jnp.int32(size)) == sublane
    own = own & (_behind(lane, origin) < _PARTS * size)

    def spread(i, _):
        steps = [i * group + j for j in range(group)]
        rows = [jnp.where(own, refs.parts[k, pl.ds(row, 1)], 0.0) for row in steps]
        rows = jnp.concatenate(rows).astype(jnp.bfloat16)
        spread = jnp.dot(rows, ones, preferred_element_type=jnp.float32)
        for j, row in enumerate(steps):
            for s in range(0, size, SUBLANES):
                first = k * size + s
                target = refs.B if first < plan.states else refs.C
                place = pl.ds(first % plan.states, SUBLANES)
                target[row, place] = spread[j * size + s : j * size + s + SUBLANES]
        return 0

    lax.fori_loop(0, plan.rows // group, spread, 0)


def _cut_coefficients(plan: Plan, refs: Refs, register, origin, valid):
    """Cuts each row's coefficients from lane `origin` of a register on into bfloat16 parts.

    Returns:
      (rows, 128) float32. The i-th coefficient's part p lies p * size lanes behind the coefficient,
      where the lanes end and begin again.
    """
    rows = keep_valid(valid, flat(plan, refs.coefficients[0, :, :, register_lanes(register)]))
    distance = _behind(lax.broadcasted_iota(jnp.int32, rows.shape, 1), origin)
    total, *parts = parts_of(rows)
    for p, part in enumerate(parts, 1):
        moved = pltpu.roll(part, p * plan.coefficients_at_once, axis=1)
        total = jnp.where(distance >= p * plan.coefficients_at_once, moved, total)
    return total


def _behind(lane, origin):
    """Counts lanes from `origin` on, around the end."""
    return (lane - origin) & jnp.int32(LANES - 1)


def register_lanes(register):
    """Returns the lanes of one of the registers side by side in an array."""
    start = LANES * register
    return pl.ds(start if isinstance(register, int) else pl.multiple_of(start, LANES), LANES)


def flat(plan: Plan, block):
    """Flattens (line_block, frame_block, n) to rows."""
    return block.reshape(plan.rows, block.shape[-1])


def keep_valid(valid, x):
    """Replaces by zeros the rows of x (rows, n) that lie behind the end of the path."""
    if valid is None:
        return x
    mask = valid if x.shape[1] == LANES else valid[:, :1]
    return jnp.where(mask, x, 0.0)


def load_rows(plan: Plan, ref, g: int, valid):
    """Loads lane group g of a block of rows, (rows, 128) float32."""
    return keep_valid(valid, flat(plan, ref[0, :, :, lanes(g)].astype(jnp.float32)))


def _prepare_rows(plan: Plan, refs: Refs, projected, softplus: bool, limb_walk, valid, slope):
    for g in range(plan.lane_groups):
        if limb_walk is None:
            u = load_rows(plan, refs.x, g, valid)
        else:
            block = refs.x[0, :, :, lanes(g)]
            block = jnp.stack([block[j] + block[other] for j, other in enumerate(limb_walk)])
            u = keep_valid(valid, flat(plan, block))
        given = projected is None
        raw = load_rows(plan, refs.raw, g, valid) if given else projected[:, lanes(g)]
        if refs.bias is not None:
            raw = raw + refs.bias[:, lanes(g)]
        delta, derivative = raw, jnp.ones_like(raw)
        if softplus:
            exp = jnp.exp(-jnp.abs(raw))
            delta = jnp.maximum(raw, 0) + jnp.log1p(exp)
            derivative = jnp.where(raw < 0, exp, 1.0) / (1 + exp)
        delta = keep_valid(valid, delta)
        if slope is not None:
            slope[g] = keep_valid(valid, derivative)
        refs.u[g], refs.delta[g], refs.drive[g] = u, delta, delta * u


def project(plan: Plan, refs: Refs):
    """Computes the step projection of a chunk, (rows, channel_block) float32.

    One product of the matrix unit: the six products of bfloat16 parts that make one of float32 lie
    behind each other along the contracted axis, which the small rank leaves room on.
    """
    dt, weight = parts_of(refs.dt[...]), parts_of(refs.weight[...])
    pairs = [(i, j) for i in range(_PARTS) for j in range(_PARTS - i)]
    dt = jnp.concatenate([dt[i] for i, _ in pairs]).T[: plan.rows]
    weight = jnp.concatenate([weight[j] for _, j in pairs])
    return jnp.dot(
        dt.astype(jnp.bfloat16),
        weight.astype(jnp.bfloat16),
        preferred_element_type=jnp.float32,
    )


def parts_of(x):
    """Cuts a float32 array into summands that are exact in bfloat16."""
    parts = []
    for _ in range(_PARTS):
        # Cutting off bits is exact, and is not taken for a needless conversion as rounding is.
        bits = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-(2**16))
        parts.append(lax.bitcast_convert_type(bits, jnp.float32))
        x = x - parts[-1]
    return parts


def product(left, right, axis: int):
    """Multiplies float32 matrices given as parts: left (m, k), right (n, k) for axis 1, (k, n) for
    axis 0.

    The matrix unit takes its right operand in before it multiplies. `left`, with few rows, goes
    through behind all parts of itself, so that each part of `right` is taken in once. Parts whose
    product is below float32's precision are left out.
    """
    height, total = left[0].shape[0], 0
    left = [part.astype(jnp.bfloat16) for part in left]
    for j, part in enumerate(right):
        rows = lax.dot_general(
            jnp.concatenate(left[: _PARTS - j]),
            part.astype(jnp.bfloat16),
            (((1,), (axis,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        total = total + sum(rows[height * i : height * (i + 1)] for i in range(_PARTS - j))
    return total


def sublane_groups(x):
    """Sums (states, 128) to (8, 128); the sum over sublanes is left to `sum_partials`."""
    parts = [x[s : s + SUBLANES] for s in range(0, x.shape[0], SUBLANES)]
    return sum(parts[1:], parts[0])


def partials_scratch(plan: Plan):
    """Allocates eight partial sums of each step and lane group, (lane groups * rows * 8, 128)."""
    return pltpu.VMEM((plan.lane_groups * plan.rows * SUBLANES, LANES), jnp.float32)


def partials_of(plan: Plan, g: int, row):
    """Returns the place of a step's eight partial sums among those of a chunk."""
    return pl.ds(pl.multiple_of(SUBLANES * (g * plan.rows + row), SUBLANES), SUBLANES)


def sum_partials(plan: Plan, partials, g: int, row):
    """Sums eight steps from `row` on to (8, 128): a load with stride 8 transposes for free."""
    first = SUBLANES * (g * plan.rows + row)
    parts = [partials[pl.ds(first + s, SUBLANES, stride=SUBLANES)] for s in range(SUBLANES)]
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def sum_chunk(plan: Plan, partials, rows):
    """Sums the partial sums of all steps of a chunk into `rows` (lane groups, rows, 128)."""

    def sums(row):
        tile = pl.ds(pl.multiple_of(row, SUBLANES), SUBLANES)
        for g in range(plan.lane_groups):
            rows[g, tile] = sum_partials(plan, partials, g, row)

    plan.for_tiles(sums)


def compiler_params(scratch: dict, plan: Plan):
    """Tells the compiler that batch elements are independent, chunks and channel blocks in
    order.
    """
    held = sum(4 * math.prod(x.shape) for x in scratch.values())
    blocks = 2 * 4 * plan.channel_block * plan.rows * _MOST_BLOCKS_OF_ROWS
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary"),
        vmem_limit_bytes=max(_LEAST_VMEM_LIMIT, int(1.25 * (held + blocks))),
    )

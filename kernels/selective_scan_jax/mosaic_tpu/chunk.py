"""What the forward and the backward TPU kernel do alike with one chunk.

A kernel gets its references in a `Refs`, absent ones as None. Scratch arrays of rows are
(lane groups, rows, 128): a single row of such an array can be loaded into all sublanes of a
register at once, which is what a step needs of delta and of the drive delta * u.
"""

from __future__ import annotations

import math
import types

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_scan_jax.mosaic_tpu.plan import LANES, SUBLANES, Plan

# exp(x) = exp2(x / ln 2): A is divided once, the hardware has exp2.
LN2 = 0.6931471805599453

# Steps whose B and C are spread over the lanes by one matrix product, at most; bfloat16 parts that
# a float32 is the sum of.
MOST_SPREAD_STEPS, _PARTS = 68, 3

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
        "B": coefficients,
        "C": coefficients,
        "u": rows,
        "delta": rows,
        "drive": rows,
        "parts": pltpu.VMEM((plan.rows, LANES), jnp.float32),
    }


def spread_coefficients(plan: Plan, refs: Refs, e, valid):
    """Spreads B and C of every step, each state's over the lanes of its sublane.

    They come as rows, B and C of a step side by side in the lanes. Moving them from lanes to
    sublanes is the costliest thing a step asks for, so the matrix unit does it: a row, loaded into
    all sublanes, keeps in sublane i only the lane of coefficient i, and a product with ones puts
    its sum into all lanes. The unit multiplies bfloat16; a float32 is a sum of three of those,
    which lie side by side in the lanes too, so the result is exact.

    Args:
      e: the channel block, which says whose coefficients they are.
    """
    direction = plan.direction_of(e)
    group = plan.unroll(plan.rows, MOST_SPREAD_STEPS)
    size = plan.coefficients_at_once
    ones = jnp.ones((LANES, LANES), jnp.bfloat16)
    lane = lax.broadcasted_iota(jnp.int32, (size, LANES), 1)
    own = (lax.rem(lane, jnp.int32(size)) == lax.broadcasted_iota(jnp.int32, lane.shape, 0)) & (
        lane < _PARTS * size
    )
    for first in range(0, 2 * plan.states, size):
        origin = 2 * plan.states * direction + first
        refs.parts[...] = _side_by_side(plan, refs, origin, size, valid)

        def spread(i, _, first=first):
            steps = [i * group + k for k in range(group)]
            rows = [jnp.where(own, refs.parts[pl.ds(row, 1)], 0.0) for row in steps]
            rows = jnp.concatenate(rows).astype(jnp.bfloat16)
            spread = jnp.dot(rows, ones, preferred_element_type=jnp.float32)
            for k, row in enumerate(steps):
                for s in range(0, size, SUBLANES):
                    target = refs.B if first + s < plan.states else refs.C
                    where = pl.ds((first + s) % plan.states, SUBLANES)
                    target[row, where] = spread[k * size + s : k * size + s + SUBLANES]
            return 0

        lax.fori_loop(0, plan.rows // group, spread, 0)


def _side_by_side(plan: Plan, refs: Refs, origin, size: int, valid):
    """Cuts `size` coefficients of each row, from lane `origin` on, into bfloat16 parts: part p of
    coefficient i goes to lane p * size + i, (rows, 128) float32.
    """
    rows = keep_valid(valid, flat(plan, refs.coefficients[0]))
    source = lax.broadcasted_iota(jnp.int32, (rows.shape[1], LANES), 0) - origin
    target = lax.broadcasted_iota(jnp.int32, source.shape, 1)
    total = jnp.zeros((plan.rows, LANES), jnp.float32)
    for p, part in enumerate(parts_of(rows)):
        moved = (target >= p * size) & (target < (p + 1) * size) & (source == target - p * size)
        total = total + jnp.dot(
            part.astype(jnp.bfloat16),
            moved.astype(jnp.bfloat16),
            preferred_element_type=jnp.float32,
        )
    return total


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


def prepare_rows(plan: Plan, refs: Refs, tile, *, softplus: bool, limb_walk, valid, slope=None):
    """Computes u, delta and drive of a chunk, and the derivative of delta into `slope`."""
    projected = None if refs.weight is None else project(plan, refs, tile)
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
        delta = raw
        if softplus:
            delta = jnp.maximum(raw, 0) + jnp.log1p(jnp.exp(-jnp.abs(raw)))
        delta = keep_valid(valid, delta)
        if slope is not None:
            slope[g] = keep_valid(valid, jax.nn.sigmoid(raw) if softplus else jnp.ones_like(raw))
        refs.u[g], refs.delta[g], refs.drive[g] = u, delta, delta * u


def project(plan: Plan, refs: Refs, tile):
    """Computes the step projection of a chunk, (rows, channel_block) float32.

    One product of the matrix unit: the six products of bfloat16 parts that make one of float32 lie
    behind each other along the contracted axis, which the small rank leaves room on.
    """
    dt, weight = parts_of(line_lanes(plan, refs.dt, tile)), parts_of(refs.weight[...])
    pairs = [(i, j) for i in range(_PARTS) for j in range(_PARTS - i)]
    dt = jnp.concatenate([dt[i] for i, _ in pairs]).T[: plan.rows]
    weight = jnp.concatenate([weight[j] for _, j in pairs])
    return jnp.dot(
        dt.astype(jnp.bfloat16),
        weight.astype(jnp.bfloat16),
        preferred_element_type=jnp.float32,
    )


def line_lanes(plan: Plan, ref, tile):
    """Rearranges a block (line_block, n, 128) with frames in the lanes to (n, lanes) with rows in
    them.

    There are as many lanes as hold all rows, by registers; a line's never lie in two of these.
    """
    first = plan.first_lane(tile)
    lane = lax.broadcasted_iota(jnp.int32, ref.shape[-2:], 1)
    registers = [jnp.zeros(lane.shape, jnp.float32)] * pl.cdiv(plan.rows, LANES)
    for line in range(plan.line_block):
        register, target = divmod(line * plan.frame_block, LANES)
        frames = turn(ref[0, 0, line], target - first)
        mine = (lane >= target) & (lane < target + plan.frame_block)
        registers[register] = jnp.where(mine, frames, registers[register])
    return jnp.concatenate(registers, axis=1)


def turn(x, lanes):
    """Moves x (n, 128) to the right by some lanes, from -128 on, around the end."""
    return pltpu.roll(x, lax.rem(lanes + jnp.int32(2 * LANES), jnp.int32(LANES)), axis=1)


def parts_of(x):
    """Cuts a float32 array into summands that are exact in bfloat16."""
    parts = []
    for _ in range(_PARTS):
        # Cutting off bits is exact, and is not taken for a needless conversion as rounding is.
        bits = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-(2**16))
        parts.append(lax.bitcast_convert_type(bits, jnp.float32))
        x = x - parts[-1]
    return parts


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

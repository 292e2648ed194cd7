"""The TPU kernel of the forward pass.

A visit of the kernel takes one chunk of one batch element and one block of channels. It spreads B
and C over the lanes, computes the step sizes of the chunk, walks the chunk with the state in
registers, writing eight partial sums of y per step, and at the end adds those up, with the skip
term, the gate and what directions before this one have left in y.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_scan_jax.mosaic_tpu import chunk
from selective_scan_jax.mosaic_tpu.chunk import Refs, lanes
from selective_scan_jax.mosaic_tpu.plan import LANES, Blocks, Plan


def forward(
    plan: Plan,
    arrays: dict,
    *,
    softplus: bool,
    limb_walk=None,
    y_dtype=jnp.float32,
    with_boundaries: bool,
    with_last_state: bool,
    interpret,
) -> dict:
    """Runs one pass along one path.

    Args:
      plan: sizes and order.
      arrays: by name, those that are absent left out:
        x (batch, lines, frames, channels); raw like it, or dt (batch, groups, lines / line_block,
        tiles, rank, row_lanes), a chunk's rows in the lanes, and weight (rank, channels), rank a
        multiple of 8; bias, D (1, channels); A (states, channels), divided by ln 2; coefficients
        (batch, lines, frames, a multiple of 128), each set of 2 * states behind the one before, B
        before C; z like x; initial (batch, states, channels); y, float32 like x, to be added to.
      softplus: of raw + bias.
      limb_walk: the line added to each line of x, or None.
      with_boundaries, with_last_state: also return these.

    Returns:
      y like x; boundaries (batch, chunks, states, channels), the state before each visit;
      last_state (batch, states, channels).
    """
    blocks = Blocks(plan)
    specs = blocks.operands(arrays) | {"initial": blocks.whole(plan.states), "y": blocks.rows()}
    inputs = {name: arrays[name] for name in specs if name in arrays}
    outputs = {"y_out": (blocks.rows(), jax.ShapeDtypeStruct(inputs["x"].shape, y_dtype))}
    if with_boundaries:
        shape = (plan.batch, plan.chunks, plan.states, plan.channels)
        outputs["boundaries"] = (blocks.boundaries(), jax.ShapeDtypeStruct(shape, jnp.float32))
    if with_last_state:
        shape = (plan.batch, plan.states, plan.channels)
        outputs["last_state"] = (
            blocks.whole(plan.states),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )
    scratch = chunk.shared_scratch(plan) | {
        "partials": chunk.partials_scratch(plan),
        "state": pltpu.VMEM((plan.states, plan.channels), jnp.float32),
    }
    names = [*inputs, *outputs, *scratch]

    def kernel(*references):
        refs = Refs(**dict(zip(names, references, strict=True)))
        _visit(plan, refs, softplus=softplus, limb_walk=limb_walk)

    results = pl.pallas_call(
        kernel,
        grid=blocks.grid(),
        in_specs=[specs[name] for name in inputs],
        out_specs=[spec for spec, _ in outputs.values()],
        out_shape=[shape for _, shape in outputs.values()],
        scratch_shapes=list(scratch.values()),
        input_output_aliases={list(inputs).index("y"): 0} if "y" in inputs else {},
        compiler_params=chunk.compiler_params(scratch, plan),
        interpret=interpret,
        name="selective_scan_forward",
        metadata=plan.declared("forward", projects="weight" in arrays),
    )(*inputs.values())
    return dict(zip(outputs, results, strict=True))


def _visit(plan: Plan, refs: Refs, *, softplus: bool, limb_walk):
    visit, e = pl.program_id(1), pl.program_id(2)
    _, tile = plan.place(visit)
    groups = range(plan.lane_groups)

    # At the first visit: the state enters.
    @pl.when(visit == 0)
    def _():
        for g in groups:
            s = chunk.channel_lanes(plan, e, g)
            if refs.initial is None:
                refs.state[:, s] = jnp.zeros((plan.states, LANES), jnp.float32)
            else:
                refs.state[:, s] = refs.initial[0, :, s]

    # What the steps of the chunk read.
    valid = plan.valid(tile)

    chunk.prepare_chunk(plan, refs, e, softplus=softplus, limb_walk=limb_walk, valid=valid)

    # Through the chunk with the state in registers.
    first = tuple(refs.state[:, chunk.channel_lanes(plan, e, g)] for g in groups)
    if refs.boundaries is not None:
        for g in groups:
            refs.boundaries[0, 0, :, lanes(g)] = first[g]
    A = [refs.A[:, lanes(g)] for g in groups]
    step = functools.partial(_step, plan, refs, A)
    last = chunk.walk(plan, refs, step, first)
    for g in groups:
        refs.state[:, chunk.channel_lanes(plan, e, g)] = last[g]
    if refs.last_state is not None:

        @pl.when(visit == plan.chunks - 1)
        def _():
            for g in groups:
                refs.last_state[0, :, chunk.channel_lanes(plan, e, g)] = last[g]

    _finish(plan, refs)


def _step(plan: Plan, refs: Refs, A, row, state):
    """Computes state = exp(delta A) state + drive B; leaves the partial sums of <C, state>."""
    B, C = refs.B[row], refs.C[row]
    after = []
    for g, A_g in enumerate(A):
        delta, drive = refs.delta[g, pl.ds(row, 1)], refs.drive[g, pl.ds(row, 1)]
        state_g = jnp.exp2(delta * A_g) * state[g] + drive * B
        refs.partials[chunk.partials_of(plan, g, row)] = chunk.sublane_groups(state_g * C)
        after.append(state_g)
    return tuple(after), None


def _finish(plan: Plan, refs: Refs):
    """Computes y from the partial sums of a chunk, in the drive's rows, no longer needed."""
    chunk.sum_chunk(plan, refs.partials, refs.drive)
    for g in range(plan.lane_groups):
        y = refs.drive[g]
        if refs.D is not None:
            y = y + refs.D[:, lanes(g)] * refs.u[g]
        y = y.reshape(plan.line_block, plan.frame_block, LANES)
        if refs.z is not None:
            y = y * jax.nn.silu(refs.z[0, :, :, lanes(g)].astype(jnp.float32))
        if refs.y is not None:
            y = refs.y[0, :, :, lanes(g)] + y
        refs.y_out[0, :, :, lanes(g)] = y.astype(refs.y_out.dtype)

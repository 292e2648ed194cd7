"""The TPU kernel of the backward pass.

Chunks are visited against the path. A visit recomputes the states of its chunk from the one that
the forward pass kept for it, leaving each step's state before it in VMEM, then runs the adjoint
recurrence

    g_t = C_t dy_t + decay_{t+1} g_{t+1}

through the chunk. Sums over states are left as eight partial sums per step and added up at the end
of the visit; those over channels (of B and C) go into the step's lane of one array. Every sum is
taken in a fixed order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_scan_jax.mosaic_tpu import chunk
from selective_scan_jax.mosaic_tpu.chunk import Refs, lanes
from selective_scan_jax.mosaic_tpu.plan import LANES, SUBLANES, Blocks, Plan


def backward(
    plan: Plan,
    arrays: dict,
    *,
    softplus: bool,
    limb_walk=None,
    limb_exact: bool = True,
    dtypes: dict,
    interpret,
) -> dict:
    """Computes the gradients of one pass along one path.

    Args:
      plan: sizes and order, as in the forward pass.
      arrays: those of the forward pass (without y, initial), and by name: boundaries; dy like x;
        dlast (batch, states, channels) or left out; dx, to be added to.
      softplus, limb_walk: as in the forward pass.
      limb_exact: whether lines get the gradients of the lines they were added to.
      dtypes: of dx, and of draw, dz where these are wanted.

    Returns:
      Gradients by name: dx; draw, or ddt like dt and dweight (batch, rank, channels); dz;
      dcoefficients like dt with 2 * states in place of rank, B's over C's; dA (batch, states,
      channels), by A before its division; dD, dbias (batch, 1, channels); dinitial (batch, states,
      channels).
    """
    blocks = Blocks(plan, backwards=True)
    specs = blocks.operands(arrays) | {
        "boundaries": blocks.boundaries(),
        "dy": blocks.rows(),
        "dlast": blocks.whole(plan.states),
        "dx": blocks.rows(),
    }
    inputs = {name: arrays[name] for name in specs if name in arrays}
    outputs = _outputs(plan, blocks, arrays, dtypes)
    scratch = _scratch(plan, with_y="z" in arrays)
    names = [*inputs, *(f"{name}_out" for name in outputs), *scratch]

    def kernel(*references):
        refs = Refs(**dict(zip(names, references, strict=True)))
        _visit(plan, refs, softplus=softplus, limb_walk=limb_walk, limb_exact=limb_exact)

    results = pl.pallas_call(
        kernel,
        grid=blocks.grid(),
        in_specs=[specs[name] for name in inputs],
        out_specs=[spec for spec, _ in outputs.values()],
        out_shape=[shape for _, shape in outputs.values()],
        scratch_shapes=list(scratch.values()),
        input_output_aliases=(
            {list(inputs).index("dx"): list(outputs).index("dx")} if "dx" in inputs else {}
        ),
        compiler_params=chunk.compiler_params(scratch, plan),
        interpret=interpret,
        name="selective_scan_backward",
        metadata=plan.declared("backward", projects="weight" in arrays),
    )(*inputs.values())
    return dict(zip(outputs, results, strict=True))


def _outputs(plan: Plan, blocks: Blocks, arrays: dict, dtypes: dict) -> dict:
    """Returns the block that a visit writes of every output, and the output's shape, by name."""
    rows, states = blocks.rows(), plan.states

    def like(name, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(arrays[name].shape, dtype)

    def per_batch(height):
        shape = (plan.batch, height, plan.channels)
        return blocks.whole(height), jax.ShapeDtypeStruct(shape, jnp.float32)

    outputs = {
        "dx": (rows, like("x", dtypes["dx"])),
        "dcoefficients": (
            blocks.row_lanes(2 * states),
            jax.ShapeDtypeStruct(plan.by_chunk(2 * states), jnp.float32),
        ),
        "dA": per_batch(states),
        "dinitial": per_batch(states),
    }
    if "raw" in arrays:
        outputs["draw"] = (rows, like("x", dtypes["draw"]))
    else:
        rank = arrays["weight"].shape[0]
        outputs["ddt"] = (blocks.row_lanes(rank), like("dt"))
        outputs["dweight"] = per_batch(rank)
    if "z" in arrays:
        outputs["dz"] = (rows, like("x", dtypes["dz"]))
    return outputs | {f"d{name}": per_batch(1) for name in ("D", "bias") if name in arrays}


def _scratch(plan: Plan, *, with_y: bool) -> dict:
    groups, rows = plan.lane_groups, plan.rows
    per_row = pltpu.VMEM((groups, rows, LANES), jnp.float32)
    partials = chunk.partials_scratch(plan)
    per_state = pltpu.VMEM((groups, rows, plan.states, LANES), jnp.float32)
    scratch = chunk.shared_scratch(plan) | {
        "slope": per_row,
        "dy_rows": per_row,
        "ddrive": partials,
        "ddecay": partials,
        "before": per_state,
        "left": pltpu.VMEM((plan.steps_together, 2 * plan.states, LANES), jnp.float32),
        "sums": pltpu.VMEM((2 * plan.states, plan.row_lanes), jnp.float32),
        "adjoint": pltpu.VMEM((plan.states, plan.channels), jnp.float32),
    }
    return scratch | ({"partials": partials, "y_rows": per_row} if with_y else {})


def _visit(plan: Plan, refs: Refs, *, softplus: bool, limb_walk, limb_exact: bool):
    visit, e = pl.program_id(1), pl.program_id(2)
    place = plan.place(plan.chunks - 1 - visit)
    groups = range(plan.lane_groups)
    here = [chunk.channel_lanes(plan, e, g) for g in groups]

    # At the first visit: the adjoint enters, sums begin.
    @pl.when(visit == 0)
    def _():
        for s in here:
            refs.adjoint[:, s] = (
                jnp.zeros((plan.states, LANES), jnp.float32)
                if refs.dlast is None
                else refs.dlast[0, :, s]
            )
            for total in (refs.dA_out, refs.dweight_out, refs.dD_out, refs.dbias_out):
                if total is not None:
                    total[0, :, s] = jnp.zeros((total.shape[1], LANES), jnp.float32)

    # What the steps of the chunk read.
    valid = plan.valid(place[1])

    _prepare_gradient(plan, refs, valid)
    chunk.prepare_chunk(
        plan, refs, e, softplus=softplus, limb_walk=limb_walk, valid=valid, slope=refs.slope
    )

    # Forwards through the chunk for its states, from the one kept by the forward pass.
    A = [refs.A[:, lanes(g)] for g in groups]
    state = tuple(refs.boundaries[0, 0, :, lanes(g)] for g in groups)
    state = chunk.walk(plan, refs, functools.partial(_recompute, plan, refs, A), state)
    if refs.z is not None:
        _gradient_of_gate(plan, refs, valid)

    # Backwards through it with the adjoint.
    adjoint = tuple(refs.adjoint[:, s] for s in here)
    carry = (adjoint, state, tuple(refs.dA_out[0, :, s] for s in here))
    carry = chunk.walk(
        plan,
        refs,
        functools.partial(_adjoint, plan, refs, A),
        carry,
        put=functools.partial(_put_sums, plan, refs),
        backwards=True,
    )
    for g, s in enumerate(here):
        refs.adjoint[:, s] = carry[0][g]
        refs.dA_out[0, :, s] = carry[2][g]

    # Out: what the chunk's sums make up, and the adjoint after the last visit.
    _finish_rows(plan, refs, here, limb_walk if limb_exact else None)
    _finish_projection(plan, refs, e)
    _put(plan, refs.dcoefficients_out, refs.sums[...], e)

    @pl.when(visit == plan.chunks - 1)
    def _():
        for s in here:
            refs.dinitial_out[0, :, s] = refs.adjoint[:, s]


def _prepare_gradient(plan: Plan, refs: Refs, valid):
    """Computes dy before the gate, by rows."""
    for g in range(plan.lane_groups):
        dy = chunk.load_rows(plan, refs.dy, g, valid)
        if refs.z is not None:
            z = chunk.load_rows(plan, refs.z, g, valid)
            dy = dy * jax.nn.silu(z)
        refs.dy_rows[g] = dy


def _recompute(plan: Plan, refs: Refs, A, row, state):
    """Takes one step of the recurrence; leaves the state before it."""
    B = refs.B[row]
    after = []
    for g, A_g in enumerate(A):
        delta, drive = refs.delta[g, pl.ds(row, 1)], refs.drive[g, pl.ds(row, 1)]
        refs.before[g, row] = state[g]
        after.append(jnp.exp2(delta * A_g) * state[g] + drive * B)
        if refs.partials is not None:
            refs.partials[chunk.partials_of(plan, g, row)] = chunk.sublane_groups(
                after[g] * refs.C[row]
            )
    return tuple(after), None


def _gradient_of_gate(plan: Plan, refs: Refs, valid):
    chunk.sum_chunk(plan, refs.partials, refs.y_rows)
    for g in range(plan.lane_groups):
        y = refs.y_rows[g]
        if refs.D is not None:
            y = y + refs.D[:, lanes(g)] * refs.u[g]
        z = chunk.load_rows(plan, refs.z, g, valid)
        gate = jax.nn.sigmoid(z)
        dz = chunk.load_rows(plan, refs.dy, g, valid) * y * gate * (1 + z * (1 - gate))
        _store_rows(plan, refs.dz_out, g, dz)


def _put_sums(plan: Plan, refs: Refs, places, xs):
    """Puts sums over channels of steps' x (2 * states, 128) into their lanes of `refs.sums`."""
    lane = lax.broadcasted_iota(jnp.int32, (2 * plan.states, LANES), 1)
    registers = {}
    for (line, frame), x in zip(places, xs, strict=True):
        register, target = plan.lane_of(line, frame)
        known = isinstance(register, int)
        old = registers.get(register) if known else None
        if old is None:
            old = refs.sums[:, chunk.register_lanes(register)]
        new = jnp.where(lane == target, jnp.sum(x, axis=1, keepdims=True), old)
        if known:
            registers[register] = new
        else:
            refs.sums[:, chunk.register_lanes(register)] = new
    for register, new in registers.items():
        refs.sums[:, chunk.register_lanes(register)] = new


def _adjoint(plan: Plan, refs: Refs, A, row, carry):
    """Takes one step of the adjoint recurrence; `after` is the state after the step."""
    adjoint, after, dA = (list(x) for x in carry)
    B, C = refs.B[row], refs.C[row]
    dB = dC = 0
    for g, A_g in enumerate(A):
        row_of = pl.ds(row, 1)
        dy, drive = refs.dy_rows[g, row_of], refs.drive[g, row_of]
        before = refs.before[g, row]
        gradient = adjoint[g] + C * dy
        delta = refs.delta[g, row_of]
        adjoint[g] = gradient * jnp.exp2(delta * A_g)
        carried = adjoint[g] * before
        dA[g] = dA[g] + carried * delta
        partials = chunk.partials_of(plan, g, row)
        refs.ddrive[partials] = chunk.sublane_groups(gradient * B)
        refs.ddecay[partials] = chunk.sublane_groups(carried * A_g)
        dB, dC = dB + gradient * drive, dC + after[g] * dy
        after[g] = before
    return (tuple(adjoint), tuple(after), tuple(dA)), jnp.concatenate([dB, dC])


def _store_rows(plan: Plan, ref, g: int, x):
    x = x.reshape(plan.line_block, plan.frame_block, LANES)
    ref[0, :, :, lanes(g)] = x.astype(ref.dtype)


def _finish_rows(plan: Plan, refs: Refs, here, limb_walk):
    """Computes the gradients by x and by raw, in the rows of drive and delta, no longer needed."""

    def sums(row):
        tile = pl.ds(pl.multiple_of(row, SUBLANES), SUBLANES)
        for g in range(plan.lane_groups):
            ddrive = chunk.sum_partials(plan, refs.ddrive, g, row)
            ddecay = chunk.LN2 * chunk.sum_partials(plan, refs.ddecay, g, row)
            u = refs.u[g, tile]
            refs.drive[g, tile] = ddrive * refs.delta[g, tile]
            refs.delta[g, tile] = (ddrive * u + ddecay) * refs.slope[g, tile]

    plan.for_tiles(sums)
    for g, s in enumerate(here):
        du = refs.drive[g]
        if refs.D is not None:
            dy = refs.dy_rows[g]
            du = du + refs.D[:, lanes(g)] * dy
            refs.dD_out[0, :, s] += jnp.sum(dy * refs.u[g], axis=0, keepdims=True)
        if refs.dbias_out is not None:
            refs.dbias_out[0, :, s] += jnp.sum(refs.delta[g], axis=0, keepdims=True)
        if refs.draw_out is not None:
            _store_rows(plan, refs.draw_out, g, refs.delta[g])
        du = du.reshape(plan.line_block, plan.frame_block, LANES)
        if limb_walk is not None:
            du = jnp.stack(
                [
                    sum((du[s] for s, line in enumerate(limb_walk) if line == j), du[j])
                    for j in range(plan.lines)
                ]
            )
        if refs.dx is not None:
            du = refs.dx[0, :, :, lanes(g)] + du
        refs.dx_out[0, :, :, lanes(g)] = du.astype(refs.dx_out.dtype)


def _finish_projection(plan: Plan, refs: Refs, e):
    """Computes the gradients by the step projection's input and weight."""
    if refs.weight is None:
        return
    dt = chunk.parts_of(refs.dt[:, : plan.rows])
    ddt = 0
    for g in range(plan.lane_groups):
        draw, weight = chunk.parts_of(refs.delta[g]), chunk.parts_of(refs.weight[:, lanes(g)])
        ddt = ddt + chunk.product(weight, draw, 1)
        s = chunk.channel_lanes(plan, e, g)
        refs.dweight_out[0, :, s] += chunk.product(dt, draw, 0)
    if plan.row_lanes > plan.rows:
        ddt = jnp.pad(ddt, ((0, 0), (0, plan.row_lanes - plan.rows)))
    _put(plan, refs.ddt_out, ddt, e)


def _put(plan: Plan, ref, x, e):
    """Writes the first channel block's part of a sum over a group, adds that of the others."""
    if plan.blocks_per_group > 1:
        x = jnp.where(plan.first_of_group(e), x, ref[...] + x)
    ref[...] = x

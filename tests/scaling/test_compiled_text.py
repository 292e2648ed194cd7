"""Compiled programs read from their text: loops, work, collectives."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from posemamba_jax.config.schema import MeshConfig
from posemamba_jax.model.mesh import make_mesh
from posemamba_jax.scaling import hlo
from posemamba_jax.scaling.collectives import find_collectives, first_group
from posemamba_jax.scaling.counting import count_work
from posemamba_jax.scaling.kernels import Kernel, find_kernels

SIZE = 32


def compiled_text(function, *shapes, **options):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function, **options).lower(*arguments).compile().as_text()


def loop(length, body):
    return lambda x: jax.lax.scan(lambda x, _: (body(x), None), x, length=length)[0]


def test_matrix_products_count_as_often_as_their_loop_runs():
    text = compiled_text(loop(7, lambda x: x @ x), (SIZE, SIZE))
    assert count_work(hlo.parse(text)).matrix_flops == 7 * 2 * SIZE**3


def test_loops_in_loops_multiply():
    text = compiled_text(loop(5, loop(3, lambda x: jnp.sin(x) @ x)), (SIZE, SIZE))
    program = hlo.parse(text)
    work = count_work(program)
    assert program.unknown_loops == []
    assert work.matrix_flops == 15 * 2 * SIZE**3
    assert work.transcendentals == 15 * SIZE**2


def test_a_loop_that_ends_by_its_values_is_told():
    def until(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: x @ x, x)

    program = hlo.parse(compiled_text(until, (SIZE, SIZE)))
    assert len(program.unknown_loops) == 1
    assert count_work(program).matrix_flops == 2 * SIZE**3


def test_work_agrees_with_xla_where_nothing_loops():
    def run(x, y):
        return jnp.sum(jnp.exp(x @ y) + y[0], axis=0)

    lowered = jax.jit(run).lower(*(jax.ShapeDtypeStruct((64, 64), jnp.float32),) * 2).compile()
    work = count_work(hlo.parse(lowered.as_text()))
    total = work.matrix_flops + work.vector_ops - work.transcendentals
    assert total == pytest.approx(lowered.cost_analysis()["flops"], rel=0.02)
    assert work.transcendentals == lowered.cost_analysis()["transcendentals"]


def test_convolutions_count_positions_that_meet_data():
    def run(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (2, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    text = """ENTRY %main (x: f32[2,5,6,3], k: f32[3,3,3,4]) -> f32[2,5,6,4] {
  %x = f32[2,5,6,3]{3,2,1,0} parameter(0)
  %k = f32[3,3,3,4]{3,2,1,0} parameter(1)
  ROOT %c = f32[2,5,6,4]{3,2,1,0} convolution(%x, %k), window={size=3x3 pad=1_1x2_0}, dim_labels=b01f_01io->b01f
}
"""  # noqa: E501
    # A kernel of ones over data of ones counts, at every output, the products that were taken.
    ones = run(jnp.ones((2, 5, 6, 3)), jnp.ones((3, 3, 3, 4)))
    assert count_work(hlo.parse(text)).matrix_flops == 2 * float(jnp.sum(ones))


TPU = """HloModule jit_step, is_scheduled=true

%inner (q0: f32[10,8,128], q1: s32[]) -> f32[1,8,128] {
  %q0 = f32[10,8,128]{2,1,0:T(8,128)} parameter(0)
  %q1 = s32[]{:T(128)S(6)} parameter(1)
  ROOT %slice.1 = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%q0, %q1, %q1, %q1), dynamic_slice_sizes={1,8,128}
}

%fused (p0: f32[10,8,128], p1: s32[], p2: f32[8,100]) -> f32[10,8,128] {
  %p0 = f32[10,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %p2 = f32[8,100]{1,0:T(8,128)} parameter(2)
  %slice = f32[1,8,128]{2,1,0:T(8,128)} fusion(%p0, %p1), kind=kLoop, calls=%inner
  %sum = f32[1,8,128]{2,1,0:T(8,128)} add(%slice, %slice)
  ROOT %dus = f32[10,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%p0, %sum, %p1, %p1, %p1)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%all-reduce-scatter (input: f32[4,64]) -> f32[1,64] {
  %input = f32[4,64]{1,0:T(4,128)} parameter(0)
  %all-reduce.1 = f32[4,64]{1,0:T(4,128)} all-reduce(%input), channel_id=9, replica_groups=[2,4]<=[8], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = f32[1,64]{1,0:T(1,128)} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={1,64}
}

%body (arg: (s32[], f32[10,8,128], f32[8,100])) -> (s32[], f32[10,8,128], f32[8,100]) {
  %arg = (s32[]{:T(128)}, f32[10,8,128]{2,1,0:T(8,128)}, /*index=2*/f32[8,100]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = f32[10,8,128]{2,1,0:T(8,128)} get-tuple-element(%arg), index=1
  %y = f32[8,100]{1,0:T(8,128)S(1)} get-tuple-element(%arg), index=2
  %fusion = f32[10,8,128]{2,1,0:T(8,128)} fusion(%x, %i, %y), kind=kLoop, calls=%fused
  %all-gather-start = (f32[1,128]{1,0}, f32[4,128]{1,0}) all-gather-start(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, metadata={op_name="jit(step)/jvp(M)/while/body/closed_call/blocks/fc1/dot_general" stack_frame_id=3}
  %all-gather-done = f32[4,128]{1,0} all-gather-done(%all-gather-start)
  %clone = f32[4,128]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %one = s32[] constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %out = (s32[]{:T(128)}, f32[10,8,128]{2,1,0:T(8,128)}, f32[8,100]{1,0:T(8,128)S(1)}) tuple(%next, %fusion, %y)
}

%condition (arg.1: (s32[], f32[10,8,128], f32[8,100])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  %arg.1 = (s32[]{:T(128)}, f32[10,8,128]{2,1,0:T(8,128)}, f32[8,100]{1,0:T(8,128)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (x.1: f32[10,8,128], y.1: f32[8,100], z.1: f32[4,64]) -> f32[1,64] {
  %x.1 = f32[10,8,128]{2,1,0:T(8,128)} parameter(0)
  %y.1 = f32[8,100]{1,0:T(8,128)S(1)} parameter(1)
  %z.1 = f32[4,64]{1,0:T(4,128)S(1)} parameter(2)
  %start = s32[]{:T(128)} constant(0)
  %tuple = (s32[]{:T(128)}, f32[10,8,128]{2,1,0:T(8,128)}, f32[8,100]{1,0:T(8,128)S(1)}) tuple(%start, %x.1, %y.1)
  %loop = (s32[]{:T(128)}, f32[10,8,128]{2,1,0:T(8,128)}, f32[8,100]{1,0:T(8,128)S(1)}) while(%tuple), condition=%condition, body=%body
  %kernel = f32[8,128]{1,0:T(8,128)} custom-call(%x.1), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"batch":"2",
"channels":"256",
"kernel":"forward",
"operator":"cross_scan",
"path":"frame by frame",
"states":"16",
"steps":"4216"
}}, metadata={op_name="jit(step)/pallas_call"}, backend_config={"custom_call_config":{"body":"TUzv"}}
  ROOT %scatter = f32[1,64]{1,0:T(1,128)S(1)} fusion(%z.1), kind=kCustom, calls=%all-reduce-scatter
}
"""  # noqa: E501


def test_tpu_loops_have_the_length_of_their_condition():
    program = hlo.parse(TPU)
    assert program.times["body"] == program.times["fused"] == 10
    assert program.unknown_loops == []


def test_tpu_traffic_is_what_leaves_the_chip():
    """The fusion reads and writes one slice of the stacked array, in place; arrays in S(1) stay on
    the chip; (8, 100) is stored as (8, 128)."""
    slice_bytes, stacked = 4 * 8 * 128, 4 * 10 * 8 * 128
    kernel = stacked + slice_bytes
    gathered = 2 * (4 * 4 * 128)
    cloned = stacked + 4 * 4 * 128
    work = count_work(hlo.parse(TPU))
    # The loop's counter is a few bytes more.
    wanted = 10 * (2 * slice_bytes + gathered + cloned) + kernel
    assert work.memory_bytes == pytest.approx(wanted, rel=1e-3)
    assert work.kernels == 1
    assert hlo.Shape("f32", (8, 100), "1,0:T(8,128)").stored_bytes == slice_bytes


def test_tpu_kernels_say_what_they_do():
    (kernel,) = find_kernels(hlo.parse(TPU))
    moved = 4 * 11 * 8 * 128
    assert kernel == Kernel(
        "cross_scan", "forward", "frame by frame", 256, 16, batch=2, steps=4216, times=1,
        bytes=moved,
    )  # fmt: skip


def test_tpu_collectives_count_once_per_channel():
    found = find_collectives(hlo.parse(TPU), {"data": 2, "fsdp": 4, "tensor": 1}, (9, 17))
    by_kind = {c.kind: c for c in found}
    assert set(by_kind) == {"all-gather", "reduce-scatter"}
    gather, scatter = by_kind["all-gather"], by_kind["reduce-scatter"]
    assert (gather.times, gather.group, gather.axes) == (10, 4, ("fsdp",))
    assert gather.bytes == 4 * 4 * 128
    assert gather.sent_bytes == 10 * gather.bytes * 3 / 4
    assert (scatter.times, scatter.group, scatter.axes) == (1, 4, ("fsdp",))
    assert scatter.bytes == 4 * 4 * 64


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("{{0,4},{1,5},{2,6},{3,7}}", [0, 4]),
        ("[2,4]<=[8]", [0, 1, 2, 3]),
        ("[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [0, 1, 4, 5]),
        ("mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}, x=1", [0, 1, 2, 3]),
        ("{}", list(range(8))),
    ],
)
def test_groups_in_every_notation(text, group):
    assert first_group(text, 8) == group


def test_collectives_of_a_sharded_program():
    """A loop whose weights are gathered over fsdp and whose sum is over all devices."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def run(x, w):
        def body(x, _):
            here = jax.lax.with_sharding_constraint(w, whole)
            return jnp.tanh(x @ here), None

        x, _ = jax.lax.scan(body, x, length=6)
        return jnp.sum(x)

    text = compiled_text(run, (64, 16), (16, 16), in_shardings=(rows, split), out_shardings=whole)
    found = find_collectives(hlo.parse(text), dict(mesh.shape), (9, 17))
    (gather,) = (c for c in found if c.kind == "all-gather")
    (reduce,) = (c for c in found if c.kind == "all-reduce")
    assert (gather.axes, gather.group, gather.bytes) == (("fsdp",), 4, 4 * 16 * 16)
    assert gather.times in (1, 6)  # The compiler may move it out of the loop.
    assert (reduce.axes, reduce.group, reduce.bytes) == (("data", "fsdp"), 8, 4)
    assert reduce.content == "scalars"
    assert reduce.sent_bytes == pytest.approx(2 * 4 * 7 / 8)


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("module @jit_step {}")

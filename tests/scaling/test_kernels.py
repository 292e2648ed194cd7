"""The scan's kernels in a report: known by the backend table, timed by the table of bundles."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from selective_scan_jax import backends, selective_scan
from selective_scan_jax.backends import kernel_backend
from selective_scan_jax.target import Target, lowering_for

from posemamba_jax.scaling import hlo, kernels
from posemamba_jax.scaling.chips import CHIPS, parse_topology
from posemamba_jax.scaling.counting import Work, count_work
from posemamba_jax.scaling.kernels import (
    Kernel,
    find_kernels,
    find_row,
    kernel_notes,
    kernel_seconds,
)
from posemamba_jax.scaling.roofline import estimate

PLATFORMS = {
    "cpu": ("cpu", Target("cpu")),
    "tpu": ("tpu", Target("tpu", "TPU v5 lite")),
    "gpu": ("cuda", Target("gpu", "NVIDIA H100 80GB HBM3", 90)),
}


def lower(implementation, platform):
    jax_platform, target = PLATFORMS[platform]
    sequence = jax.ShapeDtypeStruct((1, 256, 128), jnp.float32)
    rows = jax.ShapeDtypeStruct((1, 256, 1, 16), jnp.float32)
    A = jax.ShapeDtypeStruct((128, 16), jnp.float32)

    def scan(*arrays):
        return selective_scan(*arrays, implementation=implementation)

    with lowering_for(target):
        traced = jax.jit(scan).trace(sequence, sequence, A, rows, rows)
        return traced.lower(lowering_platforms=(jax_platform,))


@pytest.mark.parametrize("name", list(backends.implementations()))
def test_a_lowered_scan_has_the_kernels_that_the_table_gives_its_backend(name):
    platform = (backends._BACKENDS[name].platforms or ("cpu",))[0]
    with lowering_for(PLATFORMS[platform][1]):
        reason = backends.unavailable_reason(name)
    if reason is not None:
        pytest.skip(reason)
    targets = set(re.findall(r"custom_call @([\w$.]+)", lower(name, platform).as_text()))
    found = {kernel_backend(target) for target in targets} - {None}
    assert found == ({name} if backends._BACKENDS[name].custom_calls else set())


def test_the_report_counts_a_kernel_of_the_table_and_no_other_call(monkeypatch):
    text = """HloModule m, is_scheduled=true

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %mine = f32[8,128]{1,0} custom-call(%x), custom_call_target="new_backend_forward"
  ROOT %other = f32[8,128]{1,0} custom-call(%mine), custom_call_target="Sharding"
}
"""
    assert count_work(hlo.parse(text)).kernels == 0
    entry = backends.Backend("selective_scan_jax.xla", custom_calls=("new_backend_",))
    monkeypatch.setitem(backends._BACKENDS, "new", entry)
    work = count_work(hlo.parse(text))
    assert work.kernels == 1
    assert work.memory_bytes == 2 * 4 * 8 * 128


def test_a_kernels_arguments_count_where_they_lie_in_main_memory():
    """The compiler keeps small ones on the chip, S(1), after a copy that counts by itself."""
    call = """HloModule m, is_scheduled=true

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %start = (f32[8,128]{1,0S}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %copy = f32[8,128]{1,0S} copy-done(%start)
  %y = f32[8,128]{1,0S} custom-call(%copy, %x), custom_call_target="tpu_custom_call", KERNEL
  ROOT %out = f32[8,128]{1,0} copy(%y)
}
"""
    text = call.replace("0S}", "0:T(8,128)S(1)}").replace("KERNEL", "kernel_metadata={FIELDS}")
    known = dict(operator="o", kernel="k", path="p", channels=1, states=1, batch=1, steps=1)
    fields = ", ".join(f'"{name}":"{value}"' for name, value in known.items())
    program = hlo.parse(text.replace("FIELDS", fields))
    array = 4 * 8 * 128
    # The second argument alone; the copies onto the chip and off it are two more.
    assert [kernel.bytes for kernel in find_kernels(program)] == [array]
    assert count_work(program).memory_bytes == 3 * array


# Time

# What a call of model B's scan of 243 frames of 17 joints does: 31 chunks of 8 frames.
B_FORWARD = Kernel(
    "cross_scan",
    "forward",
    "frame by frame",
    256,
    16,
    batch=1,
    steps=31 * 8 * 17,
    times=20,
    bytes=0,
)
V5E = parse_topology("v5e:1x1")


def table_row(**fields):
    (row,) = (r for r in kernels.read_table()["rows"] if fields.items() <= r.items())
    return row["bundles_per_step_and_register"]


def test_the_estimate_is_the_bundles_by_the_clock():
    """Twenty calls of 4216 steps on four registers, at a bundle a cycle of 1.5 GHz."""
    figure = table_row(
        chip="v5e", kernel="forward", path="frame by frame", channels=256, operator="cross_scan"
    )
    by_hand = 20 * 4216 * 4 * figure / 1.504e9
    nothing_else = Work(0, 0, 0, 0, 0, 0)
    parts = estimate(nothing_else, [B_FORWARD], [], V5E)
    assert parts.scan == parts.seconds == pytest.approx(by_hand, rel=1e-3)
    assert parts.bottleneck == "scan"


def test_kernels_add_to_what_other_operations_take():
    """Their memory traffic overlaps with their own bundles, and counts once."""
    second = 819 * 10**9
    waiting = dataclasses.replace(B_FORWARD, times=1, bytes=2 * second)
    parts = estimate(Work(0, 0, 0, 0, 5 * second, 1), [waiting], [], V5E)
    assert (parts.scan, parts.memory, parts.seconds) == pytest.approx((2, 3, 5))


def test_cores_of_a_device_share_the_batch():
    seconds = {
        batch: kernel_seconds(
            dataclasses.replace(B_FORWARD, batch=batch), parse_topology("v5p:1x1x1")
        )
        for batch in (1, 2, 3)
    }
    assert seconds[1] == seconds[2] == seconds[3] / 2


@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_the_table_has_the_models_kernels(chip):
    for kernel in ("forward", "backward"):
        for channels in (128, 256):
            for path in ("frame by frame", "joint by joint"):
                for sense in ("", ", reversed"):
                    known = dict(kernel=kernel, channels=channels, path=path + sense)
                    _, own = find_row(dataclasses.replace(B_FORWARD, **known), CHIPS[chip])
                    assert own


@pytest.mark.parametrize(
    ("changed", "row"),
    [
        ({"channels": 512}, {"channels": 256, "path": "frame by frame"}),
        ({"channels": 384, "states": 8}, {"channels": 128, "path": "frame by frame"}),
        ({"channels": 128, "states": 8}, {"channels": 128, "path": "frame by frame"}),
    ],
    ids=["wider", "between", "narrower"],
)
def test_what_the_table_lacks_is_timed_by_the_next_row_and_told(changed, row):
    kernel = dataclasses.replace(B_FORWARD, **changed)
    found, own = find_row(kernel, V5E.chip)
    assert not own
    assert row.items() <= found.items()
    (note,) = kernel_notes([kernel], 20, V5E)
    assert f"has no {kernel.name} on v5e; per step and register it is timed as cross_scan" in note


def test_a_path_or_a_chip_without_rows_is_timed_as_the_slowest(monkeypatch):
    table = kernels.read_table()
    rows = [r for r in table["rows"] if (r["chip"], r["kernel"]) == ("v5e", "forward")]
    monkeypatch.setattr(kernels, "read_table", lambda: table | {"rows": rows})
    wide = [r for r in rows if r["channels"] == 256]
    slowest = max(r["bundles_per_step_and_register"] for r in wide)
    found, own = find_row(dataclasses.replace(B_FORWARD, path="spiral"), V5E.chip)
    assert (found["bundles_per_step_and_register"], own) == (slowest, False)
    found, own = find_row(B_FORWARD, CHIPS["v6e"])
    assert (found["path"], found["channels"], own) == ("frame by frame", 256, False)
    (note,) = kernel_notes([B_FORWARD], 20, parse_topology("v6e:1x1"))
    assert note.endswith("timed as cross_scan, frame by frame, 256 channels of 16 states on v5e")


def test_kernels_that_say_nothing_are_told():
    assert kernel_notes([B_FORWARD], 20, V5E) == []
    (note,) = kernel_notes([B_FORWARD], 23, V5E)
    assert note == "3 kernel calls do not say what they do; their time is left out"

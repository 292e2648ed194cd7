"""The report knows the scan's kernels by the backend table, not by names of its own."""

import re

import jax
import jax.numpy as jnp
import pytest
from selective_scan_jax import backends, selective_scan
from selective_scan_jax.backends import kernel_backend
from selective_scan_jax.target import Target, lowering_for

from posemamba_jax.scaling import hlo
from posemamba_jax.scaling.counting import count_work

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

"""The count of bytes that a block moves, on a program written by hand and on the compiler's."""

import importlib.util
import json

import pytest
from benchmark_modules import BENCHMARKS, load_benchmark

block_bytes = load_benchmark("block_bytes")

PROGRAM = """HloModule jit_both

%fused_add (p0: f32[2,8], p1: f32[8]) -> f32[8] {
  %p0 = f32[2,8]{1,0} parameter(0)
  %p1 = f32[8]{0} parameter(1)
  %slice.1 = f32[1,8]{1,0} slice(%p0), slice={[1:2], [0:8]}
  %bitcast.1 = f32[8]{0} bitcast(%slice.1)
  ROOT %add.1 = f32[8]{0} add(%bitcast.1, %p1)
}

%fused_transpose (p0.1: f32[2,8]) -> f32[8,2] {
  %p0.1 = f32[2,8]{1,0} parameter(0)
  ROOT %transpose.1 = f32[8,2]{1,0} transpose(%p0.1), dimensions={1,0}
}

ENTRY %main (a: f32[2,8], b: f32[8]) -> f32[8] {
  %a = f32[2,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %sum = f32[8]{0} fusion(%a, %b), kind=kLoop, calls=%fused_add, metadata={op_name="jit(both)/norm/add"}
  %turned = f32[8,2]{1,0} fusion(%a), kind=kInput, calls=%fused_transpose
  %call = (f32[8]{0}, f32[2]{0}) custom-call(%sum, %sum), custom_call_target="triton_kernel_call"
  %gemm = (f32[8,8]{1,0}, s8[4096]{0}) custom-call(%turned, %a), custom_call_target="__cublas$gemm"
  ROOT %result = f32[8]{0} get-tuple-element(%call), index=0
}
"""  # noqa: E501


def test_bytes_by_kind_of_operation():
    assert block_bytes.bytes_moved(PROGRAM) == {
        "norms and gate": 4 * (8 + 8 + 8),  # half of `a`
        "copies, transposes, stacks, pads": 4 * (16 + 16),
        "scan": 4 * (8 + 8 + 2),  # an operand given twice is read once
        "products": 4 * (16 + 16 + 64),  # what it works in does not count
    }


def test_the_kernels_page_has_the_table_of_the_results():
    results = json.loads((BENCHMARKS / "results" / "block_bytes.json").read_text())
    page = (BENCHMARKS.parent / "docs" / "triton.md").read_text()
    for row in block_bytes.rows_of(results["bytes"]):
        assert f"| {' | '.join(row.values())} |" in page


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None,
    reason='needs JAX\'s CUDA plugin: pip install "jax[cuda12]"',
)
@pytest.mark.skipif(
    importlib.util.find_spec("jax_triton") is None,
    reason="needs jax-triton: pip install jax-triton",
)
def test_a_block_is_compiled_for_a_gpu_that_is_not_here():
    for program in block_bytes.programs("S", 1).values():
        moved = block_bytes.bytes_moved(program)
        assert {*block_bytes.KINDS, "scan"} >= moved.keys() >= {"products", "scan"}

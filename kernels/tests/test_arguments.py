"""Wrong arguments are refused with a message that names them."""

import jax.numpy as jnp
import numpy as np
import pytest
from selective_scan_jax import (
    Direction,
    Permutation,
    ScanOrder,
    Target,
    backends,
    cross_scan,
    lowering_for,
    selective_scan,
)
from selective_scan_jax.target import current_target, target_of
from selective_scan_jax.testing import Shape, random_cross_operands, random_operands

OPERANDS = random_operands(Shape(2, 5, 6, 3, 4))
CROSS_NAMES = ("x", "dt", "B", "C", "dt_weight", "dt_bias", "A", "D")
CROSS = dict(zip(CROSS_NAMES, random_cross_operands(2, 3, 17, 4, 4, 3, 2), strict=True))


@pytest.mark.parametrize("name", OPERANDS)
def test_selective_scan_names_a_misshapen_argument(name):
    wrong = np.concatenate([OPERANDS[name]] * 2, axis=-1)[None]
    with pytest.raises(ValueError, match=rf"^{name}: expected shape \(.*got \(1, "):
        selective_scan(**OPERANDS | {name: wrong})


@pytest.mark.parametrize("name", [name for name in OPERANDS if name != "u"])
def test_selective_scan_names_an_argument_of_another_size(name):
    with pytest.raises(ValueError, match=rf"^({name}|B|C): "):
        selective_scan(**OPERANDS | {name: OPERANDS[name][:1, ...][..., :1]})


@pytest.mark.parametrize("name", CROSS_NAMES)
def test_cross_scan_names_a_misshapen_argument(name):
    with pytest.raises(ValueError, match=rf"^{name}: expected shape"):
        cross_scan(**CROSS | {name: CROSS[name][None]})


@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
def test_only_real_floating_point(name, dtype):
    with pytest.raises(TypeError, match=rf"^{name}: expected real floating-point"):
        selective_scan(**OPERANDS | {name: OPERANDS[name].astype(dtype)})


def test_a_list_is_not_an_array():
    with pytest.raises(TypeError, match=r"^delta: expected an array"):
        selective_scan(**OPERANDS | {"delta": OPERANDS["delta"].tolist()})


def test_groups_must_divide_channels():
    four_groups = np.ones((2, 5, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"^B: the number of groups must divide"):
        selective_scan(**OPERANDS | {"B": four_groups, "C": four_groups})


def test_empty_sequence():
    sequences = {k: OPERANDS[k][:, :0] for k in ("u", "delta", "B", "C", "z")}
    with pytest.raises(ValueError, match=r"^u: the length must be at least 1"):
        selective_scan(**OPERANDS | sequences)


def test_orders():
    with pytest.raises(ValueError, match=r"^order: expected one of global, limbs.*'zigzag'"):
        cross_scan(**CROSS, order="zigzag")
    with pytest.raises(ValueError, match=r"^limb_gradient: expected one of exact, released"):
        ScanOrder.named("limbs", limb_gradient="none")
    with pytest.raises(ValueError, match=r"^limb_walk: "):
        ScanOrder.named("limbs", limb_walk=(0, 1, 3))
    with pytest.raises(ValueError, match=r"^x: the order's limb walk is for 2 joints, x has 17"):
        cross_scan(**CROSS, order=ScanOrder.named("limbs", limb_walk=(0, 0)))
    with pytest.raises(
        ValueError, match=r"^positions: expected each of 0 to 2 once.* 2 is missing"
    ):
        Permutation((0, 1, 1))
    six = ScanOrder((Direction(True),) * 6)
    with pytest.raises(
        ValueError, match=r"^dt: expected shape .*directions=6.*, got \(2, 3, 17, 4"
    ):
        cross_scan(**CROSS, order=six)
    for length in (16, 34):
        order = ScanOrder((Direction(True),) * 3 + (Permutation(tuple(range(length))),))
        with pytest.raises(
            ValueError, match=rf"^x: direction 3 .* {length} positions does not cover"
        ):
            cross_scan(**CROSS, order=order)


def test_unknown_implementation():
    with pytest.raises(ValueError, match=r"^implementation: expected one of reference, .*'fast'"):
        selective_scan(**OPERANDS, implementation="fast")


def test_unavailable_implementation_says_why_and_what_would_run(monkeypatch):
    monkeypatch.setitem(
        backends._BACKENDS, "quantum", backends.Backend("selective_scan_jax.xla", ("qpu",))
    )
    with pytest.raises(RuntimeError, match=r"'quantum' cannot run here: runs on qpu only") as error:
        selective_scan(**OPERANDS, implementation="quantum")
    assert "Can run: reference, associative, xla" in str(error.value)
    assert "the default is" in str(error.value)


def test_default_can_run_on_every_platform():
    for platform in ("cpu", "gpu", "tpu"):
        assert backends.default_implementation(platform) in backends.available(platform)
    assert backends.default_implementation("tpu") == "mosaic_tpu"


def test_the_choice_is_told_once_and_why_a_better_one_was_passed_over(monkeypatch, caplog):
    monkeypatch.setitem(
        backends._BACKENDS, "cpu", backends.Backend("selective_scan_jax.does_not_exist")
    )
    backends._announce.cache_clear()
    with caplog.at_level("INFO", "selective_scan_jax"):
        for _ in range(2):
            assert backends.resolve(None) == "xla"
    (record,) = caplog.records
    assert (
        "xla (cpu cannot run: No module named" in record.message and record.levelname == "WARNING"
    )
    backends._announce.cache_clear()


def test_another_target_is_lowered_for_inside_the_context_only():
    here = current_target()
    with lowering_for(Target("gpu", compute_capability=90)):
        assert current_target().compute_capability == 90
        assert "cpu" not in backends.available()
    assert current_target() == here


@pytest.mark.parametrize(("capability", "says"), [(75, "Ampere"), (0, "Ampere")])
def test_a_gpu_before_ampere_gets_xla(capability, says):
    pytest.importorskip("jax_triton", reason="needs jax-triton: it is what would run on such a GPU")
    with lowering_for(Target("gpu", compute_capability=capability)):
        assert backends.default_implementation() == "xla"
        with pytest.raises(RuntimeError, match=says):
            selective_scan(**OPERANDS, implementation="triton")


def test_devices_of_other_vendors_have_no_compute_capability():
    class Device:
        platform, device_kind, compute_capability = "gpu", "AMD Instinct MI300X", "gfx942"

    assert target_of(Device()).compute_capability == 0

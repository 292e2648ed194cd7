"""Which implementations exist, which can run here, and which is chosen when none is named.

A backend is a folder of this package that defines

    selective_scan(operands: ScanOperands, *, delta_softplus, reverse) -> (y, last_state)

and may define `cross_scan(operands: CrossScanOperands, *, order) -> y`; without one, its cross
scan is composed from its selective scan. One that needs more than JAX, or more than the platform,
also defines `unavailable_reason() -> str | None`, which may look at `current_target()`. What the
caller does for it: operands are checked, absent ones are None, there is at least one clip, and a
cross scan's order fits the grid and, unless the backend's entry below says that it takes
permutations, has none. What it must meet, each by a test in tests/test_selective_scan.py and
tests/test_cross_scan.py that runs for every backend:

- Shapes and dtypes: y (b, l, e) in u's dtype and last_state (b, e, n) float32; of a cross scan y
  (b, f, j, e) float32. The recurrence and its sums are float32 whatever the operands are. Any
  sizes from 1 on, odd and prime ones too.
- Gradients: by every operand that is not None, in its dtype, for gradients by both outputs. Once;
  a second derivative is refused by the caller (`selective_scan_jax.derivative`).
- Transformations: `jit`, `vmap` of the forward and backward pass, `jax.checkpoint`, and
  `shard_map` over the batch and over channels with their groups or parameters.
- Sums in a fixed order: the same operands give the same results and gradients, bit for bit.
- Memory it does not write may hold anything: interpreters fill it with NaN.

A backend whose kernels an interpreter can run on any platform does so while `interpreting()`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
from collections.abc import Callable

from selective_scan_jax import composed
from selective_scan_jax.target import Target, current_target, interpreting, lowering_for


@dataclasses.dataclass(frozen=True)
class Backend:
    """Where an implementation is and what it is for.

    Attributes:
      module: defines its operators.
      platforms: those it runs on; None for all.
      interprets: whether it runs on any platform while `interpreting()`.
      custom_calls: how the targets of its custom calls begin in a compiled program; empty for
        backends that are made of XLA's own operations.
      permutes: whether its `cross_scan` takes orders with permutations in them.
    """

    module: str
    platforms: tuple[str, ...] | None = None
    interprets: bool = False
    custom_calls: tuple[str, ...] = ()
    permutes: bool = False


_BACKENDS = {
    "reference": Backend("selective_scan_jax.reference.sequential"),
    "associative": Backend("selective_scan_jax.reference.associative"),
    "xla": Backend("selective_scan_jax.xla", permutes=True),
    "cpu": Backend("selective_scan_jax.cpu", ("cpu",), custom_calls=("selective_scan_cpu_",)),
    "mosaic_tpu": Backend(
        "selective_scan_jax.mosaic_tpu",
        ("tpu",),
        interprets=True,
        custom_calls=("tpu_custom_call",),
    ),
    "mosaic_gpu": Backend(
        "selective_scan_jax.mosaic_gpu", ("gpu",), interprets=True, custom_calls=("mosaic_gpu",)
    ),
    "triton": Backend(
        "selective_scan_jax.triton",
        ("gpu",),
        interprets=True,
        custom_calls=("triton_kernel_call", "__gpu$xla.gpu.triton"),
    ),
}

# Tried in this order on a platform when the caller names no implementation.
# Which of them can run also depends on the device's generation, so a GPU before Ampere gets xla.
_PREFERENCE = {
    "cpu": ("cpu", "xla"),
    "gpu": ("triton", "mosaic_gpu", "xla"),
    "tpu": ("mosaic_tpu", "xla"),
}
_ELSEWHERE = ("xla",)

_log = logging.getLogger(__name__)


def kernel_backend(custom_call_target: str) -> str | None:
    """Names the implementation whose kernel a custom call of a compiled program runs, or None."""
    for name, backend in _BACKENDS.items():
        if custom_call_target.startswith(backend.custom_calls):
            return name
    return None


def unavailable_reason(name: str, platform: str | None = None) -> str | None:
    """Says why the implementation cannot run on `platform` (default: the current target), or
    None.
    """
    backend = _BACKENDS[name]
    target = Target(platform) if platform else current_target()
    interpreted_here = backend.interprets and interpreting()
    elsewhere = backend.platforms is not None and target.platform not in backend.platforms
    if elsewhere and not interpreted_here:
        return (
            f"runs on {', '.join(backend.platforms)} only, the current platform is "
            f"{target.platform}"
        )
    try:
        module = importlib.import_module(backend.module)
    except ImportError as error:
        return str(error)
    with lowering_for(target):
        return getattr(module, "unavailable_reason", lambda: None)()


def implementations(platform: str | None = None) -> dict[str, str | None]:
    """Returns every implementation's name with the reason why it cannot run, None for those that
    can.
    """
    return {name: unavailable_reason(name, platform) for name in _BACKENDS}


def available(platform: str | None = None) -> tuple[str, ...]:
    """Returns the names of the implementations that can run on `platform` (default: the current
    one).
    """
    return tuple(name for name, reason in implementations(platform).items() if reason is None)


def default_implementation(platform: str | None = None) -> str:
    """Returns the name that is used on `platform` (default: the current target) when none is
    given.
    """
    names = _preferred(platform or current_target().platform)
    return next(name for name in names if unavailable_reason(name, platform) is None)


def _preferred(platform: str) -> tuple[str, ...]:
    return _PREFERENCE.get(platform, _ELSEWHERE)


@functools.lru_cache
def _announce(name: str, target: Target) -> None:
    """Says once for a target which implementation was picked, and what would be better."""
    passed_over = _preferred(target.platform)
    passed_over = passed_over[: passed_over.index(name)]
    reasons = "; ".join(f"{other} cannot run: {unavailable_reason(other)}" for other in passed_over)
    _log.log(
        logging.WARNING if reasons else logging.INFO,
        "selective scan on %s: %s%s",
        target.device_kind or target.platform,
        name,
        f" ({reasons})" if reasons else "",
    )


def resolve(name: str | None) -> str:
    """Checks the name of an implementation; None gives the default.

    Raises:
      ValueError: no implementation has that name.
      RuntimeError: it cannot run here.
    """
    if name is None:
        name = default_implementation()
        _announce(name, current_target())
        return name
    if name not in _BACKENDS:
        raise ValueError(f"implementation: expected one of {', '.join(_BACKENDS)}, got {name!r}")
    reason = unavailable_reason(name)
    if reason is not None:
        raise RuntimeError(
            f"implementation {name!r} cannot run here: {reason}. Can run: "
            f"{', '.join(available())}; the default is {default_implementation()!r}."
        )
    return name


def get_selective_scan(name: str | None) -> Callable:
    """Returns the `selective_scan` of the implementation called `name`; raises as `resolve`
    does.
    """
    return importlib.import_module(_BACKENDS[resolve(name)].module).selective_scan


def get_cross_scan(name: str | None) -> Callable:
    """Returns the `cross_scan` of the implementation called `name`; raises as `resolve` does."""
    backend = _BACKENDS[resolve(name)]
    module = importlib.import_module(backend.module)
    if not hasattr(module, "cross_scan"):
        return functools.partial(composed.cross_scan, module.selective_scan)
    if backend.permutes:
        return module.cross_scan
    return functools.partial(composed.split_cross_scan, module.cross_scan, module.selective_scan)

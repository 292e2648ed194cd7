"""Which implementations exist, which can run here, and which is chosen when none is named.

A backend is a module of this package that defines

    selective_scan(u, delta, A, B, C, D, delta_bias, z, initial_state, *,
                   delta_softplus, reverse) -> (y, last_state)

and may define `cross_scan(x, dt, B, C, dt_weight, dt_bias, A, D, *, order) -> y`; without one, its
cross scan is composed from its selective scan. Both get checked arguments, absent ones as None. A
module that needs more than JAX, or more than the platform, also defines `unavailable_reason() ->
str | None`, which may look at `current_target()`. One whose kernels an interpreter can run on any
platform does so while `interpreting()`.
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
    """

    module: str
    platforms: tuple[str, ...] | None = None
    interprets: bool = False


_BACKENDS = {
    "reference": Backend("selective_scan_jax.reference"),
    "associative": Backend("selective_scan_jax.associative"),
    "xla": Backend("selective_scan_jax.xla"),
    "cpu": Backend("selective_scan_jax.cpu", ("cpu",)),
    "pallas_tpu": Backend("selective_scan_jax.pallas_tpu", ("tpu",), interprets=True),
    "pallas_gpu": Backend("selective_scan_jax.pallas_gpu", ("gpu",), interprets=True),
    "triton": Backend("selective_scan_jax.triton_scan", ("gpu",), interprets=True),
}

# Tried in this order on a platform when the caller names no implementation.
# Which of them can run also depends on the device's generation, so a GPU before Ampere gets xla.
_PREFERENCE = {
    "cpu": ("cpu", "xla"),
    "gpu": ("triton", "pallas_gpu", "xla"),
    "tpu": ("pallas_tpu", "xla"),
}
_ELSEWHERE = ("xla",)

_log = logging.getLogger(__name__)


def unavailable_reason(name: str, platform: str | None = None) -> str | None:
    """Why the implementation cannot run on `platform` (default: the current target), or None."""
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
    """Every implementation's name with the reason why it cannot run, None for those that can."""
    return {name: unavailable_reason(name, platform) for name in _BACKENDS}


def available(platform: str | None = None) -> tuple[str, ...]:
    """Names of the implementations that can run on `platform` (default: the current one)."""
    return tuple(name for name, reason in implementations(platform).items() if reason is None)


def default_implementation(platform: str | None = None) -> str:
    """The name that is used on `platform` (default: the current target) when none is given."""
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
    """The `selective_scan` of the implementation called `name`; raises as `resolve` does."""
    return importlib.import_module(_BACKENDS[resolve(name)].module).selective_scan


def get_cross_scan(name: str | None) -> Callable:
    """The `cross_scan` of the implementation called `name`; raises as `resolve` does."""
    module = importlib.import_module(_BACKENDS[resolve(name)].module)
    if hasattr(module, "cross_scan"):
        return module.cross_scan
    return functools.partial(composed.cross_scan, module.selective_scan)

"""Which implementations exist, which can run here, and which is chosen when none is named.

A backend is a module of this package that defines

    selective_scan(u, delta, A, B, C, D, delta_bias, z, initial_state, *,
                   delta_softplus, reverse) -> (y, last_state)

and may define `cross_scan(x, dt, B, C, dt_weight, dt_bias, A, D, *, order) -> y`; without one, its
cross scan is composed from its selective scan. Both get checked arguments, absent ones as None. A
module that needs more than JAX also defines `unavailable_reason() -> str | None`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import jax

from selective_scan_jax import composed

# name: module, the platforms it runs on (None: any).
_BACKENDS = {
    "reference": ("selective_scan_jax.reference", None),
    "associative": ("selective_scan_jax.associative", None),
    "xla": ("selective_scan_jax.xla", None),
    "cpu": ("selective_scan_jax.cpu", ("cpu",)),
}

# Tried in this order on a platform when the caller names no implementation.
_PREFERENCE = {"cpu": ("cpu", "xla")}
_ELSEWHERE = ("xla",)


def current_platform() -> str:
    """The platform that arrays go to by default: cpu, gpu, tpu."""
    device = jax.config.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def unavailable_reason(name: str, platform: str | None = None) -> str | None:
    """Why the implementation cannot run on `platform` (default: the current one), or None."""
    module_name, platforms = _BACKENDS[name]
    platform = platform or current_platform()
    if platforms is not None and platform not in platforms:
        return f"runs on {', '.join(platforms)} only, the current platform is {platform}"
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        return str(error)
    return getattr(module, "unavailable_reason", lambda: None)()


def implementations(platform: str | None = None) -> dict[str, str | None]:
    """Every implementation's name with the reason why it cannot run, None for those that can."""
    return {name: unavailable_reason(name, platform) for name in _BACKENDS}


def available(platform: str | None = None) -> tuple[str, ...]:
    """Names of the implementations that can run on `platform` (default: the current one)."""
    return tuple(name for name, reason in implementations(platform).items() if reason is None)


def default_implementation(platform: str | None = None) -> str:
    """The name that is used on `platform` (default: the current one) when none is given."""
    platform = platform or current_platform()
    names = _PREFERENCE.get(platform, _ELSEWHERE)
    return next(name for name in names if unavailable_reason(name, platform) is None)


def resolve(name: str | None) -> str:
    """Checks the name of an implementation; None gives the default.

    Raises:
      ValueError: no implementation has that name.
      RuntimeError: it cannot run here.
    """
    if name is None:
        return default_implementation()
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
    return importlib.import_module(_BACKENDS[resolve(name)][0]).selective_scan


def get_cross_scan(name: str | None) -> Callable:
    """The `cross_scan` of the implementation called `name`; raises as `resolve` does."""
    module = importlib.import_module(_BACKENDS[resolve(name)][0])
    if hasattr(module, "cross_scan"):
        return module.cross_scan
    return functools.partial(composed.cross_scan, module.selective_scan)

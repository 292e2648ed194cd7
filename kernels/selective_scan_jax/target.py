"""What a program is being made for: the default device, or a device that is only lowered for.

Implementations are picked by the target. Normally that is the device arrays go to; ahead-of-time
compilation for hardware that is not here names another one, and the proofs of a kernel on a plain
machine run it in its interpreter.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import jax


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
      platform: cpu, gpu or tpu.
      device_kind: as `jax.Device.device_kind` has it, such as "TPU v5 lite"; None if not known.
      compute_capability: of an NVIDIA GPU, 90 for 9.0; 0 for other GPUs; None for other devices or
        if not known.
    """

    platform: str
    device_kind: str | None = None
    compute_capability: int | None = None


_lowering_for: contextvars.ContextVar[Target | None] = contextvars.ContextVar(
    "selective_scan_target", default=None
)
_interpreting: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "selective_scan_interpreting", default=False
)


def current_target() -> Target:
    """Returns the target named by `lowering_for`, or the device that arrays go to by default."""
    named = _lowering_for.get()
    if named is not None:
        return named
    device = jax.config.jax_default_device
    if isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    return target_of(device or jax.local_devices()[0])


def target_of(device: jax.Device) -> Target:
    """Returns the target of a device, one of an ahead-of-time topology included."""
    capability = None
    if device.platform == "gpu":
        try:
            capability = round(float(device.compute_capability) * 10)
        except ValueError:  # the name of another vendor's architecture
            capability = 0
    return Target(device.platform, device.device_kind, capability)


@contextlib.contextmanager
def lowering_for(target: Target) -> Iterator[None]:
    """Picks implementations for `target` in whatever is traced inside.

    For ahead-of-time compilation. JAX keeps traces of functions it has seen: a function that was
    traced outside has to be wrapped in a new `jax.jit` to be traced again for the other target.
    """
    token = _lowering_for.set(target)
    try:
        yield
    finally:
        _lowering_for.reset(token)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Runs kernels for hardware that is not here in their interpreters, in whatever is traced
    inside. Slow; for tests of their numbers."""
    token = _interpreting.set(True)
    try:
        yield
    finally:
        _interpreting.reset(token)


def interpreting() -> bool:
    """Tells whether `interpreted` is in force."""
    return _interpreting.get()

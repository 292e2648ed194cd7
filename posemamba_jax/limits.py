"""Declares the range of a setting beside its default, and checks it.

A section of the configuration is a frozen dataclass. `number` gives one of its fields a default and
a range, and `check_limits`, called from `__post_init__`, refuses a value outside of it before
anything is allocated.
"""

import dataclasses
import numbers
from typing import Any

from posemamba_jax.errors import ConfigError

# Steps, clips and epochs are counted in signed 32-bit integers.
LARGEST_COUNT = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Limits:
    """The range of a number; the bounds given by `above` and `below` are outside of it."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def contain(self, value: float) -> bool:
        """Tells whether the value is inside; NaN never is."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and value == value
        )

    def __str__(self) -> str:
        bounds = [
            f"{word} {bound}"
            for word, bound in (
                ("at least", self.at_least),
                ("above", self.above),
                ("at most", self.at_most),
                ("below", self.below),
            )
            if bound is not None
        ]
        return " and ".join(bounds)


def number(default: Any, **limits: float) -> Any:
    """Declares a dataclass field with a default and a range.

    Args:
      default: the field's default; None where the setting can be left out.
      **limits: the bounds, as the fields of `Limits`.
    """
    return dataclasses.field(default=default, metadata={"limits": Limits(**limits)})


def check_limits(section: Any, path: str) -> None:
    """Refuses numbers of a section that are outside the ranges declared with `number`.

    Args:
      section: an instance of the dataclass. Fields that are None are left out.
      path: the section's place in the configuration, such as "optim"; empty for the whole.

    Raises:
      ConfigError: a number is out of its range; the message names key, value and bounds.
    """
    for field in dataclasses.fields(section):
        limits, value = field.metadata.get("limits"), getattr(section, field.name)
        if limits is None or value is None:
            continue
        whole = field.type in (int, "int", int | None)
        if whole and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
            raise ConfigError(
                f"{value!r}, must be a whole number {limits}", key=join(path, field.name)
            )
        if not limits.contain(value):
            or_null = " or null" if field.default is None else ""
            raise ConfigError(f"{value}, must be {limits}{or_null}", key=join(path, field.name))


def join(path: str, name: str) -> str:
    """Makes the key of a field: `optim` and `decay` make `optim.decay`."""
    return f"{path}.{name}" if path else name

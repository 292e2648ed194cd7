"""Declares the range of a setting beside its default, and checks it.

The configuration is made of frozen dataclasses that derive from `Section`. `number` gives one of
their fields a default and a range, and a value outside of it is refused before anything is
allocated.
"""

import dataclasses
import itertools
import numbers
import operator
from collections.abc import Iterator
from typing import Any

from posemamba_jax.errors import ConfigError

# Steps, clips and epochs are counted in signed 32-bit integers.
LARGEST_COUNT = 2**31 - 1

_INSIDE = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """The range of a number; the bounds given by `above` and `below` are outside of it."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are given, by name."""
        return {name: bound for name, bound in vars(self).items() if bound is not None}

    def contain(self, value: float) -> bool:
        """Tells whether the value is inside; NaN never is."""
        return all(_INSIDE[name](value, bound) for name, bound in self.bounds.items())

    def __str__(self) -> str:
        return " and ".join(f"{name} {bound}" for name, bound in self.bounds.items()).replace(
            "_", " "
        )


def number(default: Any, **limits: float) -> Any:
    """Declares a dataclass field with a default and a range.

    Args:
      default: the field's default; None where the setting can be left out.
      **limits: the bounds, one or more of the fields of `Limits`.
    """
    return dataclasses.field(default=default, metadata={"limits": Limits(**limits)})


class Section:
    """A part of the configuration, which refuses values that cannot be used.

    `class OptimConfig(Section, path="optim")` says where in the configuration it is; the whole has
    no path. A section whose values can contradict each other overrides `problems`.
    """

    def __init_subclass__(cls, path: str = "") -> None:
        cls.prefix = f"{path}." if path else ""

    def __post_init__(self) -> None:
        for name, problem in itertools.chain(self._out_of_range(), self.problems()):
            raise ConfigError(problem, key=self.prefix + name)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields fields that cannot be used and what is wrong with them, once numbers are in range.

        The first is raised, so those after it may build on what was found right.
        """
        yield from ()

    def _out_of_range(self) -> Iterator[tuple[str, str]]:
        for field in dataclasses.fields(self):
            limits, value = field.metadata.get("limits"), getattr(self, field.name)
            if limits is None or value is None:
                continue
            whole = field.type in (int, "int", int | None)
            if whole and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
                yield field.name, f"{value!r}, must be a whole number {limits}"
            elif not limits.contain(value):
                or_null = " or null" if field.default is None else ""
                yield field.name, f"{value}, must be {limits}{or_null}"

"""Turns the text of a YAML file or an option into values of the types that the keys have.

YAML's own rules read `no` as false, `010` as eight and `1e-4` as text. Here a scalar stays the text
that was written until the type of its key says what it means.
"""

import contextlib
import dataclasses
import re
import typing
from typing import Any, Literal

import yaml

from posemamba_jax.errors import ConfigError, shorten
from posemamba_jax.files.yaml_file import TextLoader

_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_UNREADABLE = (ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError)


def convert(key: str, hint: Any, value: Any) -> Any:
    """Makes a value of a key's type from text, or from a value that already has one.

    Raises:
      ConfigError: the value is not of that type.
    """
    try:
        return _read(hint, value)
    except _UNREADABLE:
        octal = isinstance(value, str) and re.fullmatch(r"[+-]?0[\d_]*\d(\.\d*)?", value)
        remedy = f"; write {value.lstrip('+-0_') or '0'} without leading zeros" if octal else ""
        problem = f"expected {describe(hint)}, got {shorten(value)}{remedy}"
        raise ConfigError(problem, key=key) from None


def _read(hint: Any, value: Any) -> Any:
    """Makes a value of a type, or raises one of the errors in `_UNREADABLE`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return parts[parts.index(value)]
    if origin is tuple:
        # An option is one text, so its list is written as in YAML.
        items = yaml.load(value, TextLoader) if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise TypeError
        each = parts[:1] * len(items) if Ellipsis in parts else parts
        return tuple(_read(part, item) for part, item in zip(each, items, strict=True))
    for part in parts:  # Of a union, the first that can.
        with contextlib.suppress(*_UNREADABLE):
            return _read(part, value)
    if parts:
        raise ValueError
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _read(hints[name], item) for name, item in dict.items(value)})
    if hint in (str, type(None)):
        if not isinstance(value, hint):
            raise TypeError
        return value
    text = str(value).lower()
    if hint is bool:
        return yaml.SafeLoader.bool_values[text]
    if not text.isascii() or re.match(r"[+-]?0_*\d", text):
        raise ValueError
    # YAML writes `.inf` and `.nan`.
    return int(text, 0) if hint is int else float(re.sub(r"\.(?=[in])", "", text))


def describe(hint: Any) -> str:
    """Says in words what values a type has."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(parts)
    if origin is tuple:
        return "a list of " + describe(parts[0])
    if dataclasses.is_dataclass(hint):
        return "{" + ", ".join(f"{name}: ..." for name in typing.get_type_hints(hint)) + "}"
    return " or ".join(map(describe, parts)) or _WORDS.get(hint, "null")

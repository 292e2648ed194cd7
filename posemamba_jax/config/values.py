"""Turns the text of a YAML file or an option into values of the types that the keys have.

YAML's own rules read `no` as false, `010` as eight and `1e-4` as text. Here a scalar stays the text
that was written until the type of its key says what it means.
"""

import dataclasses
import difflib
import re
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from posemamba_jax.errors import ConfigError, UserError, describe_error
from posemamba_jax.files.reading import read_whole, user_path

# A configuration has a hundred lines.
MAX_YAML_BYTES = 1 << 20

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = ("null", "Null", "NULL", "~", "")

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 120


class _TextLoader(yaml.SafeLoader):
    """Reads scalars as text and plain nulls as None, and refuses a key that is given twice."""

    yaml_implicit_resolvers = {
        first: [pair for pair in resolvers if pair[0].endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ConfigError(
                    f"{as_word(key.value)} is given twice, in line {lines[key.value]} and in line "
                    f"{line}; keep one"
                )
            lines[key.value] = line
        return node


def read_yaml(file: str) -> dict[str, Any]:
    """Reads a YAML file of sections and keys, whose scalars stay text.

    Raises:
      ConfigError: the file cannot be read, is not YAML, is not made of sections with keys, or
        gives a key twice.
    """
    path = Path(file)
    try:
        path = user_path(file)
        if not path.exists():
            raise ConfigError(f"{as_word(file)}: no such configuration file{_nearby(path)}")
        text = read_whole(path, MAX_YAML_BYTES, ConfigError).decode("utf-8")
    except ConfigError:
        raise
    except (OSError, UserError, ValueError) as error:
        raise ConfigError(f"{as_word(file)}: cannot be read: {describe_error(error)}") from None
    try:
        tree = yaml.load(text, _TextLoader)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected sections with keys, found {type(tree).__name__}")
    return tree


def _nearby(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def convert(key: str, hint: Any, value: Any, *, option: bool = False) -> Any:
    """Makes a value of a key's type from text, or from a value that already has one.

    Args:
      key: path of the key, for the error.
      hint: its type.
      value: text, None, a number, a truth value, or a list of such.
      option: the text is from the command line, where quotes do not tell null from "null" and
        lists are written as in YAML.

    Raises:
      ConfigError: the value is not of that type.
    """
    given = value
    try:
        if option and type(None) in typing.get_args(hint) and value in _NULLS:
            return None
        if option and value.startswith("[") and _is_list(hint):
            given = yaml.load(value, _TextLoader)
        return _as_type(hint, given)
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError, yaml.YAMLError):
        octal = isinstance(value, str) and re.fullmatch(r"[+-]?0[\d_]*\d(\.\d*)?", value)
        remedy = f"; write {value.lstrip('+-0_') or '0'} without leading zeros" if octal else ""
        raise ConfigError(
            f"expected {describe(hint)}, got {_shortened.repr(value)}{remedy}", key=key
        ) from None


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple or any(map(_is_list, typing.get_args(hint)))


def _as_type(hint: Any, value: Any) -> Any:
    """Converts or raises ValueError, OverflowError or TypeError."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        if isinstance(value, str) and str in parts:
            return value
        others = [part for part in parts if part is not type(None)]
        (part,) = [part for part in others if part is not str] or others
        return _as_type(part, value)
    if kind is Literal:
        return parts[parts.index(value)]
    if kind is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_as_type(part, item) for part, item in zip(each, value, strict=True))
    if dataclasses.is_dataclass(hint):
        return _as_item(hint, value)
    if isinstance(value, str) and hint is not str:
        return _WORDS[value.lower()] if hint is bool else _number(hint, value)
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise TypeError
    return hint(value)


def _as_item(hint: Any, value: Any) -> Any:
    """Makes a dataclass that is an item of a list from a mapping."""
    if isinstance(value, hint):
        return value
    if not isinstance(value, Mapping):
        raise TypeError
    hints = typing.get_type_hints(hint)
    return hint(**{name: _as_type(hints[name], item) for name, item in value.items()})


def _number(hint: type, text: str) -> int | float:
    """Reads decimal numbers, 0x and its kind, and YAML's `.inf` and `.nan`; no leading zeros."""
    if not text.isascii() or re.match(r"[+-]?0_*\d", text):
        raise ValueError
    if hint is int:
        return int(text, 0)
    return float(re.sub(r"^([+-]?)\.(?=inf$|nan$)", r"\1", text.lower()))


def describe(hint: Any) -> str:
    """Says in words what values a type has."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return "one of " + ", ".join(map(str, parts))
    if kind in (typing.Union, types.UnionType):
        described = [describe(part) for part in parts if part is not type(None)]
        return " or ".join(described) + (" or null" if type(None) in parts else "")
    if kind is tuple:
        return "a list of " + describe(parts[0])
    if dataclasses.is_dataclass(hint):
        return "{" + ", ".join(f"{name}: ..." for name in typing.get_type_hints(hint)) + "}"
    return {int: "an integer", float: "a number", str: "text", bool: "true or false"}[hint]


def as_word(text: object) -> str:
    """Writes text as it stands where it can be printed in a line, else with escapes."""
    return str(text) if str(text).isprintable() else ascii(str(text))

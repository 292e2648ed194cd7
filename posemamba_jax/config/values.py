"""Turns the text of a YAML file or an option into values of the types that the keys have.

YAML's own rules read `no` as false, `010` as eight and `1e-4` as text. Here a scalar stays the text
that was written until the type of its key says what it means.
"""

import contextlib
import dataclasses
import difflib
import re
import reprlib
import typing
from typing import Any, Literal

import yaml

from posemamba_jax.errors import ConfigError, UserError, describe_error
from posemamba_jax.files.reading import read_whole, user_path

# A configuration has a hundred lines.
MAX_YAML_BYTES = 1 << 20

_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = ("null", "Null", "NULL", "~", "")
_UNREADABLE = (ValueError, LookupError, TypeError, OverflowError, RecursionError, yaml.YAMLError)

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 120
shorten = _shortened.repr


class _TextLoader(yaml.SafeLoader):
    """Reads scalars as text and plain nulls as None, and refuses a key that is given twice."""

    yaml_implicit_resolvers = {
        first: [pair for pair in resolvers if pair[0].endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # Other tags (`!!set`) are refused, and so is what refers to itself.
    yaml_constructors = {
        "tag:yaml.org,2002:null": yaml.SafeLoader.construct_yaml_null,
        "tag:yaml.org,2002:str": yaml.SafeLoader.construct_scalar,
        "tag:yaml.org,2002:seq": yaml.SafeLoader.construct_sequence,
        "tag:yaml.org,2002:map": yaml.SafeLoader.construct_mapping,
        None: yaml.SafeLoader.construct_undefined,
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, lines = super().compose_mapping_node(anchor), {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                name, first = as_word(key.value), lines[key.value]
                problem = f"{name} is given twice, in line {first} and in line {line}; keep one"
                raise yaml.YAMLError(problem)
            lines[key.value] = line
        return node


def read_yaml(file: str) -> dict[str, Any]:
    """Reads a YAML file of sections and keys, whose scalars stay text.

    Raises:
      ConfigError: the file cannot be read, is not YAML, is not made of sections with keys, or
        gives a key twice.
    """
    try:
        path = user_path(file)
        if not path.exists():
            near = difflib.get_close_matches(str(path), map(str, path.parent.glob("*.y*ml")), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{as_word(file)}: no such configuration file{hint}")
        tree = yaml.load(read_whole(path, MAX_YAML_BYTES).decode("utf-8"), _TextLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    except UserError as error:
        raise ConfigError(str(error)) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{as_word(file)}: cannot be read: {describe_error(error)}") from None
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{file}: expected sections with keys, found {type(tree).__name__}")
    return tree or {}


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
    if option and (value in _NULLS or value.startswith("[")):
        with contextlib.suppress(*_UNREADABLE):
            return _read(hint, yaml.load(value, _TextLoader))
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
        if not isinstance(value, (list, tuple)):
            raise TypeError
        each = parts[:1] * len(value) if Ellipsis in parts else parts
        return tuple(_read(part, item) for part, item in zip(each, value, strict=True))
    for part in parts:  # Of a union, the first that can.
        with contextlib.suppress(*_UNREADABLE):
            return _read(part, value)
    if parts:
        raise ValueError
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _read(hints[name], item) for name, item in dict.items(value)})
    if not isinstance(value, str) or hint is str:
        accepted = (int, float) if hint is float else hint
        if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
            raise TypeError
        return float(value) if hint is float else value
    if hint is bool:
        return _TRUTH[value.lower()]
    if hint not in (int, float) or not value.isascii() or re.match(r"[+-]?0_*\d", value):
        raise ValueError
    # YAML writes `.inf` and `.nan`.
    return int(value, 0) if hint is int else float(re.sub(r"\.(?=[in])", "", value.lower()))


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


def as_word(text: object) -> str:
    """Writes text as it stands where it can be printed in a line, else with escapes."""
    return str(text) if str(text).isprintable() else ascii(str(text))

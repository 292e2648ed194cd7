"""Reads the fields of a dataclass, each a key with a name, from text and from a command line.

YAML's own rules read `no` as false, `010` as eight and `1e-4` as text. Here a scalar stays the text
that was written until the type of its key says what it means.
"""

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import yaml

from posemamba_jax.errors import ConfigError, as_word, shorten
from posemamba_jax.files.yaml_file import TextLoader

_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_UNREADABLE = (ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError)


class Key(NamedTuple):
    """The type of a key, what `--help` says about it, and a shorter option."""

    hint: Any
    help: str
    alias: str = ""

    def read_option(self, text: str) -> str | None:
        """Tells null from text, without the quotes that do so in a file."""
        nullable = type(None) in typing.get_args(self.hint)
        return None if nullable and text in ("null", "Null", "NULL", "~", "") else text


def keys_of(section: type, prefix: str = "") -> dict[str, Key]:
    """Finds the keys of a dataclass by their paths, through the dataclasses inside of it.

    The help of a key is what its dataclass documents under Attributes.
    """
    documented, keys = {}, {}
    attributes = inspect.getdoc(section).partition("Attributes:")[2].partition("\n\n")[0]
    for names, text in re.findall(r"^ +([\w, ]+): ((?:.|\n(?! +[\w, ]+: ))+)", attributes, re.M):
        documented |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    for name, hint in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(hint):
            keys |= keys_of(hint, f"{prefix}{name}.")
        else:
            text = f"{documented.get(name, '')} [{getattr(section, name)}] ({describe(hint)})"
            keys[f"{prefix}{name}"] = Key(hint, text.replace("%", "%%"))
    return keys


def parse_options(
    parser: argparse.ArgumentParser, argv: Sequence[str], keys: Mapping[str, Key]
) -> dict[str, Any]:
    """Reads the options that are given; those that are keys are still text, or None for null.

    Args:
      parser: has the options that are no keys.
      argv: the command line, without the program's name.
      keys: an option is added for each.

    Raises:
      ConfigError: an unknown option, or one without its value.
    """
    parser.exit_on_error = parser.allow_abbrev = False
    known = [*vars(parser.parse_args([])), "help", *keys]
    for name, key in keys.items():
        flags = filter(None, [f"--{name}", key.alias])
        settings = {"type": key.read_option, "help": key.help, "metavar": "VALUE"}
        parser.add_argument(*flags, default=argparse.SUPPRESS, **settings)
    try:
        options, rest = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        option, problem = (error.argument_name or "").split("/")[0], error.message
        if key := keys.get(option.lstrip("-")):
            problem = f"give a value ({describe(key.hint)}); {option}=-1 for a negative one"
        raise ConfigError("give a file" if option == "--config" else problem, key=option) from None
    if rest:
        name = rest[0].partition("=")[0]
        if name.startswith("-") and name.strip("-"):
            advice = suggest(name.lstrip("-"), known).replace("did you mean ", "did you mean --")
            raise ConfigError(f"unknown option {as_word(name)}; {advice}")
        is_file = "config" in known and name.endswith((".yaml", ".yml"))
        hint = f"; did you mean --config {name}?" if is_file else ""
        raise ConfigError(f"unexpected {rest[0]!r}; options are written --key value{hint}")
    return vars(options)


def suggest(name: str, known: Collection[str]) -> str:
    """Says which of the known names was probably meant, or else which there are."""
    last = name.rsplit(".", 1)[-1]
    by_last = {path.rsplit(".", 1)[-1]: path for path in reversed(known)}
    close = [by_last[last]] if last in by_last else difflib.get_close_matches(name, known, 1, 0.7)
    close = close or [by_last[word] for word in difflib.get_close_matches(last, by_last, 1, 0.75)]
    if close:
        return f"did you mean {close[0]}?"
    inside = [path for path in known if path.startswith(f"{name.partition('.')[0]}.")]
    return "known here: " + ", ".join(inside or sorted({p.partition(".")[0] for p in known}))


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
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _read(hints[name], item) for name, item in dict.items(value)})
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
    if hint in (str, type(None)) and isinstance(value, hint):
        return value
    text = str(value).lower()
    if hint is bool:
        return yaml.SafeLoader.bool_values[text]
    if hint in (int, float) and text.isascii() and not re.match(r"[+-]?0_*\d", text):
        # YAML writes `.inf` and `.nan`.
        return int(text, 0) if hint is int else float(re.sub(r"\.(?=[in])", "", text))
    raise ValueError


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

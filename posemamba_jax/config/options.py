"""Reads a command line on which every field of a dataclass is an option."""

import argparse
import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from posemamba_jax.config.values import describe
from posemamba_jax.errors import ConfigError, as_word


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
        yaml = "config" in known and name.endswith((".yaml", ".yml"))
        hint = f"; did you mean --config {name}?" if yaml else ""
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

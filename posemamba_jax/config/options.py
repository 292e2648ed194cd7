"""Reads a command line on which every field of a dataclass is an option."""

import argparse
import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from posemamba_jax.config.values import as_word, describe
from posemamba_jax.errors import ConfigError


class Key(NamedTuple):
    """The type of a key, what `--help` says about it, and a shorter option."""

    hint: Any
    help: str
    alias: str = ""


def keys_of(section: type, prefix: str = "") -> dict[str, Key]:
    """Finds the keys of a dataclass by their paths, through the dataclasses inside of it.

    The help of a key is what its dataclass documents under Attributes.
    """
    hints, documented, keys = typing.get_type_hints(section), {}, {}
    attributes = inspect.getdoc(section).partition("Attributes:")[2].partition("\n\n")[0]
    for names, text in re.findall(r"^ +([\w, ]+): ((?:.|\n(?! +[\w, ]+: ))+)", attributes, re.M):
        documented |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    for field in dataclasses.fields(section):
        path, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            keys |= keys_of(hint, f"{path}.")
        elif field.init:
            text = f"{documented.get(field.name, '')} [{field.default}] ({describe(hint)})"
            keys[path] = Key(hint, text)
    return keys


def parse_options(
    parser: argparse.ArgumentParser, argv: Sequence[str], keys: Mapping[str, Key]
) -> dict[str, Any]:
    """Reads the options that are given; those that are keys are still text.

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
        flags, text = filter(None, [f"--{name}", key.alias]), key.help.replace("%", "%%")
        parser.add_argument(*flags, metavar="VALUE", default=argparse.SUPPRESS, help=text)
    try:
        options, rest = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        option, problem = (error.argument_name or "").split("/")[0], error.message
        if option.lstrip("-") in keys:
            words = describe(keys[option.lstrip("-")].hint)
            problem = f"give a value ({words}); {option}=-1 for a negative one"
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

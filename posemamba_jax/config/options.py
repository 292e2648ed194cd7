"""Reads the command line, on which every key of the configuration is an option."""

import argparse
import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posemamba_jax.config.schema import Config
from posemamba_jax.config.values import as_word, describe
from posemamba_jax.errors import ConfigError

# Keys that have a shorter name on the command line.
_ALIASES = {
    "train.profile": ("--profile",),
    "model.implementation": ("--implementation",),
}


def parse_options(
    argv: Sequence[str], prog: str, hints: Mapping[str, Any], suggest: Callable[[str], str]
) -> dict[str, Any]:
    """Reads the options that are given, their values still text.

    Args:
      argv: the command line, without the program's name.
      prog: name of the program, for its help.
      hints: path of every key -> its type.
      suggest: what to say about a key that does not exist.

    Returns:
      Name -> text; `config` is a list of files, `resume` may be empty.

    Raises:
      ConfigError: an unknown option, or one without its value.
    """
    try:
        options, rest = _make_parser(prog, hints).parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        option = (error.argument_name or "").split("/")[0]
        hint = hints.get(option.lstrip("-"))
        missing = f"give a value ({describe(hint)}); {option}=-1 for a negative one" if hint else ""
        problem = "give a file" if option == "--config" else missing or error.message
        raise ConfigError(f"{option}: {problem}") from None
    if not rest:
        return vars(options)
    name = rest[0].partition("=")[0]
    if not name.startswith("-") or not name.strip("-"):
        hint = f"; did you mean --config {name}?" if name.endswith((".yaml", ".yml")) else ""
        raise ConfigError(f"unexpected {rest[0]!r}; options are written --key value{hint}")
    special = ("config", "resume", "checkpoint", "help", "print_config")
    close = difflib.get_close_matches(name.lstrip("-"), special, n=1, cutoff=0.75)
    text = f"did you mean {close[0]}?" if close else suggest(name.lstrip("-"))
    text = text.replace("did you mean ", "did you mean --")
    raise ConfigError(f"unknown option {as_word(name)}; {text}")


def _make_parser(prog: str, hints: Mapping[str, Any]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, usage="%(prog)s [--config FILE] [--KEY VALUE ...]",
        exit_on_error=False, allow_abbrev=False, argument_default=argparse.SUPPRESS,
        description="Every key of the configuration is an option; --config FILE reads YAML first.",
    )  # fmt: skip
    add = parser.add_argument
    add("--config", action="append", metavar="FILE", help="YAML to read; later files win")
    add("--resume", nargs="?", const="", metavar="DIR", help="continue the run in this folder")
    add("--print_config", action="store_true", help="print the configuration and stop")
    helps = {"model.preset": "defaults for the model's other keys", **_helps(Config)}
    for key, hint in hints.items():
        text = f"{helps.get(key, '')} ({describe(hint)})".replace("%", "%%").strip()
        add(f"--{key}", *_ALIASES.get(key, ()), dest=key, metavar="VALUE", help=text)
    return parser


def _helps(section: type, prefix: str = "") -> dict[str, str]:
    """Path of every key -> what its dataclass documents under Attributes, and its default."""
    documented: dict[str, str] = {}
    attributes = inspect.getdoc(section).partition("Attributes:")[2].partition("\n\n")[0]
    for names, text in re.findall(r"^ +([\w, ]+): ((?:.|\n(?! +[\w, ]+: ))+)", attributes, re.M):
        documented |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    found = {}
    for field in dataclasses.fields(section):
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.default_factory):
            found |= _helps(field.default_factory, f"{path}.")
        else:
            found[path] = f"{documented.get(field.name, '')} [{field.default}]"
    return found

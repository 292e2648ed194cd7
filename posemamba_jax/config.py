"""Reads the configuration: YAML files and command-line overrides into frozen dataclasses.

Every key has one name, its path through the dataclasses of `posemamba_jax.schema`
(`optim.learning_rate`), the same in a file and on the command line. A key that does not exist, a
value of the wrong type and values that contradict each other raise `ConfigError`, whose text names
the file or option and what to do.
"""

import dataclasses
import difflib
import functools
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from posemamba_jax.errors import UserError
from posemamba_jax.model import PoseMambaConfig
from posemamba_jax.model.config import PRESETS
from posemamba_jax.quiet import quiet_libraries
from posemamba_jax.schema import (
    Config,
    ConfigError,
    DistributedConfig,
    EvalConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
)

__all__ = [
    "Config",
    "ConfigError",
    "DistributedConfig",
    "EvalConfig",
    "MeshConfig",
    "OptimConfig",
    "TrainConfig",
    "UserError",
    "differences",
    "from_dict",
    "load_config",
    "run_program",
    "to_dict",
    "to_yaml",
]

# Options that are not keys: they are written without a section and may come without a value.
_SPECIAL = ("config", "resume", "checkpoint", "help", "print_config")


def load_config(
    argv: Sequence[str],
    *,
    prog: str = "train.py",
    base: Mapping[str, Any] | None = None,
) -> Config:
    """Reads `--config FILE` and overrides such as `--optim.learning_rate 1e-4`.

    Later wins: the defaults, the preset, `base`, the files in their order, the other options. Of
    `data.clip_len` and `model.num_frames` one that is not set follows the one that is.
    `--profile` stands for `--train.profile`.
    `--resume` stands for `--train.resume true`; `--resume DIR` also sets `run_dir`, and where no
    file is named the configuration in that folder is read.

    Args:
        argv: the command line, without the program's name.
        prog: name of the program, for its help.
        base: nested values below those of the files, for instance a checkpoint's model.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, or contradicting values.
    """
    argv = [re.sub(r"^--profile(?==|$)", "--train.profile", arg) for arg in argv]
    files, options = _split_options(_expand_resume(argv))
    layers = [("", _as_tree(base or {}))]
    layers += [(f"{file}: ", _read_yaml(file)) for file in files]

    explicit: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for where, tree in layers:
        flat = _check_types(_flatten(tree, where), where)
        explicit.update(flat)
        origins.update(dict.fromkeys(flat, where))
    cli = _option_values(options)
    origins.update(dict.fromkeys(cli, "--"))
    preset = cli.get("model.preset", explicit.get("model.preset"))

    parser = _make_parser(prog)
    defaults: dict[str, Any] = {}
    if preset is not None:
        _check_types({"model.preset": preset}, "")
        defaults = _flatten({"model": _as_tree(PoseMambaConfig.preset(preset))}, "")
    defaults.update(explicit)
    defaults.pop("model.preset", None)
    named = set(explicit) | set(cli)
    try:
        parser.set_defaults(defaults)
        values = parser.parse_args(options)
    except ArgumentError as error:
        raise ConfigError(_explain(str(error), "--")) from None
    tree = values.as_dict()
    tree["model"].pop("preset", None)
    _tie_lengths(tree, named)
    try:
        return _build(Config, tree)
    except ConfigError as error:
        raise ConfigError(_origin(str(error), origins) + str(error)) from None


def from_dict(tree: Mapping[str, Any], where: str = "") -> Config:
    """The inverse of `to_dict`; `where` names the origin in errors.

    Raises:
        ConfigError: as `load_config`.
    """
    flat = _flatten(_as_tree(tree), where)
    parser = _make_parser("config")
    parser.set_defaults(_check_types(flat, where))
    values = parser.parse_args([]).as_dict()
    values["model"].pop("preset", None)
    _tie_lengths(values, set(flat))
    return _build(Config, values, where)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration (or a section of one) as nested dictionaries of plain values."""
    return _as_tree(config)


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, width=100)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ between two nested dictionaries: path -> (old, new)."""
    a, b = _leaves(old), _leaves(new)
    keys = [*a, *(key for key in b if key not in a)]
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def run_program(main: Callable[[Sequence[str]], int]) -> typing.NoReturn:
    """Runs a program: a user's error becomes its text on stderr and exit code 2.

    Set POSEMAMBA_TRACEBACK=1 to see where such an error came from.
    """
    quiet_libraries()
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        if os.environ.get("POSEMAMBA_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


# The keys and their types


def _sections(cls: type, prefix: str = "") -> dict[str, Any]:
    """Path of every key -> its type, through nested dataclasses."""
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        path, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            found.update(_sections(hint, f"{path}."))
        else:
            found[path] = hint
    return found


@functools.cache
def _known() -> dict[str, Any]:
    return {**_sections(Config), "model.preset": Literal[tuple(PRESETS)] | None}


def _make_parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog, exit_on_error=False, default_env=False, allow_abbrev=False,
        description="Every key of the configuration is an option; --config FILE reads YAML first.",
    )  # fmt: skip
    parser.add_class_arguments(Config)
    parser.add_argument(
        "--model.preset", type=Literal[tuple(PRESETS)] | None, default=None,
        help="defaults for the model's other keys",
    )  # fmt: skip
    return parser


def _describe(hint: Any) -> str:
    """A type in words."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        parts = [_describe(part) for part in typing.get_args(hint) if part is not type(None)]
        return " or ".join(parts) + (" or null" if len(parts) < len(typing.get_args(hint)) else "")
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    if origin in (tuple, list):
        parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
        return "a list of " + (_describe(parts[0]) if parts else "values")
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _suggest(key: str) -> str:
    known = list(_known())
    tail = key.rsplit(".", 1)[-1]
    same_tail = [path for path in known if path.rsplit(".", 1)[-1] == tail]
    close = same_tail or difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if not close:
        tails = {path.rsplit(".", 1)[-1]: path for path in known}
        close = [tails[name] for name in difflib.get_close_matches(tail, tails, n=1, cutoff=0.75)]
    if close:
        return f"did you mean {close[0]}?"
    section = key.split(".", 1)[0]
    inside = [path for path in known if path.startswith(f"{section}.")] if "." in key else []
    return "known here: " + ", ".join(inside or sorted({path.split(".")[0] for path in known}))


# Files


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such configuration file{_nearby(Path(file))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected sections with keys, found {type(tree).__name__}")
    return tree


def _nearby(path: Path) -> str:
    folder = path.parent
    names = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {folder / close[0]}?" if close else ""


def _flatten(tree: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Nested mappings to paths, refusing paths that are not keys."""
    known = _known()
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        is_section = any(key.startswith(f"{path}.") for key in known)
        if is_section:
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}{path}: expected a section with keys, got {value!r}")
            flat.update(_flatten(value, where, f"{path}."))
        elif path in known:
            flat[path] = value
        else:
            raise ConfigError(f"{where}unknown key {path}; {_suggest(path)}")
    return flat


def _check_types(flat: dict[str, Any], where: str) -> dict[str, Any]:
    """Checks values against the types of their keys, key by key."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        node = nested
        *parents, leaf = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    try:
        _make_parser("config").parse_object(nested)
    except ArgumentError as error:
        raise ConfigError(_explain(str(error), where, flat)) from None
    return flat


def _explain(text: str, where: str, values: Mapping[str, Any] | None = None) -> str:
    """The parser's complaint in one line: where, key, expected type, value."""
    found = re.search(r'key "([\w.]+)"', text)
    key = found.group(1) if found else ""
    known = _known()
    if key not in known:
        return where.removesuffix("--") + " ".join(text.split())
    value = (values or {}).get(key)
    if values is None:
        got = re.findall(r"(?:Got value|Given value|value): ?(.*)", text)
        value = got[-1].strip() if got else "something else"
    return f"{where}{key}: expected {_describe(known[key])}, got {value!r}"


# The command line


def _expand_resume(argv: list[str]) -> list[str]:
    """Rewrites `--resume [DIR]` in terms of keys, and finds the configuration of that run."""
    if not any(arg == "--resume" or arg.startswith("--resume=") for arg in argv):
        return argv
    rest, run_dir = [], None
    i = 0
    while i < len(argv):
        arg = argv[i]
        if arg.startswith("--resume="):
            run_dir = arg.removeprefix("--resume=")
        elif arg == "--resume":
            if i + 1 < len(argv) and not argv[i + 1].startswith("-"):
                i += 1
                run_dir = argv[i]
        else:
            rest.append(arg)
        i += 1
    if run_dir is not None:
        rest += ["--run_dir", run_dir]
    elif "--run_dir" in rest[:-1]:
        run_dir = rest[rest.index("--run_dir") + 1]
    named = any(arg == "--config" or arg.startswith("--config=") for arg in rest)
    if run_dir is not None and not named:
        saved = Path(run_dir) / "config.yaml"
        if not saved.is_file():
            raise ConfigError(f"--resume: {run_dir} holds no run (no config.yaml in it)")
        rest = ["--config", str(saved), *rest]
    return [*rest, "--train.resume", "true"]


def _split_options(argv: list[str]) -> tuple[list[str], list[str]]:
    """(files named by --config, other options), with every option's name checked."""
    known, files, rest = _known(), [], []
    i = 0
    while i < len(argv):
        arg = argv[i]
        name, has_value, value = arg.partition("=")
        if not arg.startswith("-"):
            hint = f"; did you mean --config {arg}?" if arg.endswith((".yaml", ".yml")) else ""
            raise ConfigError(f"unexpected {arg!r}; options are written --key value{hint}")
        key = name.lstrip("-")
        if key == "config":
            i += 0 if has_value else 1
            if not has_value and i >= len(argv):
                raise ConfigError("--config: give a file")
            files.append(value if has_value else argv[i])
        elif key in ("help", "h", "print_config"):
            rest.append(arg)
        elif not arg.startswith("--") or key not in known:
            raise ConfigError(f"unknown option {name}; {_suggest_option(key)}")
        else:
            rest.append(arg)
            if not has_value:
                i += 1
                if i >= len(argv) or (argv[i].startswith("--") and argv[i] != "--"):
                    raise ConfigError(f"--{key}: give a value ({_describe(known[key])})")
                rest.append(argv[i])
        i += 1
    return files, rest


def _suggest_option(key: str) -> str:
    close = difflib.get_close_matches(key, _SPECIAL, n=1, cutoff=0.75)
    text = f"did you mean {close[0]}?" if close else _suggest(key)
    return text.replace("did you mean ", "did you mean --")


def _option_values(options: Sequence[str]) -> dict[str, str]:
    """Key -> text of its value, for checked options."""
    found: dict[str, str] = {}
    rest = iter(options)
    for arg in rest:
        name, has_value, value = arg.partition("=")
        key = name.removeprefix("--")
        if key in ("help", "-h", "print_config"):
            continue
        found[key] = value if has_value else next(rest)
    return found


# Building


def _as_tree(value: Any) -> Any:
    """Dataclasses, mappings and tuples as plain nested dictionaries and lists."""
    if dataclasses.is_dataclass(value):
        fields = [field for field in dataclasses.fields(value) if field.init]
        return {field.name: _as_tree(getattr(value, field.name)) for field in fields}
    if isinstance(value, (Mapping, Namespace)):
        return {key: _as_tree(item) for key, item in dict(value).items()}
    if isinstance(value, (tuple, list)):
        return [_as_tree(item) for item in value]
    return value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_leaves(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _tie_lengths(tree: dict[str, Any], named: set[str]) -> None:
    """Lets clip_len follow num_frames, or the other way round, where only one was set."""
    if "data.clip_len" in named and "model.num_frames" not in named:
        tree["model"]["num_frames"] = tree["data"]["clip_len"]
    elif "data.clip_len" not in named:
        tree["data"]["clip_len"] = tree["model"]["num_frames"]


def _origin(message: str, origins: Mapping[str, str]) -> str:
    """Where the key was set that a message about a value speaks of: a file, `--`, or nowhere."""
    keys = sorted((key for key in origins if key in message), key=len)
    tails = [key for key in origins if re.search(rf"\b{key.rsplit('.', 1)[-1]}\b", message)]
    found = [origins[key] for key in (*keys[::-1], *tails)]
    # A message that starts with the key reads as the option's name after `--`.
    return next((o for o in found if o != "--" or message.startswith(tuple(keys))), "")


def _build(cls: type, tree: Mapping[str, Any], where: str = "") -> Any:
    """Nested dictionaries into nested dataclasses."""
    hints = typing.get_type_hints(cls)
    values = {
        name: _build(hints[name], value, where)
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping)
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in tree.items()
    }
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}{error}") from None

"""Reads the configuration: YAML files and command-line overrides into frozen dataclasses.

Every key has one name, its path through the dataclasses of `posemamba_jax.config.schema`
(`optim.learning_rate`), the same in a file and on the command line. A key that does not exist, a
value of the wrong type and values that contradict each other raise `ConfigError`, whose text names
the file or option and what to do.
"""

import argparse
import dataclasses
import difflib
import functools
import json
import typing
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import yaml

from posemamba_jax.config.options import Key, convert, keys_of, parse_options, suggest
from posemamba_jax.config.schema import Config
from posemamba_jax.errors import ConfigError, UserError, as_word, describe_error, shorten
from posemamba_jax.files.reading import user_path
from posemamba_jax.files.skeleton_file import load_skeleton
from posemamba_jax.files.yaml_file import TextLoader, read_yaml
from posemamba_jax.model.config import PRESETS

# A key that is not given takes the value of the other, if that is given.
_FOLLOWS = {"data.clip_len": "model.num_frames", "model.num_frames": "data.clip_len"}

# Options that may leave out their section.
_ALIASES = {"train.profile": "--profile", "model.implementation": "--implementation"}


def load_config(
    argv: Sequence[str], *, prog: str = "train.py", base: Mapping[str, Any] | None = None
) -> Config:
    """Reads `--config FILE` and overrides such as `--optim.learning_rate 1e-4`.

    Later wins: the defaults, the preset, `base`, the files in their order, the other options. Of
    `data.clip_len` and `model.num_frames` one that is not set follows the one that is, and
    `model.num_joints` and `model.limb_walk` follow `data.skeleton`. `--resume` stands for
    `--train.resume true`; `--resume DIR` also sets `run_dir`, and where no file is named the
    configuration in that folder is read.

    Args:
      argv: the command line, without the program's name.
      prog: name of the program, for its help.
      base: nested values below those of the files, for instance a checkpoint's model.

    Raises:
      ConfigError: an unknown key, a value of the wrong type or out of its range, or values that
        contradict each other.
    """
    parser = argparse.ArgumentParser(
        prog=prog, usage="%(prog)s [--config FILE] [--KEY VALUE ...]",
        description="Every key of the configuration is an option; --config FILE reads YAML first.",
    )  # fmt: skip
    add = parser.add_argument
    add("--config", action="append", default=[], metavar="FILE", help="YAML; later files win")
    add("--resume", nargs="?", const="", metavar="DIR", help="continue the run in this folder")
    add("--print_config", action="store_true", help="print the configuration and stop")
    options = parse_options(parser, argv, _keys())
    files, resume, print_only = map(options.pop, ("config", "resume", "print_config"))
    if resume is not None:
        options |= {"train.resume": "true"} | ({"run_dir": resume} if resume else {})
        if "run_dir" in options and not files:
            saved = user_path(options["run_dir"]) / "config.yaml"
            if not saved.is_file():
                raise ConfigError(f"--resume: {saved.parent} holds no run (no config.yaml in it)")
            files = [str(saved)]
    read = [(f"{file}: ", _read_file(file)) for file in files]
    config = _build([("", base or {}), *read, ("--", options)])
    if print_only:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def from_dict(tree: Mapping[str, Any], where: str = "") -> Config:
    """Undoes `to_dict`; `where` names the origin in errors.

    Raises:
      ConfigError: as `load_config`.
    """
    return _build([(where, tree)])


def to_dict(config: Any) -> dict[str, Any]:
    """Turns a configuration, or a section of one, into the dictionaries and lists of its JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: Config) -> str:
    """Writes the configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, width=100)


def leaves(
    tree: Mapping[str, Any], prefix: str = "", whole: Container[str] = ()
) -> Iterator[tuple[str, Any]]:
    """Yields path and value of what is in nested mappings; those at paths in `whole` stay whole."""
    for name, value in tree.items():
        path = f"{prefix}{as_word(name)}"
        if isinstance(value, Mapping) and value and path not in whole:
            yield from leaves(value, f"{path}.", whole)
        else:
            yield path, value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compares two nested dictionaries: path -> (old, new) of every key whose values differ."""
    a, b = dict(leaves(old)), dict(leaves(new))
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


@functools.cache
def _keys() -> dict[str, Key]:
    keys = keys_of(Config)
    text = "defaults for the model's other keys (one of S, B, L or null)"
    keys["model.preset"] = Key(Literal[tuple(PRESETS)] | None, text)
    return keys | {name: keys[name]._replace(alias=alias) for name, alias in _ALIASES.items()}


def _read_file(file: str) -> dict[str, Any]:
    """Reads sections and keys from a YAML file; scalars stay text."""
    try:
        path = user_path(file)
        if not path.exists():
            near = difflib.get_close_matches(str(path), map(str, path.parent.glob("*.y*ml")), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{as_word(file)}: no such configuration file{hint}")
        tree = read_yaml(path, TextLoader)
    except (UserError, OSError) as error:
        raise ConfigError(describe_error(error)) from None
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{file}: expected sections with keys, found {type(tree).__name__}")
    return tree or {}


def _build(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> Config:
    """Makes the configuration of layers, each with its origin for errors; later ones win."""
    keys, values, origins = _keys(), {}, {}
    try:
        for origin, tree in layers:
            layer = {}
            for path, value in leaves(tree, whole=keys):
                origins[path] = origin
                if path in layer:
                    raise ConfigError("is given twice; keep one", key=path)
                if path in keys:
                    layer[path] = convert(path, keys[path].hint, value)
                elif not any(key.startswith(f"{path}.") for key in keys):
                    raise ConfigError(f"unknown key; {suggest(path, keys)}", key=path)
                elif value not in (None, {}):
                    problem = f"expected a section with keys, got {shorten(value)}"
                    raise ConfigError(problem, key=path)
            values |= layer
        return _section(Config, _following(values) | values)
    except ConfigError as error:
        other = _FOLLOWS.get(error.key)
        key = other if error.key not in origins and other in origins else error.key
        raise ConfigError(error.problem, key=origins.get(key, "") + key) from None


def _following(values: Mapping[str, Any]) -> dict[str, Any]:
    """Finds what follows from other keys where it is not given."""
    found = {key: values[other] for key, other in _FOLLOWS.items() if other in values}
    preset = PRESETS.get(values.get("model.preset"), {})
    found |= {f"model.{name}": value for name, value in preset.items()}
    name = values.get("data.skeleton")
    if name is not None and not {"model.num_joints", "model.limb_walk"} <= values.keys():
        try:
            skeleton = load_skeleton(name)
        except UserError as error:
            raise ConfigError(str(error), key="data.skeleton") from None
        found |= {"model.num_joints": skeleton.num_joints, "model.limb_walk": skeleton.limb_walk}
    return found


def _section(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Makes the dataclass whose keys begin with `prefix`."""
    hints = typing.get_type_hints(cls)
    fields = {name: values[prefix + name] for name in hints if prefix + name in values}
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            fields[name] = _section(hint, values, f"{prefix}{name}.")
    try:
        return cls(**fields)
    except ConfigError as error:
        # A section that is in several places does not know which one it is in.
        raise ConfigError(error.problem, key=prefix + error.key.removeprefix(cls.prefix)) from None

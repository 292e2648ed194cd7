"""Reads the configuration: YAML files and command-line overrides into frozen dataclasses.

Every key has one name, its path through the dataclasses of `posemamba_jax.config.schema`
(`optim.learning_rate`), the same in a file and on the command line. A key that does not exist, a
value of the wrong type and values that contradict each other raise `ConfigError`, whose text names
the file or option and what to do.
"""

import dataclasses
import difflib
import functools
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from posemamba_jax.config.options import parse_options
from posemamba_jax.config.schema import Config
from posemamba_jax.config.values import as_word, convert, read_yaml
from posemamba_jax.errors import ConfigError, DataError
from posemamba_jax.files.reading import user_path
from posemamba_jax.files.skeleton_file import load_skeleton
from posemamba_jax.model.config import PRESETS

# Of these two, one that is not set follows the other.
_LENGTHS = ("data.clip_len", "model.num_frames")


def load_config(
    argv: Sequence[str],
    *,
    prog: str = "train.py",
    base: Mapping[str, Any] | None = None,
) -> Config:
    """Reads `--config FILE` and overrides such as `--optim.learning_rate 1e-4`.

    Later wins: the defaults, the preset, `base`, the files in their order, the other options. Of
    `data.clip_len` and `model.num_frames` one that is not set follows the one that is, and
    `model.num_joints` and `model.limb_walk` follow `data.skeleton`.
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
      ConfigError: an unknown key, a value of the wrong type or out of its range, or values that
        contradict each other.
    """
    options = parse_options(argv, prog, _known(), _suggest)
    files, resume = options.pop("config", []), options.pop("resume", None)
    if resume is not None:
        options |= {"train.resume": "true"} | ({"run_dir": resume} if resume else {})
        if "run_dir" in options and not files:
            folder = user_path(options["run_dir"])
            files = [str(folder / "config.yaml")]
            if not Path(files[0]).is_file():
                raise ConfigError(f"--resume: {folder} holds no run (no config.yaml in it)")
    print_only = options.pop("print_config", False)

    layers = [("", _flatten(to_dict(base or {})))]
    layers += [(f"{file}: ", _flatten(read_yaml(file), f"{file}: ")) for file in files]
    values, origins = _merge([*layers, ("--", options)])
    config = _build(values, origins)
    if print_only:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def from_dict(tree: Mapping[str, Any], where: str = "") -> Config:
    """Undoes `to_dict`; `where` names the origin in errors.

    Raises:
      ConfigError: as `load_config`.
    """
    return _build(*_merge([(where, _flatten(to_dict(tree), where))]))


def to_dict(config: Any) -> Any:
    """Turns a configuration, or a section of one, into nested dictionaries of plain values."""
    if dataclasses.is_dataclass(config):
        fields = [field for field in dataclasses.fields(config) if field.init]
        return {field.name: to_dict(getattr(config, field.name)) for field in fields}
    if isinstance(config, Mapping):
        return {key: to_dict(item) for key, item in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_dict(item) for item in config]
    return config


def to_yaml(config: Config) -> str:
    """Writes the configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, width=100)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compares two nested dictionaries: path -> (old, new) of every key whose values differ."""
    a, b = _leaves(old), _leaves(new)
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        inner = isinstance(value, Mapping)
        flat |= _leaves(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return flat


def _hints(section: type, prefix: str = "") -> dict[str, Any]:
    """Finds the type of every key by its path, through nested dataclasses."""
    hints, found = typing.get_type_hints(section), {}
    for field in dataclasses.fields(section):
        path, hint = f"{prefix}{field.name}", hints[field.name]
        if field.init:
            found |= _hints(hint, f"{path}.") if dataclasses.is_dataclass(hint) else {path: hint}
    return found


@functools.cache
def _known() -> dict[str, Any]:
    return {**_hints(Config), "model.preset": Literal[tuple(PRESETS)] | None}


def _flatten(tree: Mapping[str, Any], where: str = "", prefix: str = "") -> dict[str, Any]:
    """Turns nested mappings into path -> value, refusing paths that are not keys."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if path in _known():
            found = {path: value}
        elif not any(key.startswith(f"{path}.") for key in _known()):
            raise ConfigError(f"{where}unknown key {as_word(path)}; {_suggest(path)}")
        elif isinstance(value, Mapping):
            found = _flatten(value, where, f"{path}.")
        elif value is None:
            continue
        else:
            raise ConfigError(f"{where}{path}: expected a section with keys, got {value!r}")
        twice = next(iter(flat.keys() & found), None)
        if twice:
            raise ConfigError(f"{where}{twice} is given twice; keep one")
        flat |= found
    return flat


def _merge(layers: Sequence[tuple[str, dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Converts layers of (origin, path -> value); returns the last value and origin of each key."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, flat in layers:
        for key, value in flat.items():
            try:
                values[key] = convert(key, _known()[key], value, option=origin == "--")
            except ConfigError as error:
                raise ConfigError(f"{origin}{error}") from None
        origins |= dict.fromkeys(flat, origin)
    return values, origins


def _build(values: dict[str, Any], origins: Mapping[str, str]) -> Config:
    """Makes the configuration of the values given; an error says where its key was set."""
    preset = values.pop("model.preset", None)
    defaults = {f"model.{name}": value for name, value in PRESETS.get(preset, {}).items()}
    values = {**defaults, **values}
    _follow_skeleton(values)
    followed = {}
    for key, other in (_LENGTHS, _LENGTHS[::-1]):
        if key not in values and other in values:
            values[key], followed[key] = values[other], other
    try:
        return _section(Config, values, "")
    except ConfigError as error:
        key = followed.get(error.key, error.key)
        set_by_user = ConfigError(error.problem, key=key)
        raise ConfigError(f"{origins.get(key, '')}{set_by_user}") from None


def _follow_skeleton(values: dict[str, Any]) -> None:
    """Gives keys of the model that are not set the values that fit `data.skeleton`."""
    name = values.get("data.skeleton")
    missing = [key for key in ("model.num_joints", "model.limb_walk") if key not in values]
    if name is None or not missing:
        return
    try:
        skeleton = load_skeleton(name)
    except DataError as error:
        raise ConfigError(str(error), key="data.skeleton") from None
    fitting = {"model.num_joints": skeleton.num_joints, "model.limb_walk": skeleton.limb_walk}
    values |= {key: fitting[key] for key in missing}


def _section(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    """Makes the dataclass whose keys begin with `prefix`."""
    hints, fields = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            fields[field.name] = _section(hints[field.name], values, f"{path}.")
        elif path in values:
            fields[field.name] = values[path]
    try:
        return cls(**fields)
    except ConfigError as error:
        if not error.key or error.key in _known():
            raise
        # A section that is in several places does not know which one it is in.
        raise ConfigError(error.problem, key=prefix + error.key.rsplit(".", 1)[-1]) from None


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

"""Finds the models that are installed with the package, by name."""

import dataclasses
import hashlib
import json
from pathlib import Path

from posemamba_jax.errors import UserError
from posemamba_jax.files import writing
from posemamba_jax.files.reading import read_whole

# What a name begins with where the folder of a run could stand too.
PREFIX = "pretrained:"
CARD = "docs/model_card.md"
MAX_BYTES = 6_000_000

_FOLDER = Path(__file__).parent
_INDEX = "index.json"


class PretrainedError(UserError, ValueError):
    """No such model is installed, or its file is not the one that was packed."""


@dataclasses.dataclass(frozen=True)
class PretrainedModel:
    """One model that is installed with the package.

    Attributes:
      name: what `load` takes.
      file: its parameters and configuration, as `save_model_file` writes them.
      sha256: of the file, hexadecimal.
      description: what it was trained on, in one line.
    """

    name: str
    file: Path
    sha256: str
    description: str


def available() -> dict[str, PretrainedModel]:
    """Lists the models that are installed, by name; the first is the default of predict.py.

    Raises:
      PretrainedError: the list cannot be read.
    """
    path = _FOLDER / _INDEX
    try:
        index = json.loads(read_whole(path, 1 << 20, PretrainedError))
        return {
            name: PretrainedModel(name, _FOLDER / f"{name}.npz", row["sha256"], row["description"])
            for name, row in index.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PretrainedError):
            raise
        raise PretrainedError(f"{path}: damaged ({error}); install the package again") from None


def find(name: str) -> Path:
    """Returns the file of a model whose content is the one that was packed.

    Args:
      name: such as "cmu30"; `PREFIX` may stand before it.

    Raises:
      PretrainedError: the name is unknown, or the file is missing or damaged.
    """
    name = name.removeprefix(PREFIX)
    models = available()
    if name not in models:
        there = ", ".join(models) or "none in this version"
        raise PretrainedError(f"{PREFIX}{name}: no such model; installed: {there}")
    model = models[name]
    found = hashlib.sha256(read_whole(model.file, MAX_BYTES, PretrainedError)).hexdigest()
    if found != model.sha256:
        raise PretrainedError(
            f"{model.file}: damaged (SHA-256 {found[:12]}..., expected {model.sha256[:12]}...); "
            "install the package again"
        )
    return model.file


def add(name: str, data: bytes, description: str) -> PretrainedModel:
    """Puts a model's file into the package and its name into the list, or replaces them.

    Args:
      name: letters, digits and underscores.
      data: the file's content.
      description: what it was trained on, in one line.

    Raises:
      PretrainedError: the name or the description is unusable, or the file is too large.
      OSError: the package's folder cannot be written.
    """
    if not (name.isascii() and name.isidentifier()):
        raise PretrainedError(f"{name!r}: expected letters, digits and underscores")
    if not description.strip() or len(description.splitlines()) != 1:
        raise PretrainedError("--description: expected one line")
    if len(data) > MAX_BYTES:
        raise PretrainedError(
            f"{name}: {len(data) / 1e6:.1f} MB, and at most {MAX_BYTES / 1e6:.0f} MB are shipped"
        )
    sha256 = hashlib.sha256(data).hexdigest()
    models = available()
    models[name] = PretrainedModel(name, _FOLDER / f"{name}.npz", sha256, description.strip())
    index = {
        model.name: {"sha256": model.sha256, "description": model.description}
        for model in models.values()
    }
    writing.write_bytes(models[name].file, data)
    writing.write_text(_FOLDER / _INDEX, json.dumps(index, indent=2) + "\n")
    return models[name]

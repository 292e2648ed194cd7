"""Opens a checkpoint together with the clips that it is to be evaluated on."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posemamba_jax import config as config_lib
from posemamba_jax import data
from posemamba_jax.config.program import set_compilation_cache
from posemamba_jax.config.schema import Config
from posemamba_jax.data.clips import ClipSource, check_skeleton
from posemamba_jax.errors import UserError
from posemamba_jax.evaluation.protocols import Predict
from posemamba_jax.model import PoseMambaConfig
from posemamba_jax.model.checkpoint import (
    find_checkpoint,
    load_model,
    load_skeleton,
    read_description,
    read_json,
)
from posemamba_jax.model.forward import make_predict
from posemamba_jax.model.implementation import choose_implementation
from posemamba_jax.model.mesh import make_mesh

# Fields of the model that say how it is computed, not what: these may differ from the checkpoint's.
_HOW = ("dtype", "implementation", "remat", "scan_layers")


@dataclasses.dataclass(frozen=True)
class OpenedCheckpoint:
    """A model and the clips to evaluate it on.

    Attributes:
      folder: the checkpoint's; of a model in one file, that.
      config: of the data, the evaluation and the model; the model's is the checkpoint's.
      variables: {"params": ...}, NumPy arrays.
      source: the test clips; their skeleton is the model's.
      notes: what was decided against the command line, for the user to see.
      devices: to compute on; None for all there are.
    """

    folder: Path
    config: Config
    variables: dict[str, Any]
    source: ClipSource
    notes: tuple[str, ...]
    devices: Sequence[Any] | None = None

    @functools.cached_property
    def predict(self) -> Predict:
        """Returns the function that lifts clips, on the mesh of the configuration."""
        mesh = make_mesh(self.config.mesh, self.devices)
        batch_size = self.config.eval.batch_size
        return make_predict(self.config.model, self.variables, mesh=mesh, batch_size=batch_size)


def open_checkpoint(
    checkpoint: str | Path,
    argv: Sequence[str] = (),
    *,
    which: str = "best",
    devices: Sequence[Any] | None = None,
) -> OpenedCheckpoint:
    """Reads a checkpoint and builds the clips to evaluate it on.

    The sections on data and evaluation come from the command line (`--config` and overrides) and,
    where no file is named, from the run that the checkpoint belongs to. The model is the
    checkpoint's; only how it is computed can be changed.

    Args:
      checkpoint: a run, a checkpoint in it, a model's folder or file, or `pretrained:NAME`.
      argv: options of the configuration.
      which: of a run, the "best" or the "latest" checkpoint.
      devices: to compute on; all there are unless given.

    Raises:
      UserError: the checkpoint, the configuration or the data cannot be used, or the data has
        another skeleton than the model.
    """
    folder = find_checkpoint(checkpoint, which)
    model, variables = load_model(folder)
    base: dict[str, Any] = {}
    named = any(arg == "--config" or arg.startswith("--config=") for arg in argv)
    run_config = None if named else load_run_config(folder)
    if run_config is not None:
        base = config_lib.to_dict(run_config)
        base.pop("mesh")  # It was made for the devices of the training run.
    stored = config_lib.to_dict(model)
    # What is there after reading the options is what was asked for.
    base["model"] = {**stored, "implementation": None}
    config = config_lib.load_config(argv, prog="eval.py", base=base)

    wanted = config_lib.to_dict(config.model)
    wanted["implementation"], note = choose_implementation(
        model.implementation, config.model.implementation
    )
    changed = config_lib.differences(stored, wanted)
    notes = [
        f"model.{name} is {there}, as in the checkpoint, not {asked}"
        for name, (there, asked) in changed.items()
        if name not in _HOW
    ]
    notes += [note] if note else []
    used = PoseMambaConfig(**{**stored, **{name: wanted[name] for name in _HOW}})
    config = dataclasses.replace(config, model=used)

    set_compilation_cache(config.train.compilation_cache)
    source = data.build(config.data, "test")
    skeleton = load_skeleton(folder)
    check_joints(config.model, source)
    if skeleton is None:
        notes.append(f"the checkpoint does not say its skeleton; {source.skeleton.name} is assumed")
    else:
        check_skeleton(skeleton, f"the checkpoint {folder}", source)
    return OpenedCheckpoint(folder, config, variables, source, tuple(notes), devices)


def evaluation_options(config: Config) -> dict[str, Any]:
    """Returns how a configuration wants its model evaluated, as keywords of
    `posemamba_jax.evaluation.evaluate`."""
    return {
        "batch_size": config.eval.batch_size,
        "flip": config.eval.flip,
        "confidence": config.model.confidence,
    }


def load_run_config(checkpoint: str | Path, which: str = "best") -> Config | None:
    """Reads the configuration of the run that a checkpoint belongs to; None for a model alone.

    Raises:
      CheckpointError: there is no checkpoint.
      ConfigError: it cannot be read with this version.
    """
    folder = find_checkpoint(checkpoint, which)
    if read_description(folder) is not None:
        return None
    return config_lib.from_dict(read_json(folder / "config"), f"{folder}/config: ")


def load_frame_rate(checkpoint: str | Path, which: str = "best") -> float | None:
    """Reads how many frames a second the clips had that a model was trained on.

    Args:
      checkpoint, which: as for `open_checkpoint`.

    Returns:
      The frame rate; None where it is not known, as of the authors' models, or where the sources
      of a run have several.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    folder = find_checkpoint(checkpoint, which)
    about = read_description(folder)
    if about is not None:
        found = about.get("metadata")
    else:
        # Configurations of earlier versions, which may not load, have it in the same place.
        section = read_json(folder / "config").get("data") or {}
        found = section.get(section.get("source"))
    fps = found.get("fps") if isinstance(found, dict) else None
    good = isinstance(fps, int | float) and not isinstance(fps, bool) and 0 < fps < math.inf
    return float(fps) if good else None


def check_joints(model: PoseMambaConfig, source: ClipSource) -> None:
    """Refuses clips with more or fewer joints than the model takes.

    Raises:
      UserError: names both counts.
    """
    joints = source.skeleton.num_joints
    if joints != model.num_joints:
        raise UserError(
            f"data.source: {source.name} has {joints} joints, model.num_joints is "
            f"{model.num_joints}; set it to {joints}"
        )

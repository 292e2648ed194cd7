"""Lists the models that are installed, or packs the model of a run as one of them.

python -m posemamba_jax.pretrained
python -m posemamba_jax.pretrained pack runs/cmu30 cmu30 --description "..."
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from posemamba_jax.config import run_program
from posemamba_jax.files import writing
from posemamba_jax.pretrained.index import PREFIX, PretrainedModel, add, available

_VERSIONS = ("python", "posemamba-jax", "jax", "jaxlib", "flax", "optax", "numpy", "commit")


def pack(
    checkpoint: str, name: str, description: str, *, which: Literal["best", "latest"] = "best"
) -> PretrainedModel:
    """Puts the model of a run into the package; the same model makes the same file.

    The running average of the parameters is taken where one was kept. Beside them the file holds
    the model's configuration and skeleton; clip length, frame rate and kind of input of the
    training data; the step, and the versions and the commit that the run records.

    Args:
      checkpoint: a run, a checkpoint in it or a model.
      name: to load it by.
      description: what it was trained on, in one line.
      which: of a run.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
      PretrainedError: the name or the description is unusable, or the file is too large.
      OSError: the package's folder cannot be written.
    """
    # Here, because it brings Orbax, which takes seconds to import and listing does not need.
    from posemamba_jax.evaluation.checkpoint import load_frame_rate, load_run_config
    from posemamba_jax.model.checkpoint import (
        find_checkpoint,
        load_model,
        load_skeleton,
        model_file,
    )

    folder = find_checkpoint(checkpoint, which)
    config, variables = load_model(folder)
    metadata = {"description": description, "fps": load_frame_rate(folder)}
    run = load_run_config(folder)
    if run is not None:
        metadata |= {"clip_len": run.data.clip_len, "input_2d": run.data.input_2d}
        metadata |= {"step": int(folder.name), "versions": _read_versions(folder)}
    data = model_file(config, variables, metadata, skeleton=load_skeleton(folder))
    return add(name, data, description)


def _read_versions(folder: Path) -> dict[str, str]:
    """Reads what a run records of the software it ran on; empty where it does not say."""
    try:
        found = json.loads((folder.parents[1] / "versions.json").read_text(encoding="utf-8"))
        return {name: found[name] for name in _VERSIONS if name in found}
    except (OSError, ValueError, TypeError):
        return {}


def main(argv: Sequence[str]) -> int:
    """Reads the command line and lists or packs."""
    parser = argparse.ArgumentParser(
        prog="python -m posemamba_jax.pretrained",
        description="Lists the models that are installed with the package.",
    )
    commands = parser.add_subparsers(dest="command")
    packing = commands.add_parser("pack", help="put the model of a run into the package")
    packing.add_argument("checkpoint", help="a run, a checkpoint in it or a model")
    packing.add_argument("name", help="to load it by, such as cmu30")
    packing.add_argument("--description", required=True, help="what it was trained on, one line")
    packing.add_argument("--which", choices=("best", "latest"), default="best", help="of a run")
    options = parser.parse_args(argv)
    if options.command is None:
        models = available().values()
        for model in models:
            print(f"{PREFIX}{model.name}  {model.description}")
        if not models:
            print("no model is installed with this version")
        return 0
    with writing.reported_as("the package's folder"):
        packed = pack(options.checkpoint, options.name, options.description, which=options.which)
    size = packed.file.stat().st_size
    print(f"wrote {packed.file}: {size / 1e6:.2f} MB, SHA-256 {packed.sha256}")
    return 0


if __name__ == "__main__":
    run_program(main)

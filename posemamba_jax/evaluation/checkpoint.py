"""Evaluates a checkpoint on any clip source: what eval.py does."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from posemamba_jax import config as config_lib
from posemamba_jax import data
from posemamba_jax.config.schema import Config, ConfigError
from posemamba_jax.evaluation import evaluate, progress_bar
from posemamba_jax.files import writing
from posemamba_jax.model import PoseMambaConfig
from posemamba_jax.training import checkpoint
from posemamba_jax.training import mesh as mesh_lib
from posemamba_jax.training.loop import (
    check_source,
    draw_poses,
    set_compilation_cache,
    user_errors,
)
from posemamba_jax.training.step import make_predict

# Fields of the model that say how it is computed, not what: these may differ from the checkpoint's.
_HOW = ("dtype", "implementation", "remat", "scan_layers")


def main(argv: Sequence[str], devices: Sequence[Any] | None = None) -> int:
    """Parses the command line, evaluates, prints a table and writes report.json and pictures.

    Args:
        argv: the command line, without the program's name.
        devices: to compute on; all there are unless given.

    Raises:
        UserError: an option, the checkpoint or the data cannot be used.
    """
    parser = argparse.ArgumentParser(prog="eval.py", allow_abbrev=False, add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--checkpoint", help="a run, a checkpoint in it, or a converted model")
    parser.add_argument(
        "--which", default="best", help="best (lowest test error) or latest checkpoint of a run"
    )
    parser.add_argument("--output", help="folder for the results; default: CHECKPOINT/eval")
    parser.add_argument("--pictures", default="1", help="how many clips to draw; default: 1")
    options, rest = parser.parse_known_args(argv)
    if options.help:
        print(parser.format_help(), "\nAny key of the configuration is an option too:\n", sep="")
        config_lib.load_config(["--help"], prog="eval.py")
    if options.checkpoint is None:
        config_lib.load_config(rest, prog="eval.py")  # A mistyped option is the likelier cause.
        raise ConfigError("--checkpoint: give a run, a checkpoint in it, or a converted model")
    if options.which not in ("best", "latest"):
        raise ConfigError(f"--which: expected best or latest, got {options.which!r}")
    if not options.pictures.isdigit():
        raise ConfigError(f"--pictures: expected a number of clips, got {options.pictures!r}")

    folder = checkpoint.find_checkpoint(options.checkpoint, options.which)
    config, variables, notes = load(folder, rest)
    output = Path(options.output or Path(options.checkpoint) / "eval").expanduser()
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"checkpoint {folder}", markup=False)
    for note in notes:
        console.print(note, markup=False)

    with user_errors():
        set_compilation_cache(config.train.compilation_cache)
        mesh = mesh_lib.make_mesh(config.mesh, devices)
        source = data.build(config.data, "test")
        check_source(config, source)
        forward = make_predict(config, mesh)
        shardings = mesh_lib.state_shardings(mesh, variables["params"])
        params = jax.device_put(variables["params"], shardings)

        def predict(poses_2d):
            return forward(params, poses_2d)

        with progress_bar(f"evaluating on {source.name}") as progress:
            report = evaluate(
                predict,
                source,
                batch_size=config.eval.batch_size,
                flip=config.eval.flip,
                progress=progress,
            )
        console.print(report.table())
        output.mkdir(parents=True, exist_ok=True)
        results = {"checkpoint": str(folder), **report.to_dict()}
        writing.write_text(output / "report.json", json.dumps(results, indent=2) + "\n")
        count = min(int(options.pictures), len(source))
        # Away from the ends, so that one picture shows the clip in the middle.
        clips = np.linspace(0, len(source), count + 2)[1:-1].astype(int)
        for n, clip in enumerate(clips):
            path = output / ("poses.png" if count == 1 else f"poses_{n}.png")
            draw_poses(predict, source, path, config.eval.batch_size, index=int(clip))
    console.print(f"results in {output}", markup=False)
    return 0


def load(folder: Path, argv: Sequence[str]) -> tuple[Config, dict[str, Any], list[str]]:
    """The configuration for evaluating a checkpoint, its variables, and remarks for the user.

    The sections on data and evaluation come from the command line (`--config` and overrides) and,
    where no file is named, from the run that the checkpoint belongs to. The model is the
    checkpoint's; only how it is computed can be changed.

    Raises:
        UserError: the checkpoint or the configuration cannot be used.
    """
    model, variables = checkpoint.load_model(folder)
    base: dict[str, Any] = {}
    named = any(arg == "--config" or arg.startswith("--config=") for arg in argv)
    run_config = None if named else checkpoint.load_run_config(folder)
    if run_config is not None:
        base = config_lib.to_dict(run_config)
        base.pop("mesh")  # It was made for the devices of the training run.
    base["model"] = config_lib.to_dict(model)
    config = config_lib.load_config(argv, prog="eval.py", base=base)

    wanted = config_lib.to_dict(config.model)
    changed = config_lib.differences(base["model"], wanted)
    notes = [
        f"model.{name} is {there}, as in the checkpoint, not {asked}"
        for name, (there, asked) in changed.items()
        if name not in _HOW
    ]
    used = PoseMambaConfig(**{**base["model"], **{name: wanted[name] for name in _HOW}})
    return dataclasses.replace(config, model=used), variables, notes

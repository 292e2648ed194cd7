"""Evaluates a checkpoint on any clip source, and draws: what eval.py does."""

import argparse
import difflib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from posemamba_jax import config as config_lib
from posemamba_jax.config.schema import Config, ConfigError
from posemamba_jax.data.clips import ClipSource
from posemamba_jax.errors import UserError
from posemamba_jax.evaluation import Predict, evaluate, progress_bar
from posemamba_jax.evaluation.checkpoint import evaluation_options, open_checkpoint
from posemamba_jax.files import writing
from posemamba_jax.files.json_report import JsonReport
from posemamba_jax.files.reading import user_path
from posemamba_jax.pictures.plots import plot_poses


def main(argv: Sequence[str], devices: Sequence[Any] | None = None) -> int:
    """Parses the command line, evaluates, prints a table and writes report.json and pictures.

    Args:
      argv: the command line, without the program's name.
      devices: to compute on; all there are unless given.

    Raises:
      UserError: an option, the checkpoint or the data cannot be used.
    """
    options, rest = _parse(argv)
    opened = open_checkpoint(options.checkpoint, rest, which=options.which, devices=devices)
    config, source = opened.config, opened.source
    # A model in one file has no folder that is its own.
    place = Path("runs", opened.folder.stem) if opened.folder.is_file() else options.checkpoint
    output = user_path(options.output or Path(place) / "eval")
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"checkpoint {opened.folder}", markup=False)
    for note in opened.notes:
        console.print(note, markup=False)

    with progress_bar(f"evaluating on {source.name}") as progress:
        how = evaluation_options(config)
        report = evaluate(opened.predict, source, progress=progress, **how)
    check_finite(report, opened.folder)
    console.print(report.table())
    with writing.reported_as(f"--output: {output}"):
        results = {"checkpoint": str(opened.folder), **report.to_dict()}
        writing.write_text(output / "report.json", json.dumps(results, indent=2) + "\n")
        count = min(int(options.pictures), len(source))
        # Away from the ends, so that one picture shows the clip in the middle.
        clips = np.linspace(0, len(source), count + 2)[1:-1].astype(int)
        for n, clip in enumerate(clips):
            path = output / ("poses.png" if count == 1 else f"poses_{n}.png")
            pred = predict_clip(opened.predict, source, int(clip), config)
            if not draw_clip(pred, source, int(clip), path):
                console.print(f"{path.name} is left out: the prediction is not finite")
    console.print(f"results in {output}", markup=False)
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses and checks eval.py's own options; returns the rest for the configuration too."""
    parser = argparse.ArgumentParser(prog="eval.py", allow_abbrev=False, add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument(
        "--checkpoint", help="a run, a checkpoint in it, a model, or pretrained:NAME"
    )
    parser.add_argument(
        "--which", default="best", help="best (lowest test error) or latest checkpoint of a run"
    )
    parser.add_argument(
        "--output",
        help="folder for the results; default: CHECKPOINT/eval, for pretrained:NAME runs/NAME/eval",
    )
    parser.add_argument("--pictures", default="1", help="how many clips to draw; default: 1")
    options, rest = parser.parse_known_args(argv)
    if options.help:
        print(parser.format_help(), "\nAny key of the configuration is an option too:\n", sep="")
        config_lib.load_config(["--help"], prog="eval.py")
    if options.checkpoint is None:
        for mistyped in difflib.get_close_matches("--checkpoint", rest, n=1, cutoff=0.75):
            raise ConfigError(f"unknown option {mistyped!r}; did you mean --checkpoint?")
        config_lib.load_config(rest, prog="eval.py")  # A mistyped option is the likelier cause.
        raise ConfigError("--checkpoint: give a run, a checkpoint in it, or a converted model")
    if options.which not in ("best", "latest"):
        raise ConfigError(f"--which: expected best or latest, got {options.which!r}")
    if not re.fullmatch("[0-9]{1,9}", options.pictures):
        raise ConfigError(f"--pictures: expected a number of clips, got {options.pictures!r}")
    return options, rest


def check_finite(report: JsonReport, folder: Path) -> None:
    """Refuses to score a model whose predictions are not numbers.

    Raises:
      UserError: names the checkpoint.
    """
    if not math.isfinite(report.mpjpe_mm):
        raise UserError(
            f"{folder}: the model's predictions are not finite, so there is nothing to score; it "
            "is of a run that diverged, or damaged"
        )


def predict_clip(predict: Predict, source: ClipSource, index: int, config: Config) -> np.ndarray:
    """Predicts one clip of a source with a model of `config`: (frames, joints, 3) millimetres.

    The clip fills a whole batch, so that nothing is compiled for it.
    """
    clip = source[index]
    poses_2d = clip["poses_2d"][None, ..., : config.model.input_channels]
    poses_2d = np.repeat(poses_2d, config.eval.batch_size, axis=0)
    return np.asarray(predict(poses_2d)[0]) * clip["mm_per_unit"][:, None, None]


def draw_clip(pred: np.ndarray, source: ClipSource, index: int, path: Path) -> bool:
    """Draws what `predict_clip` gave for one clip of a source over the clip's target.

    Returns:
      True if it was drawn; a prediction that is not finite cannot be.
    """
    if not np.isfinite(pred).all():
        return False
    clip = source[index]
    title = f"{source.name} {clip['action']}"
    poses = (pred, clip["poses_3d_mm"], clip["poses_2d"])
    plot_poses(*poses, path, skeleton=source.skeleton, title=title)
    return True

"""The shipped model on people it has not seen, beside simpler ways of lifting.

usage: python benchmarks/pretrained.py [--checkpoint pretrained:cmu30] [--run FOLDER]
           [--baseline_minutes 10] [--keep_baselines] [--width 512] [--channels 256]
           [--learning_rate 3e-3] [--clips 5] [--out FOLDER] [KEY OF THE CONFIGURATION ...]

Data and held-out subjects are those of configs/cmu30.yaml, whose files lie in data/cmu30 below the
working folder. Of every recording of these subjects up to `--clips` windows count, evenly spaced;
figures are means over the frames of a recording, then over the recordings, as `eval.py` gives them.
The acceleration error is the mean length of the difference of second differences, in mm per frame
squared, inside a window. Predictions are averaged with those of the mirrored input. Further rows
leave out a part of the model's practice: that averaging, the confidences, and, where the training
run's folder is given, the running average of the parameters.

Writes benchmarks/results/pretrained.json and .md, and for a model of the package the table in
docs/model_card.md.
"""

import argparse
import collections
import dataclasses
import json
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import common
import lifting_baselines
import numpy as np

from posemamba_jax import data
from posemamba_jax.config import load_config, run_program
from posemamba_jax.data.clips import ClipSource
from posemamba_jax.data.sources.drawn_mocap import DrawnClips
from posemamba_jax.errors import UserError
from posemamba_jax.evaluation import Predict, evaluate
from posemamba_jax.files import writing
from posemamba_jax.model.checkpoint import find_checkpoint, load_model, read_arrays
from posemamba_jax.model.config import PoseMambaConfig
from posemamba_jax.model.forward import make_predict
from posemamba_jax.pretrained.index import PREFIX

ROOT = Path(__file__).parents[1]
CARD = ROOT / "docs" / "model_card.md"
KINDS = {
    "07": "walking",
    "05": "dance",
    "14": "everyday",
    "49": "gymnastics",
    "127": "action",
}
FIGURES = {
    "mpjpe_mm": "P1",
    "p_mpjpe_mm": "P2",
    "n_mpjpe_mm": "N-MPJPE",
    "mpjve_mm": "velocity",
    "acceleration_mm": "acceleration",
}
INPUTS = {"detected": "imitated detections", "ground_truth": "exact 2D"}
BATCH = 32
OURS = "this model"


class Windows:
    """Up to `count` windows of each recording of a source, evenly spaced."""

    def __init__(self, source: DrawnClips, count: int):
        self.name, self.skeleton, self.protocol = source.name, source.skeleton, "h36m"
        self.clip_len, self.input_2d = source.clip_len, source.input_2d
        of_recording = collections.defaultdict(list)
        for i in range(len(source)):
            of_recording[source.motion_of(i).name].append(i)
        self._source, self._chosen = source, []
        for clips in of_recording.values():
            apart = -(-len(clips) // count)
            self._chosen += clips[(len(clips) - 1) % apart // 2 :: apart]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, i: int) -> dict:
        return self._source[self._chosen[i]]


def measure(
    predict: Predict, source: ClipSource, *, flip: bool = True, confidence: bool = False
) -> dict[str, dict[str, float]]:
    """Evaluates a model: the figures of "all" and of every kind of motion.

    Args:
      predict: the model.
      source: windows whose action is SUBJECT/RECORDING.
      flip: average with the prediction of the mirrored input.
      confidence: whether the model takes it.
    """
    accelerations = collections.defaultdict(list)

    def keep(_, clip, pred):
        second = np.diff(pred - clip["poses_3d_mm"], n=2, axis=0)
        whole = (np.diff(clip["frame_ids"]) == 1)[1:] & (np.diff(clip["frame_ids"]) == 1)[:-1]
        accelerations[clip["action"]] += list(np.linalg.norm(second, axis=-1).mean(-1)[whole])

    report = evaluate(
        predict, source, batch_size=BATCH, flip=flip, confidence=confidence, on_clip=keep
    )
    rows = {
        action: {**figures, "acceleration_mm": float(np.mean(accelerations[action] or [np.nan]))}
        for action, figures in report.per_action.items()
    }

    def mean(chosen):
        return {key: float(np.nanmean([row[key] for row in chosen])) for key in FIGURES}

    found = {"all": mean(rows.values())}
    for subject, kind in KINDS.items():
        own = [row for action, row in rows.items() if subject_of(action) == subject]
        if own:
            found[kind] = mean(own)
    return found


class Rival(NamedTuple):
    """One row of the tables: a model and how it is called."""

    predict: Predict
    flip: bool = True
    confidence: bool = False


def ways_of_calling(model: PoseMambaConfig, variables, run: str | None) -> dict[str, Rival]:
    """Lists the shipped model, and what is left of it without a part of its practice."""
    predict = make_predict(model, variables)
    found = {OURS: Rival(predict, True, model.confidence)}
    found[f"{OURS}, no flip averaging"] = Rival(predict, False, model.confidence)
    if model.confidence:
        found[f"{OURS}, all keypoints certain"] = Rival(predict, True, False)
    if run is not None:
        last = {"params": read_arrays(find_checkpoint(run) / "params")}
        name = f"{OURS}, last parameters instead of their running average"
        found[name] = Rival(make_predict(model, last), True, model.confidence)
    return found


def subject_of(action: str) -> str:
    """Returns the subject of a recording named SUBJECT/SUBJECT_NUMBER."""
    return re.split("[/_]", action)[0]


def write_tables(rows: list[dict], minutes: float, clips: dict[str, int]) -> str:
    """Writes a Markdown table for each input, millimetres.

    Args:
      rows: the figures of each model and input.
      minutes: that the trained baselines took.
      clips: on which, by name.
    """
    kinds = [kind for kind in KINDS.values() if kind in rows[0]["figures"]]
    parts = []
    for input_2d, name in INPUTS.items():
        columns = ["model", *FIGURES.values(), *(f"P1 {kind}" for kind in kinds)]
        lines = [columns, ["---"] * len(columns)]
        for row in rows:
            if row["input_2d"] == input_2d:
                figures = row["figures"]
                cells = [f"{figures['all'][key]:.1f}" for key in FIGURES]
                cells += [f"{figures[kind]['mpjpe_mm']:.1f}" for kind in kinds]
                lines.append([row["name"], *cells])
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"With {name}, millimetres (acceleration in mm per frame squared):\n\n{table}")
    counts = " and ".join(f"{count:,}" for count in clips.values())
    parts.append(
        "The network per frame and the convolutions over time were trained at the same time for "
        f"{minutes:g} minutes, on {counts} clips drawn as the model's."
    )
    return "\n\n".join(parts)


def write_card(tables: str, card: Path = CARD) -> None:
    """Puts the tables between the marks of the model card."""
    text = card.read_text(encoding="utf-8")
    begin, end = "<!-- figures -->\n", "<!-- end of figures -->"
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    link = "From [pretrained.md](../benchmarks/results/pretrained.md)."
    writing.write_text(card, f"{before}{begin}\n{tables} {link}\n\n{end}{after}")


def train_baselines(
    train: ClipSource, weights, progress, *, width: int, channels: int, **how
) -> tuple[dict[str, Predict], dict[str, int]]:
    """Fits and trains what the model is compared with, both networks at the same time.

    Args:
      train: training clips.
      weights: of the terms of the loss.
      progress: called for each training, makes the `progress` of `lifting_baselines.train`.
      width: of the network per frame.
      channels: of the convolutions.
      **how: batch size and learning rate.

    Returns:
      The models and the steps that the trained ones took, by name.
    """
    joints = train.skeleton.num_joints
    networks = {
        "network per frame": lifting_baselines.FrameNetwork(joints, width),
        "convolutions over time": lifting_baselines.TimeNetwork(joints, channels, train.clip_len),
    }
    models, steps = lifting_baselines.fit_plain(train, 2000), {}
    print(f"training: {', '.join(networks)}", flush=True)
    interrupted = threading.Event()

    def start(network):
        done = progress()
        until = lambda steps: 1.0 if interrupted.is_set() else done(steps)  # noqa: E731
        return pool.submit(lifting_baselines.train, network, train, weights, until, **how)

    with ThreadPoolExecutor() as pool:
        try:
            started = {name: start(network) for name, network in networks.items()}
            for name, training in started.items():
                models[name], steps[name] = training.result()
        finally:
            interrupted.set()  # Leaving waits for the threads, after Ctrl-C too.
    return models, steps


def main(argv: Sequence[str]) -> int:
    """Trains the baselines, evaluates everything, writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", default="pretrained:cmu30")
    parser.add_argument("--run", help="the run that the checkpoint was packed from")
    parser.add_argument("--baseline_minutes", type=float, default=10, help="for both at once")
    parser.add_argument(
        "--keep_baselines", action="store_true", help="take theirs from the earlier results"
    )
    parser.add_argument("--width", type=int, default=512, help="of the network per frame")
    parser.add_argument("--channels", type=int, default=256, help="of the convolutions")
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="at the start, of both")
    parser.add_argument("--clips", type=int, default=5, help="windows of a recording that count")
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    options, keys = parser.parse_known_args(argv)
    model, variables = load_model(options.checkpoint)
    base = ["--config", str(ROOT / "configs" / "cmu30.yaml"), f"--data.clip_len={model.num_frames}"]
    config = load_config([*base, *keys])

    windows = {
        input_2d: Windows(
            data.build(dataclasses.replace(config.data, input_2d=input_2d), "test"), options.clips
        )
        for input_2d in INPUTS
    }
    of = {"frames": model.num_frames, "windows": len(windows["detected"])}
    models = ways_of_calling(model, variables, options.run)
    how = {name: getattr(options, name) for name in ("width", "channels", "learning_rate")}
    earlier: dict = {"rows": []}
    if options.keep_baselines:
        earlier = json.loads((options.out / "pretrained.json").read_text())
        if any(earlier[key] != size for key, size in of.items()):
            raise UserError("--keep_baselines: the earlier results are of other windows")
        options.baseline_minutes, steps = earlier["baseline_minutes"], earlier["steps"]
        how = {name: earlier[name] for name in how}
    else:
        trained, steps = train_baselines(
            data.build(config.data, "train"),
            config.loss,
            lambda: lifting_baselines.for_minutes(options.baseline_minutes),
            batch_size=BATCH,
            **how,
        )
        models |= {name: Rival(predict) for name, predict in trained.items()}
    rows = []
    for input_2d in INPUTS:
        for name, (predict, flip, confidence) in models.items():
            found = measure(predict, windows[input_2d], flip=flip, confidence=confidence)
            rows.append({"name": name, "input_2d": input_2d, "figures": found})
            print(f"{name}, {INPUTS[input_2d]}: {found['all']}", flush=True)
    rows += [row for row in earlier["rows"] if not row["name"].startswith(OURS)]
    clips = {name: BATCH * count for name, count in steps.items()}
    tables = write_tables(rows, options.baseline_minutes, clips)
    common.write_results(
        "pretrained",
        {
            "environment": common.environment("jax", "flax", "optax"),
            "checkpoint": Path(options.checkpoint).name,
            **of,
            "baseline_minutes": options.baseline_minutes,
            **how,
            "batch_size": BATCH,
            "steps": steps,
            "rows": rows,
        },
        f"# The shipped model beside others\n\n{tables}",
        options.out,
    )
    if options.checkpoint.startswith(PREFIX) and options.out == parser.get_default("out"):
        write_card(tables)
    return 0


if __name__ == "__main__":
    run_program(main)

"""PoseMamba beside other networks from 2D keypoints to 3D poses: frames per second on a CPU.

usage: python benchmarks/other_models.py [--models NAME,...] [--repeats 3] [--training-repeats 3]
                                         [--threads 2] [--folder benchmarks/results]
       python benchmarks/other_models.py --list

Each model lifts 243 frames at a time: one clip, or as many clips as its release cuts them into.
forward: the pass alone. training: forward, backward and the update by AdamW. PoseMamba-S, B and L
run through this package with its defaults, and train with the recipe's loss; the others are rebuilt
in PyTorch from their releases (other_models_torch.py, other_models_posemamba.py) and train with the
mean distance of the joints. All is float32 with random weights, which do not change the time.

Models take turns in one process, on so many cores and threads, so that a change in the machine's
speed meets all; medians are reported. Beside each stands the error on Human3.6M that its authors
published (Protocol 1, detected 2D keypoints), and beside each other model the fastest PoseMamba of
this package whose published error is not larger. Writes FOLDER/other_models.{json,md} unless
--models leaves out one of those that are measured without it; --list names all.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
from common import (
    RESULTS,
    environment,
    medians_in_turn,
    table,
    training_config,
    training_step,
    write_results,
)
from other_models_posemamba import TorchPoseMamba
from other_models_torch import MotionAGFormer, MotionBERT, VideoPose3D

from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.model.config import PRESETS

FRAMES, JOINTS = 243, 17
# Threads that PyTorch leaves waiting spin for some milliseconds; the next model does not pay.
PAUSE_SECONDS = 0.1

PUBLISHED_POSEMAMBA = {"S": 41.8, "B": 40.8, "L": 38.1}
SOURCES = {
    "PoseMamba": "PoseMamba: Huang et al., AAAI 2025.",
    "MotionBERT": "MotionBERT: Zhu et al., ICCV 2023, trained on Human3.6M alone. With further "
    "data before that, the paper has 37.5 mm, which no PoseMamba reaches.",
    "MotionBERT-lite": "MotionBERT-lite: the README of the authors' first release, whose model for "
    "Human3.6M had these sizes.",
    "MotionAGFormer": "MotionAGFormer: Mehraban et al., WACV 2024; clips of 27 and 81 frames for "
    "XS and S.",
    "VideoPose3D": "VideoPose3D: Pavllo et al., CVPR 2019. It sees 243 frames around each one, so "
    "its clip comes with 121 more on each side. All frames are computed at once, in training too, "
    "where the release trains on single frames and computes what it needs around each anew.",
}


@dataclasses.dataclass(frozen=True)
class OtherModel:
    """A network in PyTorch and what its authors published of it.

    Attributes:
      build: makes the network.
      millions: its published number of parameters, in millions and as many decimals.
      error_mm: published mean joint error on Human3.6M, Protocol 1, detected 2D keypoints.
      clip: frames of a clip.
      channels: of the input.
      padding: frames that the input has besides the clip's.
    """

    build: Callable[[], torch.nn.Module]
    millions: str
    error_mm: float
    clip: int = FRAMES
    channels: int = 3
    padding: int = 0

    def make(self) -> torch.nn.Module:
        """Builds the network with random weights.

        Raises:
          SystemExit: it has not as many parameters as published.
        """
        model = self.build()
        count = count_parameters(model)
        decimals = len(self.millions.partition(".")[2])
        if f"{count / 1e6:.{decimals}f}" != self.millions:
            raise SystemExit(f"error: {count:,} parameters, but {self.millions} M are published")
        return model


def count_parameters(model: torch.nn.Module) -> int:
    """Returns how many numbers of a network are trained."""
    return sum(p.numel() for p in model.parameters())


def _agformer(channels: int, depth: int, frames: int, millions: str, error_mm: float):
    build = functools.partial(MotionAGFormer, channels, depth, frames)
    return OtherModel(build, millions, error_mm, clip=frames)


def _torch_posemamba(size: str, millions: str):
    build = functools.partial(TorchPoseMamba, **PRESETS[size])
    return OtherModel(build, millions, PUBLISHED_POSEMAMBA[size], channels=2)


OURS = {f"PoseMamba-{size}": size for size in PRESETS}
OTHERS = {
    "MotionAGFormer-XS": _agformer(64, 12, 27, "2.2", 45.1),
    "MotionAGFormer-S": _agformer(64, 26, 81, "4.8", 42.5),
    "MotionAGFormer-B": _agformer(128, 16, 243, "11.7", 38.4),
    "MotionAGFormer-L": _agformer(128, 26, 243, "19.0", 38.4),
    "MotionBERT-lite": OtherModel(functools.partial(MotionBERT, 256, 4), "16.0", 39.1),
    "MotionBERT": OtherModel(functools.partial(MotionBERT, 512, 2), "42.5", 39.2),
    "VideoPose3D": OtherModel(VideoPose3D, "16.95", 46.8, channels=2, padding=242),
    # Their paper counts some layers only; these are all, as the released checkpoints hold them.
    "PyTorch-PoseMamba-S": _torch_posemamba("S", "1.470211"),
    "PyTorch-PoseMamba-B": _torch_posemamba("B", "4.742659"),
    "PyTorch-PoseMamba-L": _torch_posemamba("L", "9.450499"),
}


# What these would say the smallest of the three says, in a fraction of the time.
LEFT_OUT = ("PyTorch-PoseMamba-B", "PyTorch-PoseMamba-L")


def other_candidates(other: OtherModel) -> tuple[Callable, Callable, int]:
    """Makes functions without arguments that run a network's forward pass and training step, and
    counts its parameters.
    """
    torch.manual_seed(0)
    model = other.make()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    clips = FRAMES // other.clip
    keypoints = torch.randn(clips, other.clip + other.padding, JOINTS, other.channels)
    target = torch.randn(clips, other.clip, JOINTS, 3)

    def forward():
        model.eval()
        with torch.inference_mode():
            model(keypoints)

    def train():
        model.train()
        optimiser.zero_grad()
        loss = (model(keypoints) - target).norm(dim=-1).mean()
        if not torch.isfinite(loss):
            raise SystemExit(f"error: {type(model).__name__} trains to a loss of {loss}")
        loss.backward()
        optimiser.step()

    return forward, train, count_parameters(model)


def our_candidates(size: str) -> tuple[Callable, Callable, int]:
    """Makes the same functions of a PoseMamba of this package, and counts its parameters."""
    model = PoseMamba(PoseMambaConfig.preset(size))
    keypoints = np.random.default_rng(0).normal(size=(1, FRAMES, JOINTS, 2)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), keypoints)
    forward = functools.partial(jax.jit(model.apply), variables, keypoints)
    made = []

    def train():
        if not made:
            made.append(training_step(training_config(size, FRAMES)))
        return made[0]()

    return forward, train, sum(a.size for a in jax.tree.leaves(variables))


def measure(names: list[str], repeats: int, training_repeats: int) -> list[dict]:
    """Measures the models' forward passes, then their training steps.

    Returns:
      A row for each model.
    """
    rows, candidates = {}, {}
    for name in names:
        if name in OURS:
            *functions, parameters = our_candidates(OURS[name])
            error, clip, by = PUBLISHED_POSEMAMBA[OURS[name]], FRAMES, "this package"
        else:
            other = OTHERS[name]
            *functions, parameters = other_candidates(other)
            error, clip, by = other.error_mm, other.clip, "PyTorch"
        candidates[name] = functions
        rows[name] = {
            "model": name,
            "by": by,
            "parameters": parameters,
            "clips": FRAMES // clip,
            "frames_per_clip": clip,
            "published_error_mm": error,
        }
    start = time.perf_counter()

    def prepare(what, name):
        print(f"{time.perf_counter() - start:5.0f} s  {what}, {name}", file=sys.stderr, flush=True)
        time.sleep(PAUSE_SECONDS)

    for i, (what, times) in enumerate((("forward", repeats), ("training", training_repeats))):
        runs = {name: functions[i] for name, functions in candidates.items()}
        seconds = medians_in_turn(runs, times, functools.partial(prepare, what))
        for name, value in seconds.items():
            rows[name] |= {f"{what}_s": value, f"{what}_frames_per_second": FRAMES / value}
    return list(rows.values())


def compare(rows: list[dict]) -> list[dict]:
    """Sets against each other model the PoseMamba of this package to take instead.

    That is the one with the most frames per second forward among those with an equal or smaller
    published error. A model that none equals in error gets no row.
    """
    ours = [row for row in rows if row["model"] in OURS]
    found = []
    for row in rows:
        good = [x for x in ours if x["published_error_mm"] <= row["published_error_mm"]]
        if row in ours or not good:
            continue
        best = max(good, key=lambda x: x["forward_frames_per_second"])
        ratios = {
            f"{what}_ratio": best[f"{what}_frames_per_second"] / row[f"{what}_frames_per_second"]
            for what in ("forward", "training")
        }
        found.append(
            {
                "model": row["model"],
                "published_error_mm": row["published_error_mm"],
                "instead": best["model"],
                "its_published_error_mm": best["published_error_mm"],
                **ratios,
            }
        )
    return found


def markdown(rows: list[dict], ratios: list[dict], setting: dict) -> str:
    """Writes both tables, how they were made and where the errors come from."""
    shown = [
        {
            **row,
            "millions": f"{row['parameters'] / 1e6:.2f}",
            "lifted": f"{row['clips']} x {row['frames_per_clip']}",
            **{
                f"{what}_{key}": text
                for what in ("forward", "training")
                for key, text in (
                    ("s", f"{row[f'{what}_s']:.2f}"),
                    ("fps", f"{row[f'{what}_frames_per_second']:.0f}"),
                )
            },
        }
        for row in rows
    ]
    columns = {
        "model": "model", "by": "run by", "millions": "parameters, M",
        "published_error_mm": "published error, mm", "lifted": "clips x frames",
        "forward_s": "forward, s", "forward_fps": "frames per second",
        "training_s": "training step, s", "training_fps": "frames per second in training",
    }  # fmt: skip
    faster = [
        {
            **row,
            "forward": f"{row['forward_ratio']:.1f}",
            "training": f"{row['training_ratio']:.1f}",
        }
        for row in ratios
    ]
    faster_columns = {
        "model": "instead of", "published_error_mm": "its published error, mm",
        "instead": "PoseMamba", "its_published_error_mm": "published error, mm",
        "forward": "times the frames per second", "training": "times in training",
    }  # fmt: skip
    return "\n".join(
        (
            f"243 frames of 17 joints at a time, float32, {setting['threads']} threads, medians of "
            f"{setting['repeats']} forward passes and {setting['training_repeats']} training steps "
            f"in which the models took turns, on {setting['cpu']}, {setting['cores']} cores, JAX "
            f"{setting['jax']}, PyTorch {setting['torch']}, {setting['date']}, commit "
            f"{setting['commit']}. Weights are random. Errors are those published for Human3.6M "
            "(Protocol 1, detected 2D keypoints).",
            "",
            table(shown, columns),
            "",
            "The fastest PoseMamba of this package with an equal or smaller published error:",
            "",
            table(faster, faster_columns),
            "",
            *(f"- {text}" for text in SOURCES.values()),
        )
    )


def chosen(text: str | None) -> list[str]:
    """Returns the names of the models to measure, from the option or as it is left out.

    Raises:
      SystemExit: a name is not known.
    """
    known = [*OURS, *OTHERS]
    names = text.split(",") if text else [name for name in known if name not in LEFT_OUT]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"error: --models: {unknown[0]!r}, expected any of {', '.join(known)}")
    return names


def use_cores(threads: int) -> None:
    """Keeps this process, JAX and PyTorch alike, to so many cores with a thread on each."""
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(allowed):
        raise SystemExit(f"error: --threads: {threads}, expected 1 to {len(allowed)}, the cores")
    os.sched_setaffinity(0, allowed[:threads])
    torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", help="names, with commas between them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--training-repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the results")
    parser.add_argument("--list", action="store_true", help="name the models and end")
    options = parser.parse_args()
    names = chosen(options.models)
    if options.list:
        print("\n".join([*OURS, *OTHERS]))
        return
    use_cores(options.threads)
    setting = environment("jax", "jaxlib", "torch", "numpy") | {
        "threads": options.threads,
        "repeats": options.repeats,
        "training_repeats": options.training_repeats,
    }
    rows = measure(names, options.repeats, options.training_repeats)
    ratios = compare(rows)
    text = markdown(rows, ratios, setting)
    print(text)
    if {*chosen(None)} <= {*names}:
        data = {"environment": setting, "sources": SOURCES, "models": rows, "ratios": ratios}
        write_results("other_models", data, text, options.folder)


if __name__ == "__main__":
    main()

"""Frames per second of predict.py: the model alone, and a keypoint file to poses on disk.

usage: python benchmarks/predict.py [--models S,B,L] [--batches 1,8] [--frames 1000] [--repeats 3]

Weights are random, which takes the same time. Writes benchmarks/results/predict_DEVICE.{json,md}.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.predict.lift import make_predict
from posemamba_jax.predict.options import PredictOptions
from posemamba_jax.predict.run import run

RESULTS = Path(__file__).parent / "results"


def make_model(preset: str):
    """Makes (predict, window) of a preset with random weights, as predict.py's own loader does."""
    config = PoseMambaConfig.preset(preset)
    sample = np.zeros((1, 2, config.num_joints, 2), np.float32)
    variables = jax.jit(PoseMamba(config).init)(jax.random.key(0), sample)
    return make_predict(config, variables), config.num_frames


def write_keypoints(path: Path, num_frames: int) -> None:
    """Writes one walking person as AlphaPose writes Halpe-26."""
    time_, phase = np.arange(num_frames)[:, None, None], np.random.default_rng(0).uniform(0, 6, 26)
    swing = 40 * np.sin(0.1 * time_ + phase[:, None] + np.array([0, 1.5]))
    xy = swing + np.array([500, 500]) + 100 * np.cos(phase)[:, None]
    rows = np.concatenate([xy, np.full((num_frames, 26, 1), 0.9)], -1).round(2)
    entries = [
        {"image_id": f"{t}.jpg", "keypoints": row.ravel().tolist(), "score": 2.0, "idx": 1}
        for t, row in enumerate(rows)
    ]
    path.write_text(json.dumps(entries))


def time_model(predict, window: int, batch: int, repeats: int) -> float:
    """Measures frames per second of one forward pass; the fastest of a few."""
    poses = np.random.default_rng(0).uniform(-1, 1, (batch, window, 17, 2)).astype(np.float32)
    predict(poses)  # compiles
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        predict(poses)
        seconds.append(time.perf_counter() - start)
    return batch * window / min(seconds)


def time_end_to_end(predict, window: int, batch: int, num_frames: int, flip: bool) -> float:
    """Measures frames per second from an AlphaPose file to .npz, JSON, CSV and BVH, already
    compiled.
    """
    with tempfile.TemporaryDirectory() as folder:
        keypoints = Path(folder) / "keypoints.json"
        write_keypoints(keypoints, num_frames)
        options = PredictOptions(
            str(keypoints), checkpoint="random", out=folder, image_size="1000x1000", fps=30.0,
            height_mm=1750.0, batch_size=batch, flip=flip,
        )  # fmt: skip
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            run(options, load=lambda _: (predict, window))
        return num_frames / (time.perf_counter() - start)


def write_results(rows: list[dict], setting: dict) -> Path:
    device = jax.default_backend()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"predict_{device}.json"
    path.write_text(json.dumps({"setting": setting, "results": rows}, indent=2) + "\n")
    lines = [
        f"Frames per second on {setting['device']}, {setting['cores']} cores, JAX "
        f"{setting['jax']}; windows of 243 frames, float32. End to end: a file of "
        f"{setting['frames']} frames of one person to .npz, JSON, CSV and BVH, with flip averaging "
        "unless said otherwise, compilation not counted.",
        "",
        "| model | windows at once | model alone | end to end | end to end, no flip |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        figures = [f"{row[k]:.1f}" for k in ("model_only", "end_to_end", "end_to_end_no_flip")]
        lines.append(f"| {row['model']} | {row['batch']} | {' | '.join(figures)} |")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="S,B,L")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for preset in args.models.split(","):
        predict, window = make_model(preset)
        for batch in map(int, args.batches.split(",")):
            row = {"model": preset, "batch": batch}
            row["model_only"] = time_model(predict, window, batch, args.repeats)
            for name, flip in (("end_to_end", True), ("end_to_end_no_flip", False)):
                row[name] = time_end_to_end(predict, window, batch, args.frames, flip)
            rows.append(row)
            print(
                {k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()}, flush=True
            )
    device = jax.devices()[0]
    setting = {
        "device": device.device_kind if device.platform != "cpu" else platform.machine() + " CPU",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "frames": args.frames,
        "repeats": args.repeats,
    }
    print(f"wrote {write_results(rows, setting)}")


if __name__ == "__main__":
    main()

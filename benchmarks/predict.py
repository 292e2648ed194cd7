"""Frames per second of predict.py: from keypoints and from a video.

usage: python benchmarks/predict.py keypoints [--models S,B,L] [--batches 1,8] [--frames 1000]
                                              [--repeats 3]
       python benchmarks/predict.py video CLIP --detector_weights FILE [--models heavy,full]
                                               [--detectors jax,litert]

keypoints: the model alone, and a keypoint file to poses on disk. Writes
benchmarks/results/predict_DEVICE.{json,md}.

video: from a video to all outputs, by stage, and seconds of compiling, lifted by an S. Each line is
a process of its own with a cache of compiled programs that is empty the first time. Writes
benchmarks/results/video_cpu.{json,md}.

Weights of the lifting model are random, which takes the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from common import environment, table, write_results

from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.predict.lift import make_predict
from posemamba_jax.predict.options import PredictOptions
from posemamba_jax.predict.run import run

VIDEO_COLUMNS = {
    "detector": "engine",
    "model": "detector",
    "cache": "compiled programs",
    "prepare": "start and compile, s",
    "find": "looking for people",
    "place": "placing landmarks",
    "lift": "lifting and files",
    "all": "all, start not counted",
}


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


def keypoints_study(args) -> None:
    """Writes the results of `keypoints`."""
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
    setting = environment("jax", "jaxlib", "numpy")
    setting |= {"device": setting["cpu"] if device.platform == "cpu" else device.device_kind}
    setting |= {"frames": args.frames, "repeats": args.repeats}
    text = (
        f"Frames per second on {setting['device']}, {setting['cores']} cores, JAX "
        f"{setting['jax']}; windows of 243 frames, float32. End to end: a file of "
        f"{setting['frames']} frames of one person to .npz, JSON, CSV and BVH, with flip averaging "
        "unless said otherwise, compilation not counted.\n\n"
    )
    figures = {
        "model_only": "model alone",
        "end_to_end": "end to end",
        "end_to_end_no_flip": "end to end, no flip",
    }
    shown = [row | {key: f"{row[key]:.1f}" for key in figures} for row in rows]
    columns = {"model": "model", "batch": "windows at once"} | figures
    data = {"setting": setting, "results": rows}
    write_results(f"predict_{device.platform}", data, text + table(shown, columns))


def measure_video(clip: str, weights: str, model: str, detector: str) -> dict:
    """Runs once in this process; gives seconds to start and frames per second of the stages."""
    from rich.console import Console

    from posemamba_jax.predict import from_video
    from posemamba_jax.predict.detect import landmarks, tracking, video
    from posemamba_jax.predict.keypoints import mediapipe

    options = PredictOptions(
        clip, checkpoint="random", detector=detector, detector_model=model, detector_weights=weights
    )
    from_video.keep_compiled_programs()
    start = time.perf_counter()
    engine = from_video.prepare_engine(options, Console(quiet=True))
    engine.locate(np.zeros((1, landmarks.SIDE, landmarks.SIDE, 3), np.uint8))
    engine.detect(np.zeros((1, 224, 224, 3), np.uint8))
    predict, window = make_model("S")
    predict(np.zeros((1, window, 17, 2), np.float32))
    seconds = {"prepare": time.perf_counter() - start}

    start = time.perf_counter()
    opened = from_video.open_input(options)
    sightings = video.find_people(opened, engine, lambda _: None)
    chosen, _ = tracking.choose(tracking.follow(sightings, opened.fps), 1, opened.size, 0)
    seconds["find"] = time.perf_counter() - start

    start = time.perf_counter()
    person = video.PersonLandmarks.nowhere(opened.num_frames)
    for frame, _, found in video.place_landmarks(opened, chosen, engine, lambda _: None):
        person.put(frame, found)
    seconds["place"] = time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keypoints.json"
        start = time.perf_counter()
        mediapipe.write(path, [person.points], opened.size, opened.fps, opened.num_frames)
        with contextlib.redirect_stdout(io.StringIO()):
            run(
                PredictOptions(str(path), checkpoint="random", out=folder, video=clip),
                load=lambda _: (predict, window),
            )
        seconds["lift"] = time.perf_counter() - start
    frames = opened.num_frames
    seconds["all"] = seconds["find"] + seconds["place"] + seconds["lift"]
    rates = {name: round(frames / seconds[name], 1) for name in ("find", "place", "lift", "all")}
    return {"prepare": round(seconds["prepare"], 1), **rates, "frames": frames}


def video_study(args) -> None:
    """Writes the results of `video`."""
    if args.one:
        print(json.dumps(measure_video(args.clip, args.detector_weights, *args.one.split(","))))
        return
    rows = []
    for detector in args.detectors.split(","):
        for model in args.models.split(","):
            with tempfile.TemporaryDirectory() as cache:
                for state in ("none", "kept"):
                    command = [sys.executable, __file__, "video", args.clip]
                    command += ["--detector_weights", args.detector_weights]
                    command += ["--one", f"{model},{detector}"]
                    done = subprocess.run(
                        command, env={**os.environ, "XDG_CACHE_HOME": cache}, check=True,
                        stdout=subprocess.PIPE, text=True,
                    )  # fmt: skip
                    row = {"detector": detector, "model": model, "cache": state}
                    rows.append(row | json.loads(done.stdout.splitlines()[-1]))
                    print(rows[-1], flush=True)
    setting = environment("jax", "jaxlib", "ai-edge-litert", "numpy")
    text = (
        f"Frames per second from a video of {rows[0]['frames']} frames to all outputs on "
        f"{setting['cpu']}, {setting['cores']} cores, JAX {setting['jax']}; lifting by an S model."
    )
    clip = {"clip": Path(args.clip).name}
    data = {"setting": setting | clip, "results": rows}
    write_results("video_cpu", data, f"{text}\n\n{table(rows, VIDEO_COLUMNS)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    studies = parser.add_subparsers(required=True)
    keypoints = studies.add_parser("keypoints")
    keypoints.add_argument("--models", default="S,B,L")
    keypoints.add_argument("--batches", default="1,8")
    keypoints.add_argument("--frames", type=int, default=1000)
    keypoints.add_argument("--repeats", type=int, default=3)
    keypoints.set_defaults(run=keypoints_study)
    video = studies.add_parser("video")
    video.add_argument("clip")
    video.add_argument("--detector_weights", required=True)
    video.add_argument("--models", default="heavy,full")
    video.add_argument("--detectors", default="jax,litert")
    video.add_argument("--one", help=argparse.SUPPRESS)
    video.set_defaults(run=video_study)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

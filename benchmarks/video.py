"""Frames per second of predict.py from a video to all outputs, by stage, and seconds of compiling.

usage: python benchmarks/video.py CLIP --detector_weights FILE [--models heavy,full]
           [--detectors jax,litert]

The lifting model is an S with random weights, which takes the same time. Each line is a process of
its own with a cache of compiled programs that is empty the first time. Writes
benchmarks/results/video_cpu.{json,md}.
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

from common import environment, table, write_results

COLUMNS = {
    "detector": "engine",
    "model": "detector",
    "cache": "compiled programs",
    "prepare": "start and compile, s",
    "find": "looking for people",
    "place": "placing landmarks",
    "lift": "lifting and files",
    "all": "all, start not counted",
}


def measure(clip: str, weights: str, model: str, detector: str) -> dict:
    """One run in this process: seconds to start, frames per second of the stages."""
    import numpy as np
    from rich.console import Console

    from posemamba_jax.predict import from_video
    from posemamba_jax.predict.detect import landmarks, tracking, video
    from posemamba_jax.predict.keypoints import mediapipe
    from posemamba_jax.predict.options import PredictOptions
    from posemamba_jax.predict.run import run
    from predict import make_model

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip")
    parser.add_argument("--detector_weights", required=True)
    parser.add_argument("--models", default="heavy,full")
    parser.add_argument("--detectors", default="jax,litert")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.clip, args.detector_weights, *args.one.split(","))))
        return
    rows = []
    for detector in args.detectors.split(","):
        for model in args.models.split(","):
            with tempfile.TemporaryDirectory() as cache:
                for state in ("none", "kept"):
                    command = [sys.executable, __file__, args.clip, "--one", f"{model},{detector}"]
                    command += ["--detector_weights", args.detector_weights]
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
    write_results("video_cpu", data, f"{text}\n\n{table(rows, COLUMNS)}")


if __name__ == "__main__":
    main()

"""Whether four calibrated cameras agree on what BlazePose's models see of one person.

    python benchmarks/detector.py pose2sim/Pose2Sim/Demo_SinglePerson mediapipe-pose-*.tgz \
        [--models heavy,full,lite] [--engine litert]

The first lines of benchmarks/real_video.py say how to get both. Each camera's video is looked at as
predict.py does; shoulders, elbows, wrists, hips, knees and ankles are triangulated from the four
and projected back, once as the networks give them and once with exchanges of left and right put
back. Writes benchmarks/results/detector_agreement.{json,md}: mean distances in pixels.

Shapes: C = 4 cameras, T frames, L = 12 landmarks.
"""

import argparse
from pathlib import Path

import common
import numpy as np
import real_video

from posemamba_jax.predict.detect import flips, tracking
from posemamba_jax.predict.detect import video as detection
from posemamba_jax.predict.detect.decode import open_video
from posemamba_jax.predict.detect.engines import Engine, make_engine
from posemamba_jax.predict.detect.weights import find_networks
from posemamba_jax.predict.options import PredictOptions

BODY = [11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28]


def find_one(path: Path, engine: Engine) -> np.ndarray:
    """Finds the 33 landmarks (T, 33, 4) of the person most in view."""
    video, defaults = open_video(path), PredictOptions("")
    sightings = detection.find_people(video, engine, lambda _: None)
    tracks = tracking.follow(sightings, video.fps)
    least = defaults.min_track_seconds * video.fps
    chosen, _ = tracking.choose(tracks, 1, video.size, least)
    person = detection.PersonLandmarks.nowhere(video.num_frames)
    for frame, _, found in detection.place_landmarks(video, chosen, engine, lambda _: None):
        person.put(frame, found)
    return person.points


def residual(poses_2d: np.ndarray, projections: np.ndarray) -> np.ndarray:
    """Measures how far (C, T, L), pixels, landmarks (C, T, L, 2) are from their best 3D point seen
    by cameras (C, 3, 4).
    """
    points = real_video.triangulate(poses_2d, projections)
    ones = np.ones_like(points[..., :1])
    seen = np.einsum("cij,tlj->ctli", projections, np.concatenate([points, ones], axis=-1))
    return np.linalg.norm(seen[..., :2] / seen[..., 2:] - poses_2d, axis=-1)


def measure(clips: Path, weights: str, model: str, engine_name: str) -> dict:
    """Looks at the four videos with one of BlazePose's models."""
    engine = make_engine(find_networks(model, weights, None, lambda *_: None), engine_name)
    intrinsics, extrinsics = real_video.read_cameras(clips)
    raw, mended, changed, doubtful = [], [], 0, 0
    for camera, delay in enumerate(real_video.DELAYS):
        points = find_one(clips / f"videos/cam{camera + 1:02d}.mp4", engine)
        done = flips.mend(points, PredictOptions("").max_gap)
        raw.append(points[delay:, BODY, :2])
        mended.append(done.points[delay:, BODY, :2])
        changed, doubtful = changed + int(done.changed.sum()), doubtful + int(done.doubtful.sum())
        print(f"{model}, camera {camera + 1}: {len(points)} frames", flush=True)
    count = min(map(len, raw))
    as_given, put_back = (
        float(residual(np.stack([one[:count] for one in of]), intrinsics @ extrinsics).mean())
        for of in (raw, mended)
    )
    return {
        "model": model,
        "frames": 4 * count,
        "as_given_px": as_given,
        "put_back_px": put_back,
        "frames_changed": changed,
        "frames_doubtful": doubtful,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("weights", help="as predict.py's --detector_weights")
    parser.add_argument("--models", default="heavy,full,lite")
    parser.add_argument("--engine", default="litert", choices=["jax", "litert"])
    options = parser.parse_args()
    rows = [
        measure(options.clips, options.weights, model, options.engine)
        for model in options.models.split(",")
    ]
    columns = {
        "model": "model", "as_given_px": "as the networks give it, px",
        "put_back_px": "left and right put back, px", "frames_changed": "frames put back",
        "frames_doubtful": "frames left open", "frames": "frames",
    }  # fmt: skip
    cells = [
        row | {key: f"{row[key]:.1f}" for key in ("as_given_px", "put_back_px")} for row in rows
    ]
    text = (
        "# Agreement of four cameras on a detector's keypoints\n\nOne person in four calibrated "
        "cameras (the demo of Pose2Sim, 1080 x 1920): distance of shoulders, elbows, wrists, "
        "hips, knees and ankles from their triangulation projected back, mean over frames, "
        "landmarks and cameras: `python benchmarks/detector.py`.\n\n" + common.table(cells, columns)
    )
    print(text)
    data = {"environment": common.environment("jax"), "engine": options.engine, "models": rows}
    common.write_results("detector_agreement", data, text)


if __name__ == "__main__":
    main()

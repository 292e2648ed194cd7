"""3D from real video against triangulation: four calibrated cameras, one person, BlazePose.

    pip download pose2sim==0.10.49 --no-deps && unzip -q pose2sim-*.whl -d pose2sim
    npm pack @mediapipe/pose@0.5.1675469404 && tar xzf mediapipe-pose-*.tgz -C mediapipe
    pip install ai-edge-litert
    python benchmarks/real_video.py detect pose2sim/Pose2Sim/Demo_SinglePerson \
        mediapipe/package keypoints.npz
    python benchmarks/real_video.py score keypoints.npz pretrained:cmu30
    python benchmarks/real_video.py errors keypoints.npz
    python benchmarks/real_video.py rooms keypoints.npz

`detect` runs BlazePose heavy (in LiteRT) over all frames of the four videos and triangulates its
keypoints, as Human3.6M's 17 joints. `score` lifts each camera's keypoints with models and writes
P-MPJPE and N-MPJPE against the triangulation, beside MediaPipe's own 3D and a flat skeleton, and
the mean acceleration error to benchmarks/results/real_video.{json,md}. `errors` writes the
statistics of the detector's errors that the imitated detector in
`posemamba_jax.data.motion.keypoint_errors` is set after to detector_errors.{json,md} there, and
`rooms` the cameras that predict.py finds, beside their calibration, to rooms.{json,md}.

Shapes: C = 4 cameras, T frames, J = 17 joints.
"""

import argparse
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import common
import numpy as np

from posemamba_jax import metrics
from posemamba_jax.data.joint_sets import to_h36m17
from posemamba_jax.predict import lift
from posemamba_jax.skeleton import H36M17

# Frames by which the cameras' videos are late, in the order of their numbers.
DELAYS = (0, 2, 4, 1)
FPS = 60.0
_FINDER = ("Identity", "Identity_1")
# Points, presence, heat maps, and MediaPipe's own 3D in metres.
_PLACER = ("Identity", "Identity_1", "Identity_3", "Identity_4")
_FACE = [H36M17.joints.index("nose"), H36M17.joints.index("head")]


def read_cameras(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the Qualisys calibration: intrinsics (C, 3, 3), world to camera (C, 3, 4), mm."""
    (file,) = folder.glob("calibration/*.qca.txt")
    intrinsics, extrinsics = [], []
    for camera in ElementTree.parse(file).getroot().findall("cameras/camera"):
        place, lens = camera.find("transform").attrib, camera.find("intrinsic").attrib
        matrix = [[float(place[f"r{a}{b}"]) for b in (1, 2, 3)] for a in (1, 2, 3)]
        # Qualisys' image y and z point the other way.
        rotation = np.diag([1.0, -1.0, -1.0]) @ np.array(matrix)
        position = np.array([float(place[axis]) for axis in "xyz"])
        extrinsics.append(np.c_[rotation, -rotation @ position])
        # Intrinsics are in 1/64 pixel.
        focal, centre = (
            [float(lens[f"{name}{axis}"]) / 64 for axis in "UV"]
            for name in ("focalLength", "centerPoint")
        )
        intrinsics.append([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]])
    return np.array(intrinsics), np.array(extrinsics)


def read_frames(video: Path) -> np.ndarray:
    """Reads all frames of a video, (T, height, width, 3) uint8."""
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(video))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


class Network:
    """A TFLite network in LiteRT.

    Args:
      file: the flatbuffer.
      outputs: names of the outputs that a call returns, in this order.
    """

    def __init__(self, file: Path, outputs: tuple[str, ...]):
        from ai_edge_litert.interpreter import Interpreter

        self._net = Interpreter(str(file), num_threads=1)
        self._net.allocate_tensors()
        self._input = self._net.get_input_details()[0]["index"]
        index = {one["name"]: one["index"] for one in self._net.get_output_details()}
        self._outputs = [index[name] for name in outputs]

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        self._net.set_tensor(self._input, image)
        self._net.invoke()
        return [self._net.get_tensor(index).copy() for index in self._outputs]


def detect(clips: Path, weights: Path, out: Path) -> None:
    """Runs the detector over the four videos and writes keypoints and their triangulation."""
    from PIL import Image

    from posemamba_jax.predict.detect import detector, landmarks, regions

    finder = Network(weights / "pose_solution_packed_assets.data", _FINDER)

    def find_one(images):
        outputs = [finder(image[None] / np.float32(127.5) - 1) for image in images]
        return [np.concatenate(one) for one in zip(*outputs, strict=True)]

    place = Network(weights / "pose_landmark_heavy.tflite", _PLACER)
    keypoints, world, sizes = [], [], []
    for camera, delay in enumerate(DELAYS):
        frames = read_frames(clips / f"videos/cam{camera + 1:02d}.mp4")
        height, width = frames.shape[1:3]
        sizes.append((width, height))
        region, points, metres = None, [], []
        for frame in frames:
            image = Image.fromarray(frame)
            if region is None:
                person = detector.find(image, find_one)[0]
                region = regions.from_points(person.hips, person.rim)
            cut = regions.cut_out(image, region, landmarks.SIDE)
            *outputs, flat = place(landmarks.to_input(cut[None]))
            marks = landmarks.decode(outputs, region[None])
            points.append(marks.points[0])
            right, down = regions.axes(region)
            local = flat.reshape(39, 3)[:33]
            turned = local[:, :1] * right + local[:, 1:2] * down
            metres.append(np.concatenate([turned, local[:, 2:]], axis=-1))
            region = marks.regions[0] if marks.presence[0] > 0.5 else None
        keypoints.append(np.array(points)[delay:])
        world.append(np.array(metres)[delay:])
        print(f"camera {camera + 1}: {len(frames)} frames of {width} x {height}", flush=True)
    count = min(map(len, keypoints))
    keypoints = np.stack([one[:count] for one in keypoints])
    world = np.stack([one[:count] for one in world])
    poses_2d = to_h36m17(keypoints[..., [0, 1, 3]], "mediapipe33").astype(np.float64)
    seen = np.concatenate([world, np.ones_like(world[..., :1])], axis=-1)
    flat = np.stack(
        [to_h36m17(seen[..., [axis, axis, 3]], "mediapipe33")[..., 0] for axis in range(3)], -1
    )
    intrinsics, extrinsics = read_cameras(clips)
    points = triangulate(poses_2d[..., :2], intrinsics @ extrinsics)
    np.savez(
        out,
        poses_2d=poses_2d,
        mediapipe_3d=1000 * flat,
        world=points,
        intrinsics=intrinsics,
        extrinsics=extrinsics,
        sizes=np.array(sizes),
    )


def triangulate(poses_2d: np.ndarray, projections: np.ndarray) -> np.ndarray:
    """Finds the points (T, J, 3) that cameras (C, 3, 4) see at (C, T, J, 2).

    Linear least squares, weighed so that what is minimised comes to be the distance in the images
    (Hartley and Sturm, "Triangulation", 1997, section 4.2, iterative linear least squares).
    """
    x, y = poses_2d[..., :1], poses_2d[..., 1:]
    rows = projections[:, :, None, None]
    equations = np.stack([x * rows[:, 2] - rows[:, 0], y * rows[:, 2] - rows[:, 1]])
    depths = np.ones(poses_2d.shape[:-1])
    for _ in range(5):
        weighed = equations / depths[..., None]
        weighed = weighed.reshape(-1, *weighed.shape[2:]).transpose(1, 2, 0, 3)
        points = np.linalg.svd(weighed)[2][..., -1, :]
        points = points / points[..., 3:]
        depths = np.einsum("cj,tlj->ctl", projections[:, 2], points)
    return points[..., :3]


def to_cameras(file) -> np.ndarray:
    """Turns the triangulated points into the axes of each camera, (C, T, J, 3) mm."""
    ones = np.ones_like(file["world"][..., :1])
    return np.einsum(
        "cij,tkj->ctki", file["extrinsics"], np.concatenate([file["world"], ones], axis=-1)
    )


def score(file, checkpoints: list[str]) -> list[dict]:
    """Measures errors against the triangulation, mm: the mean of the cameras, and each."""
    truth = to_cameras(file)
    truth = truth - truth[..., :1, :]
    flat = np.concatenate(
        [file["poses_2d"][..., :2], np.zeros_like(file["poses_2d"][..., :1])], axis=-1
    )
    results = {"a flat skeleton": flat, "MediaPipe's own 3D": file["mediapipe_3d"]}
    for name in checkpoints:
        results[name] = lift_cameras(file, name)
    body = [joint for joint in range(H36M17.num_joints) if joint not in _FACE]
    measures = {
        "p_mpjpe_mm": (slice(None), metrics.p_mpjpe_per_frame),
        "p_mpjpe_body_mm": (body, metrics.p_mpjpe_per_frame),
        "n_mpjpe_mm": (slice(None), metrics.n_mpjpe_per_frame),
    }
    rows = []
    for name, poses in results.items():
        pairs = list(zip(poses - poses[..., :1, :], truth, strict=True))
        each = {
            key: [float(measure(a[:, joints], b[:, joints]).mean()) for a, b in pairs]
            for key, (joints, measure) in measures.items()
        }
        each["acceleration_mm"] = []
        for a, b in pairs:
            scale = (a * b).sum() / (a * a).sum()
            second = np.diff(scale * a - b, n=2, axis=0)
            each["acceleration_mm"].append(float(np.linalg.norm(second, axis=-1).mean()))
        mean = {key: float(np.mean(values)) for key, values in each.items()}
        rows.append({"name": name, "mean": mean, "cameras": each})
    return rows


def write_scores(rows: list[dict]) -> None:
    """Prints the table and writes benchmarks/results/real_video.{json,md}."""
    cells = [
        {
            "name": row["name"],
            **{key: f"{value:.1f}" for key, value in row["mean"].items()},
            "p_each": " ".join(f"{value:.1f}" for value in row["cameras"]["p_mpjpe_mm"]),
            "n_each": " ".join(f"{value:.1f}" for value in row["cameras"]["n_mpjpe_mm"]),
        }
        for row in rows
    ]
    columns = {
        "name": "3D from", "p_mpjpe_mm": "P-MPJPE", "p_each": "in each camera",
        "p_mpjpe_body_mm": "without nose and head", "n_mpjpe_mm": "N-MPJPE",
        "n_each": "in each camera", "acceleration_mm": "acceleration error",
    }  # fmt: skip
    text = (
        "# Real video against triangulation\n\nOne person in four calibrated cameras at 60 frames "
        "per second (the demo of Pose2Sim), keypoints of BlazePose heavy: `python "
        "benchmarks/real_video.py score`. Errors in mm, means over frames and the four cameras; "
        "acceleration in mm per frame squared.\n\n" + common.table(cells, columns)
    )
    environment = common.environment("jax", "flax")
    common.write_results("real_video", {"environment": environment, "rows": rows}, text)
    print(text)


def lift_cameras(file, checkpoint: str) -> np.ndarray:
    """Lifts each camera's keypoints to poses (C, T, J, 3), as predict.py does."""
    from posemamba_jax.predict.frame_rate import Sampling
    from posemamba_jax.predict.run import load_predict

    model = load_predict(checkpoint)
    sampling = Sampling.of(FPS, model.fps)

    return np.stack(
        [
            sampling.lift(
                model.predict,
                model.prepare(one[..., :2], one[..., 2], tuple(size)),
                model.window,
                batch_size=lift.default_batch_size(model.window),
            )
            for one, size in zip(file["poses_2d"], file["sizes"], strict=True)
        ]
    )


def detector_errors(file) -> dict:
    """Measures how far keypoints are from the projected triangulation, in shares of the extent."""
    poses_2d = file["poses_2d"]
    local = to_cameras(file)
    pixels = np.einsum("cij,ctkj->ctki", file["intrinsics"], local)
    pixels = pixels[..., :2] / pixels[..., 2:]
    extent = (pixels.max(axis=2) - pixels.min(axis=2)).max(axis=-1)[..., None]
    error = (poses_2d[..., :2] - pixels) / extent[..., None]
    length = np.linalg.norm(error, axis=-1)
    offset = error.mean(axis=1, keepdims=True)
    moving = error - offset
    sigma = np.sqrt((moving**2).mean(axis=(1, 3)))
    lags = {
        f"{lag / FPS * 1000:.0f}": (moving[:, lag:] * moving[:, :-lag]).mean() / (moving**2).mean()
        for lag in (1, 2, 4, 8, 16)
    }
    confidence, visible = poses_2d[..., 2], []
    for low, high in ((0, 0.3), (0.3, 0.6), (0.6, 0.99), (0.99, 1)):
        # The last range has its end.
        inside = (confidence >= low) & ((confidence < high) | (high == 1))
        found = {"share": float(inside.mean()), "error": float(length[inside].mean())}
        visible.append({"from": low, "to": high} | found)
    return {
        "extent_px": float(extent.mean()),
        "error": float(length.mean()),
        "constant": float(np.linalg.norm(offset, axis=-1).mean()),
        "sigma": float(sigma.mean()),
        "sigma_of_joints": dict(zip(H36M17.joints, sigma.mean(axis=0).tolist(), strict=True)),
        "correlation_after_ms": {ms: float(value) for ms, value in lags.items()},
        "visibility": visible,
    }


def write_errors(found: dict) -> None:
    """Writes benchmarks/results/detector_errors.{json,md}."""
    rows = [{"what": "extent, px", "value": f"{found['extent_px']:.0f}"}]
    rows += [{"what": key, "value": f"{found[key]:.4f}"} for key in ("error", "constant", "sigma")]
    rows += [
        {"what": f"sigma, {joint}", "value": f"{value:.4f}"}
        for joint, value in found["sigma_of_joints"].items()
    ]
    rows += [
        {"what": f"correlation after {ms} ms", "value": f"{value:.2f}"}
        for ms, value in found["correlation_after_ms"].items()
    ]
    rows += [
        {
            "what": f"error at visibility {row['from']} to {row['to']}, {row['share']:.0%}",
            "value": f"{row['error']:.4f}",
        }
        for row in found["visibility"]
    ]
    text = (
        "# Errors of BlazePose heavy\n\nFrom the projected triangulation of its own keypoints in "
        "four cameras, in shares of the person's extent, a constant part of each joint and camera "
        "and the standard deviation of the rest in x and y: `python benchmarks/real_video.py "
        "errors`.\n\n" + common.table(rows, {"what": "what", "value": "value"})
    )
    print(text)
    common.write_results("detector_errors", {"environment": common.environment()} | found, text)


def find_rooms(file, checkpoint: str | None) -> list[dict]:
    """Finds each camera as predict.py does, from a person's keypoints, beside its calibration."""
    from posemamba_jax.predict.options import PredictOptions
    from posemamba_jax.predict.run import load_predict, run

    model, rows = load_predict(checkpoint), []
    for number, (poses, size) in enumerate(zip(file["poses_2d"], file["sizes"], strict=True)):
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/keypoints.npy", poses)
            options = PredictOptions(
                f"{folder}/keypoints.npy", out=folder, outputs="npz", fps=FPS,
                joint_set="h36m17", image_size=f"{size[0]}x{size[1]}",
            )  # fmt: skip
            run(options, load=lambda _: model)
            with np.load(f"{folder}/person_1.npz") as arrays:
                found = dict(arrays)
        extrinsic = file["extrinsics"][number]
        rotation, up = extrinsic[:, :3], extrinsic[:, 2]  # The calibration's z is up.
        own, own_up = found["camera_rotation"], found["camera_rotation"] @ (0, 1, 0)
        rows.append(
            {
                "camera": number + 1,
                "focal_px": float(found["camera_focal_px"]),
                "focal_source": str(found["camera_focal_source"]),
                "true_focal_px": float(file["intrinsics"][number][[0, 1], [0, 1]].mean()),
                "height_m": float(found["camera_position"][1]) / 1000,
                "true_height_m": float((-rotation.T @ extrinsic[:, 3])[2]) / 1000,
                "tilt_degrees": float(np.degrees(np.arcsin(-own[2, 1]))),
                "true_tilt_degrees": float(np.degrees(np.arcsin(-rotation[2, 2]))),
                "roll_degrees": float(np.degrees(np.arctan2(-own_up[0], -own_up[1]))),
                "true_roll_degrees": float(np.degrees(np.arctan2(-up[0], -up[1]))),
            }
        )
    return rows


def write_rooms(rows: list[dict]) -> None:
    """Writes benchmarks/results/rooms.{json,md}."""
    digits = {"focal_px": 0, "height_m": 1, "tilt_degrees": 0, "roll_degrees": 0}
    cells = [
        {"camera": row["camera"], "source": row["focal_source"]}
        | {key: f"{row[key]:.{n}f}, true {row[f'true_{key}']:.{n}f}" for key, n in digits.items()}
        for row in rows
    ]
    columns = {
        "camera": "camera", "focal_px": "focal length, pixels", "source": "which is",
        "height_m": "height, m", "tilt_degrees": "looking down, degrees",
        "roll_degrees": "rolled, degrees",
    }  # fmt: skip
    text = (
        "# Cameras found from one person's keypoints\n\nBeside their calibration: `python "
        "benchmarks/real_video.py rooms`.\n\n" + common.table(cells, columns)
    )
    print(text)
    environment = common.environment("jax", "flax")
    common.write_results("rooms", {"environment": environment, "cameras": rows}, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("detect")
    one.add_argument("clips", type=Path)
    one.add_argument("weights", type=Path)
    one.add_argument("out", type=Path)
    one = commands.add_parser("score")
    one.add_argument("keypoints", type=Path)
    one.add_argument("checkpoints", nargs="*")
    one = commands.add_parser("errors")
    one.add_argument("keypoints", type=Path)
    one = commands.add_parser("rooms")
    one.add_argument("keypoints", type=Path)
    one.add_argument("checkpoint", nargs="?", help="default: the installed model")
    options = parser.parse_args()
    if options.command == "detect":
        detect(options.clips, options.weights, options.out)
    elif options.command == "score":
        write_scores(score(np.load(options.keypoints), options.checkpoints))
    elif options.command == "rooms":
        write_rooms(find_rooms(np.load(options.keypoints), options.checkpoint))
    else:
        write_errors(detector_errors(np.load(options.keypoints)))


if __name__ == "__main__":
    main()

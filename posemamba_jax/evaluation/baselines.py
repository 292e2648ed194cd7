"""Two plain baselines, fitted on the training clips and evaluated like any model.

- mean pose: the mean root-relative training pose, whatever the input.
- linear regression: each frame's root-relative pose from the 2D coordinates of all its joints.

    python -m posemamba_jax.baselines --config configs/quickstart.yaml > baselines.json

shows tables on stderr and writes the reports as JSON to stdout.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console

from posemamba_jax import data
from posemamba_jax.config import load_config, run_program
from posemamba_jax.data.clips import ClipSource, DataError
from posemamba_jax.evaluation import Predict, Report, evaluate, progress_bar

# Relative to the mean square of the coordinates: enough to solve where joints coincide.
_RIDGE = 1e-6


def fit(
    source: ClipSource, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, Predict]:
    """Fits both baselines in one pass over a source.

    Frames count as often as clips hold them, as in training.

    Args:
      source: training clips.
      progress: called with the clips done and the clips in all.

    Returns:
      "mean pose" and "linear regression", each a function from (batch, frames, joints, 2) to
      (batch, frames, joints, 3).

    Raises:
      DataError: the source has no clips.
    """
    if not len(source):
        raise DataError(f"{source.name}: there are no clips to fit baselines on")
    skeleton = source.skeleton
    joints = skeleton.num_joints
    products = np.zeros((2 * joints + 1, 2 * joints + 1))
    targets = np.zeros((2 * joints + 1, 3 * joints))
    for i in range(len(source)):
        clip = source[i]
        if "poses_3d" not in clip:
            continue
        pose = clip["poses_3d"].astype(np.float64)
        pose = (pose - pose[:, skeleton.root : skeleton.root + 1]).reshape(len(pose), -1)
        features = _features(clip["poses_2d"][..., :2])
        products += features.T @ features
        targets += features.T @ pose
        if progress is not None:
            progress(i + 1, len(source))

    if not products[-1, -1]:
        raise DataError(f"{source.name}: there are no 3D poses to fit baselines on")
    # The last feature is the constant 1: its row holds the sums over frames.
    mean_pose = (targets[-1] / products[-1, -1]).reshape(joints, 3)
    penalty = np.full(len(products), _RIDGE * np.trace(products[:-1, :-1]) / (2 * joints))
    penalty[-1] = 0
    weights = np.linalg.solve(products + np.diag(penalty), targets)

    def predict_mean(poses_2d):
        return np.broadcast_to(mean_pose, (*poses_2d.shape[:-1], 3))

    def predict_linear(poses_2d):
        return (_features(poses_2d) @ weights).reshape(*poses_2d.shape[:-1], 3)

    return {"mean pose": predict_mean, "linear regression": predict_linear}


def evaluate_baselines(
    train: ClipSource, test: ClipSource, *, batch_size: int = 16, flip: bool = True
) -> dict[str, Report]:
    """Fits the baselines on one source and evaluates them on another, with progress on stderr."""
    with progress_bar("fitting baselines") as progress:
        baselines = fit(train, progress=progress)
    reports = {}
    for name, predict in baselines.items():
        with progress_bar(f"evaluating {name}") as progress:
            reports[name] = evaluate(
                predict, test, batch_size=batch_size, flip=flip, progress=progress
            )
    return reports


def _features(poses_2d) -> np.ndarray:
    """Makes (..., joints, 2) into (..., 2 * joints + 1) float64, the last a constant."""
    flat = np.asarray(poses_2d, np.float64).reshape(*poses_2d.shape[:-2], -1)
    return np.concatenate([flat, np.ones((*flat.shape[:-1], 1))], axis=-1)


def main(argv: Sequence[str]) -> int:
    config = load_config(argv, prog="python -m posemamba_jax.baselines")
    train, test = (data.build(config.data, split) for split in ("train", "test"))
    reports = evaluate_baselines(
        train, test, batch_size=config.eval.batch_size, flip=config.eval.flip
    )
    console = Console(stderr=True)
    for name, report in reports.items():
        console.print(report.table(f"{name} on {report.source}, {report.frames} frames, mm"))
    print(json.dumps({name: report.to_dict() for name, report in reports.items()}, indent=2))
    return 0


if __name__ == "__main__":
    run_program(main)

"""Pictures of poses and of training curves."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from posemamba_jax.files import writing
from posemamba_jax.skeleton import Skeleton

# Colours of the sides, in every picture and page.
LEFT, RIGHT, MIDDLE = "#d1495b", "#2e6fbd", "#444444"
_TRUE = "#b0b7bf"


def plot_poses(
    pred,
    target,
    poses_2d,
    path: str | Path,
    *,
    skeleton: Skeleton,
    frames: Sequence[int] | None = None,
    title: str = "",
    views: Sequence[float] = (0.0, 60.0),
) -> Path:
    """Draws predicted poses over the true ones, frame by frame, with the 2D input above.

    Each column is a frame. The first row is the input, the next ones the 3D poses in an
    orthographic view, turned about the vertical by each of `views` in degrees: 0 is the camera's
    own view, in which depth cannot be seen.

    Args:
      pred: (frames, joints, 3) camera-space millimetres (x right, y down, z away).
      target: (frames, joints, 3) likewise; both are drawn relative to their root.
      poses_2d: (frames, joints, 2 or 3) normalised input; a confidence is drawn as opacity.
      path: the PNG to write; folders are made.
      skeleton: joints and bones.
      frames: which frames to draw; five spread over the clip by default.
      title: goes before the error.
      views: angles of the 3D rows.

    Returns:
      The path written.

    Raises:
      ValueError: the shapes do not agree.
    """
    pred, target, poses_2d = (np.asarray(array, float) for array in (pred, target, poses_2d))
    if pred.shape != target.shape or pred.ndim != 3 or pred.shape[1:] != (skeleton.num_joints, 3):
        raise ValueError(
            f"pred and target must both be (frames, {skeleton.num_joints}, 3), "
            f"got {pred.shape} and {target.shape}"
        )
    if poses_2d.ndim != 3 or poses_2d.shape[:2] != pred.shape[:2] or poses_2d.shape[2] < 2:
        raise ValueError(
            f"poses_2d must be {(*pred.shape[:2], '2 or 3')} like pred, got {poses_2d.shape}"
        )
    pred = pred - pred[:, skeleton.root, None]
    target = target - target[:, skeleton.root, None]
    error = np.linalg.norm(pred - target, axis=-1).mean(axis=-1)
    if frames is None:
        frames = np.unique(np.linspace(0, len(pred) - 1, 5).round().astype(int))

    rows = 1 + len(views)
    figure = Figure(figsize=(1.9 * len(frames) + 0.6, 2.75 * rows + 0.9))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(frames), squeeze=False)

    shown_2d = poses_2d[frames, :, :2]
    half_2d = 0.54 * (shown_2d.max(axis=1) - shown_2d.min(axis=1)).max(axis=0)
    turned = [(_turn(pred[frames], view), _turn(target[frames], view)) for view in views]
    shown_3d = np.concatenate([pose[..., :2].reshape(-1, 2) for pair in turned for pose in pair])
    half_3d = 1.06 * np.abs(shown_3d).max(axis=0)
    for column, frame in enumerate(frames):
        axis = axes[0, column]
        pose = poses_2d[frame]
        opacity = np.clip(pose[:, 2], 0.15, 1) if pose.shape[1] > 2 else np.ones(len(pose))
        _draw(axis, pose, skeleton, opacity=opacity)
        middle = (pose[:, :2].max(axis=0) + pose[:, :2].min(axis=0)) / 2
        _frame_axis(axis, middle, half_2d)
        axis.set_title(f"frame {frame}\n{error[frame]:.0f} mm", fontsize=10)
        for row, (shown_pred, shown_true) in enumerate(turned, start=1):
            axis = axes[row, column]
            _draw(axis, shown_true[column], skeleton, colour=_TRUE, width=6.0, dots=False)
            _draw(axis, shown_pred[column], skeleton)
            _frame_axis(axis, np.zeros(2), half_3d)
    labels = ["2D input"]
    labels += ["3D, camera's view" if view == 0 else f"3D, turned {view:g}°" for view in views]
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=10)

    handles = [
        Line2D([], [], color=LEFT, lw=2.5, label="left (predicted)"),
        Line2D([], [], color=RIGHT, lw=2.5, label="right (predicted)"),
        Line2D([], [], color=MIDDLE, lw=2.5, label="trunk (predicted)"),
        Line2D([], [], color=_TRUE, lw=6, label="true pose"),
    ]
    heading = f"{title}: " if title else ""
    figure.suptitle(
        f"{heading}mean joint error {error.mean():.1f} mm over {len(pred)} frames", fontsize=12
    )
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=10)
    figure.tight_layout(rect=(0, 0.05, 1, 0.98), h_pad=0.6, w_pad=0.3)
    return save_figure(figure, path)


def plot_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    path: str | Path,
    *,
    baselines: Mapping[str, float] | None = None,
) -> Path:
    """Draws training loss and test error over the epochs side by side, a line for each run.

    Args:
      histories: by the run's name, one mapping per record, such as the lines of metrics.jsonl; a
        record may lack any key, and what is not finite leaves a gap.
      path: the PNG to write; folders are made.
      baselines: horizontal lines among the errors, in millimetres, by name.

    Returns:
      The path written.
    """
    figure = Figure(figsize=(10, 4.2))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    # More runs than colours share them; nobody can read that many lines anyway.
    colours = itertools.cycle(matplotlib.color_sequences["tab10"])
    for (name, rows), colour in zip(histories.items(), colours, strict=False):
        for axis, key in ((left, "loss"), (right, "mpjpe_mm")):
            points = [(row.get("epoch", row.get("step")), row[key]) for row in rows if key in row]
            look = {"marker": "o" if len(points) <= 60 else None, "ms": 3.5, "color": colour}
            if points:
                axis.plot(*zip(*points, strict=True), label=plain_text(name) or key, **look)
    losses, errors = (
        [row[key] for rows in histories.values() for row in rows if key in row]
        for key in ("loss", "mpjpe_mm")
    )
    if losses and min(losses) > 0:
        left.set_yscale("log")
    left.set_title("training loss")
    right.set_title("test error")
    right.set_ylabel("mm")
    if errors and len(histories) == 1:
        right.set_title(f"test error: last {errors[-1]:.1f} mm, best {min(errors):.1f} mm")
    for name, value in (baselines or {}).items():
        right.axhline(value, color="#777777", ls="--", lw=1.2)
        right.annotate(
            f"{name}: {value:.1f} mm",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=9)
    if errors or baselines:
        # Room above the highest line for its name.
        right.set_ylim(0, 1.1 * right.get_ylim()[1])
    figure.tight_layout()
    return save_figure(figure, path)


def plain_text(text: str) -> str:
    """Changes text that Matplotlib would take for a formula or leave out of a legend."""
    return text.replace("$", r"\$").lstrip("_")


def _turn(poses: np.ndarray, degrees: float) -> np.ndarray:
    """Turns camera-space poses (..., 3) about the vertical."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return poses @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def _draw(axis, pose, skeleton, *, colour=None, width=2.5, opacity=None, dots=True):
    """Draws a pose's first two coordinates (joints, >= 2); left, right and middle by colour."""
    opacity = np.ones(len(pose)) if opacity is None else opacity
    sides = dict.fromkeys(skeleton.left, LEFT) | dict.fromkeys(skeleton.right, RIGHT)
    for parent, child in skeleton.bones:
        axis.plot(
            pose[[parent, child], 0],
            pose[[parent, child], 1],
            color=colour or sides.get(child, MIDDLE),
            lw=width,
            alpha=min(opacity[parent], opacity[child]),
            solid_capstyle="round",
        )
    if dots:
        axis.scatter(pose[:, 0], pose[:, 1], s=7, c="black", alpha=opacity, zorder=3, linewidths=0)


def _frame_axis(axis, middle, half):
    """Makes an unmarked field of view with equal axes and y pointing down, as in the image."""
    # Of one shape in all rows, as tall as people are.
    half_x, half_y = max(half[0], 0.78 * half[1]), max(half[1], half[0] / 0.78)
    axis.set_xlim(middle[0] - half_x, middle[0] + half_x)
    axis.set_ylim(middle[1] + half_y, middle[1] - half_y)
    axis.set_aspect("equal", adjustable="box")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("#dddddd")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure as a PNG, whole or not at all, and returns its path."""
    with writing.replacing(path) as part:
        figure.savefig(part, dpi=110)
    return Path(path)

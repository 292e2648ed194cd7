"""Pictures of poses and of training curves."""

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
    """Predicted poses drawn over the true ones, frame by frame, with the 2D input above.

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
    history: Sequence[Mapping[str, float]],
    path: str | Path,
    *,
    losses: Sequence[str] = ("loss",),
    errors: Sequence[str] = ("mpjpe_mm",),
    baselines: Mapping[str, float] | None = None,
    x: str = "epoch",
) -> Path:
    """Loss and error over training, side by side.

    Args:
      history: one mapping per record, such as the lines of metrics.jsonl; a record may lack any
        key, and what is not finite leaves a gap.
      path: the PNG to write; folders are made.
      losses: keys drawn on the left, on a logarithmic scale.
      errors: keys drawn on the right, in millimetres.
      baselines: horizontal lines on the right, by name.
      x: the key that the records are ordered by.

    Returns:
      The path written.
    """
    figure = Figure(figsize=(10, 4.2))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    colours = matplotlib.color_sequences["tab10"]
    for axis, keys in ((left, losses), (right, errors)):
        for key, colour in zip(keys, colours, strict=False):
            points = [(row[x], row[key]) for row in history if x in row and key in row]
            if points:
                marker = "o" if len(points) <= 60 else None
                axis.plot(
                    *zip(*points, strict=True), color=colour, marker=marker, ms=3.5, label=key
                )
        axis.set_xlabel(x)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    values = [row[key] for row in history for key in losses if key in row]
    if values and min(values) > 0:
        left.set_yscale("log")
    left.set_title("training loss")
    right.set_title("test error")
    right.set_ylabel("mm")
    finals = [row[errors[0]] for row in history if errors and errors[0] in row]
    if finals:
        right.set_title(f"test error: last {finals[-1]:.1f} mm, best {min(finals):.1f} mm")
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
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=9)
    if finals or baselines:
        # Room above the highest line for its name.
        right.set_ylim(0, 1.1 * right.get_ylim()[1])
    figure.tight_layout()
    return save_figure(figure, path)


def _turn(poses: np.ndarray, degrees: float) -> np.ndarray:
    """Turn camera-space poses (..., 3) about the vertical."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return poses @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def _draw(axis, pose, skeleton, *, colour=None, width=2.5, opacity=None, dots=True):
    """Draw a pose's first two coordinates (joints, >= 2); left, right and middle by colour."""
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
    """An unmarked field of view with equal axes and y pointing down, as in the image."""
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

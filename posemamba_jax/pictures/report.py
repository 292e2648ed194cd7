"""Pictures of an evaluation, of one run or of several side by side.

python -m posemamba_jax.report RUN [RUN ...] --out DIR

Curves come from each run's metrics.jsonl; everything else from evaluating its checkpoint once more:
error per joint, per action and over time, and its best and worst clips.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from posemamba_jax.config import run_program
from posemamba_jax.data.clips import ClipSource, check_skeleton
from posemamba_jax.errors import UserError
from posemamba_jax.evaluation import Predict, evaluate, progress_bar
from posemamba_jax.evaluation.checkpoint import evaluation_options, open_checkpoint
from posemamba_jax.files import writing
from posemamba_jax.files.json_report import JsonReport
from posemamba_jax.files.metrics_file import METRICS_FILE, read_metrics
from posemamba_jax.files.reading import user_path
from posemamba_jax.model.checkpoint import find_checkpoint
from posemamba_jax.pictures import plots as plotting
from posemamba_jax.pictures.evaluation import check_finite
from posemamba_jax.pictures.render import render
from posemamba_jax.skeleton import Skeleton

_MOVING = ("mp4", "gif", "html")


@dataclasses.dataclass(frozen=True)
class ClipErrors:
    """What was predicted for one clip, and how far off it is.

    Attributes:
      index: of the clip in its source.
      action, name: what it shows, and the recording it is from.
      pred: (frames, joints, 3) root-relative millimetres, float32.
      distances: (frames, joints) from the target, millimetres.
    """

    index: int
    action: str
    name: str
    pred: np.ndarray
    distances: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.distances.mean())


@dataclasses.dataclass(frozen=True)
class Errors:
    """An evaluation with what its figures are made of.

    Clips that overlap are all there, so a mean over them can differ a little from the figure of a
    protocol that counts every frame once.
    """

    report: JsonReport
    clips: list[ClipErrors]

    def per_joint(self) -> np.ndarray:
        """Computes each joint's mean error over all frames of all clips, (joints,) millimetres."""
        total = sum(clip.distances.sum(axis=0, dtype=np.float64) for clip in self.clips)
        return total / sum(len(clip.distances) for clip in self.clips)

    def per_part(self) -> dict[str, float]:
        """Millimetres of each action, or test sequence, by the protocol of the report."""
        parts = getattr(self.report, "per_action", None) or getattr(self.report, "per_sequence", {})
        return {name: figures["mpjpe_mm"] for name, figures in parts.items()}

    def over_time(self, percentiles: Sequence[float] = (10, 50, 90)) -> np.ndarray:
        """Computes percentiles over clips of a frame's error, (percentiles, frames), by its place
        in the clip.
        """
        length = max(len(clip.distances) for clip in self.clips)
        padded = np.full((len(self.clips), length), np.nan)
        for row, clip in zip(padded, self.clips, strict=True):
            row[: len(clip.distances)] = clip.distances.mean(axis=1)
        return np.nanpercentile(padded, percentiles, axis=0)

    def ranked(self) -> list[ClipErrors]:
        """Sorts the clips, least error first."""
        return sorted(self.clips, key=lambda clip: clip.mean)


def collect_errors(predict: Predict, source: ClipSource, **options) -> Errors:
    """Evaluates and keeps the error of every joint in every frame.

    Args:
      predict, source, options: as for `posemamba_jax.evaluation.evaluate`.
    """
    clips, root = [], source.skeleton.root

    def keep(index, clip, pred):
        target = clip["poses_3d_mm"] - clip["poses_3d_mm"][:, [root]]
        pred = pred.astype(np.float32)
        distances = np.linalg.norm(pred - target, axis=-1)
        clips.append(ClipErrors(index, clip["action"], clip["subject_source"], pred, distances))

    report = evaluate(predict, source, on_clip=keep, **options)
    return Errors(report, clips)


def plot_per_joint(runs: Mapping[str, Errors], path: str | Path, *, skeleton: Skeleton) -> Path:
    """Bars of each joint's mean error; with a single run, coloured by side."""
    values = {name: errors.per_joint() for name, errors in runs.items()}
    color = None
    if len(runs) == 1:
        sides = dict.fromkeys(skeleton.left, plotting.LEFT)
        sides |= dict.fromkeys(skeleton.right, plotting.RIGHT)
        color = [sides.get(joint, plotting.MIDDLE) for joint in range(skeleton.num_joints)]
    return _plot_bars(values, skeleton.joints, path, "mean error per joint, mm", color)


def plot_per_action(runs: Mapping[str, Errors], path: str | Path) -> Path:
    """Bars of each action's (or test sequence's) mean error, and of the overall one."""
    names = sorted({name for errors in runs.values() for name in errors.per_part()})
    values = {
        run: np.array([*(errors.per_part().get(n, np.nan) for n in names), errors.report.mpjpe_mm])
        for run, errors in runs.items()
    }
    labels = [*(name or "(none)" for name in names), "overall"]
    return _plot_bars(values, labels, path, "MPJPE per action, mm")


def plot_over_time(runs: Mapping[str, Errors], path: str | Path) -> Path:
    """Plots the error by place in the clip: the median over clips, and the band that holds 80% of
    them.
    """
    figure, (axis,) = _make_figure((9, 4.2))
    for (name, errors), color in zip(runs.items(), _colors(), strict=False):
        low, middle, high = errors.over_time()
        frames = np.arange(len(middle))
        axis.plot(frames, middle, color=color, label=_plain(name))
        axis.fill_between(frames, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set_xlabel("frame of the clip")
    axis.set_ylabel("mm")
    axis.set_ylim(bottom=0)
    axis.set_title("error over time: median of the clips, and 10% to 90% of them", loc="left")
    return _finish(figure, path)


def draw_clips(
    source: ClipSource,
    errors: Errors,
    folder: Path,
    *,
    count: int,
    moving: str | None = None,
) -> list[Path]:
    """Draws the clips with the least and the most error.

    Args:
      source: that was evaluated.
      errors: what was found.
      folder: where the pictures go.
      count: how many of each; fewer where the two would meet.
      moving: "mp4", "gif" or "html" to render them too.

    Returns:
      The files written.
    """
    ranked, skeleton = errors.ranked(), source.skeleton
    count = min(count, max(1, len(ranked) // 2)) if count else 0
    chosen = [(f"best_{i + 1}", clip) for i, clip in enumerate(ranked[:count])]
    chosen += [(f"worst_{i + 1}", clip) for i, clip in enumerate(ranked[::-1][:count])]
    written = []
    for name, shown in chosen:
        clip = source[shown.index]
        target = clip["poses_3d_mm"] - clip["poses_3d_mm"][:, [skeleton.root]]
        title = f"{shown.name} {shown.action}".strip()
        poses = (shown.pred, target, clip["poses_2d"])
        path = folder / f"{name}.png"
        written.append(plotting.plot_poses(*poses, path, title=_plain(title), skeleton=skeleton))
        if moving:
            written.append(
                render(
                    folder / f"{name}.{moving}",
                    shown.pred,
                    ground_truth=target,
                    fps=source.fps,
                    skeleton=skeleton,
                    title=f"{title}: {shown.mean:.1f} mm",
                )
            )
    return written


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Gives each run a short name: the end of its path that tells it from the others.

    Raises:
      UserError: a folder is there twice.
    """
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{folders[0]}: given twice")


def main(argv: Sequence[str]) -> int:
    """Reads the command line, evaluates each run, and writes the pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m posemamba_jax.report",
        description="Pictures of the errors of one or several runs. Keys of the configuration, "
        "such as --data.source, may follow and hold for all runs.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", type=user_path, metavar="RUN", help="folders of runs, or pretrained:NAME"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        required=True,
        help="folder for the pictures",
    )
    parser.add_argument("--which", choices=("best", "latest"), default="best")
    parser.add_argument("--clips", type=int, default=2, help="best and worst clips to draw")
    parser.add_argument("--render", choices=_MOVING, help="render those clips too")
    parser.add_argument("--curves_only", action="store_true", help="do not evaluate")
    first_key = next((i for i, argument in enumerate(argv) if _is_key(argument)), len(argv))
    options = parser.parse_args(argv[:first_key])
    console = Console(soft_wrap=True, highlight=False)
    for folder in options.runs:
        if not folder.is_dir():
            find_checkpoint(folder)  # Refuses what is no model in one file either.
    if options.clips < 0:
        raise UserError(f"--clips {options.clips}: must be at least 0")
    names = dict(zip(name_runs(options.runs), options.runs, strict=True))

    histories = {name: read_metrics(folder) for name, folder in names.items()}
    histories = {name: rows for name, rows in histories.items() if rows}
    if not histories and options.curves_only:
        raise UserError(f"{options.runs[0]}: has no {METRICS_FILE}; give the folder of a run")
    evaluated = {}
    if not options.curves_only:
        evaluated = _evaluate_runs(names, options.which, list(argv[first_key:]), console)
    written = []
    with writing.reported_as(f"--out: {options.out}"):
        if histories:
            written.append(plotting.plot_curves(histories, options.out / "curves.png"))
        if evaluated:
            written += _draw(evaluated, options)
    for path in written:
        console.print(f"wrote {path}", markup=False)
    return 0


def _is_key(argument: str) -> bool:
    """Tells whether an argument begins the keys of the configuration, which all hold a dot."""
    name = argument.split("=")[0]
    return name.startswith("--") and ("." in name or name in ("--config", "--implementation"))


def _evaluate_runs(
    names: Mapping[str, Path], which: str, keys: list[str], console: Console
) -> dict[str, tuple[ClipSource, Errors]]:
    """Evaluates each run and prints a table; by name, the clips and what was found."""
    evaluated: dict[str, tuple[ClipSource, Errors]] = {}
    for name, folder in names.items():
        opened = open_checkpoint(folder, keys, which=which)
        source = opened.source
        for other, (first, _) in list(evaluated.items())[:1]:
            check_skeleton(first.skeleton, f"the data of {other}", source)
        how = evaluation_options(opened.config)
        with progress_bar(f"evaluating {name} on {source.name}") as progress:
            found = collect_errors(opened.predict, source, progress=progress, **how)
        check_finite(found.report, opened.folder)
        evaluated[name] = (source, found)
    console.print(_make_table({name: errors for name, (_, errors) in evaluated.items()}))
    reports = [errors.report for _, errors in evaluated.values()]
    if len({(report.source, report.clips, report.frames, report.flip) for report in reports}) > 1:
        console.print("these runs were evaluated on different clips; --config FILE sets the same")
    return evaluated


def _draw(evaluated: Mapping[str, tuple[ClipSource, Errors]], options) -> list[Path]:
    """Draws what was found for each run, and the runs side by side."""
    errors = {name: found for name, (_, found) in evaluated.items()}
    skeleton = next(iter(evaluated.values()))[0].skeleton
    written = [
        plot_per_joint(errors, options.out / "per_joint.png", skeleton=skeleton),
        plot_per_action(errors, options.out / "per_action.png"),
        plot_over_time(errors, options.out / "over_time.png"),
    ]
    for name, (source, found) in evaluated.items():
        folder = options.out / "clips" / name if len(evaluated) > 1 else options.out / "clips"
        chosen = {"count": options.clips, "moving": options.render}
        written += draw_clips(source, found, folder, **chosen)
    return written


def _make_table(runs: Mapping[str, Errors]) -> Table:
    table = Table(title="millimetres")
    for column in ("run", "data", "P1", "P2", "best clip", "worst clip", "worst joint"):
        table.add_column(column, justify="left" if column in ("run", "data") else "right")
    for name, errors in runs.items():
        report, ranked, joints = errors.report, errors.ranked(), errors.per_joint()
        figures = (report.mpjpe_mm, report.p_mpjpe_mm, ranked[0].mean, ranked[-1].mean)
        cells = [f"{value:.1f}" for value in (*figures, joints.max())]
        table.add_row(name, report.source, *cells)
    return table


def _plot_bars(values: Mapping[str, np.ndarray], labels, path, title: str, color=None) -> Path:
    figure, (axis,) = _make_figure((max(7, 0.5 * len(labels) + 2), 4.4))
    width = 0.8 / len(values)
    places = np.arange(len(labels))
    for i, ((name, heights), run_color) in enumerate(zip(values.items(), _colors(), strict=False)):
        middle = places + (i - (len(values) - 1) / 2) * width
        look = {"color": color or run_color, "label": _plain(name)}
        bars = axis.bar(middle, heights, width * 0.92, **look)
        if len(values) == 1:
            axis.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    axis.set_xticks(places, [_plain(label) for label in labels], rotation=45, ha="right")
    axis.set_title(title, loc="left")
    axis.grid(axis="x", visible=False)
    return _finish(figure, path, legend=len(values) > 1)


def _make_figure(size: tuple[float, float], columns: int = 1):
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finish(figure: Figure, path: str | Path, legend: bool = True) -> Path:
    for axis in figure.axes:
        if legend and axis.get_legend_handles_labels()[0]:
            # Over the axes, where no bar or line can lie under it.
            place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 3}
            axis.legend(fontsize=9, frameon=False, **place)
    return plotting.save_figure(figure, path)


def _colors() -> list:
    # More runs than colours share them; nobody can read that many lines anyway.
    return list(matplotlib.color_sequences["tab10"]) * 10


def _plain(text: str) -> str:
    return plotting.plain_text(text) or "run"


if __name__ == "__main__":
    run_program(main)

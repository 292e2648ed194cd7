"""Draws the scaling curves."""

import math
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from posemamba_jax.files import writing
from posemamba_jax.scaling.roofline import NAMES
from posemamba_jax.scaling.study import Point

_COLOURS = {
    "scan": "#8e5bb5",
    "matrix": "#2e6fbd",
    "vector": "#5aa469",
    "memory": "#e0a030",
    "interconnect": "#d1495b",
}


def plot_scaling(found: dict[str, list[Point]], path: str | Path, *, title: str = "") -> Path:
    """Draws clips per second over chips, and the parts of a step, for each kind of scaling.

    Points that were compiled are filled, modelled ones hollow, and so is what the model makes of
    compiled ones; the grey line is the speed of the smallest size times the number of chips.

    Args:
      found: kind -> points.
      path: the PNG to write.
      title: above the picture.

    Returns:
      The path written.
    """
    figure = Figure(figsize=(5 * len(found), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (kind, points) in enumerate(found.items()):
        known = [point for point in points if point.estimate]
        if not known:
            continue
        chips = [point.topology.chips for point in known]
        speeds = [point.clips_per_second for point in known]
        top, bottom = axes[0][column], axes[1][column]
        ideal = [speeds[0] * n / chips[0] for n in chips]
        top.plot(chips, ideal, color="#b0b7bf", label="the smallest size, times chips")
        top.plot(chips, speeds, color="#444444", label="estimate")
        made = [(p.topology.chips, p.clips_per_second) for p in known if p.compiled]
        modelled = [(p.topology.chips, p.clips_per_second) for p in known if not p.compiled]
        modelled += [(p.topology.chips, p.batch / p.modelled.seconds) for p in known if p.modelled]
        for label, colour, size, found_points in (
            ("compiled", "#444444", 24, made),
            ("modelled", "none", 60, modelled),
        ):
            top.scatter(
                [n for n, _ in found_points],
                [speed for _, speed in found_points],
                s=size,
                color=colour,
                edgecolor="#444444",
                zorder=3,
                label=label,
            )
        top.set_title(f"{kind} scaling")
        top.set_ylabel("clips per second")
        top.legend(fontsize="small", frameon=False)
        for part, name in NAMES.items():
            # One chip sends nothing, which a logarithmic axis cannot show.
            seconds = [getattr(point.estimate, part) * 1e3 or math.nan for point in known]
            bottom.plot(chips, seconds, marker=".", color=_COLOURS[part], label=name)
        bottom.set_ylabel("ms in a step")
        bottom.set_xlabel("chips")
        bottom.legend(fontsize="small", frameon=False)
        for axis in (top, bottom):
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(chips, [str(n) for n in chips])
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.grid(True, color="#eeeeee")
    figure.suptitle(title)
    with writing.replacing(path) as part:
        figure.savefig(part, dpi=110)
    return Path(path)

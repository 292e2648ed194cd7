"""A picture of real clips that predict.py lifted: a frame of each, and everybody from three sides.

    python predict.py demo.mp4 --out out/demo
    python predict.py cam02.mp4 --people 2 --out out/cam02
    python benchmarks/real_clips.py docs/images/real_clips.webp demo.mp4:141 cam02.mp4:41

Each clip is named with the frame to show, counted from 0; its results are in out/NAME. Where
docs/video.md's clips come from is said there.
"""

import argparse
import itertools
from pathlib import Path

import matplotlib
import numpy as np

from posemamba_jax.pictures.plots import LEFT, MIDDLE, RIGHT
from posemamba_jax.pictures.render.scene import bone_sides
from posemamba_jax.pictures.render.video import probe_video, read_video
from posemamba_jax.skeleton import H36M17

HEIGHT = 400  # of a frame, in pixels
# What a view shows to the right and upwards, of world poses: x right, y up, z towards the camera.
VIEWS = {"from the front": (0, 1), "from the side": (2, 1), "from above": (0, 2)}
# Up in the picture is away from the camera, where the view is from above.
FLIPPED = {"from above"}
COLORS = {"left": LEFT, "right": RIGHT, "middle": MIDDLE}


def read_frame(video: Path, number: int) -> np.ndarray:
    """Reads one frame of a video, (HEIGHT, width, 3) uint8."""
    (width, height), _ = probe_video(video)
    size = (round(width * HEIGHT / height), HEIGHT)
    return next(itertools.islice(read_video(video, size), number, None))


def draw_bones(axes, points: np.ndarray) -> None:
    """Draws the bones of one pose, (J, 2), left red and right blue."""
    for bone, side in zip(H36M17.bones, bone_sides(H36M17), strict=True):
        axes.plot(*points[list(bone)].T, color=COLORS[side], linewidth=1.6)


def draw_clip(row, video: Path, frame: int, results: Path) -> None:
    """Draws one clip into a row of axes: the frame, then the people in the room."""
    people = [np.load(file) for file in sorted(results.glob("person_*.npz"))]
    if not people:
        raise SystemExit(f"{results}: no person_*.npz; lift {video} with --out {results} first")
    image = read_frame(video, frame)
    row[0].imshow(image)
    row[0].axis("off")
    row[0].set_title(f"{video.stem}, frame {frame}", fontsize=8)
    for person in people:
        draw_bones(row[0], person["poses_2d"][frame][:, :2] * HEIGHT / person["image_size"][1])
    for axes, (name, (across, up)) in zip(row[1:], VIEWS.items(), strict=True):
        for person in people:
            draw_bones(axes, person["world_poses"][frame][:, [across, up]] / 1000)
        if name in FLIPPED:
            axes.invert_yaxis()
        axes.set_title(name + ", m", fontsize=8)
        axes.set_aspect("equal", adjustable="datalim")
        axes.tick_params(labelsize=6)
        axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("clips", nargs="+", metavar="VIDEO:FRAME")
    parser.add_argument("--results", type=Path, default=Path("out"), help="where out/NAME lies")
    args = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (10, 2.7 * len(args.clips))
    figure, rows = pyplot.subplots(len(args.clips), 4, squeeze=False, figsize=size)
    for row, clip in zip(rows, args.clips, strict=True):
        video, _, frame = clip.rpartition(":")
        draw_clip(row, Path(video), int(frame), args.results / Path(video).stem)
    figure.tight_layout()
    figure.savefig(args.picture, dpi=90)


if __name__ == "__main__":
    main()

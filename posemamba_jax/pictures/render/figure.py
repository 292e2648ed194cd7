"""Frames of a video: the image with its 2D skeleton beside the 3D skeleton.

The parts that do not change (panels, ground, captions) are drawn once; a frame restores them and
draws the few artists that moved, which is what makes rendering faster than real time. The 3D view
is an orthographic projection computed here, because Matplotlib's own 3D axes redraw everything.
"""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure

from posemamba_jax.pictures.plots import LEFT, MIDDLE, RIGHT
from posemamba_jax.pictures.render.scene import Clip, bone_sides, find_ground

COLORS = {
    "left": LEFT,
    "right": RIGHT,
    "middle": MIDDLE,
    "truth": "#2f9e63",
    "unobserved": "#b4b9c0",
    "ground": "#d5d9de",
    "shadow": "#e3e6ea",
    "ink": "#20242a",
    "faint": "#6b727c",
}
_DPI = 100
_HEADER = 34
_FOOTER = 24
# The 3D panel stands still while the whole clip is at most so much larger than its largest frame.
_WIDEST = 1.4


class FrameRenderer:
    """Draws frames of one clip.

    Args:
      clip: what to show.
      height: of the panels in pixels.
      azimuth, elevation: where the viewer stands, in degrees; 0, 0 looks along the camera.
      truth_beside: ground truth in a panel of its own rather than over the prediction.
      with_image: whether there is a panel for the video or a blank frame; None means if the clip
        has 2D keypoints.

    `size` is the (width, height) of the frames, both even; `image_size` the (width, height) at
    which `draw` takes the video's frames, None without such a panel.
    """

    def __init__(
        self,
        clip: Clip,
        *,
        height: int = 480,
        azimuth: float = 25.0,
        elevation: float = 12.0,
        truth_beside: bool = False,
        with_image: bool | None = None,
    ):
        if height < 64:
            raise ValueError(f"height is {height}, expected at least 64 pixels")
        self._clip = clip
        self._height = height
        self._sides = bone_sides(clip.skeleton)
        self._bones = np.array(clip.skeleton.bones)
        with_image = clip.poses_2d is not None if with_image is None else with_image
        if with_image and clip.image_size is None:
            raise ValueError("a panel for the image needs the clip's image_size")

        self.image_size = None
        left = 0
        if with_image:
            width, image_height = clip.image_size
            # A panorama would squeeze everything else; nothing sensible is wider than 3:1.
            scale = min(height / image_height, 3 * height / width)
            self.image_size = (max(2, round(width * scale)), max(2, round(image_height * scale)))
            left = self.image_size[0]
        beside = truth_beside and clip.ground_truth is not None
        panels = 2 if beside else 1
        self.size = _even(left + panels * height), _even(height + _HEADER + _FOOTER)

        self._figure = Figure(figsize=(self.size[0] / _DPI, self.size[1] / _DPI), dpi=_DPI)
        self._canvas = FigureCanvasAgg(self._figure)
        self._figure.patch.set_facecolor("white")
        self._moving = []
        if with_image:
            self._add_image_panel()
        view = _View(clip, azimuth, elevation)
        captions = ["ground truth", "prediction"] if beside else [""]
        self._panels = []
        for i, caption in enumerate(captions):
            axes = self._add_axes(left + i * height, height)
            show = {"ground truth": "truth", "prediction": "pose", "": "both"}[caption]
            self._panels.append(_Panel3D(axes, view, clip, show, caption))
            self._moving += self._panels[-1].artists
        self._add_captions(truth_over=clip.ground_truth is not None and not beside)
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(self._figure.bbox)

    def draw(self, frame: int, image: np.ndarray | None = None) -> np.ndarray:
        """Draws one frame.

        Args:
          frame: index into the clip.
          image: (height, width, 3) uint8, the video's frame at `image_size`; None leaves it blank.

        Returns:
          (height, width, 4) uint8 RGBA, a view that the next call overwrites.
        """
        self._canvas.restore_region(self._background)
        pixels = np.asarray(self._canvas.buffer_rgba())
        if self.image_size is not None:
            self._update_image_panel(frame, image, pixels)
        for panel in self._panels:
            panel.update(frame)
        seconds = float(frame / self._clip.fps)
        self._time.set_text(
            f"{int(seconds // 60)}:{seconds % 60:05.2f}   "
            f"frame {frame + 1} of {self._clip.num_frames}"
        )
        self._warning.set_text(self._describe_gap(frame))
        for artist in self._moving:
            self._figure.draw_artist(artist)
        return pixels

    def _describe_gap(self, frame: int) -> str:
        missing = ~np.isfinite(self._clip.poses[:, frame]).any(axis=(1, 2))
        filled = ~self._clip.observed[:, frame] & ~missing
        if missing.all():
            return "no pose"
        return "not observed" if filled.any() or missing.any() else ""

    def _add_axes(self, left: float, width: float):
        total_width, total_height = self.size
        axes = self._figure.add_axes(
            (
                left / total_width,
                _FOOTER / total_height,
                width / total_width,
                self._height / total_height,
            )
        )
        axes.set_axis_off()
        axes.autoscale(False)
        return axes

    def _add_image_panel(self):
        width, height = self.image_size
        self._image_bottom = _FOOTER + (self._height - height) // 2
        axes = self._add_axes(0, width)
        pixels = self._clip.image_size
        margin = (self._height / height - 1) / 2 * pixels[1]
        axes.set_xlim(0, pixels[0])
        axes.set_ylim(pixels[1] + margin, -margin)
        self._overlay = _Segments(axes, width=_line_width(self._height) * 0.75, outline=True)
        self._moving += self._overlay.artists

    def _update_image_panel(self, frame: int, image, pixels: np.ndarray):
        width, height = self.image_size
        last = len(pixels) - self._image_bottom
        # Straight into the picture: Matplotlib would resample it, which takes longer than all else.
        pixels[last - height : last, :width, :3] = 244 if image is None else image
        if self._clip.poses_2d is None:
            return
        segments, colors = [], []
        for track in range(self._clip.num_tracks):
            keypoints = self._clip.poses_2d[track, frame]
            segments.append(keypoints[self._bones, :2])
            confidence = keypoints[self._bones, 2].min(axis=1)
            palette = _palette(self._sides, self._clip.observed[track, frame])
            palette[:, 3] = np.clip(confidence, 0.2, 1)
            colors.append(palette)
        self._overlay.update(np.concatenate(segments), np.concatenate(colors))

    def _add_captions(self, truth_over: bool):
        width, height = self.size
        size = 9.5
        pad = 10 / width
        top = 1 - _HEADER / 2 / height
        bottom = _FOOTER / 2 / height
        texts = {"parse_math": False, "va": "center", "fontsize": size}
        if self._clip.title:
            self._figure.text(pad, top, self._clip.title, color=COLORS["ink"], **texts)
        names = ["left", "right"] + (["truth"] if truth_over else [])
        x = 1 - pad
        for name in reversed(names):
            label = "ground truth" if name == "truth" else name
            style = {"color": COLORS[name], "ha": "right", "weight": "bold", **texts}
            text = self._figure.text(x, top, label, **style)
            x -= text.get_window_extent(self._canvas.get_renderer()).width / width + pad
        self._time = self._figure.text(pad, bottom, "", color=COLORS["faint"], **texts)
        self._warning = self._figure.text(
            1 - pad, bottom, "", color="#a15c00", ha="right", weight="bold", **texts
        )
        self._moving += [self._time, self._warning]
        for artist in self._moving:
            artist.set_animated(True)


class _View:
    """An orthographic camera that looks at a clip from a fixed place."""

    def __init__(self, clip: Clip, azimuth: float, elevation: float):
        turn, tilt = np.radians([azimuth, elevation])
        right = np.array([np.cos(turn), np.sin(turn), 0])
        ahead = np.array([-np.sin(turn) * np.cos(tilt), np.cos(turn) * np.cos(tilt), -np.sin(tilt)])
        self._rotation = np.stack([right, np.cross(right, ahead), ahead]).astype(np.float32)
        self.ground = find_ground(clip)
        self.centres, self.half = self._frame(clip)

    def _frame(self, clip: Clip) -> tuple[np.ndarray, float]:
        """Finds the (frames, 2) middle of the picture and half its side, the same for all frames.

        The picture holds the whole clip if that shows people large enough; else it goes along with
        those who are there.
        """
        parts = [clip.poses] + ([] if clip.ground_truth is None else [clip.ground_truth])
        flat = self.project(np.concatenate(parts))[..., :2]
        flat = np.moveaxis(flat, 1, 0).reshape(clip.num_frames, -1, 2)
        there = np.isfinite(flat).all(-1).any(1)
        if not there.any():
            points = self.project(clip.points())[:, :2]
            flat, there = np.broadcast_to(points, (clip.num_frames, *points.shape)), ~there
        low, high = np.nanmin(flat[there], axis=1), np.nanmax(flat[there], axis=1)
        whole = float((high.max(0) - low.min(0)).max()) / 2 * 1.12
        each = float((high - low).max()) / 2 * 1.3
        if whole <= _WIDEST * each:
            middle = (low.min(0) + high.max(0)) / 2
            return np.broadcast_to(middle, (clip.num_frames, 2)), max(whole, 1e-6)
        middle = (low + high) / 2
        frames = np.flatnonzero(there)
        filled = np.stack(
            [np.interp(np.arange(clip.num_frames), frames, m) for m in middle.T], axis=-1
        )
        return _smooth(filled, round(float(clip.fps))), max(each, 1e-6)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Turns (..., 3) points into right, up and distance from the viewer, in the clip's
        units.
        """
        return points @ self._rotation.T


class _Panel3D:
    """The 3D view of all tracks: what is still is drawn at once, the rest by `update`."""

    def __init__(self, axes, view: _View, clip: Clip, show: str, caption: str):
        self._view, self._clip, self._show = view, clip, show
        self._bones = np.array(clip.skeleton.bones)
        self._sides = bone_sides(clip.skeleton)
        axes.set_xlim(-view.half, view.half)
        axes.set_ylim(-view.half, view.half)
        self._ground = LineCollection([], colors=COLORS["ground"], linewidths=0.8)
        axes.add_collection(self._ground)
        axes.text(
            0.5,
            0.01,
            f"grid {view.ground.step:g} {clip.units}".strip(),
            color=COLORS["faint"],
            fontsize=7.5,
            ha="center",
            transform=axes.transAxes,
            parse_math=False,
        )
        if caption:
            axes.text(
                0.5, 0.97, caption, color=COLORS["ink"], ha="center", transform=axes.transAxes
            )
        pixels = axes.get_window_extent().height
        # Thinner where people are small.
        width = _line_width(pixels) * min(1.0, 1.2 * _body_extent(clip) / view.half)
        self._shadow = LineCollection([], linewidths=width, capstyle="round")
        self._shadow.set_color(COLORS["shadow"])
        axes.add_collection(self._shadow)
        self._truth = _Segments(axes, width=width * 0.55)
        self._pose = _Segments(axes, width=width, joints=True)
        names = clip.track_names if clip.num_tracks > 1 else ()
        look = {"color": COLORS["faint"], "fontsize": 8.5, "ha": "center", "parse_math": False}
        self._names = [axes.text(0, 0, name, **look) for name in names]
        self.artists = [
            self._ground,
            self._shadow,
            *self._truth.artists,
            *self._pose.artists,
            *self._names,
        ]

    def update(self, frame: int):
        clip = self._clip
        middle = self._view.centres[frame]
        self._ground.set_segments(self._view.project(self._view.ground.lines())[..., :2] - middle)
        shown, shadows = [], []
        if self._show in ("pose", "both"):
            shown.append((clip.poses[:, frame], self._pose, None))
        if clip.ground_truth is not None and self._show in ("truth", "both"):
            over = self._show == "both"
            artist, color = (self._truth, COLORS["truth"]) if over else (self._pose, None)
            shown.append((clip.ground_truth[:, frame], artist, color))
        for poses, artist, color in shown:
            bones = poses[:, self._bones]  # (tracks, bones, 2, 3)
            colors = np.stack(
                [
                    _palette(self._sides, self._show == "truth" or observed, color)
                    for observed in clip.observed[:, frame]
                ]
            ).reshape(-1, 4)
            flat = self._view.project(bones.reshape(-1, 2, 3))
            order = np.argsort(-flat[..., 2].mean(axis=1))
            artist.update(flat[order, :, :2] - middle, colors[order])
            if color is None:
                on_ground = bones.reshape(-1, 2, 3).copy()
                on_ground[..., 2] = self._view.ground.z
                shadows.append(self._view.project(on_ground)[..., :2] - middle)
        self._shadow.set_segments(_finite(np.concatenate(shadows)))
        self._place_names(shown[0][0], middle)

    def _place_names(self, poses: np.ndarray, middle: np.ndarray):
        """Puts names above heads; one that would lie on another moves up."""
        half, placed = self._view.half, []
        for label, joints in zip(self._names, poses, strict=False):
            joints = self._view.project(joints[np.isfinite(joints).all(axis=1)])
            label.set_visible(len(joints) > 0)
            if len(joints):
                x, y = joints[joints[:, 1].argmax(), :2] - middle
                placed.append((y + 0.05 * half, x, label))
        taken = []
        for y, x, label in sorted(placed, key=lambda place: place[0]):
            reach = 0.024 * half * len(label.get_text())
            for other_x, other_y, other_reach in taken:
                if abs(other_x - x) < reach + other_reach and abs(other_y - y) < 0.085 * half:
                    y = other_y + 0.085 * half
            taken.append((x, y, reach))
            label.set_position((x, y))


class _Segments:
    """Coloured lines with round ends, and optionally dots where they meet."""

    def __init__(self, axes, *, width: float, joints: bool = False, outline: bool = False):
        self.artists = []
        self._outline = None
        if outline:
            self._outline = LineCollection([], linewidths=width + 2, capstyle="round")
            self._outline.set_color("white")
            self._outline.set_alpha(0.75)
            self.artists.append(self._outline)
        self._lines = LineCollection([], linewidths=width, capstyle="round")
        self.artists.append(self._lines)
        self._dots = None
        if joints:
            self._dots = axes.scatter([], [], s=(width * 1.3) ** 2, c="white", linewidths=width / 3)
            self.artists.append(self._dots)
        for artist in self.artists:
            if not isinstance(artist, PathCollection):
                axes.add_collection(artist)

    def update(self, segments: np.ndarray, colors: np.ndarray):
        seen = np.isfinite(segments).all(axis=(1, 2))
        segments, colors = segments[seen], colors[seen]
        self._lines.set_segments(segments)
        self._lines.set_color(colors)
        if self._outline is not None:
            self._outline.set_segments(segments)
        if self._dots is not None:
            self._dots.set_offsets(segments[:, 1])
            self._dots.set_edgecolor(colors)


def _palette(sides, observed: bool, color: str | None = None) -> np.ndarray:
    """Makes (bones, 4) RGBA by side; frames that were not observed are pale."""
    if color is not None:
        return np.tile(to_rgba(color), (len(sides), 1))
    rgb = np.array([to_rgb(COLORS[side]) for side in sides])
    if not observed:
        rgb = 0.25 * rgb + 0.75 * np.array(to_rgb(COLORS["unobserved"]))
    return np.concatenate([rgb, np.ones((len(sides), 1))], axis=1)


def _finite(segments: np.ndarray) -> np.ndarray:
    return segments[np.isfinite(segments).all(axis=(1, 2))]


def _line_width(pixels: float) -> float:
    return max(1.0, pixels / 130)


def _body_extent(clip: Clip) -> float:
    """Computes the median of the largest extent of single poses."""
    poses = clip.poses.reshape(-1, *clip.poses.shape[2:])
    poses = poses[np.isfinite(poses).all(axis=(1, 2))]
    return float(np.median(np.ptp(poses, axis=1).max(axis=1))) if len(poses) else np.inf


def _smooth(path: np.ndarray, width: int) -> np.ndarray:
    """Averages (frames, 2) over about `width` frames, twice."""
    for _ in range(2):
        half = max(1, width // 2)
        padded = np.pad(path, ((half, half), (0, 0)), mode="edge")
        sums = np.cumsum(np.pad(padded, ((1, 0), (0, 0))), axis=0)
        path = (sums[2 * half + 1 :] - sums[: -2 * half - 1]) / (2 * half + 1)
    return path


def _even(pixels: float) -> int:
    return int(np.ceil(pixels / 2)) * 2

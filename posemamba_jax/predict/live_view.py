"""A window with a camera's picture, the joints in it and the pose from the side."""

import os
import sys

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from posemamba_jax.pictures.plots import LEFT, MIDDLE, RIGHT
from posemamba_jax.skeleton import H36M17

# Of Matplotlib, in the order in which they are tried.
_BACKENDS = ("QtAgg", "TkAgg", "MacOSX", "GTK4Agg", "WXAgg")
# The picture has at most so many pixels along a side, and the pose is turned by so many radians.
_PICTURE_SIDE = 480
_TURN = np.radians(50)


class PoseView:
    """Draws into a figure: the frame with its joints on the left, two views of the pose beside it.

    Args:
      figure: empty. size: (width, height) of the frames in pixels.
    """

    def __init__(self, figure: Figure, size: tuple[int, int]):
        self._step = max(-(-max(size) // _PICTURE_SIDE), 1)
        picture, front, side = figure.subplots(1, 3, width_ratios=[2, 1, 1])
        blank = np.zeros((-(-size[1] // self._step), -(-size[0] // self._step), 3), np.uint8)
        self._image = picture.imshow(blank, extent=(0, size[0], size[1], 0))
        colours = [
            LEFT if child in H36M17.left else RIGHT if child in H36M17.right else MIDDLE
            for _, child in H36M17.bones
        ]
        self._lines = [LineCollection([], colors=colours, linewidths=3) for _ in range(3)]
        for axis, lines, title in zip(
            (picture, front, side), self._lines, ("camera", "front", "side"), strict=True
        ):
            axis.add_collection(lines)
            axis.set_title(title)
            axis.set_axis_off()
        for axis in (front, side):
            axis.set(xlim=(-1.2, 1.2), ylim=(1.2, -1.2), aspect="equal")
        figure.tight_layout()

    def draw(self, pixels: np.ndarray, joints: np.ndarray | None, pose: np.ndarray | None) -> None:
        """Shows a frame, and nothing of a person who is not there.

        Args:
          pixels: (height, width, 3) uint8. joints: (17, 2) pixels or None.
          pose: (17, 3) root-relative in any unit, or None.
        """
        self._image.set_data(pixels[:: self._step, :: self._step])
        bones = np.array(H36M17.bones)
        self._lines[0].set_segments([] if joints is None else joints[bones])
        if pose is None:
            self._lines[1].set_segments([])
            self._lines[2].set_segments([])
            return
        pose = pose / max(float(np.linalg.norm(pose, axis=-1).max()), 1e-9)
        turned = np.cos(_TURN) * pose[:, 0] - np.sin(_TURN) * pose[:, 2]
        self._lines[1].set_segments(pose[bones][..., :2])
        self._lines[2].set_segments(np.stack([turned, pose[:, 1]], -1)[bones])


class Window:
    """A `PoseView` on the screen.

    Args:
      pyplot: of Matplotlib, with an interactive backend. size: of the frames, in pixels.
    """

    def __init__(self, pyplot, size: tuple[int, int]):
        self._pyplot = pyplot
        self._figure = pyplot.figure("PoseMamba", figsize=(11, 5))
        self._view = PoseView(self._figure, size)
        self._figure.show()

    def show(self, pixels: np.ndarray, joints: np.ndarray | None, pose: np.ndarray | None) -> bool:
        """Shows a frame; returns false once the window is closed."""
        if not self._pyplot.fignum_exists(self._figure.number):
            return False
        self._view.draw(pixels, joints, pose)
        self._figure.canvas.draw_idle()
        self._figure.canvas.flush_events()
        return True

    def close(self) -> None:
        """Closes the window."""
        self._pyplot.close(self._figure)


def open_view(size: tuple[int, int]) -> Window | None:
    """Opens a window, where there is a display and a library for windows.

    Args:
      size: (width, height) of the frames in pixels.

    Returns:
      The window, or None.
    """
    has_display = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if not has_display:
        return None
    from matplotlib import pyplot

    for backend in _BACKENDS:
        try:
            pyplot.switch_backend(backend)
            return Window(pyplot, size)
        except Exception:  # noqa: S112 - each library for windows fails in its own way
            continue
    return None

"""Impossible jumps of a joint in recorded motion, and the recording cut there."""

import numpy as np

# How much further than a trunk joint each may move between frames: ankles kick and wrists strike.
_FREEDOM = np.array([1, 1, 1, 1.6, 1, 1, 1.6, 1, 1, 1.3, 1.6, 1, 1.3, 2, 1, 1.3, 2])


def find_jumps(positions: np.ndarray, largest_mm: float) -> np.ndarray:
    """Finds frames after which a joint jumps.

    A joint that jumps by d between two frames and moves smoothly before and after has a third
    difference of 2d there, while that of motion is small at any usual frame rate. So this tells a
    jump from a fast kick. Joints are taken relative to the root; ankles, elbows, wrists and head
    are allowed more.

    Args:
      positions: (frames, 17, 3) millimetres.
      largest_mm: d from which on a joint of the trunk or a knee counts as jumping.

    Returns:
      Frames, ascending, each the last one before a jump.
    """
    if len(positions) < 4:
        return np.zeros(0, int)
    relative = positions - positions[:, :1]
    third = np.linalg.norm(np.diff(relative, n=3, axis=0), axis=-1)
    return np.flatnonzero((third > 2 * largest_mm * _FREEDOM).any(axis=1)) + 1


def split_at_jumps(length: int, jumps: np.ndarray, *, shortest: int) -> list[tuple[int, int]]:
    """Cuts a recording at its jumps.

    Args:
      length: frames in it.
      jumps: as `find_jumps` returns them.
      shortest: parts with fewer frames, which lie between two jumps or beside one, are dropped:
        there the joint is in the wrong place. A recording without jumps is never dropped.

    Returns:
      (start, stop) of each part.
    """
    edges = [0, *(np.asarray(jumps, int) + 1).tolist(), length]
    parts = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]
    return parts if len(parts) == 1 else [(a, b) for a, b in parts if b - a >= shortest]

"""Finds and mends frames in which a detector took left for right.

In side and back views a network may call left limbs right for a while. Limbs do not jump from one
side of the body to the other between frames, so the labels that let all joints move the least are
found by dynamic programming over the whole clip (Viterbi's algorithm with two states), for the arms
and for the legs. Which of the two ways to call them is right cannot be told from motion; the more
frequent one is taken, and where that is no clear majority the labels are left alone and reported.
"""

import dataclasses

import numpy as np

# Left and right MediaPipe landmarks from shoulders to fingers and from hips to toes; the motion of
# the first three pairs tells.
_ARMS = ((11, 12), (13, 14), (15, 16), (17, 18), (19, 20), (21, 22))
_LEGS = ((23, 24), (25, 26), (27, 28), (29, 30), (31, 32))
_TELLING = 3
# A step is counted up to this share of the body's size, so that one wild joint does not outvote
# all; a change of labels costs as much as steps of the other share in all.
_LARGEST_STEP = 0.5
_CHANGE = 0.1
# No clear majority: more frames than this share are the other way round, or labels change between
# more than this share of neighbouring frames.
_LARGEST_MINORITY = 0.4
_MOST_CHANGES = 0.2


@dataclasses.dataclass(frozen=True)
class Mended:
    """Landmarks after left and right were put in order.

    points: (frames, 33, 4), as given but for the exchanged labels.
    changed: (frames,) bool, frames in which labels were exchanged.
    doubtful: (frames,) bool, frames of which it stays open what is left and what is right.
    """

    points: np.ndarray
    changed: np.ndarray
    doubtful: np.ndarray


def mend(points: np.ndarray, longest_gap: int) -> Mended:
    """Exchanges left and right in frames in which they are the other way round than in most.

    Args:
      points: (frames, 33, 4) of one person, NaN in frames without the person.
      longest_gap: over more frames without the person nothing is concluded.
    """
    seen = np.flatnonzero(np.isfinite(points[:, 0, 0]))
    mended = points.copy()
    changed, doubtful = np.zeros((2, len(points)), bool)
    for part in np.split(seen, np.flatnonzero(np.diff(seen) > longest_gap + 1) + 1):
        if len(part) < 3:
            continue
        limbs = [(pairs, _find_exchanged(points[part], pairs)) for pairs in (_ARMS, _LEGS)]
        if any(
            other.mean() > _LARGEST_MINORITY or (other[1:] != other[:-1]).mean() > _MOST_CHANGES
            for _, other in limbs
        ):
            doubtful[part] = True
            continue
        for pairs, other in limbs:
            frames = part[other]
            left, right = np.array(pairs).T
            mended[frames[:, None], left] = points[frames[:, None], right]
            mended[frames[:, None], right] = points[frames[:, None], left]
            changed[frames] = True
    return Mended(mended, changed, doubtful)


def _find_exchanged(points: np.ndarray, pairs: tuple) -> np.ndarray:
    """Returns (frames,) bool, where the labels of limbs are the other way round than in most
    frames.
    """
    places = points[:, np.array(pairs[:_TELLING]), :2].astype(np.float64)
    size = np.median(np.ptp(points[:, 11:, :2], axis=1).max(-1))
    places = places / max(float(size), 1e-9)

    def motion(a, b):
        return np.minimum(np.linalg.norm(a - b, axis=-1), _LARGEST_STEP).sum((-2, -1))

    keep = motion(places[1:], places[:-1])
    change = motion(places[1:, :, ::-1], places[:-1]) + _CHANGE
    # least[s]: what the frames so far cost if the last one is in state s.
    least = np.zeros(2)
    came_from = np.zeros((len(places), 2), int)
    for t, (k, c) in enumerate(zip(keep, change, strict=True), start=1):
        options = least[None, :] + np.array([[k, c], [c, k]])
        came_from[t] = options.argmin(1)
        least = options.min(1)
    states = np.zeros(len(places), int)
    states[-1] = least.argmin()
    for t in range(len(places) - 1, 0, -1):
        states[t - 1] = came_from[t, states[t]]
    return states == (2 * states.sum() <= len(states))

"""Feet that stand still: legs bent so that planted ankles stay on their footholds."""

import numpy as np

from posemamba_jax.predict.world.contacts import find_stances

# (hip, knee, ankle) of the left and the right leg, in the order of `contacts.ANKLES`.
LEGS = ((4, 5, 6), (1, 2, 3))
# A foot that leaves its foothold returns to where the pose has it within this time.
_RELEASE_SECONDS = 0.15
# The knee keeps a little of its bend, so that it knows its direction.
_STRAIGHTEST = 0.998
# How often, and over what time, a person who cannot reach is moved.
_LEANS = 3
_LEAN_SECONDS = 0.1


def hold_feet(
    poses: np.ndarray, stances: list[tuple[int, int, int]], footholds: np.ndarray, fps: float
) -> np.ndarray:
    """Moves the ankles of planted feet onto their footholds and bends the knees to fit.

    Thighs and shanks keep their lengths. Where a foothold is out of reach, the whole person moves
    towards it, smoothly. Between stances the correction fades out and in.

    Args:
      poses: (T, 17, 3) world millimetres, NaN where there is no pose.
      stances: (foot, start, stop), foot 0 being the left one.
      footholds: (stances, 3) where each ankle stands.
      fps: frames per second.

    Returns:
      (T, 17, 3) with knees and ankles moved, and the whole person where that was not enough.
    """
    poses = np.array(poses)
    for _ in range(_LEANS):
        held, short = _hold(poses, stances, footholds, fps)
        lean = _smooth(short, max(1, round(_LEAN_SECONDS * fps)))
        poses += lean[:, None]
    return _hold(poses, stances, footholds, fps)[0]


def _hold(poses, stances, footholds, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Bends the legs of a motion; returns it and by how much planted feet miss their footholds,
    (T, 3).
    """
    held, missing, count = np.array(poses), np.zeros((len(poses), 3)), np.zeros((len(poses), 1))
    for foot, (hip, knee, ankle) in enumerate(LEGS):
        own = [(a, b, footholds[k]) for k, (f, a, b) in enumerate(stances) if f == foot]
        if not own:
            continue
        shift = _corrections(poses[:, ankle], own, fps)
        held[:, knee], held[:, ankle] = _bend(
            poses[:, hip], poses[:, knee], poses[:, ankle], poses[:, ankle] + shift
        )
        for a, b, foothold in own:
            missing[a:b] += foothold - held[a:b, ankle]
            count[a:b] += 1
    return held, missing / np.maximum(count, 1)


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Averages (T, 3) over `width` frames on either side, in a triangle."""
    weights = np.concatenate([np.arange(1, width + 1), np.arange(width, 0, -1)[1:]])
    weights = weights / weights.sum()
    padded = np.pad(values, ((width - 1, width - 1), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, weights, "valid") for column in padded.T], axis=-1)


def hold_planted(
    poses: np.ndarray, model: np.ndarray, planted: np.ndarray, fps: float
) -> np.ndarray:
    """Puts planted feet back where another version of the same motion has them.

    Args:
      poses: (T, 17, 3) whose legs are bent. model: (T, 17, 3) whose planted feet stand still.
      planted: (T, 2) bool, left and right. fps: frames per second.
    """
    stances = find_stances(planted, [(0, len(planted))])
    footholds = [model[a:b, LEGS[foot][2]].mean(0) for foot, a, b in stances]
    return hold_feet(poses, stances, np.array(footholds).reshape(-1, 3), fps)


def _corrections(ankle: np.ndarray, stances, fps: float) -> np.ndarray:
    """Computes the (T, 3) offsets from where the ankle is to where it should be."""
    total = len(ankle)
    shift, weight = np.zeros((total, 3)), np.zeros(total)
    fade = max(1, round(_RELEASE_SECONDS * fps))
    inside = np.zeros(total, bool)
    for a, b, foothold in stances:
        shift[a:b] = foothold - ankle[a:b]
        inside[a:b] = True
    for a, b, _ in stances:
        for edge, step in ((a, -1), (b - 1, 1)):
            for away in range(1, fade):
                t = edge + step * away
                if not 0 <= t < total or inside[t]:
                    break
                share = 1 - away / fade
                share = share * share * (3 - 2 * share)
                shift[t] += share * shift[edge]
                weight[t] += share
    # Where two stances are so near that both still hold, their mean does.
    return shift / np.maximum(weight, 1)[:, None]


def _bend(hip, knee, ankle, wanted):
    """Finds knee and ankle (T, 3) of legs that reach for `wanted` in the plane of the bent knee."""
    thigh = np.linalg.norm(knee - hip, axis=-1)
    shank = np.linalg.norm(ankle - knee, axis=-1)
    line = wanted - hip
    asked = np.linalg.norm(line, axis=-1)
    line = line / np.maximum(asked, 1e-9)[:, None]
    longest, shortest = _STRAIGHTEST * (thigh + shank), np.abs(thigh - shank) + 1e-6
    length = np.clip(asked, shortest, np.maximum(longest, np.linalg.norm(ankle - hip, axis=-1)))
    side = knee - (hip + ankle) / 2
    side = side - (side * line).sum(-1, keepdims=True) * line
    norm = np.linalg.norm(side, axis=-1, keepdims=True)
    along = (thigh**2 - shank**2 + length**2) / (2 * np.maximum(length, 1e-9))
    away = np.sqrt(np.maximum(thigh**2 - along**2, 0))
    bent = hip + along[:, None] * line + away[:, None] * side / np.maximum(norm, 1e-9)
    untouched = (np.abs(wanted - ankle).max(-1) < 1e-9)[:, None]
    return (
        np.where(untouched, knee, bent),
        np.where(untouched, ankle, hip + length[:, None] * line),
    )

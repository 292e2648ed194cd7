"""Figures that papers report, in float64 NumPy.

Poses are (..., frames, joints, 3) for `mpjve` and (..., joints, 3) for all others. Distances come
out in the units that the poses have, millimetres by convention; `pck` and `auc` are shares in 0..1
of poses in millimetres unless thresholds in other units are given. The functions never centre on a
root; subtract it first where a protocol says so. A frame that holds a NaN gives NaN.
"""

import numpy as np


def joint_distances(pred, target) -> np.ndarray:
    """Computes the Euclidean distance per joint, (..., joints).

    Raises:
      ValueError: the shapes differ or do not end in (joints, 3).
    """
    pred, target = _as_float64(pred, target)
    return np.linalg.norm(pred - target, axis=-1)


def mpjpe(pred, target) -> float:
    """Computes the mean per-joint position error (Protocol 1 once both are root-relative)."""
    return float(np.mean(mpjpe_per_frame(pred, target)))


def mpjpe_per_frame(pred, target) -> np.ndarray:
    """Computes the mean joint distance of each frame, (...)."""
    return joint_distances(pred, target).mean(axis=-1)


def p_mpjpe(pred, target) -> float:
    """Computes the mean joint distance after the best similarity transform frame by frame (Protocol
    2).
    """
    return float(np.mean(p_mpjpe_per_frame(pred, target)))


def p_mpjpe_per_frame(pred, target) -> np.ndarray:
    """Computes the mean joint distance of each frame after `procrustes_align`, (...)."""
    return mpjpe_per_frame(procrustes_align(pred, target), target)


def n_mpjpe(pred, target) -> float:
    """Computes the mean joint distance after the best scale frame by frame (Rhodin et al., CVPR
    2018).
    """
    return float(np.mean(n_mpjpe_per_frame(pred, target)))


def n_mpjpe_per_frame(pred, target) -> np.ndarray:
    """Computes the mean joint distance of each frame after the best scale, (...)."""
    pred, target = _as_float64(pred, target)
    product = np.sum(target * pred, axis=(-2, -1), keepdims=True)
    square = np.sum(pred * pred, axis=(-2, -1), keepdims=True)
    return mpjpe_per_frame(_divide(product, square) * pred, target)


def mpjve(pred, target) -> float:
    """Computes the mean per-joint velocity error, in the poses' units per frame (Pavllo et al.,
    CVPR 2019).

    The mean distance between frame-to-frame differences; NaN where there is one frame only.
    """
    pred, target = _as_float64(pred, target)
    if pred.ndim < 3:
        raise ValueError(f"poses have shape {pred.shape}; mpjve needs (..., frames, joints, 3)")
    if pred.shape[-3] < 2:
        return float("nan")
    return mpjpe(np.diff(pred, axis=-3), np.diff(target, axis=-3))


def pck(pred, target, threshold: float = 150.0) -> float:
    """Computes the share in 0..1 of joints closer than `threshold` (in the poses' units; 150 mm by
    default).
    """
    return float(np.mean(_share_closer(joint_distances(pred, target), threshold)))


def auc(pred, target, thresholds=None) -> float:
    """Computes the mean of `pck` over thresholds 0, 5, ..., 150 mm, or over those given: a share in
    0..1.
    """
    thresholds = np.arange(0.0, 151.0, 5.0) if thresholds is None else np.asarray(thresholds)
    distances = joint_distances(pred, target)
    return float(np.mean([np.mean(_share_closer(distances, t)) for t in thresholds]))


def procrustes_align(pred, target) -> np.ndarray:
    """Moves, turns (without mirroring) and scales each frame of pred to fit target best.

    Solved in closed form by a singular value decomposition (Umeyama, 1991). A frame whose
    prediction is one point has no turn or scale and goes to the target's centre.

    Args:
      pred: (..., joints, 3).
      target: (..., joints, 3), in any units.

    Returns:
      (..., joints, 3) float64; NaN in frames where pred or target holds a NaN or infinity.

    Raises:
      ValueError: the shapes differ or do not end in (joints, 3).
    """
    pred, target = _as_float64(pred, target)
    finite = np.isfinite(pred).all(axis=(-2, -1)) & np.isfinite(target).all(axis=(-2, -1))
    finite = finite[..., None, None]
    # One bad frame must not fail the decomposition of all.
    pred, target = np.where(finite, pred, 0), np.where(finite, target, 0)
    pred_centre = pred.mean(axis=-2, keepdims=True)
    target_centre = target.mean(axis=-2, keepdims=True)
    pred, target = pred - pred_centre, target - target_centre

    u, singular, vt = np.linalg.svd(np.swapaxes(pred, -2, -1) @ target)
    # Turning the axis of least variance round makes a reflection a rotation.
    mirrored = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    signs = np.stack([np.ones_like(mirrored), np.ones_like(mirrored), mirrored], axis=-1)
    rotation = (u * signs[..., None, :]) @ vt
    square = np.sum(pred * pred, axis=(-2, -1), keepdims=True)
    scale = _divide(np.sum(singular * signs, axis=-1)[..., None, None], square)
    return np.where(finite, scale * pred @ rotation + target_centre, np.nan)


def _as_float64(pred, target):
    pred, target = np.asarray(pred, np.float64), np.asarray(target, np.float64)
    if pred.shape != target.shape or pred.ndim < 2 or pred.shape[-1] != 3:
        raise ValueError(
            f"pred has shape {pred.shape} and target {target.shape}; "
            "expected the same (..., joints, 3) for both"
        )
    return pred, target


def _divide(numerator, denominator):
    """Divides, with 0 where the denominator is 0."""
    return numerator / np.where(denominator > 0, denominator, 1) * (denominator > 0)


def _share_closer(distances, threshold):
    return np.where(np.isnan(distances), np.nan, distances < threshold)

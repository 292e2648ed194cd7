"""Plain arrays: a .npy or .npz file with (frames, joints, 2 or 3) of one person."""

from pathlib import Path
from typing import Any

import numpy as np

from posemamba_jax.data import joint_sets
from posemamba_jax.files import json_reading as parsing
from posemamba_jax.predict.keypoints.contract import (
    MAX_FRAMES,
    Detection,
    KeypointError,
    Keypoints2D,
    ReadOptions,
)
from posemamba_jax.skeleton import H36M17

# Names under which people keep keypoints in a .npz file, in order of preference.
_NAMES = ("keypoints_2d", "keypoints", "poses_2d", "kpts", "arr_0", "")


def read(path: Path, arrays: dict[str, Any], options: ReadOptions) -> Keypoints2D:
    """Reads the array, its confidences, and `image_size` and `fps` if the .npz file has them.

    Missing joints are NaN, have confidence 0, or, where there is no confidence and coordinates are
    not the model's own, lie at exactly (0, 0). 17 joints are told apart by where they are.
    """
    array, where = _pick(path, arrays)
    keypoints, note = _with_confidence(array, path, where, options)
    given, skeleton = options.joint_set, options.skeleton
    is_own = skeleton != H36M17
    if is_own:
        joint_set = skeleton.name
        if given is not None:
            raise KeypointError(
                f"--joint_set {given}: for models of {H36M17.name} only; this one takes the joints "
                f"of {skeleton.name} as they are"
            )
        if keypoints.shape[1] != skeleton.num_joints:
            raise KeypointError(
                f"{path}: {where} has {keypoints.shape[1]} joints, but the model lifts the "
                f"{skeleton.num_joints} of {skeleton.name}"
            )
    else:
        try:
            joint_set = joint_sets.resolve(keypoints.shape[1], given, None, keypoints)
        except ValueError as error:
            raise KeypointError(f"{path}: {where}: {error}") from None
    notes = [note] if note else []
    if given is None and keypoints.shape[1] == 17 and not is_own:
        other = "coco17" if joint_set == "h36m17" else "h36m17"
        notes.append(
            f"joint set recognised as {joint_set} from the joints' positions; if wrong, give "
            f"--joint_set {other}"
        )
    size, fps = arrays.get("image_size"), arrays.get("fps")
    return Keypoints2D(
        path=path,
        format="array",
        joint_set=joint_set,
        skeleton=skeleton,
        coordinates=options.coordinates or "pixels",
        detections=tuple(
            Detection(t, frame, 1) for t, frame in enumerate(keypoints) if (frame[:, 2] > 0).any()
        ),
        frames=(0, len(keypoints) - 1),
        image_size=None if size is None else _size(size, path),
        fps=None if fps is None else parsing.frame_rate(_plain(fps), path, "array 'fps'"),
        notes=tuple(notes),
    )


def _pick(path: Path, arrays: dict[str, Any]) -> tuple[np.ndarray, str]:
    candidates = {
        name: a for name, a in arrays.items() if isinstance(a, np.ndarray) and a.ndim >= 3
    }
    name = next((n for n in _NAMES if n in candidates), None)
    if name is None and len(candidates) == 1:
        name = next(iter(candidates))
    if name is None:
        found = ", ".join(
            f"{ascii(n)} {list(np.shape(a))}" if n else f"shape {list(np.shape(a))}"
            for n, a in list(arrays.items())[:8]
        )
        raise KeypointError(
            f"{path}: expected an array (frames, joints, 2 or 3), in a .npz file under the name "
            f"'keypoints'; found {found or 'nothing'}"
        )
    return candidates[name], f"array {ascii(name)}" if name else "the array"


def _with_confidence(
    array: np.ndarray, path: Path, where: str, options: ReadOptions
) -> tuple[np.ndarray, str | None]:
    """Makes (frames, joints, 3) float32 with confidence 0 for missing joints, and a note or
    None.
    """
    note = None
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[2] not in (2, 3) or 0 in array.shape:
        hint = " (one file per person)" if array.ndim == 4 else ""
        raise KeypointError(
            f"{path}: {where}: expected shape (frames, joints, 2 or 3){hint}, found "
            f"{list(array.shape)}"
        )
    if array.dtype.kind not in "iuf":
        raise KeypointError(f"{path}: {where}: expected numbers, found {array.dtype}")
    if len(array) > MAX_FRAMES:
        raise KeypointError(f"{path}: {where}: {len(array)} frames; at most {MAX_FRAMES}")
    values = array.astype(np.float64)
    missing = np.isnan(values[..., :2]).all(-1)
    odd = ~np.isfinite(values).all(-1) & ~missing
    if odd.any():
        frame, joint = np.argwhere(odd)[0]
        raise KeypointError(
            f"{path}: {where}: frame {frame}, joint {joint} is {values[frame, joint].tolist()}; "
            f"expected finite numbers, or NaN in both coordinates for a missing joint"
        )
    if np.nanmax(np.abs(values), initial=0) > parsing.MAX_COORDINATE:
        raise KeypointError(
            f"{path}: {where}: holds {np.nanmax(np.abs(values)):.3g}; expected coordinates below "
            f"{parsing.MAX_COORDINATE:.0e}"
        )
    if values.shape[2] == 3:
        scores = np.where(missing, 0, values[..., 2])
        parsing.confidences(scores, path, f"{where}, last column")
        if scores.max() > 20:  # AlphaPose's reach 6; a third coordinate reaches hundreds
            raise KeypointError(
                f"{path}: {where}: the last column reaches {scores.max():.4g}; expected "
                f"confidences (3D positions are not 2D keypoints)"
            )
    else:
        if options.coordinates != "model":
            at_origin = (values == 0).all(-1)
            if at_origin.any():
                note = f"{int(at_origin.sum())} joints at exactly (0, 0) are taken as missing"
            missing |= at_origin
        scores = np.where(missing, 0.0, 1.0)
    values = np.where(missing[..., None], 0, values[..., :2])
    return np.concatenate([values, scores[..., None]], -1).astype(np.float32), note


def _plain(value: Any) -> Any:
    return np.asarray(value).reshape(-1)[0].item() if np.size(value) == 1 else None


def _size(value: Any, path: Path) -> tuple[int, int]:
    return parsing.image_size(np.asarray(value).tolist(), path, "array 'image_size'")

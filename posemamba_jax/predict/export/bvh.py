"""BVH, which Blender and other animation programs import: rotations of a skeleton of fixed bones.

A BVH joint turns everything below it, but the bones that leave the root and the neck point each
where the prediction says. Each therefore hangs from a joint of its own at the same place, as the
hip joints of the CMU collection's BVH files do, and all 17 positions come out exactly.
"""

import dataclasses

import numpy as np

from posemamba_jax.files import writing
from posemamba_jax.predict.export.result import Result
from posemamba_jax.predict.scale import bone_lengths
from posemamba_jax.predict.world.stand import hold_planted
from posemamba_jax.skeleton import H36M17, Skeleton


@dataclasses.dataclass(frozen=True)
class _Node:
    """A BVH joint: it sits at Human3.6M joint `at` and turns so that its bone points to `to`."""

    name: str
    parent: str | None
    at: str
    to: str | None
    rest: tuple[int, int, int] = (0, 0, 0)


# Rest pose: standing, arms out to the sides, facing +z, y up; the person's left is +x.
_UP, _DOWN, _LEFT, _RIGHT = (0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0)
NODES = (
    _Node("Hips", None, "root", None),
    _Node("LHipJoint", "Hips", "root", "l_hip", _LEFT),
    _Node("LeftUpLeg", "LHipJoint", "l_hip", "l_knee", _DOWN),
    _Node("LeftLeg", "LeftUpLeg", "l_knee", "l_ankle", _DOWN),
    _Node("RHipJoint", "Hips", "root", "r_hip", _RIGHT),
    _Node("RightUpLeg", "RHipJoint", "r_hip", "r_knee", _DOWN),
    _Node("RightLeg", "RightUpLeg", "r_knee", "r_ankle", _DOWN),
    _Node("LowerBack", "Hips", "root", "belly", _UP),
    _Node("Spine", "LowerBack", "belly", "neck", _UP),
    _Node("Neck", "Spine", "neck", "nose", _UP),
    _Node("Head", "Neck", "nose", "head", _UP),
    _Node("LeftShoulder", "Spine", "neck", "l_shoulder", _LEFT),
    _Node("LeftArm", "LeftShoulder", "l_shoulder", "l_elbow", _LEFT),
    _Node("LeftForeArm", "LeftArm", "l_elbow", "l_wrist", _LEFT),
    _Node("RightShoulder", "Spine", "neck", "r_shoulder", _RIGHT),
    _Node("RightArm", "RightShoulder", "r_shoulder", "r_elbow", _RIGHT),
    _Node("RightForeArm", "RightArm", "r_elbow", "r_wrist", _RIGHT),
)
_CHANNELS = "Zrotation Xrotation Yrotation"


def to_y_up(points: np.ndarray) -> np.ndarray:
    """Turns camera axes (x right, y down, z away) into BVH's (y up, z towards the camera)."""
    return points * np.array([1, -1, -1])


def fit_fixed_lengths(poses: np.ndarray, skeleton: Skeleton = H36M17) -> np.ndarray:
    """Fits the motion with bones of constant length, which is what a BVH file can hold.

    Every bone keeps its direction. Its length is the median over the frames, the same on both sides
    of the body; joints are placed from the root outwards.

    Args:
      poses: (frames, joints, 3) finite.

    Returns:
      (frames, joints, 3) float64.
    """
    lengths = _symmetric_lengths(poses, skeleton)
    fitted = np.array(poses, np.float64)
    for (parent, child), length in zip(skeleton.bones, lengths, strict=True):
        offset = _fill_directions(poses[:, child].astype(np.float64) - poses[:, parent])
        fitted[:, child] = fitted[:, parent] + length * offset
    return fitted


def write_bvh(path, result: Result) -> None:
    """Writes the motion; frames without a pose hold the nearest one, so the frame count is kept.

    With a world, the person moves through it, in metres, and planted feet stand still. Else units
    are metres where the scale is known and those of the poses where it is not, and the root moves
    by `root_translation`.
    """
    keep = _nearest(result.predicted)
    fitted, lengths = _rigid_motion(result)
    angles = _euler_zxy(_solve_rotations(fitted))
    index_of = np.cumsum(result.predicted) - 1
    root = fitted[index_of[keep], result.skeleton.root]

    offsets = _offsets(dict(zip(result.skeleton.bones, lengths, strict=True)))
    lines = ["HIERARCHY", *_hierarchy(NODES[0], offsets, 0), "MOTION"]
    lines += [f"Frames: {result.num_frames}", f"Frame Time: {1 / result.fps:.8f}"]
    for t in range(result.num_frames):
        values = np.concatenate([root[t], angles[index_of[keep[t]]].ravel()])
        # Adding 0 turns a rounded -0 into 0.
        lines.append(" ".join(f"{v:.6f}" for v in np.round(values, 6) + 0.0))
    writing.write_text(path, "\n".join(lines) + "\n")


def _rigid_motion(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Fits frames (frames, joints, 3) with fixed bones and y up; returns them and the bones'
    lengths.
    """
    predicted = result.predicted
    if result.world_poses is None:
        scale = 1 / 1000 if result.units == "mm" else 1.0
        poses = to_y_up(result.poses_3d[predicted] + result.root_translation[predicted, None])
    else:
        scale, poses = 1 / 1000, result.world_poses[predicted]
    lengths = _symmetric_lengths(poses, result.skeleton)
    fitted = fit_fixed_lengths(poses, result.skeleton)
    if result.world_poses is not None:
        fitted = hold_planted(fitted, poses, result.planted[predicted], result.fps)
    return fitted * scale, lengths * scale


def _symmetric_lengths(poses: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    lengths = dict(zip(skeleton.bones, bone_lengths(poses, skeleton), strict=True))
    mirror = skeleton.mirror
    mirrored = [lengths.get((int(mirror[a]), int(mirror[b])), lengths[a, b]) for a, b in lengths]
    return (np.array(list(lengths.values()), np.float64) + mirrored) / 2


def _fill_directions(offsets: np.ndarray) -> np.ndarray:
    """Makes unit vectors (frames, 3); a bone without length keeps its direction of the frame
    before.
    """
    norms = np.linalg.norm(offsets, axis=-1)
    good = norms > 1e-9
    if not good.any():
        return np.tile([0.0, 1.0, 0.0], (len(offsets), 1))
    return (offsets / np.where(good, norms, 1)[:, None])[_nearest(good)]


def _nearest(there: np.ndarray) -> np.ndarray:
    """Finds for each frame the last frame that is `there`; before the first one, the first."""
    index = np.where(there, np.arange(len(there)), -1)
    held = np.maximum.accumulate(index)
    return np.where(held < 0, np.flatnonzero(there)[0], held)


def _solve_rotations(poses: np.ndarray) -> np.ndarray:
    """Finds local rotations (frames, nodes, 3, 3) that bring the rest pose to poses with y up."""
    joint = {name: poses[:, i] for i, name in enumerate(H36M17.joints)}
    turned = {"Hips": _pelvis(joint)}
    local = [turned["Hips"]]
    for node in NODES[1:]:
        above = turned[node.parent]
        target = _fill_directions(joint[node.to] - joint[node.at])
        wanted = np.einsum("tij,ti->tj", above, target)
        swing = _shortest_rotation(np.array(node.rest, float), wanted)
        local.append(swing)
        turned[node.name] = above @ swing
    return np.stack(local, 1)


def _pelvis(joint: dict[str, np.ndarray]) -> np.ndarray:
    """Finds (frames, 3, 3) with columns left, up, forward of the hips."""
    left = _fill_directions(joint["l_hip"] - joint["r_hip"])
    up = joint["belly"] - joint["root"]
    up = _fill_directions(up - (up * left).sum(-1, keepdims=True) * left)
    # With hips and belly in one line the second direction is arbitrary; keep it orthogonal.
    forward = _fill_directions(np.cross(left, up))
    return np.stack([left, np.cross(forward, left), forward], -1)


def _shortest_rotation(rest: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Finds (frames, 3, 3) turning unit vector `rest` (3,) to unit vectors `wanted` (frames, 3)."""
    cosine = wanted @ rest
    axis = np.cross(rest, wanted)
    skew = np.zeros((len(wanted), 3, 3))
    skew[:, [2, 0, 1], [1, 2, 0]] = axis
    skew[:, [1, 2, 0], [2, 0, 1]] = -axis
    opposite = cosine < -1 + 1e-9
    scale = 1 / np.where(opposite, 1, 1 + cosine)
    rotation = np.eye(3) + skew + scale[:, None, None] * (skew @ skew)
    # Half a turn about any axis across the bone.
    across = np.roll(rest, 1)
    rotation[opposite] = 2 * np.outer(across, across) - np.eye(3)
    return rotation


def _euler_zxy(rotations: np.ndarray) -> np.ndarray:
    """Degrees (frames, nodes, 3) with R = Rz Rx Ry, without jumps from frame to frame."""
    r = rotations
    x = np.arctan2(r[..., 2, 1], np.hypot(r[..., 0, 1], r[..., 1, 1]))
    z = np.arctan2(-r[..., 0, 1], r[..., 1, 1])
    y = np.arctan2(-r[..., 2, 0], r[..., 2, 2])
    # Looking along the axis, only the sum of the outer angles is defined.
    locked = np.abs(r[..., 2, 1]) > 1 - 1e-10
    z = np.where(locked, np.arctan2(r[..., 1, 0], r[..., 0, 0]), z)
    y = np.where(locked, 0, y)
    angles = np.stack([z, x, y], -1)
    other = np.stack([z + np.pi, np.pi - x, y + np.pi], -1)
    for t in range(1, len(angles)):
        before = angles[t - 1]
        options = [before + _wrap(option[t] - before) for option in (angles, other)]
        distance = [np.abs(option - before).sum(-1, keepdims=True) for option in options]
        angles[t] = np.where(distance[0] <= distance[1], *options)
    return np.rad2deg(angles)


def _wrap(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _offsets(lengths: dict[tuple[int, int], float]) -> dict[tuple[str, str], np.ndarray]:
    """Returns (from joint, to joint) -> offset of the bone in the rest pose."""
    index = {name: i for i, name in enumerate(H36M17.joints)}
    return {
        (n.at, n.to): lengths[index[n.at], index[n.to]] * np.array(n.rest, float)
        for n in NODES
        if n.to
    }


def _hierarchy(node: _Node, offsets: dict, depth: int) -> list[str]:
    """Writes the lines of the HIERARCHY section from this joint on."""
    indent = "\t" * depth
    parent = next((n for n in NODES if n.name == node.parent), None)
    # A joint at its parent's own place has no offset, else the bone of the parent leads to it.
    moved = parent is not None and parent.at != node.at
    offset = offsets[parent.at, node.at] if moved else np.zeros(3)
    kind = "ROOT" if parent is None else "JOINT"
    position = "Xposition Yposition Zposition " if parent is None else ""
    count = 6 if parent is None else 3
    lines = [f"{indent}{kind} {node.name}", f"{indent}{{", f"{indent}\t{_offset_line(offset)}"]
    lines.append(f"{indent}\tCHANNELS {count} {position}{_CHANNELS}")
    children = [n for n in NODES if n.parent == node.name]
    for child in children:
        lines += _hierarchy(child, offsets, depth + 1)
    if not children:
        tip = f"{indent}\t\t{_offset_line(offsets[node.at, node.to])}"
        lines += [f"{indent}\tEnd Site", f"{indent}\t{{", tip, f"{indent}\t}}"]
    return [*lines, f"{indent}}}"]


def _offset_line(offset: np.ndarray) -> str:
    return "OFFSET " + " ".join(f"{v:.6f}" for v in offset + 0.0)

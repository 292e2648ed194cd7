"""A person as the synthetic source moves it: proportions, posture, and from them the 17 joints.

The body faces +z at heading 0, with its left along +x and up along +y; lengths are millimetres and
angles radians. Trunk, head and arms follow joint angles; legs are solved from where the ankles are,
so that planted feet stay put.
"""

from dataclasses import dataclass

import numpy as np

from posemamba_jax.data.motion.kinematics import forward_kinematics, rotation_matrices

# The knee keeps this much of a bend, so that it never reaches the singular straight leg.
STRAIGHTEST_LEG = 0.992
_MOST_BENT_KNEE = np.deg2rad(150)

# Posture channels with their limits. Pelvis: height of the hips over the ankles as a share of the
# leg, shifts as shares of the leg. Spine angles are shared by the joints at belly and neck. Arms:
# flexion forward, abduction to the side, inward twist of the upper arm, bend of the elbow.
_ARM_LIMITS = {"flexion": (-0.9, 2.9), "abduction": (-0.4, 2.3), "twist": (-1.2, 1.5)}
LIMITS = {
    "height": (0.25, 1.0),
    "forward": (-0.6, 0.6),
    "side": (-0.3, 0.3),
    "pelvis_pitch": (-0.4, 1.3),
    "pelvis_yaw": (-0.4, 0.4),
    "pelvis_roll": (-0.3, 0.3),
    "spine_pitch": (-0.5, 1.3),
    "spine_yaw": (-0.8, 0.8),
    "spine_roll": (-0.6, 0.6),
    "neck_pitch": (-0.7, 0.8),
    "neck_yaw": (-1.2, 1.2),
    "neck_roll": (-0.5, 0.5),
    **{
        f"{side}_{angle}": limits
        for side in "lr"
        for angle, limits in (*_ARM_LIMITS.items(), ("elbow", (0.08, 2.4)))
    },
}
CHANNELS = {name: index for index, name in enumerate(LIMITS)}
_LOW, _HIGH = (np.array(bounds) for bounds in zip(*LIMITS.values(), strict=True))


@dataclass(frozen=True)
class Body:
    """Segment lengths in millimetres; `hips` and `shoulders` are half widths."""

    stature: float
    hips: float
    thigh: float
    shank: float
    ankle: float
    abdomen: float
    chest: float
    neck: float
    skull: float
    shoulders: float
    upper_arm: float
    forearm: float

    @property
    def leg(self) -> float:
        return self.thigh + self.shank


# Shares of the stature: segment means from Drillis and Contini's body segment parameters, trunk and
# neck near the proportions of Human3.6M's skeletons.
_SHARES = {
    "hips": 0.075,
    "thigh": 0.250,
    "shank": 0.249,
    "ankle": 0.039,
    "abdomen": 0.133,
    "chest": 0.146,
    "neck": 0.067,
    "skull": 0.066,
    "shoulders": 0.088,
    "upper_arm": 0.164,
    "forearm": 0.146,
}


def draw_body(rng: np.random.Generator) -> Body:
    """Draws a person between 1.5 and 1.95 m with proportions that vary by a few percent."""
    stature = rng.uniform(1500, 1950)
    spread = 1 + 0.035 * np.clip(rng.standard_normal(len(_SHARES)), -2, 2)
    return Body(
        stature, *(stature * share * s for share, s in zip(_SHARES.values(), spread, strict=True))
    )


def heading_rotations(heading: np.ndarray) -> np.ndarray:
    """Makes (frames, 3, 3) rotations that turn +z towards `heading` (frames,), from z towards x."""
    return rotation_matrices(np.asarray(heading)[..., None], "y")


def pose_body(
    body: Body, posture: np.ndarray, base: np.ndarray, heading: np.ndarray, ankles: np.ndarray
) -> np.ndarray:
    """Computes the joint positions of a person in a posture.

    Args:
      body: segment lengths.
      posture: (frames, channels) by the names of `CHANNELS`; clipped to `LIMITS`.
      base: (frames, 3) the point on the ground that the pelvis is shifted from.
      heading: (frames,) direction the body faces.
      ankles: (frames, 2, 3) where the left and the right ankle should be. One that is out of the
        leg's reach is brought nearer along the line to the hip.

    Returns:
      (frames, 17, 3) in the joint order of Human3.6M.
    """
    posture = np.clip(posture, _LOW, _HIGH)
    frames = len(posture)
    column = {name: posture[:, index] for name, index in CHANNELS.items()}
    facing = heading_rotations(heading)

    shift = np.stack(
        [
            column["side"] * body.leg,
            body.ankle + column["height"] * body.leg,
            column["forward"] * body.leg,
        ],
        axis=-1,
    )
    root = base + (facing @ shift[..., None])[..., 0]

    half_spine = 0.5 * posture[:, CHANNELS["spine_pitch"] : CHANNELS["spine_roll"] + 1]
    zeros = np.zeros(frames)
    angles = np.zeros((frames, 8, 3))  # applied as Rx Rz Ry: pitch, roll, yaw
    angles[:, 0] = np.stack(
        [column["pelvis_pitch"], column["pelvis_roll"], column["pelvis_yaw"]], axis=-1
    )
    angles[:, 1] = angles[:, 2] = half_spine[:, [0, 2, 1]]
    angles[:, 3] = np.stack(
        [column["neck_pitch"], column["neck_roll"], column["neck_yaw"]], axis=-1
    )
    for joint, side, sign in ((4, "l", 1), (6, "r", -1)):
        angles[:, joint] = np.stack(
            [
                -column[f"{side}_flexion"],
                sign * column[f"{side}_abduction"],
                -sign * column[f"{side}_twist"],
            ],
            axis=-1,
        )
        angles[:, joint + 1] = np.stack([-column[f"{side}_elbow"], zeros, zeros], axis=-1)
    turns = rotation_matrices(angles, "xzy")
    pelvis = facing @ turns[:, 0]

    rotations = np.empty((frames, len(_UPPER_PARENTS), 3, 3))
    rotations[:] = np.eye(3)
    rotations[:, 0] = pelvis
    rotations[:, [1, 2, 3, 6, 7, 9, 10]] = turns[:, 1:]
    upper = forward_kinematics(_UPPER_PARENTS, _upper_offsets(body), rotations, root)

    poses = np.empty((frames, 17, 3))
    poses[:, [0, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]] = upper[
        :, [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    ]
    for leg, (hip, sign) in enumerate(((4, 1), (1, -1))):
        poses[:, hip] = root + sign * body.hips * pelvis[:, :, 0]
        outward = facing @ np.array([sign * 0.15, 0.0, 1.0])
        knee, ankle = solve_leg(body, poses[:, hip], ankles[:, leg], outward)
        poses[:, hip + 1], poses[:, hip + 2] = knee, ankle
    return poses


# Pelvis, belly, neck (turning shoulders), neck (turning the head), nose, head, then shoulder, elbow
# and wrist of the left and of the right arm.
_UPPER_PARENTS = (-1, 0, 1, 2, 3, 4, 2, 6, 7, 2, 9, 10)


def _upper_offsets(body: Body) -> np.ndarray:
    offsets = np.zeros((len(_UPPER_PARENTS), 3))
    offsets[1, 1] = body.abdomen
    offsets[2, 1] = body.chest
    offsets[4] = 0.97 * body.neck * np.array([0, 1, 0.25])
    offsets[5] = 0.97 * body.skull * np.array([0, 1, -0.25])
    for joint, sign in ((6, 1), (9, -1)):
        offsets[joint, 0] = sign * body.shoulders
        offsets[joint + 1, 1] = -body.upper_arm
        offsets[joint + 2, 1] = -body.forearm
    return offsets


def solve_leg(
    body: Body, hip: np.ndarray, ankle: np.ndarray, forward: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Finds knee and ankle of a leg between two points, the knee bending towards `forward`.

    Args:
      body: thigh and shank lengths.
      hip, ankle: (frames, 3); the ankle is a wish.
      forward: (frames, 3).

    Returns:
      knee and ankle (frames, 3), at exactly the thigh's and the shank's length.
    """
    thigh, shank = body.thigh, body.shank
    line = ankle - hip
    wished = np.linalg.norm(line, axis=-1)
    line = line / wished[:, None]
    # A soft limit: a leg that straightens slows down instead of stopping dead.
    longest, softness = STRAIGHTEST_LEG * body.leg, 0.012 * body.leg
    length = longest - softness * np.logaddexp(0, (longest - wished) / softness)
    shortest = np.sqrt(thigh**2 + shank**2 + 2 * thigh * shank * np.cos(_MOST_BENT_KNEE))
    length = np.maximum(length, shortest)

    side = forward - (forward * line).sum(axis=-1, keepdims=True) * line
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    along = (thigh**2 - shank**2 + length**2) / (2 * length)
    away = np.sqrt(thigh**2 - along**2)
    knee = hip + along[:, None] * line + away[:, None] * side
    return knee, hip + length[:, None] * line

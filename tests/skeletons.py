"""Skeletons other than Human3.6M's, and made-up recordings of them."""

import dataclasses

import numpy as np

from posemamba_jax.skeleton import H36M17, Skeleton

FINGERS = ("thumb", "index", "middle", "ring", "little")
# The wrist, then four joints of each finger from the palm outwards.
HAND21 = Skeleton(
    name="hand-21",
    joints=("wrist", *(f"{finger}_{i}" for finger in FINGERS for i in range(1, 5))),
    bones=tuple((0 if i == 1 else 4 * f + i - 1, 4 * f + i) for f in range(5) for i in range(1, 5)),
    left=(),
    right=(),
    limb_walk=(0, *(0 if i == 1 else 4 * f + i - 1 for f in range(5) for i in range(1, 5))),
)


def reordered(order) -> Skeleton:
    """Makes a skeleton of Human3.6M's joints with joint order[j] in place j."""
    place = {joint: j for j, joint in enumerate(order)}
    return dataclasses.replace(
        H36M17,
        name="Human3.6M-17, reordered",
        joints=tuple(H36M17.joints[joint] for joint in order),
        bones=tuple((place[parent], place[child]) for parent, child in H36M17.bones),
        left=tuple(place[joint] for joint in H36M17.left),
        right=tuple(place[joint] for joint in H36M17.right),
        limb_walk=tuple(place[H36M17.limb_walk[joint]] for joint in order),
        root=place[H36M17.root],
    )


REVERSED = reordered(range(16, -1, -1))


def write_hand(path, frames: int, seed: int) -> None:
    """Writes a .npz file of a hand whose fingers bend in turn, in the layout of `data.arrays`."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / 50
    points = np.zeros((frames, 21, 3))
    for f in range(5):
        angle = 0.6 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.3, 0.8) * time + rng.uniform(0, 6))
        spread = 0.35 * (f - 2)
        tip = np.zeros((frames, 3))
        for i in range(1, 5):
            length = 80.0 if i == 1 else 35.0
            bend = angle * (i - 1)
            step = [np.sin(spread) * np.cos(bend), -np.cos(spread) * np.cos(bend), -np.sin(bend)]
            tip = tip + length * np.stack([np.broadcast_to(s, frames) for s in step], axis=-1)
            points[:, 4 * f + i] = tip
    points += [rng.uniform(-80, 80), rng.uniform(-80, 80), 600.0]
    pixels = 500 * points[..., :2] / points[..., 2:] + [320, 240]
    np.savez(path, poses_2d=pixels, poses_3d_mm=points, image_size=(640, 480), action="bend")

"""From sightings to a world: contacts, least squares, and feet that stand still."""

import dataclasses

import numpy as np

from posemamba_jax.predict.scale import LEG_SHARE, leg_length
from posemamba_jax.predict.world.contacts import ANKLES, find_planted, find_stances
from posemamba_jax.predict.world.contract import Camera, Placed, Sighting, World
from posemamba_jax.predict.world.focal import (
    ESTIMATED,
    GUESS_DEVIATION,
    GUESS_DIAGONALS,
    Focal,
    assumed_focal,
)
from posemamba_jax.predict.world.solve import Problem, State, fit_roots, solve
from posemamba_jax.predict.world.stand import hold_feet
from posemamba_jax.skeleton import H36M17

# Height of the ankle over the ground as a share of the body height: Drillis and Contini, 1966.
ANKLE_SHARE = 0.039
# A detected ankle that is further from where its foot stands belongs to a moving foot.
_STILL_MM = 30.0
_MOMENT_SECONDS = 0.2
# The focal length shows in how a person shrinks on the way from the camera. Where distances differ
# by less than this factor, errors of the lifted poses outweigh what is to be seen of it.
_TELLING_RATIO = 1.2


def find_world(
    people: list[Sighting],
    image_size: tuple[int, int],
    fps: float,
    focal: Focal,
    scale_deviation: float = 0.0,
) -> World:
    """Finds everybody's way through the room, the ground and the camera.

    What fits the keypoints best, with roots that move smoothly and planted feet that stay on one
    plane (docs/world.md has the terms). The camera stands still. A focal length that was to be
    estimated is kept at its first guess where the video cannot tell it.

    Args:
      people: who was seen; the frames of all are the same.
      image_size: (width, height) in pixels.
      fps: frames per second.
      focal: the focal length, or a guess.
      scale_deviation: standard deviation of the logarithm of each person's size; 0 keeps the sizes.

    Raises:
      ValueError: nobody has a pose, or a pose has no extent.
    """
    world = _find(people, image_size, fps, focal, scale_deviation)
    if focal.source != ESTIMATED or (world is not None and world.camera.height > 0):
        return world
    reason = (
        "nobody comes much nearer or goes away"
        if world is None
        else "the one that fits best puts the camera below the ground"
    )
    world = _find(people, image_size, fps, assumed_focal(image_size), scale_deviation)
    note = (
        f"focal length: the video does not tell it ({reason}), so {GUESS_DIAGONALS:g} of the "
        "image's diagonal are assumed; if that is wrong, distances from the camera are wrong by "
        "the same factor; --focal_px sets it"
    )
    camera = dataclasses.replace(world.camera, focal_deviation=GUESS_DEVIATION)
    return World(camera, world.people, (note, *world.notes))


def _find(
    people: list[Sighting],
    image_size: tuple[int, int],
    fps: float,
    focal: Focal,
    scale_deviation: float,
) -> World | None:
    """Finds the world given a focal length or a guess; None where the video cannot tell which of
    the guesses is right.
    """
    planted = [find_planted(person, fps) for person in people]
    arguments = (image_size, fps, focal, scale_deviation)
    problem, rows, stances = _pose_problem(people, planted, *arguments)
    estimated = focal.source == ESTIMATED
    # Errors of frames fitted on their own only add to the ratio, so most videos end here.
    if estimated and _depth_ratio(fit_roots(problem), rows) < _TELLING_RATIO:
        return None
    state, _ = solve(problem)
    if estimated and _depth_ratio(state.roots, rows) < _TELLING_RATIO:
        return None
    _refine(problem, state, stances, planted, fps)
    problem, rows, stances = _pose_problem(people, planted, *arguments)
    state, deviation = solve(problem, state)
    camera = _make_camera(people, problem, state, deviation, focal, image_size)
    footholds = camera.to_world(state.footholds)
    notes = []
    if not len(problem.feet):
        notes.append(
            "no planted foot was seen, so the ground is set under the lowest ankle and its tilt is "
            "a guess"
        )
    placed = []
    for index, (person, own) in enumerate(zip(people, rows, strict=True)):
        scale = float(np.exp(state.log_scale[index]))
        poses = np.full(person.poses.shape, np.nan)
        frames, at = own
        poses[frames] = camera.to_world(scale * person.poses[frames] + state.roots[at, None])
        mine = [k for k, stance in enumerate(stances) if stance[0] == index]
        poses = hold_feet(poses, [stances[k][1:] for k in mine], footholds[mine], fps)
        placed.append(Placed(poses, planted[index], scale))
    return World(camera, tuple(placed), tuple(notes))


def _depth_ratio(roots: np.ndarray, rows) -> float:
    """Computes a person's largest distance over the smallest, the highest of all people's."""
    depths = [roots[at, 2] for _, at in rows if len(at)]
    return max(float(np.divide(*np.percentile(depth, [95, 5]))) for depth in depths)


def _pose_problem(people, planted, image_size, fps, focal: Focal, scale_deviation):
    """Makes the equations' input; for each person (frames, rows) of it; (person, foot, start,
    stop).
    """
    centre = np.array(image_size) / 2
    rays, weights, poses, owner, chained = [], [], [], [], []
    feet, members, of_stance, rows, uprights, stances = [], [], [], [], [], []
    total = 0
    for index, person in enumerate(people):
        row_of = np.full(len(person.pixels), -1)
        frames = np.concatenate([np.arange(a, b) for a, b in person.segments] or [[]]).astype(int)
        row_of[frames] = total + np.arange(len(frames))
        rays.append(person.pixels[frames] - centre)
        # Filled-in keypoints are a guess that keeps the person from flying off meanwhile.
        weights.append(np.clip(person.confidence[frames], 0.05, 1.0))
        poses.append(person.poses[frames])
        owner.append(np.full(len(frames), index))
        for a, b in person.segments:
            span = row_of[a:b]
            chained.append(np.stack([span[:-2], span[1:-1], span[2:]], -1))
        for foot, a, b in find_stances(planted[index], person.segments):
            members.append(row_of[a:b])
            of_stance.append(np.full(b - a, len(feet)))
            feet.append(ANKLES[foot])
            stances.append((index, foot, a, b))
        uprights.append(_upright(person))
        rows.append((frames, row_of[frames]))
        total += len(frames)
    if not total:
        raise ValueError("nobody has a pose in any frame")
    join = lambda parts, *shape: np.concatenate([*parts, np.zeros((0, *shape))])  # noqa: E731
    problem = Problem(
        rays=np.concatenate(rays).astype(np.float64),
        weights=np.concatenate(weights).astype(np.float64),
        poses=np.concatenate(poses).astype(np.float64),
        person=np.concatenate(owner),
        chained=join(chained, 3).astype(int),
        feet=np.array(feet, int),
        members=join(members).astype(int),
        of_stance=join(of_stance).astype(int),
        fps=fps,
        uprights=np.array(uprights),
        focal=focal.pixels,
        focal_deviation=focal.deviation,
        scale_deviation=scale_deviation,
    )
    return problem, rows, stances


def _refine(problem: Problem, state: State, stances, planted: list[np.ndarray], fps: float):
    """Corrects `planted` by the footholds found: ends of stances that move, and false ends.

    A frame at the end of a stance whose ankle, averaged over a moment, is off the foothold in the
    image belongs to the swing. A foot that is lost for a moment and found on the same foothold has
    not moved.
    """
    focal = np.exp(state.log_focal)
    flat = focal * state.footholds[:, :2] / state.footholds[:, 2:]
    off = problem.rays[problem.members, problem.feet[problem.of_stance]] - flat[problem.of_stance]
    off *= (state.footholds[problem.of_stance, 2] / focal)[:, None]
    width = max(1, round(_MOMENT_SECONDS * fps)) // 2
    before = None
    for k, (person, foot, start, stop) in enumerate(stances):
        own = off[problem.of_stance == k]
        still = np.linalg.norm(_moving_mean(own, width), axis=-1) < _STILL_MM
        inside = np.flatnonzero(still)
        first, last = (inside[0], inside[-1] + 1) if len(inside) else (0, 0)
        planted[person][start:stop, foot] = False
        planted[person][start + first : start + last, foot] = True
        if before is not None and before[:2] == (person, foot) and start - before[2] < fps * 0.3:
            apart = np.linalg.norm(state.footholds[k] - state.footholds[k - 1])
            if apart < 2 * _STILL_MM:
                planted[person][before[2] - 1 : start + 1, foot] = True
        before = (person, foot, stop)


def _moving_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Averages (frames, 2) over up to `half` frames on both sides."""
    sums = np.concatenate([np.zeros((1, 2)), np.cumsum(values, axis=0)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)[:, None]


def _upright(person: Sighting) -> np.ndarray:
    """Finds the (3,) unit vector from the ankles to the neck, the mean over frames with straight
    legs.

    Where there are none (somebody runs, sits or crouches throughout), over all frames.
    """
    frames = np.concatenate([np.arange(a, b) for a, b in person.segments] or [[]]).astype(int)
    poses = person.poses[frames]
    straight = np.ones(len(poses), bool)
    for hip, knee, ankle in ((1, 2, 3), (4, 5, 6)):
        reach = np.linalg.norm(poses[:, hip] - poses[:, ankle], axis=-1)
        bones = np.linalg.norm(poses[:, hip] - poses[:, knee], axis=-1)
        bones += np.linalg.norm(poses[:, knee] - poses[:, ankle], axis=-1)
        straight &= reach > 0.95 * bones
    trunk = poses[:, H36M17.joints.index("neck")] - poses[:, list(ANKLES)].mean(1)
    trunk /= np.maximum(np.linalg.norm(trunk, axis=-1, keepdims=True), 1e-9)
    up = trunk[straight if straight.any() else slice(None)].sum(0)
    length = float(np.linalg.norm(up))
    return up / length if length > 1e-6 else np.full(3, np.nan)


def _make_camera(people, problem: Problem, state: State, deviation, focal: Focal, image_size):
    """Places the camera over the ground on which the planted ankles stand."""
    up = state.up
    leg = np.median([leg_length(p.poses[a:b]) for p in people for a, b in p.segments])
    ankle_mm = ANKLE_SHARE * leg / LEG_SHARE
    level = state.offset
    if not len(problem.feet):
        size = np.exp(state.log_scale)[problem.person][:, None, None]
        points = size * problem.poses[:, list(ANKLES)] + state.roots[:, None]
        level = float(np.percentile(points @ up, 5))
    ground = level - ankle_mm
    back = -(np.array([0.0, 0.0, 1.0]) - up[2] * up)
    back /= np.linalg.norm(back)
    rotation = np.stack([np.cross(up, back), up, back], axis=1)
    return Camera(
        focal_px=float(np.exp(state.log_focal)) if deviation else focal.pixels,
        focal_deviation=deviation,
        focal_source=focal.source,
        image_size=tuple(image_size),
        rotation=rotation,
        height=-ground,
    )

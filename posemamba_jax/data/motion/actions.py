"""What the synthetic people do.

Each action is a posture over time (joint angles that move between drawn key postures the way people
reach, by minimum jerk, plus a little sway) on a path over the ground with footsteps.
"""

from collections.abc import Callable

import numpy as np

from posemamba_jax.data.motion.body import CHANNELS, Body, pose_body
from posemamba_jax.data.motion.gait import (
    Path,
    Stepping,
    lay_path,
    minimum_jerk,
    path_times,
    place_feet,
)

Posture = dict[str, float]
_ARM_COLUMNS = [i for name, i in CHANNELS.items() if name[:2] in ("l_", "r_")]


def perform(action: str, rng: np.random.Generator, body: Body, seconds: np.ndarray) -> np.ndarray:
    """Moves a person through an action: joint positions.

    Args:
      action: a name in `ACTIONS`.
      rng: draws everything about the performance.
      body: the person.
      seconds: (frames,) times from 0, growing.

    Returns:
      (frames, 17, 3) millimetres, y up, standing on y = 0.
    """
    return ACTIONS[action](rng, body, seconds)


def key_postures(
    rng: np.random.Generator, seconds: np.ndarray, draw: Callable[[], Posture], slowest: float = 0.0
) -> np.ndarray:
    """Makes postures (frames, channels) that move between draws and rest a while at each.

    `slowest` is the least time in seconds a move takes; moves of large angles take longer anyway.
    """
    clock = seconds[0] - rng.uniform(0, 1.2)
    here = to_vector(draw())
    result = np.broadcast_to(here, (len(seconds), len(here))).copy()
    while clock < seconds[-1]:
        clock += rng.uniform(0.05, 0.7)
        there = to_vector(draw())
        farthest = np.abs(there - here)[_ARM_COLUMNS].max()
        lasts = max(rng.uniform(0.5, 1.1), 0.5 * farthest, slowest)
        result += minimum_jerk((seconds - clock) / lasts)[:, None] * (there - here)
        clock += lasts
        here = there
    return result


def to_vector(posture: Posture) -> np.ndarray:
    vector = np.zeros(len(CHANNELS))
    for name, value in posture.items():
        vector[CHANNELS[name]] = value
    return vector


_SWAY = to_vector(
    {name: 0.035 for name in CHANNELS}
    | {"height": 0.004, "forward": 0.008, "side": 0.008, "pelvis_pitch": 0.02, "pelvis_yaw": 0.02}
)


def sway(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    """Makes every channel (frames, channels) wander slowly: nobody stands still."""
    waves, channels = 3, len(CHANNELS)
    rate = 2 * np.pi * rng.uniform(0.1, 0.9, (waves, channels))
    start = rng.uniform(0, 2 * np.pi, (waves, channels))
    size = _SWAY * rng.standard_normal((waves, channels)) / np.sqrt(waves)
    return (size * np.sin(rate * seconds[:, None, None] + start)).sum(axis=1)


def rest(rng: np.random.Generator) -> Posture:
    """Makes the posture of standing at ease."""
    return {
        "height": rng.uniform(0.965, 0.985),
        "side": rng.normal(0, 0.02),
        "pelvis_pitch": rng.normal(0.05, 0.03),
        "spine_pitch": rng.normal(0.05, 0.06),
        "spine_yaw": rng.normal(0, 0.06),
        "neck_pitch": rng.normal(0.1, 0.12),
        "neck_yaw": rng.normal(0, 0.25),
        **arm(rng, "l"),
        **arm(rng, "r"),
    }


def arm(rng: np.random.Generator, side: str, **ranges: tuple[float, float]) -> Posture:
    """Draws an arm's angles from ranges; those not given are of an arm that hangs."""
    hanging = {
        "flexion": (-0.1, 0.25),
        "abduction": (0.08, 0.3),
        "twist": (-0.1, 0.5),
        "elbow": (0.15, 0.6),
    }
    return {f"{side}_{name}": rng.uniform(*bounds) for name, bounds in (hanging | ranges).items()}


def _stand(
    rng: np.random.Generator, body: Body, seconds: np.ndarray, posture: np.ndarray
) -> np.ndarray:
    """Poses a body on two planted feet."""
    facing = rng.uniform(-np.pi, np.pi)
    width, stagger = rng.uniform(0.09, 0.2) * body.leg, rng.normal(0, 0.06) * body.leg
    forward = np.array([np.sin(facing), 0, np.cos(facing)])
    left = np.array([np.cos(facing), 0, -np.sin(facing)])
    feet = np.stack([width * left + stagger * forward, -width * left - stagger * forward])
    feet[:, 1] = body.ankle
    ankles = np.broadcast_to(feet, (len(seconds), 2, 3))
    heading = np.full(len(seconds), facing)
    posture = posture + sway(rng, seconds)
    return pose_body(body, posture, np.zeros((len(seconds), 3)), heading, ankles)


def _alternate(*draws: Callable[[], Posture]) -> Callable[[], Posture]:
    """Makes a drawer that takes the given ones in turn."""
    turn = [0]

    def draw():
        turn[0] += 1
        return draws[turn[0] % len(draws)]()

    return draw


def _reach(rng, body, seconds):
    def reach():
        side = "lr"[rng.integers(2)]
        sign = 1 if side == "l" else -1
        lean = rng.uniform(-0.1, 0.5)
        across = rng.normal(0, 0.25)
        posture = rest(rng) | arm(
            rng,
            side,
            flexion=(0.5, 2.4),
            abduction=(-0.2, 0.9),
            twist=(-0.4, 0.4),
            elbow=(0.1, 1.2),
        )
        posture |= {
            "spine_pitch": lean,
            "pelvis_pitch": 0.4 * max(lean, 0),
            "forward": -0.05 * lean,
            "spine_yaw": -sign * 0.3 + across,
            "spine_roll": sign * rng.uniform(-0.2, 0.1),
            "neck_yaw": rng.normal(0, 0.2),
            "neck_pitch": rng.normal(0.05, 0.2) - 0.4 * lean,
            "height": rng.uniform(0.93, 0.985),
        }
        return posture

    draws = (lambda: rest(rng), reach, reach)
    return _stand(rng, body, seconds, key_postures(rng, seconds, _alternate(*draws)))


def _bend(rng, body, seconds):
    def bend():
        depth = rng.uniform(0.5, 1.0)
        posture = rest(rng)
        for side in "lr":
            posture |= arm(rng, side, flexion=(0.8 * depth, 1.8 * depth), elbow=(0.1, 0.5))
        return posture | {
            "height": 0.97 - rng.uniform(0.02, 0.25) * depth,
            "forward": -0.17 * depth,
            "pelvis_pitch": 0.75 * depth,
            "spine_pitch": rng.uniform(0.6, 1.1) * depth,
            "spine_yaw": rng.normal(0, 0.15),
            "neck_pitch": rng.normal(-0.3, 0.15) * depth,
        }

    draws = _alternate(lambda: rest(rng), bend)
    return _stand(rng, body, seconds, key_postures(rng, seconds, draws, slowest=0.9))


def _squat(rng, body, seconds):
    def squat():
        depth = rng.uniform(0.4, 1.0)
        posture = rest(rng)
        arms = {"flexion": (0.6, 1.6), "elbow": (0.1, 1.3), "twist": (0.0, 0.6)}
        for side in "lr":
            posture |= arm(rng, side, **arms)
        return posture | {
            "height": 0.97 - 0.5 * depth,
            "forward": -0.2 * depth,
            "pelvis_pitch": 0.3 * depth,
            "spine_pitch": rng.uniform(0.3, 0.7) * depth,
            "neck_pitch": rng.normal(-0.35, 0.1) * depth,
        }

    draws = _alternate(lambda: rest(rng), squat)
    return _stand(rng, body, seconds, key_postures(rng, seconds, draws, slowest=1.0))


def _sit(rng, body, seconds):
    chair = rng.uniform(0.42, 0.52)

    def sit():
        posture = rest(rng)
        for side in "lr":
            posture |= arm(rng, side, flexion=(0.1, 0.9), elbow=(0.4, 1.7), twist=(0.0, 0.9))
        return posture | {
            "height": chair,
            "forward": -0.42,
            "pelvis_pitch": rng.normal(-0.05, 0.06),
            "spine_pitch": rng.normal(0.15, 0.15),
            "spine_yaw": rng.normal(0, 0.2),
            "neck_yaw": rng.normal(0, 0.4),
        }

    # Getting up is rarer than moving about on the chair.
    draws = _alternate(sit, sit, sit, lambda: rest(rng))
    for _ in range(rng.integers(4)):
        draws()
    return _stand(rng, body, seconds, key_postures(rng, seconds, draws, slowest=1.1))


def _wave(rng, body, seconds):
    side = "lr"[rng.integers(2)]

    def raised():
        return rest(rng) | arm(
            rng,
            side,
            flexion=(0.1, 0.7),
            abduction=(0.9, 1.7),
            twist=(-1.1, -0.6),
            elbow=(1.0, 1.7),
        )

    def lowered():
        return rest(rng)

    draws = _alternate(lowered, raised, raised, raised)
    for _ in range(rng.integers(4)):
        draws()
    posture = key_postures(rng, seconds, draws)
    # The hand waves while the arm is up.
    up = minimum_jerk((posture[:, CHANNELS[f"{side}_abduction"]] - 0.4) / 0.6)
    swing = np.sin(2 * np.pi * rng.uniform(1.0, 1.9) * seconds + rng.uniform(0, 2 * np.pi))
    posture[:, CHANNELS[f"{side}_twist"]] += rng.uniform(0.1, 0.3) * up * swing
    posture[:, CHANNELS[f"{side}_elbow"]] += rng.uniform(0.15, 0.4) * up * swing
    return _stand(rng, body, seconds, posture)


def _talk(rng, body, seconds):
    def gesture():
        posture = rest(rng)
        for side in "lr":
            if rng.random() < 0.7:
                posture |= arm(
                    rng,
                    side,
                    flexion=(0.0, 0.8),
                    abduction=(0.1, 0.6),
                    twist=(-0.3, 0.9),
                    elbow=(0.7, 2.1),
                )
        return posture | {"neck_pitch": rng.normal(0.05, 0.2), "side": rng.normal(0, 0.05)}

    return _stand(rng, body, seconds, key_postures(rng, seconds, gesture))


def _turn(rng, body, seconds):
    """Turns on the spot, a few small steps for each turn."""
    times = path_times(seconds[-1])
    heading = np.full(len(times), rng.uniform(-np.pi, np.pi))
    # Both feet are down when the phase is just past a foot's landing.
    phase = np.full(len(times), 0.03 + 0.5 * rng.integers(2))
    clock = -1.0 - rng.uniform(0, 1)
    while clock < times[-1]:
        angle = rng.choice([-1, 1]) * rng.uniform(0.5, np.pi)
        steps = max(2, round(abs(angle) / 0.6))
        lasts = steps * rng.uniform(0.42, 0.6)
        share = np.clip((times - clock) / lasts, 0, 1)
        done = share * share * (3 - 2 * share)
        heading = heading + angle * done
        phase = phase + 0.5 * steps * done
        clock += lasts + rng.uniform(0.1, 0.8)
    path = lay_path(times, np.zeros(len(times)), heading, 0.0, phase)
    posture = key_postures(rng, seconds, lambda: rest(rng)) + sway(rng, seconds)
    posture[:, CHANNELS["height"]] -= rng.uniform(0.02, 0.05)
    rate = np.interp(seconds, times, np.gradient(heading, times))
    posture[:, CHANNELS["neck_yaw"]] += 0.25 * rate
    posture[:, CHANNELS["spine_yaw"]] += 0.1 * rate
    stepping = Stepping(release=0.55, under=0.3, lift=70.0, width=0.1 * body.leg)
    return _travel(body, seconds, path, stepping, posture)


def _travel(body, seconds, path: Path, stepping: Stepping, posture) -> np.ndarray:
    ankles = place_feet(path, seconds, stepping, body.ankle)
    base, heading = path.at(seconds)
    return pose_body(body, posture, base, heading, ankles)


def _walk(rng, body, seconds):
    tall = body.stature / 1750
    speed = rng.uniform(600, 1700) * tall
    stride = 1210 * np.sqrt(speed / 1000 * tall)
    return _stride(rng, body, seconds, speed, stride, running=False)


def _run(rng, body, seconds):
    tall = body.stature / 1750
    speed = rng.uniform(1900, 3200) * tall
    stride = speed / rng.uniform(1.25, 1.45)
    return _stride(rng, body, seconds, speed, stride, running=True)


def _stride(rng, body, seconds, speed, stride, *, running):
    """Walks or run along a curved path: hips, spine and arms are coupled to the stride's phase."""
    times = path_times(seconds[-1])
    cadence = speed / stride
    bend = rng.normal(0, 0.25) + 0.4 * np.sin(rng.uniform(0.5, 1.5) * times + rng.uniform(0, 6.3))
    heading = rng.uniform(-np.pi, np.pi) + np.cumsum(bend) * (times[1] - times[0])
    surge = 1 + 0.1 * np.sin(rng.uniform(0.3, 1.0) * times + rng.uniform(0, 6.3))
    phase = rng.uniform(0, 1) + np.cumsum(cadence * surge) * (times[1] - times[0])
    path = lay_path(times, speed * surge, heading, 0.0, phase)

    posture = key_postures(rng, seconds, lambda: rest(rng)) + sway(rng, seconds)
    turn = 2 * np.pi * np.interp(seconds, times, phase)
    vigour = speed / 1300
    swing = np.cos(turn)  # 1 when the left foot lands
    add = {name: posture[:, index] for name, index in CHANNELS.items()}
    arms = rng.uniform(0.15, 0.4) * min(vigour, 1.6)
    if running:
        stepping = Stepping(
            release=0.30, under=0.14, lift=rng.uniform(220, 330), width=0.06 * body.leg
        )
        add["height"][:] = rng.uniform(0.90, 0.93) - 0.035 * np.cos(2 * turn - 4 * np.pi * 0.16)
        add["pelvis_pitch"] += rng.uniform(0.1, 0.2)
        elbow = rng.uniform(1.2, 1.8)
    else:
        stepping = Stepping(
            release=0.46,
            under=0.25,
            lift=rng.uniform(80, 140) * min(vigour, 1.2),
            width=0.09 * body.leg,
        )
        add["height"][:] = rng.uniform(0.94, 0.955) - 0.016 * vigour * np.cos(
            2 * turn - 4 * np.pi * 0.04
        )
        add["side"] += 0.025 * np.cos(turn - 2 * np.pi * stepping.under)
        elbow = rng.uniform(0.2, 0.6)
    add["pelvis_yaw"] -= 0.08 * vigour * swing
    add["spine_yaw"] += 0.16 * vigour * swing
    add["pelvis_roll"] += 0.03 * np.sin(turn)
    for side, sign in (("l", -1), ("r", 1)):
        add[f"{side}_flexion"] += sign * arms * swing
        add[f"{side}_elbow"] += elbow - 0.35 + sign * 0.4 * arms * swing
    return _travel(body, seconds, path, stepping, posture)


def _sidestep(rng, body, seconds):
    """Steps to one side or backwards, facing ahead."""
    times = path_times(seconds[-1])
    direction = rng.choice([-np.pi / 2, np.pi / 2, np.pi]) + rng.normal(0, 0.2)
    speed = rng.uniform(300, 650)
    cadence = rng.uniform(0.75, 1.1)
    heading = rng.uniform(-np.pi, np.pi) + 0.15 * np.sin(times + rng.uniform(0, 6.3))
    phase = rng.uniform(0, 1) + cadence * times
    path = lay_path(times, np.full(len(times), speed), heading, direction, phase)
    posture = key_postures(rng, seconds, lambda: rest(rng)) + sway(rng, seconds)
    posture[:, CHANNELS["height"]] -= rng.uniform(0.01, 0.06)
    stepping = Stepping(
        release=0.5, under=0.27, lift=rng.uniform(50, 100), width=rng.uniform(0.15, 0.22) * body.leg
    )
    return _travel(body, seconds, path, stepping, posture)


ACTIONS: dict[str, Callable[[np.random.Generator, Body, np.ndarray], np.ndarray]] = {
    "walk": _walk,
    "run": _run,
    "turn": _turn,
    "sidestep": _sidestep,
    "reach": _reach,
    "bend": _bend,
    "squat": _squat,
    "sit": _sit,
    "wave": _wave,
    "talk": _talk,
}

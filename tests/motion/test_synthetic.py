"""Generated motion: repeatable, with a body's lengths and limits, at a body's speeds."""

import numpy as np
import pytest

from posemamba_jax.data.motion.actions import ACTIONS, perform
from posemamba_jax.data.motion.body import LIMITS, Body, draw_body, pose_body, solve_leg
from posemamba_jax.data.motion.gait import minimum_jerk
from posemamba_jax.data.sources.synthetic import SyntheticConfig, build
from posemamba_jax.skeleton import H36M17

FPS = 50.0
JOINT = {name: index for index, name in enumerate(H36M17.joints)}


def make(clip_len=27, split="train", input_2d="detected", **options):
    return build(
        SyntheticConfig(**options), clip_len=clip_len, stride=1, split=split, input_2d=input_2d
    )


def motions(action, count=12, frames=200):
    for seed in range(count):
        rng = np.random.default_rng((seed, 77))
        body = draw_body(rng)
        yield body, perform(action, rng, body, np.arange(frames) / FPS)


def test_clips_hold_to_the_contract():
    source = make(clip_len=12, num_train_clips=40, fps=25.0)
    assert len(source) == 40 and len(list(source)) == 40
    assert (source.name, source.clip_len, source.num_joints, source.fps) == (
        "synthetic",
        12,
        17,
        25.0,
    )
    clip = source[7]
    for key, shape in (("poses_2d", (12, 17, 3)), ("poses_3d", (12, 17, 3))):
        assert clip[key].shape == shape and clip[key].dtype == np.float32
    assert clip["mm_per_unit"].shape == (12,) and clip["poses_3d_mm"].shape == (12, 17, 3)
    assert clip["frame_ids"].dtype == np.int64
    ids = np.concatenate([source[i]["frame_ids"] for i in range(40)])
    assert len(np.unique(ids)) == 40 * 12
    assert clip["action"] in ACTIONS and isinstance(clip["subject_source"], str)
    assert {source[i]["action"] for i in range(40)} == set(ACTIONS)
    with pytest.raises(IndexError):
        source[40]


def test_a_clip_depends_on_seed_split_and_number_alone():
    first, again = make(seed=4), make(seed=4)
    again[11]
    clip = first[3]
    for key, value in again[3].items():
        np.testing.assert_array_equal(clip[key], value)
    others = [make(seed=5)[3], make(seed=4, split="test")[3], first[13]]
    for other in others:
        assert other["action"] == clip["action"]
        assert np.abs(other["poses_3d_mm"] - clip["poses_3d_mm"]).max() > 20


def test_more_clips_do_not_change_the_first():
    np.testing.assert_array_equal(
        make(num_train_clips=10)[9]["poses_2d"], make(num_train_clips=1000)[9]["poses_2d"]
    )


def test_ground_truth_input_is_the_same_motion_without_errors():
    detected, exact = make(), make(input_2d="ground_truth")
    np.testing.assert_array_equal(detected[5]["poses_3d_mm"], exact[5]["poses_3d_mm"])
    assert (exact[5]["poses_2d"][..., 2] == 1).all()
    error = np.linalg.norm(detected[5]["poses_2d"] - exact[5]["poses_2d"], axis=-1)
    assert 0 < np.median(error) < 0.3


@pytest.mark.parametrize("clip_len", [1, 2, 243])
def test_any_length(clip_len):
    clip = make(clip_len=clip_len)[0]
    assert clip["poses_2d"].shape == (clip_len, 17, 3) and np.isfinite(clip["poses_2d"]).all()


@pytest.mark.parametrize("action", ACTIONS)
def test_bones_are_rigid(action):
    rigid = [bone for bone in H36M17.bones if bone != (7, 8)] + [(11, 14), (1, 4), (0, 7), (7, 8)]
    for body, poses in motions(action, count=4):
        for a, b in rigid:
            length = np.linalg.norm(poses[:, a] - poses[:, b], axis=-1)
            np.testing.assert_allclose(length, length[0], rtol=1e-6)
        thigh = np.linalg.norm(poses[0, JOINT["l_hip"]] - poses[0, JOINT["l_knee"]])
        assert thigh == pytest.approx(body.thigh)


def _bend(poses, a, b, c):
    """Computes how far a limb bends at b (frames,), 0 when straight, and where b sticks out to."""
    upper, lower = poses[:, b] - poses[:, a], poses[:, c] - poses[:, b]
    cosine = (upper * lower).sum(-1) / np.linalg.norm(upper, axis=-1)
    angle = np.arccos(np.clip(cosine / np.linalg.norm(lower, axis=-1), -1, 1))
    line = poses[:, c] - poses[:, a]
    line = line / np.linalg.norm(line, axis=-1, keepdims=True)
    return angle, upper - (upper * line).sum(-1, keepdims=True) * line


def _forward(poses):
    """Finds where the hips face (frames, 3): to the left of them is the left hip."""
    left = poses[:, JOINT["l_hip"]] - poses[:, JOINT["r_hip"]]
    forward = np.cross(left, (0.0, 1.0, 0.0))
    return forward / np.linalg.norm(forward, axis=-1, keepdims=True)


@pytest.mark.parametrize("action", ACTIONS)
def test_joints_keep_to_their_limits(action):
    for _, poses in motions(action):
        forward = _forward(poses)
        for side in "lr":
            angle, out = _bend(poses, *(JOINT[f"{side}_{j}"] for j in ("hip", "knee", "ankle")))
            assert np.deg2rad(5) < angle.min() and angle.max() <= np.deg2rad(150) + 1e-6
            # Knees bend forward: never through the straight leg to the other side.
            assert ((out * forward).sum(-1) > 0).all()
            angle, _ = _bend(poses, *(JOINT[f"{side}_{j}"] for j in ("shoulder", "elbow", "wrist")))
            low, high = LIMITS["l_elbow"]
            assert low - 1e-6 <= angle.min() and angle.max() <= high + 1e-6


@pytest.mark.parametrize("action", ACTIONS)
def test_people_are_upright_and_above_the_ground(action):
    for body, poses in motions(action):
        assert poses[..., 1].min() > 0.5 * body.ankle
        assert poses[:, JOINT["neck"], 1].min() > poses[:, JOINT["l_knee"], 1].min()
        assert poses[..., 1].max() < 1.4 * body.stature


@pytest.mark.parametrize("action", ACTIONS)
def test_speeds_are_human_and_motion_is_smooth(action):
    fastest = {"run": 12.0, "walk": 8.0}.get(action, 5.0)
    for _, poses in motions(action):
        speed = np.linalg.norm(np.diff(poses, axis=0), axis=-1) * FPS / 1000
        assert speed.max() < fastest
        # Smooth: a frame is well foretold by its neighbours, unlike noise of the same speed.
        jump = np.linalg.norm(poses[2:] - 2 * poses[1:-1] + poses[:-2], axis=-1)
        assert np.sqrt((jump**2).mean()) < 0.25 * np.sqrt((speed**2).mean()) / FPS * 1000 + 0.5


@pytest.mark.parametrize("action", ACTIONS)
def test_people_move(action):
    travelled = [
        np.linalg.norm(np.diff(poses - poses[:, :1], axis=0), axis=-1).max(axis=1).sum()
        for _, poses in motions(action)
    ]
    assert np.median(travelled) > 300


@pytest.mark.parametrize("action", ["walk", "sidestep", "turn"])
def test_one_foot_stands_still_while_the_other_moves(action):
    for _, poses in motions(action):
        ankles = poses[:, [JOINT["l_ankle"], JOINT["r_ankle"]]]
        speed = np.linalg.norm(np.diff(ankles, axis=0), axis=-1) * FPS / 1000
        slower = speed.min(axis=1)
        assert np.median(slower) < 0.05
        assert np.percentile(slower, 90) < 0.6


def test_walkers_go_where_they_face_on_alternate_feet():
    for _, poses in motions("walk"):
        forward = _forward(poses)[:-1]
        velocity = np.diff(poses[:, 0], axis=0) * FPS / 1000
        assert 0.4 < (velocity * forward).sum(-1).mean() < 2.2
        gap = ((poses[:, JOINT["l_ankle"]] - poses[:, JOINT["r_ankle"]])[:-1] * forward).sum(-1)
        wrists = ((poses[:, JOINT["l_wrist"]] - poses[:, JOINT["r_wrist"]])[:-1] * forward).sum(-1)
        assert (np.diff(np.sign(gap)) != 0).sum() >= 3
        # Arms swing against the legs.
        assert np.corrcoef(gap, wrists)[0, 1] < -0.5


def test_left_is_left():
    for action in ACTIONS:
        for _, poses in motions(action, count=3):
            up = np.array([0.0, 1, 0])
            left = np.cross(up, _forward(poses))
            for joint in ("hip", "shoulder"):
                across = poses[:, JOINT[f"l_{joint}"]] - poses[:, JOINT[f"r_{joint}"]]
                assert ((across * left).sum(-1) > 0).mean() > 0.95
            nose = poses[:, JOINT["nose"]] - (poses[:, JOINT["neck"]] + poses[:, JOINT["head"]]) / 2
            shoulders = poses[:, JOINT["l_shoulder"]] - poses[:, JOINT["r_shoulder"]]
            spine = poses[:, JOINT["neck"]] - poses[:, JOINT["belly"]]
            assert ((nose * np.cross(shoulders, spine)).sum(-1) > 0).mean() > 0.8


def test_bodies_differ_within_reason():
    bodies = [draw_body(np.random.default_rng(i)) for i in range(200)]
    heights = np.array([b.stature for b in bodies])
    assert 1500 <= heights.min() < 1600 and 1850 < heights.max() <= 1950
    ratio = np.array([b.thigh / b.stature for b in bodies])
    assert 0.005 < ratio.std() < 0.02
    standing = [b.ankle + b.leg + b.abdomen + b.chest + b.neck + b.skull for b in bodies]
    np.testing.assert_allclose(standing / heights, 0.95, atol=0.08)


def _body():
    return Body(1750, 130, 440, 430, 70, 230, 250, 115, 115, 150, 280, 250)


def test_leg_reaches_what_it_can_and_stretches_no_further():
    hip = np.zeros((3, 3))
    wish = np.array([[0.0, -600, 0], [0, -5000, 0], [0, -1, 0]])
    ahead = np.broadcast_to([0.0, 0, 1], (3, 3))
    knee, ankle = solve_leg(_body(), hip, wish, ahead)
    np.testing.assert_allclose(ankle[0], wish[0], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(knee, axis=-1), 440)
    np.testing.assert_allclose(np.linalg.norm(ankle - knee, axis=-1), 430)
    assert 0.98 * 870 < -ankle[1, 1] < 870 and (knee[:, 2] > 0).all()
    # Law of cosines for a knee bent by 150 degrees.
    shortest = np.sqrt(440**2 + 430**2 - 2 * 440 * 430 * np.cos(np.deg2rad(30)))
    assert -ankle[2, 1] == pytest.approx(shortest)


def test_posture_channels_move_the_right_joints_the_right_way():
    body = _body()
    ankles = np.array([[[100.0, 70, 0], [-100, 70, 0]]])

    def pose(**channels):
        posture = np.array([[channels.get(name, 0.0) for name in LIMITS]])
        posture[0, list(LIMITS).index("height")] = 0.97
        return pose_body(body, posture, np.zeros((1, 3)), np.zeros(1), ankles)[0]

    rest = pose()
    assert rest[JOINT["l_hip"], 0] == 130 and rest[JOINT["r_hip"], 0] == -130
    assert rest[JOINT["head"], 1] > rest[JOINT["neck"], 1] > rest[JOINT["belly"], 1] > rest[0, 1]
    for side, sign in (("l", 1), ("r", -1)):
        wrist = JOINT[f"{side}_wrist"]
        assert pose(**{f"{side}_flexion": 1.0})[wrist, 2] > rest[wrist, 2] + 100
        assert sign * (pose(**{f"{side}_abduction": 1.0})[wrist, 0] - rest[wrist, 0]) > 100
        bent = {f"{side}_elbow": 1.5}
        assert pose(**bent)[wrist, 2] > rest[wrist, 2] + 100
        inward = pose(**bent, **{f"{side}_twist": 1.0})[wrist, 0] - pose(**bent)[wrist, 0]
        assert sign * inward < -100
    for channel in ("spine_pitch", "pelvis_pitch"):
        assert pose(**{channel: 0.5})[JOINT["neck"], 2] > rest[JOINT["neck"], 2] + 50
    assert pose(neck_pitch=0.5)[JOINT["head"], 2] > rest[JOINT["head"], 2] + 30


def test_minimum_jerk_starts_and_ends_at_rest():
    t = np.linspace(-0.5, 1.5, 2001)
    s = minimum_jerk(t)
    assert s[0] == 0 and s[-1] == 1 and (np.diff(s) >= 0).all()
    assert np.abs(np.diff(s, 2)).max() * 1e6 < 6


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_train_clips": 0}, "num_train_clips"),
        ({"fps": 0.0}, "fps"),
        ({"seed": -1}, "seed"),
        ({"actions": ("walk", "swim")}, "swim.*known are walk"),
        ({"actions": ()}, "actions"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(
        ValueError, match=f"data.synthetic.{message}" if "swim" not in message else message
    ):
        SyntheticConfig(**options)


@pytest.mark.parametrize(
    "arguments, message",
    [({"split": "dev"}, "split"), ({"clip_len": 0}, "clip_len"), ({"input_2d": "x"}, "input_2d")],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)

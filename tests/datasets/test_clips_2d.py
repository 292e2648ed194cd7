"""PoseTrack18 and InstaVariety: what their files mean, and files that are damaged."""

import json

import numpy as np
import pytest
from files_2d import POSETRACK_NAMES, make_video, write_instavariety, write_posetrack

from posemamba_jax import data
from posemamba_jax.data.clips import DataError, Recording
from posemamba_jax.data.sources.clips_2d import build_clips_2d
from posemamba_jax.data.sources.instavariety import InstaVarietyConfig
from posemamba_jax.data.sources.posetrack import PoseTrackConfig, read_tracks
from posemamba_jax.errors import UserError
from posemamba_jax.skeleton import H36M17


def build(clip_len=9, **options):
    return data.build(data.DataConfig(clip_len=clip_len, train_stride=9, **options), "train")


@pytest.fixture
def posetrack(tmp_path):
    return PoseTrackConfig(write_posetrack(tmp_path / "posetrack", make_video(), make_video()))


def test_posetrack_tracks_become_clips(posetrack):
    source = build(source="posetrack", posetrack=posetrack)
    assert len(source) == 2 * 4, "tracks of five frames are left out"
    assert not source.has_3d and source.num_joints == 17 and source.input_2d == "ground_truth"
    clip = source[1]
    assert clip.keys() == {"poses_2d", "frame_ids", "subject_source", "action"}
    assert clip["poses_2d"].shape == (9, 17, 3) and clip["poses_2d"].dtype == np.float32
    assert clip["subject_source"] == "000000_train track 0"


def test_posetrack_joints_by_name_and_scale(posetrack, tmp_path):
    (track,) = [t for t in read_tracks(tmp_path / "posetrack/000000_train.json").values()][:1]
    seen = track[..., 2] > 0
    low, high = track[seen][:, :2].min(0), track[seen][:, :2].max(0)
    pose = build(source="posetrack", posetrack=posetrack)[0]["poses_2d"][0]
    scaled = (track[0, :, :2] - (low + high) / 2) / ((high - low).max() / 2)
    for j, name in enumerate(H36M17.joints):
        if name in POSETRACK_NAMES:
            np.testing.assert_allclose(pose[j, :2], scaled[POSETRACK_NAMES.index(name)], atol=1e-5)
    np.testing.assert_allclose(pose[0, :2], scaled[11:13].mean(0), atol=1e-5)
    np.testing.assert_allclose(pose[7, :2], (pose[0] + pose[8])[:2] / 2, atol=1e-5)
    assert (pose[:, 2] == 1).all()
    arrays = build(source="posetrack", posetrack=posetrack).arrays["poses_2d"]
    assert np.abs(arrays[..., :2]).max() == pytest.approx(1, abs=1e-4)


def test_posetrack_joints_without_a_mark_are_zero(tmp_path):
    video = make_video()
    for annotation in video["annotations"]:
        annotation["keypoints"][3 * 9 : 3 * 10] = [0, 0, 0]  # the left wrist
    folder = write_posetrack(tmp_path / "a", video)
    poses = build(source="posetrack", posetrack=PoseTrackConfig(folder))[0]["poses_2d"]
    assert (poses[:, 13] == 0).all() and (poses[:, 12] != 0).all()


def test_posetrack_tracks_are_cut_where_a_person_is_missing(tmp_path):
    seen = [*range(3, 20), *range(22, 40)]
    write_posetrack(tmp_path / "a", make_video({7: seen, 8: range(40)}))
    tracks = read_tracks(tmp_path / "a/000000_train.json")
    assert {name: len(track) for name, track in tracks.items()} == {
        "track 7": 17,
        "track 7 part 1": 18,
        "track 8": 40,
    }
    # Images without any annotation are no gap: nobody looked at them.
    write_posetrack(tmp_path / "a", make_video({7: seen}))
    assert len(read_tracks(tmp_path / "a/000000_train.json")["track 7"]) == 35


def test_instavariety_rows_become_clips(tmp_path):
    options = InstaVarietyConfig(**write_instavariety(tmp_path / "insta"))
    source = build(source="instavariety", instavariety=options)
    assert len(source) == 3 + 1 + 1 and source.input_2d == "detected" and not source.has_3d
    motion = np.load(options.motion_path)
    np.testing.assert_array_equal(source[1]["poses_2d"], motion[9:18].astype(np.float32))
    short = source[3]
    assert short["subject_source"] == "track 1"
    assert (short["frame_ids"] - 30).tolist() == [0, 1, 2, 3, 4, 5, 4, 3, 2]


def test_clips_in_which_the_root_is_seldom_seen_are_left_out(tmp_path):
    def hide_root(motion, ids):
        motion[9:15, 0] = 0

    options = InstaVarietyConfig(**write_instavariety(tmp_path / "insta", change=hide_root))
    source = build(source="instavariety", instavariety=options)
    assert [clip["frame_ids"][0] for clip in (source[0], source[1])] == [0, 18]
    with pytest.raises(DataError, match="the root seen"):
        build_clips_2d(
            "made-up",
            [Recording("a", "", 0, 9)],
            np.zeros((9, 17, 3), np.float32),
            skeleton=H36M17,
            clip_len=9,
            stride=9,
            fps=30.0,
            input_2d="detected",
        )


@pytest.mark.parametrize("length", [1, 2, 5])
def test_short_tracks_are_played_forth_and_back(length):
    poses = np.ones((length, 17, 3), np.float32)
    source = build_clips_2d(
        "made-up",
        [Recording("a", "", 0, length)],
        poses,
        skeleton=H36M17,
        clip_len=9,
        stride=9,
        fps=30.0,
        input_2d="detected",
    )
    steps = np.abs(np.diff(source[0]["frame_ids"]))
    assert len(source) == 1 and (steps == (length > 1)).all()
    assert set(source[0]["frame_ids"]) == set(range(length))


@pytest.mark.parametrize("source", ["posetrack", "instavariety"])
def test_2d_poses_cannot_be_evaluated(source):
    with pytest.raises(DataError, match="2D poses only.*data.mixture.test"):
        data.build(data.DataConfig(source=source), "test")


def change_video(change):
    video = make_video()
    change(video)
    return video


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ('{"images": [', "truncated"),
        ("[1, 2]", "images"),
        ({"images": []}, "'annotations' is missing"),
        (change_video(lambda v: v["images"].pop()), "image 1039, which 'images' does not list"),
        (change_video(lambda v: v["annotations"][3].pop("track_id")), "annotation 3.*track_id"),
        (change_video(lambda v: v["annotations"][0]["keypoints"].pop()), "annotation 0"),
        (change_video(lambda v: v["annotations"][0].update(keypoints=[1.0] * 54)), "18 joints"),
        (change_video(lambda v: v["annotations"][0].update(keypoints=["x"] * 51)), "annotation 0"),
    ],
)
def test_what_is_wrong_with_a_posetrack_file_is_named(tmp_path, content, message):
    folder = tmp_path / "posetrack"
    folder.mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "broken.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        build(source="posetrack", posetrack=PoseTrackConfig(str(folder)))
    assert "broken.json" in str(caught.value)


def test_posetrack_without_usable_tracks(tmp_path):
    with pytest.raises(DataError, match="data.posetrack.folder"):
        build(source="posetrack", posetrack=PoseTrackConfig(str(tmp_path)))
    folder = write_posetrack(tmp_path / "a", make_video({1: range(5)}))
    with pytest.raises(DataError, match="30 frames"):
        build(source="posetrack", posetrack=PoseTrackConfig(folder))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("motion_all.npy", np.zeros((48, 16, 3)), r"\(48, 16, 3\)"),
        ("motion_all.npy", np.full((48, 17, 3), np.nan), "nan at index"),
        ("motion_all.npy", np.zeros((48, 17, 3), complex), "complex128"),
        ("motion_all.npy", np.array({"a": 1}), "Python objects"),
        ("id_all.npy", np.zeros(47), r"\(47,\), expected \(48,\)"),
        ("id_all.npy", b"", "not a complete .npy"),
        ("motion_all.npy", b"\x93NUMPY junk", "not a complete .npy"),
        ("motion_all.npy", None, "data.instavariety.motion_path"),
    ],
)
def test_what_is_wrong_with_an_instavariety_file_is_named(tmp_path, name, array, message):
    options = InstaVarietyConfig(**write_instavariety(tmp_path / "insta"))
    path = tmp_path / "insta" / name
    path.unlink()
    if isinstance(array, bytes):
        path.write_bytes(array)
    elif array is not None:
        np.save(path, array, allow_pickle=True)
    with pytest.raises(DataError, match=message) as caught:
        build(source="instavariety", instavariety=options)
    assert name in str(caught.value)

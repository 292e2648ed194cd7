"""The Human3.6M reader against the authors' clips, and what it says about files it cannot use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from h36m_files import CAMERAS, make_content, write

from posemamba_jax import data
from posemamba_jax.data.clips import DataError
from posemamba_jax.data.sources import h36m, h36m_cache
from posemamba_jax.data.sources.h36m import H36MConfig


def build(path, split="test", clip_len=8, stride=8, **options):
    return h36m.build(
        H36MConfig(str(path), **options), clip_len=clip_len, stride=stride, split=split
    )


@pytest.fixture
def content():
    return make_content()


@pytest.fixture
def path(tmp_path, content):
    return write(content, tmp_path / "h36m.pkl")


@pytest.fixture(scope="module")
def golden_cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_clips_are_the_authors_bit_for_bit(split, data_dir, golden_cache):
    expected = np.load(data_dir / "h36m_tiny_expected.npz")
    config = data.DataConfig(
        source="h36m",
        clip_len=27,
        train_stride=9,
        h36m=H36MConfig(str(data_dir / "h36m_tiny.pkl"), golden_cache),
    )
    source = data.build(config, split)
    np.testing.assert_array_equal(source.index, expected[f"{split}_frames"])
    clips = [source[i] for i in range(len(source))]
    for key, golden in (("poses_2d", "input"), ("poses_3d", "label")):
        ours = np.stack([clip[key] for clip in clips])
        # Bits, so that -0 and 0 differ.
        np.testing.assert_array_equal(
            ours.view(np.uint32), expected[f"{split}_{golden}"].view(np.uint32)
        )


def test_what_evaluation_needs_comes_from_the_files_own_columns(path, content):
    test, source = content["test"], build(path)
    clip = source[0]
    rows = clip["frame_ids"]
    np.testing.assert_array_equal(clip["poses_3d_mm"], test["joints_2.5d_image"][rows])
    np.testing.assert_allclose(clip["mm_per_unit"], test["2.5d_factor"][rows] * 500, rtol=1e-6)
    assert clip["subject_source"] == test["source"][0] and clip["action"] == "Walk"
    assert source.fps == 50 and source.name == "h36m"
    # The millimetres and the pixels are the same poses up to the factor, root-relative.
    assert "poses_3d_mm" not in build(path, "train")[0]


def test_the_camera_is_looked_up_row_by_row(tmp_path, content):
    test = content["test"]
    test["camera_name"] = np.resize(np.array(CAMERAS), len(test["source"]))
    source = build(write(content, tmp_path / "mixed.pkl"), clip_len=4)
    clip = source[0]
    heights = np.array([1.002, 1.0, 1.0, 1.002])
    expected = test["joint_2d"][:4] / 500 - np.stack([np.ones(4), heights], -1)[:, None]
    np.testing.assert_allclose(clip["poses_2d"][..., :2], expected, atol=1e-6)


def test_a_short_recording_gives_one_clip_of_evenly_repeated_frames(path):
    source = build(path)  # recordings of 30, 12 and 5 frames
    assert source.index[:, 0].tolist() == [0, 8, 16, 30, 42]
    assert source.index[-1].tolist() == [42, 42, 43, 43, 44, 45, 45, 46]


def test_covering_the_ends_adds_clips_to_the_test_split_only(path):
    assert build(path, cover_ends=True).index[:, 0].tolist() == [0, 8, 16, 22, 30, 34, 42]
    assert len(build(path, "train", cover_ends=True)) == len(build(path, "train"))


def test_broken_recordings_are_marked_for_evaluation(tmp_path, content):
    source = content["test"]["source"].astype("U40")
    source[:30] = "s_09_act_13_subact_01_ca_04"
    content["test"]["source"] = source
    clips = build(write(content, tmp_path / "broken.pkl"))
    assert clips.excluded_from_evaluation == {"s_09_act_13_subact_01_ca_04"}


def test_ground_truth_input_is_the_target_without_depth(path):
    options = {"clip_len": 8, "stride": 8, "split": "test", "input_2d": "ground_truth"}
    clip = h36m.build(H36MConfig(str(path)), **options)[0]
    np.testing.assert_array_equal(clip["poses_2d"][..., :2], clip["poses_3d"][..., :2])


def as_lists(split):
    return {k: v.tolist() if v.dtype.kind == "U" else v for k, v in split.items()}


def as_objects(split):
    return {k: v.astype(object) if v.dtype.kind == "U" else v for k, v in split.items()}


def as_bytes(split):
    return {k: v.astype("S") if v.dtype.kind == "U" else v for k, v in split.items()}


def as_numpy_text(split):
    return {k: list(v) if v.dtype.kind == "U" else v for k, v in split.items()}


def flat_confidence(split):
    return {**split, "confidence": split["confidence"][..., 0]}


def with_confidence_in_joints(split):
    return {**split, "joint_2d": np.concatenate([split["joint_2d"], split["confidence"]], -1)}


def as_fortran(split):
    return {k: np.asfortranarray(v) for k, v in split.items()}


def as_big_endian(split):
    swapped = {k: v.astype(v.dtype.newbyteorder(">")) for k, v in split.items()}
    return swapped


def as_float64(split):
    return {k: v.astype(float) if v.dtype == np.float32 else v for k, v in split.items()}


@pytest.mark.parametrize(
    "form",
    [
        as_lists,
        as_objects,
        as_bytes,
        as_numpy_text,
        flat_confidence,
        with_confidence_in_joints,
        as_fortran,
        as_big_endian,
        as_float64,
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_the_same_content_in_another_form_gives_the_same_clips(
    form, protocol, path, content, tmp_path
):
    other = write({k: form(v) for k, v in content.items()}, tmp_path / "other.pkl", protocol)
    for split in ("train", "test"):
        plain, formed = build(path, split), build(other, split)
        assert plain.recordings == formed.recordings
        for key, array in plain.arrays.items():
            np.testing.assert_array_equal(array, formed.arrays[key])


def test_absent_confidence_counts_as_one(content, tmp_path):
    for split in content.values():
        del split["confidence"]
    assert (build(write(content, tmp_path / "h.pkl"))[0]["poses_2d"][..., 2] == 1).all()


def change(split, key, value):
    def apply(content):
        content[split][key] = value(content[split][key])

    return apply


def remove(split, key):
    return lambda content: content[split].pop(key)


def put(row, value):
    def apply(array):
        array = array.copy()
        array[row] = value
        return array

    return apply


BROKEN_CONTENT = {
    "no test split": (lambda c: c.pop("test"), "no dictionary under the key 'test'"),
    "split is a list": (lambda c: c.update(train=[1]), "no dictionary under the key 'train'"),
    "no joint_2d": (remove("train", "joint_2d"), r"train lacks the key\(s\) \['joint_2d'\]"),
    "no factor": (remove("test", "2.5d_factor"), r"test lacks the key\(s\) \['2.5d_factor'\]"),
    "16 joints": (change("test", "joint_2d", lambda a: a[:, :16]), r"test/joint_2d has shape .*16"),
    "x only": (change("test", "joint_2d", lambda a: a[..., :1]), r"test/joint_2d has shape .*1\)"),
    "no depth": (change("train", "joint3d_image", lambda a: a[..., :2]), "train/joint3d_image"),
    "too few rows": (
        change("test", "confidence", lambda a: a[:-1]),
        r"test/confidence.*\(46, 17, 1",
    ),
    "too few cameras": (change("test", "camera_name", lambda a: a[:-1].tolist()), r"shape \(46,\)"),
    "text for numbers": (
        change("test", "joint_2d", lambda a: a.astype(str)),
        "test/joint_2d holds",
    ),
    "ragged": (change("test", "joint_2d", lambda a: [a[0], a[1, :3]]), "not a rectangular array"),
    "a number": (change("test", "confidence", lambda a: 3), "test/confidence is a int"),
    "no frames": (change("train", "source", lambda a: a[:0]), "train/source is empty"),
    "camera": (change("test", "camera_name", put(31, "12345678")), "'12345678' at row 31"),
    "nan": (change("train", "joint_2d", put((33, 4, 1), np.nan)), r"nan at index \(33, 4, 1\)"),
    "inf": (
        change("test", "joints_2.5d_image", put((2, 1, 1), np.inf)),
        r"inf at index \(2, 1, 1\)",
    ),
    "overflow": (
        change("train", "joint3d_image", lambda a: a.astype(float) * 1e300),
        r"train/joint3d_image is inf at index \(0, 0, 0\)",
    ),
    "factor": (change("test", "2.5d_factor", put(9, -1)), "2.5d_factor is -1.0 at row 9"),
    "action": (change("test", "action", put(7, "Eat")), "at row 7, in the middle of source 's_09"),
}


@pytest.mark.parametrize("case", BROKEN_CONTENT)
def test_content_that_cannot_be_used_is_named(case, content, tmp_path):
    breaks, message = BROKEN_CONTENT[case]
    breaks(content)
    path = write(content, tmp_path / "broken.pkl")
    with pytest.raises(DataError, match=message) as error:
        build(path)
    assert str(path) in str(error.value)
    assert os.listdir(tmp_path) == ["broken.pkl"], "a failed conversion leaves nothing behind"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.pkl.*data.h36m.path"):
        build(tmp_path / "nowhere.pkl")


def test_a_cache_that_cannot_be_written_is_named(path, tmp_path):
    (tmp_path / "occupied").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="data.h36m.cache_dir"):
        build(path, cache_dir=str(tmp_path / "occupied"))


def test_the_file_is_converted_once(path, tmp_path, monkeypatch):
    first = build(path)
    monkeypatch.setattr(h36m_cache, "_convert", lambda *_: pytest.fail("converted again"))
    second = build(path)
    assert isinstance(second.arrays["poses_2d"].base, np.memmap)
    np.testing.assert_array_equal(first[2]["poses_2d"], second[2]["poses_2d"])


def test_a_changed_file_is_converted_again_and_its_old_cache_removed(path, content, tmp_path):
    before = build(path)[0]["poses_2d"].copy()
    content["test"]["joint_2d"] += 1
    write(content, path)
    os.utime(path, ns=(1, 1))
    after = build(path)[0]["poses_2d"]
    np.testing.assert_allclose(after[..., :2] - before[..., :2], 0.002, atol=1e-5)
    assert len(list(tmp_path.glob("*-cache-*"))) == 1


@pytest.mark.parametrize("file", ["test_poses_2d.npy", "test_mm_per_unit.npy", "cache.json"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"\x93NUMPY"])
def test_a_damaged_cache_is_named(path, file, damage):
    build(path)
    (h36m_cache.cache_folder(path) / file).write_bytes(damage)
    with pytest.raises(DataError, match="is damaged.*delete it"):
        build(path)


def test_two_files_of_one_name_do_not_share_a_cache(content, tmp_path):
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        content["test"]["joint_2d"] += i
        file = write(content, tmp_path / str(i) / "h36m.pkl")
        os.utime(file, ns=(1, 1))
    a, b = (build(tmp_path / str(i) / "h36m.pkl", cache_dir=str(tmp_path)) for i in range(2))
    assert (a[0]["poses_2d"] != b[0]["poses_2d"]).any()


def test_a_conversion_that_was_cut_short_is_started_again(path, monkeypatch):
    write_split = h36m_cache._write_split

    def interrupted(*arguments):
        write_split(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(h36m_cache, "_write_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    monkeypatch.setattr(h36m_cache, "_write_split", write_split)
    assert len(build(path)) == 5


def test_a_cache_that_another_process_finished_first_is_used(path, monkeypatch):
    write_split = h36m_cache._write_split

    def write_while_another_finishes(*arguments):
        monkeypatch.setattr(h36m_cache, "_write_split", write_split)
        build(path)
        return write_split(*arguments)

    monkeypatch.setattr(h36m_cache, "_write_split", write_while_another_finishes)
    assert len(build(path)) == 5


MEASURE = """
import json, resource, sys
from posemamba_jax.data.sources.h36m_cache import open_split
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
open_split(sys.argv[1], "train")
print(json.dumps(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))
"""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_converting_takes_about_as_much_memory_as_the_file_is_large(tmp_path, dtype):
    content = make_content(lengths=(50_000, 50_000))
    content = {
        name: {k: v.astype(dtype) if v.dtype == np.float32 else v for k, v in split.items()}
        for name, split in content.items()
    }
    path = write(content, tmp_path / "large.pkl")
    root = str(Path(h36m_cache.__file__).parents[2])
    command = [sys.executable, "-c", MEASURE, str(path)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root}
    )
    size = path.stat().st_size
    # What parts of 16384 rows take does not grow with the file: 16384 * 51 values, a few times.
    assert json.loads(result.stdout) < 1.1 * size + 40e6, f"for a file of {size} bytes"

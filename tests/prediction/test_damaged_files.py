"""Truncated, empty, mislabelled and hostile files: one line that says where and what."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import writers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moving_people import IMAGE_SIZE, walking

from posemamba_jax.predict.keypoints import KeypointError, ReadOptions, build_tracks, read_keypoints


def fails(path, *words, **options):
    with pytest.raises(KeypointError) as caught:
        read_keypoints(path, **options)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text
    text.encode()
    for word in words:
        assert word in text, text
    return text


@pytest.fixture
def files(tmp_path):
    people = {1: walking(4)}
    return {
        "alphapose": writers.alphapose(tmp_path / "a.json", people),
        "mmpose": writers.mmpose(tmp_path / "m.json", people),
        "mediapipe": writers.mediapipe(tmp_path / "p.json", people, IMAGE_SIZE),
        "openpose": writers.openpose(tmp_path / "o", people) / "clip_000000000002_keypoints.json",
        "videopose3d": writers.videopose3d(tmp_path / "v.npz", people[1], IMAGE_SIZE),
        "array": writers.array(tmp_path / "k.npy", people[1]),
    }


JSON_FORMATS = ["alphapose", "mmpose", "mediapipe", "openpose"]
ARRAY_FORMATS = ["videopose3d", "array"]


@pytest.mark.parametrize("format", JSON_FORMATS + ARRAY_FORMATS)
def test_empty_file(files, format):
    files[format].write_bytes(b"")
    fails(files[format], "empty")


@pytest.mark.parametrize("format", JSON_FORMATS)
def test_truncated_json(files, format):
    text = files[format].read_text()
    files[format].write_text(text[: len(text) // 2])
    fails(files[format], "truncated")


@pytest.mark.parametrize("format", ARRAY_FORMATS)
def test_truncated_arrays(files, format):
    data = files[format].read_bytes()
    for keep in (7, 40, len(data) // 2, len(data) - 3):
        files[format].write_bytes(data[:keep])
        fails(files[format])


@pytest.mark.parametrize("format", JSON_FORMATS)
def test_no_detections(files, format):
    empty = {
        "alphapose": [],
        "mmpose": {"instance_info": [{"frame_id": 1, "instances": []}]},
        "mediapipe": {"frames": [None, None]},
        "openpose": {"people": []},
    }
    files[format].write_text(json.dumps(empty[format]))
    fails(files[format], "no detections")


def _places(format, data):
    """Finds (container, key) of the numbers of a person in frame 2."""
    if format == "alphapose":
        return data[2], "keypoints"
    if format == "openpose":
        return data["people"][0], "pose_keypoints_2d"
    if format == "mmpose":
        return data["instance_info"][2]["instances"][0], "keypoints"
    return data["frames"][2]["pose_landmarks"], 0


@pytest.mark.parametrize("format", JSON_FORMATS)
@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda v: None, ["expected"]),
        (lambda v: "right", ["expected", "'right'"]),
        (lambda v: {"x": 1}, ["expected"]),
        (lambda v: v[:-1] if len(v) != 78 else v[:-3], []),
        (lambda v: v[:4], []),
        (lambda v: [], []),
        (lambda v: [_changed(v[0], "left"), *v[1:]], ["expected", "'left'"]),
        (lambda v: [_changed(v[0], None), *v[1:]], ["expected", "null"]),
        (lambda v: [_changed(v[0], float("nan")), *v[1:]], ["nan", "finite"]),
        (lambda v: [_changed(v[0], float("inf")), *v[1:]], ["inf", "finite"]),
        (lambda v: [_changed(v[0], 1e30), *v[1:]], ["1e+30"]),
        (lambda v: [_changed(v[0], 10**3000), *v[1:]], ["very large"]),
        (lambda v: [_changed(v[0], [[[1]]]), *v[1:]], ["expected"]),
    ],
    ids=["null", "text", "object", "short", "very-short", "none", "word", "null-number", "nan",
         "inf", "huge", "huge-integer", "nested"],
)  # fmt: skip
def test_mislabelled_values(files, format, damage, words):
    path = files[format]
    data = json.loads(path.read_text())
    container, key = _places(format, data)
    container[key] = damage(container[key])
    path.write_text(json.dumps(data))
    if format == "openpose" and container[key] == []:
        fails(path, "no detections")  # OpenPose's way of saying hands without a body
        return
    where = {"alphapose": "entry 2", "openpose": "person 0", "mmpose": "frame 2"}
    fails(path, where.get(format, "frame 2"), *words)


def _changed(value, number):
    """Changes the first coordinate of a person in any of the formats."""
    if isinstance(value, dict):
        return {**value, "x": number}
    return [number, *value[1:]] if isinstance(value, list) else number


@pytest.mark.parametrize("format", JSON_FORMATS)
def test_wrong_joint_counts_are_named(files, format):
    fails(files[format], "joint", options=ReadOptions(joint_set="posetrack18"))
    fails(files[format], "unknown joint set", options=ReadOptions(joint_set="squid"))


def test_mixed_joint_counts(files):
    data = json.loads(files["alphapose"].read_text())
    data[3]["keypoints"] = data[3]["keypoints"][: 17 * 3]
    files["alphapose"].write_text(json.dumps(data))
    fails(files["alphapose"], "entry 3", "17 joints", "26")


@pytest.mark.parametrize(
    "text, words",
    [
        ("[" * 100_000, ["nested"]),
        ('{"a":' * 100_000, ["nested"]),
        ("[" + "9" * 5000 + "]", ["4300 digits"]),
        ("\x00\x01", ["JSON"]),
        ("null", ["null"]),
        ("7", ["7"]),
        ('"\\ud800"', ["ud800"]),
        ('{"\\ud800": 1, "b": 2}', ["ud800"]),
        ('[{"image_id": "\\ud800.jpg", "keypoints": "\\udfff"}]', ["ud800"]),
        ('[{"image_id": {}, "keypoints": []}]', ["image_id"]),
        ('[{"image_id": "1.jpg"}]', ["'keypoints' is missing"]),
        ('[{"keypoints": [1, 2, 3]}]', ["image_id"]),
        ("[3]", ["none of the known formats"]),
        ("[[[[[3]]]]]", []),
        ('{"frames": 3}', ["list"]),
        ('{"frames": [3]}', ["frame 0"]),
        ('{"frames": [{}]}', ["pose_landmarks"]),
        ('{"frames": [[[]]]}', ["person 0"]),
        ('{"people": 3}', ["people"]),
        ('{"people": [3]}', ["person 0"]),
        ('{"instance_info": {}}', ["instance_info"]),
        ('{"instance_info": [{"frame_id": -1, "instances": []}]}', ["frame_id", "-1"]),
        ('{"instance_info": [{"frame_id": 1e300, "instances": []}]}', ["frame_id"]),
        ('{"instance_info": [{"frame_id": 1, "instances": [4]}]}', ["instance 0"]),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_hostile_json(tmp_path, text, words):
    path = tmp_path / "k.json"
    path.write_text(text)
    fails(path, *words)


def test_not_utf8_and_pickles(tmp_path):
    path = tmp_path / "k.json"
    path.write_bytes(b'["\xff\xfe"]')
    fails(path, "UTF-8")
    path.write_bytes(pickle.dumps({"people": []}))
    fails(path, "pickle")


def test_byte_order_mark_is_no_problem(files):
    path = files["alphapose"]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_keypoints(path).format == "alphapose"


def test_missing_file_and_empty_folder(tmp_path):
    fails(tmp_path / "none.json", "no such file")
    fails(tmp_path, "no .json")
    fails(tmp_path, "folder", format="alphapose")


def test_given_format_that_does_not_fit(files):
    fails(files["mmpose"], "AlphaPose", format="alphapose")
    fails(files["alphapose"], "people", format="openpose")
    fails(files["array"], "JSON", format="mmpose")
    fails(files["array"], "positions_2d", format="videopose3d")
    fails(files["alphapose"], ".npz", format="array")


def test_absurd_frame_numbers_allocate_nothing(files):
    data = json.loads(files["alphapose"].read_text())
    data[3]["image_id"] = "999999999.jpg"
    files["alphapose"].write_text(json.dumps(data))
    fails(files["alphapose"], "999999999", "at most")


def test_zero_confidence_everywhere(files):
    data = json.loads(files["alphapose"].read_text())
    for entry in data:
        entry["keypoints"][2::3] = [0] * 26
    files["alphapose"].write_text(json.dumps(data))
    fails(files["alphapose"], "confidence")


def test_negative_confidence(files):
    data = json.loads(files["alphapose"].read_text())
    data[1]["keypoints"][2] = -0.5
    files["alphapose"].write_text(json.dumps(data))
    fails(files["alphapose"], "entry 1", "confidence")


@pytest.mark.parametrize(
    "values, words",
    [
        (np.zeros((4, 17)), ["(frames, joints, 2 or 3)"]),
        (np.zeros((4, 17, 5)), ["[4, 17, 5]"]),
        (np.zeros((0, 17, 2)), ["[0, 17, 2]"]),
        (np.zeros((2, 4, 17, 2)), ["one file per person"]),
        (np.full((4, 17, 2), np.nan), ["confidence above 0"]),
        (np.full((4, 17, 2), np.inf), ["frame 0, joint 0", "finite"]),
        (np.full((4, 17, 2), 1e30), ["1e+30"]),
        (np.full((4, 17, 3), -500.0), ["confidence"]),
        (np.full((4, 17, 3), 500.0), ["3D positions"]),
        (np.ones((4, 19, 2)) * 50, ["19 joints"]),
        (np.full((4, 17, 2), "a"), ["numbers"]),
        (np.zeros((4, 17, 2), bool), ["numbers"]),
        (np.ones((4, 17, 2)) * 1j, ["numbers"]),
    ],
)
def test_wrong_arrays(tmp_path, values, words):
    path = tmp_path / "k.npy"
    np.save(path, values)
    fails(path, *words)


def test_nan_in_one_coordinate_is_damage_in_both_is_missing(tmp_path):
    poses = walking(4)
    poses[2, 5] = np.nan
    np.save(tmp_path / "k.npy", poses)
    read = read_keypoints(tmp_path / "k.npy")
    assert [d.keypoints[5, 2] for d in read.detections] == [1, 1, 0, 1]
    poses[1, 3, 0] = np.nan
    np.save(tmp_path / "k.npy", poses)
    fails(tmp_path / "k.npy", "frame 1, joint 3")


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("content", [[Payload()], {"clip": {"custom": [Payload()]}}])
def test_pickled_objects_run_no_code(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    hostile = np.array(content, object)
    np.save(tmp_path / "k.npy", hostile, allow_pickle=True)
    fails(tmp_path / "k.npy", "could run code")
    np.savez(tmp_path / "k.npz", positions_2d=hostile)
    fails(tmp_path / "k.npz", "could run code")
    np.savez(tmp_path / "k.npz", positions_2d=np.array({}, object), metadata=hostile)
    fails(tmp_path / "k.npz", "could run code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "positions, words",
    [
        ({}, ["positions_2d"]),
        ([1, 2], ["positions_2d"]),
        ({"a": 3}, ["'a'"]),
        ({"a": {"b": 3}}, ["'b'"]),
        ({"a": {"b": [3]}}, ["'b'", "[0]"]),
        ({"a": {"b": []}}, ["no clips"]),
        ({"a": {"b": [np.zeros((3, 17, 7))]}}, ["a/b/0", "[3, 17, 7]"]),
        ({"a": {"b": [np.full((3, 17, 2), np.inf)]}}, ["finite"]),
    ],
)
def test_damaged_videopose3d(tmp_path, positions, words):
    path = tmp_path / "v.npz"
    np.savez(path, positions_2d=np.array(positions, object), metadata=np.array({}, object))
    fails(path, *words)


def test_wrong_video_metadata(tmp_path):
    path = tmp_path / "v.npz"
    for about, word in (({"w": -3, "h": 4}, "width"), ({"w": 3, "h": 4, "fps": "x"}, "frames per")):
        metadata = {"layout_name": ["coco"], "video_metadata": {"a": about}}
        np.savez(path, positions_2d={"a": {"b": [walking(3)]}}, metadata=metadata)
        fails(path, word)


def _npy(header: bytes, payload: bytes = b"") -> bytes:
    header = header + b" " * (118 - len(header) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + payload


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 17, 2)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -17, 2)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': 'abc'}",
        b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (3, 17, 2)}",
        b"{'descr': '<f4'}",
        b"__import__('os').mkdir('ran')",
        b"((((((((((((((((((",
    ],
)
def test_hostile_array_headers(tmp_path, monkeypatch, header):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "k.npy"
    path.write_bytes(_npy(header, b"\0" * 8))
    fails(path)
    assert not (tmp_path / "ran").exists()


def test_decompression_bomb_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("posemamba_jax.files.npy.MAX_BYTES", 1000)
    path = tmp_path / "k.npz"
    np.savez_compressed(path, keypoints=np.zeros((500, 17, 2)))
    fails(path, "unpack")


def test_zip_that_is_no_npz(tmp_path):
    path = tmp_path / "k.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    fails(path, "no complete .npy array")


# Values that a damaged or hostile file could hold anywhere.
_JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["image_id", "keypoints", "people", "pose_keypoints_2d", "instance_info",
                 "instances", "frame_id", "frames", "pose_landmarks", "x", "y", "idx", "ids"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(junk=_JUNK, format=st.sampled_from([None, *JSON_FORMATS]))
def test_any_json_is_read_or_refused(tmp_path, junk, format):
    path = tmp_path / "junk.json"
    path.write_text(json.dumps(junk))
    try:
        keypoints = read_keypoints(path, format)
        build_tracks(keypoints)
    except KeypointError as error:
        str(error).encode()
        assert "\n" not in str(error)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_changed_byte_of_an_npz_is_read_or_refused(tmp_path, data):
    buffer = io.BytesIO()
    positions = {"a": {"custom": [walking(2).astype(np.float32)]}}
    np.savez(buffer, positions_2d=positions, metadata={"layout_name": "coco"})
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.npz"
    path.write_bytes(content)
    try:
        read_keypoints(path)
    except KeypointError as error:
        str(error).encode()

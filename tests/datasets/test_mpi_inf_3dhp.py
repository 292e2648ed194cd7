"""Reading MPI-INF-3DHP, and its protocol against plain loops over the file."""

import json
import zipfile

import numpy as np
import pytest
import rich
from mpi_files import FILE_NAMES, SIZES, make_test, make_train, write

from posemamba_jax import data
from posemamba_jax.data.clips import DataError
from posemamba_jax.data.sources.mpi_inf_3dhp import MpiInf3dhpConfig, windows_around
from posemamba_jax.evaluation import baselines, evaluate
from posemamba_jax.skeleton import H36M17

# Where the two skeletons name the same joint differently.
RENAMED = {"root": "pelvis", "belly": "spine", "nose": "head", "head": "head_top"}
FILE_INDEX = [FILE_NAMES.index(RENAMED.get(joint, joint)) for joint in H36M17.joints]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mpi")
    return MpiInf3dhpConfig(
        write(make_train(), folder / "data_train_3dhp.npz"),
        write(make_test(), folder / "data_test_3dhp.npz"),
    )


def build(options, split, clip_len=9, **changes):
    config = data.DataConfig(
        source="mpi_inf_3dhp",
        clip_len=clip_len,
        mpi_inf_3dhp=options,
        **{"input_2d": "ground_truth", "train_stride": 3, **changes},
    )
    return data.build(config, split)


def test_training_clips_are_windows_of_every_camera(files):
    source = build(files, "train")
    assert len(source) == 2 * (len(range(0, 30 - 8, 3)) + len(range(0, 12 - 8, 3)))
    assert [r.subject_source for r in source.recordings] == [
        f"S{n} Seq1 camera {camera}" for n in (1, 2) for camera in (0, 8)
    ]
    assert source.has_3d and source.input_2d == "ground_truth" and source.num_joints == 17
    frames = make_train()["S1 Seq1"][0]["8"]
    clip = source[len(range(0, 22, 3)) + 1]  # the second clip of the second camera
    pixels = frames["data_2d"][3:12][:, FILE_INDEX]
    np.testing.assert_allclose(clip["poses_2d"][..., :2], pixels * 2 / 2048 - 1, atol=1e-6)
    assert (clip["poses_2d"][..., 2] == 1).all()
    relative = frames["data_3d"][3:12] - frames["data_3d"][3:12, [14]]
    expected = relative[:, FILE_INDEX] * 2 / 2048
    np.testing.assert_allclose(clip["poses_3d"], expected, atol=1e-5)
    assert "poses_3d_mm" not in clip


def test_a_test_clip_surrounds_each_valid_frame(files):
    source = build(files, "test")
    content = make_test()
    assert len(source) == sum(int(entry["valid"].sum()) for entry in content.values())
    clip = source[1]  # frame 2 of TS1
    start = source.recordings[0].start
    assert (clip["frame_ids"] - start).tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6]
    last = source[len(source) - 1]
    assert last["subject_source"] == "TS6" and last["mm_per_unit"].tolist() == [960] * 9
    entry = content["TS6"]
    pixels = entry["data_2d"][2, FILE_INDEX] * 2 / 1920 - (1, 1080 / 1920)
    np.testing.assert_allclose(last["poses_2d"][4, :, :2], pixels, atol=1e-6)
    np.testing.assert_allclose(last["poses_3d_mm"][4], entry["data_3d"][2, FILE_INDEX], rtol=1e-6)


@pytest.mark.parametrize("clip_len", [1, 2, 9])
def test_windows_repeat_the_ends(clip_len):
    rows = windows_around(np.arange(5), 5, clip_len)
    padded = np.pad(np.arange(5), (clip_len // 2, clip_len), mode="edge")
    for centre in range(5):
        assert rows[centre].tolist() == padded[centre : centre + clip_len].tolist()


def make_model(clip_len):
    """Makes a prediction that depends on the whole window, in Human3.6M's joint order."""
    rng = np.random.default_rng(2)
    weight, bias = rng.normal(0, 0.1, (2, 3)), rng.normal(0, 0.05, (17, 3))
    ramp = np.linspace(-0.1, 0.2, clip_len)

    def predict(poses_2d):
        context = np.einsum("t,btjc->bjc", ramp, poses_2d)
        return np.tanh((poses_2d + context[:, None]) @ weight + bias)

    return predict


def score_by_hand(content, predict, clip_len, names):
    """Computes the protocol in plain loops over frames, in the file's joint order."""
    errors, inside, at_threshold = [], [], []
    for name in names:
        width, height = SIZES.get(name, (2048, 2048))
        entry = content[name]
        half = clip_len // 2
        pixels = np.pad(entry["data_2d"], ((half, half), (0, 0), (0, 0)), mode="edge")
        for frame in range(len(entry["valid"])):
            if not entry["valid"][frame]:
                continue
            window = np.stack(
                [pixels[frame : frame + clip_len, FILE_INDEX[j]] for j in range(17)], axis=1
            )
            x = window[..., 0] / width * 2 - 1
            y = window[..., 1] / width * 2 - height / width
            both = []
            for sign, swap in ((1, {}), (-1, {"l": "r", "r": "l"})):
                order = [
                    H36M17.joints.index(swap.get(j[0], j[0]) + j[1:] if j[1] == "_" else j)
                    for j in H36M17.joints
                ]
                pred = predict(np.stack([sign * x, y], -1)[None][:, :, order])[0, half]
                pred = pred[order]
                both.append(pred * (sign, 1, 1))
            pred = (both[0] + both[1]) / 2
            pred[0] = 0
            target = entry["data_3d"][frame] - entry["data_3d"][frame, 14]
            distances = {}
            for j, file_joint in enumerate(FILE_INDEX):
                difference = pred[j] * width / 2 - target[file_joint]
                distances[file_joint] = float(np.sqrt((difference**2).sum()))
            errors.append(sum(distances.values()) / 17)
            for file_joint in range(14):
                inside.append(distances[file_joint] < 150)
                hits = [distances[file_joint] < t for t in range(0, 151, 5)]
                at_threshold.append(sum(hits) / 31)
    return [sum(values) / len(values) for values in (errors, inside, at_threshold)]


def test_figures_are_those_of_plain_loops_over_the_file(tmp_path):
    content = make_test({"TS1": 12, "TS2": 5, "TS6": 9})
    for entry in content.values():  # near enough for some joints to be close
        entry["data_3d"] = entry["data_3d"] * 0.25
    path = write(content, tmp_path / "test.npz")
    source = build(MpiInf3dhpConfig("", path), "test")
    predict = make_model(9)
    report = evaluate(predict, source, batch_size=4)
    assert report.clips == report.frames == 6 + 3 + 5
    for names, found in (
        (("TS1", "TS2", "TS6"), vars(report)),
        *(((name,), report.per_sequence[name]) for name in content),
    ):
        mpjpe, pck, auc = score_by_hand(content, predict, 9, names)
        np.testing.assert_allclose(found["mpjpe_mm"], mpjpe, rtol=1e-5)
        np.testing.assert_allclose([found["pck"], found["auc"]], [pck, auc], rtol=1e-9)
        assert 0.05 < pck < 0.95 and 0 < auc < pck


def test_the_report_can_be_saved_and_shown(files, tmp_path, capsys):
    report = evaluate(make_model(9), build(files, "test"))
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["per_sequence"].keys() == {"TS1", "TS5", "TS6"}
    assert saved["pck"] == report.pck and saved["input_2d"] == "ground_truth"
    rich.print(report.table())
    shown = capsys.readouterr().out
    assert (
        "TS5" in shown and f"{report.mpjpe_mm:.2f}" in shown and f"{100 * report.pck:.2f}" in shown
    )
    assert f"{report.mpjpe_mm:.1f} mm" in report.summary()


def test_baselines_are_scored_by_the_protocol(files):
    reports = baselines.evaluate_baselines(build(files, "train"), build(files, "test"))
    for report in reports.values():
        assert np.isfinite(report.mpjpe_mm) and 0 <= report.auc <= report.pck <= 1
        report.table("with a title")


def test_a_prediction_that_diverged_shows_as_no_figure(files):
    report = evaluate(lambda p: np.full((*p.shape[:-1], 3), np.nan), build(files, "test"))
    saved = json.loads(report.to_json())
    assert saved["mpjpe_mm"] is None and saved["pck"] is None and saved["auc"] is None


def test_an_unknown_protocol_is_named(files):
    source = build(files, "test")
    source.protocol = "3dhp"
    with pytest.raises(DataError, match="'3dhp', expected one of h36m, mpi_inf_3dhp"):
        evaluate(make_model(9), source)


def test_reading_changes_nothing(files):
    """Arrays of the file are read-only, and two readings agree although others were built."""
    a = build(files, "test")[0]
    a["poses_2d"][:] = 0
    b, again = build(files, "test")[0], build(files, "test")[0]
    assert b["poses_2d"].any()
    np.testing.assert_array_equal(b["poses_2d"], again["poses_2d"])


def test_detections_are_not_there(files):
    with pytest.raises(DataError, match="ground_truth"):
        build(files, "train", input_2d="detected")


def damaged(change, make=make_test):
    content = make()
    change(content)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "data is a dict of 0"),
        ([1, 2], r"data"),
        (damaged(lambda c: c["TS1"].pop("valid")), "'TS1': there is no valid"),
        (damaged(lambda c: c["TS1"].pop("data_2d")), "'TS1': there is no data_2d"),
        (damaged(lambda c: c.update(TS7=c["TS1"])), "TS7"),
        (damaged(lambda c: c["TS1"].update(valid=np.ones(3))), r"valid has shape \(3,\)"),
        (
            damaged(lambda c: c["TS5"].update(data_3d=c["TS5"]["data_3d"][:3])),
            r"'TS5': data_3d has shape \(3, 17, 3\)",
        ),
        (damaged(lambda c: c["TS5"]["data_3d"].__setitem__((1, 2, 0), np.nan)), "data_3d is nan"),
        (damaged(lambda c: c.update(TS1=3)), "'TS1': there is no data_2d; found a int"),
        (make_train(), "S1 Seq1.*data_test_3dhp.npz"),
    ],
)
def test_what_is_wrong_with_a_test_file_is_named(tmp_path, content, message):
    options = MpiInf3dhpConfig("", write(content, tmp_path / "broken.npz"))
    with pytest.raises(DataError, match=message) as caught:
        build(options, "test")
    assert "broken.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_test(), "test sequences.*test_path"),
        ({"S1 Seq1": {}}, "expected a list"),
        ({"S1 Seq1": [{}, 25]}, "has no cameras"),
        ({"S1 Seq1": [{"0": {"data_2d": np.zeros((3, 17, 2))}}, 25]}, "camera 0: there is no"),
    ],
)
def test_what_is_wrong_with_a_training_file_is_named(tmp_path, content, message):
    options = MpiInf3dhpConfig(write(content, tmp_path / "broken.npz"), "")
    with pytest.raises(DataError, match=message):
        build(options, "train")


class Hostile:
    def __reduce__(self):
        return print, ("this must never run",)


def test_files_that_are_not_what_they_should_be(tmp_path, capsys):
    def fails(path, message):
        with pytest.raises(DataError, match=message):
            build(MpiInf3dhpConfig("", str(path)), "test")

    fails(tmp_path / "none.npz", "test_path")
    whole = (tmp_path / "whole.npz", make_test())
    write(whole[1], whole[0])
    content = whole[0].read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 10):
        (tmp_path / "cut.npz").write_bytes(content[:length])
        fails(tmp_path / "cut.npz", "cut.npz: not a complete .npz file")
    np.savez(tmp_path / "other.npz", poses=np.zeros(3))
    fails(tmp_path / "other.npz", r"no array 'data'; it has \['poses'\]")
    np.savez(tmp_path / "numbers.npz", data=np.zeros(3))
    fails(tmp_path / "numbers.npz", "float64, expected a pickled dictionary")
    np.savez(tmp_path / "hostile.npz", data=np.array(Hostile(), dtype=object))
    fails(tmp_path / "hostile.npz", "could run code")
    with zipfile.ZipFile(tmp_path / "junk.npz", "w") as archive:
        archive.writestr("data.npy", b"junk")
    fails(tmp_path / "junk.npz", "no complete .npy array")
    assert "never run" not in capsys.readouterr().out

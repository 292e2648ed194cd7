"""Choosing a source, and what every source must hold to."""

import dataclasses

import numpy as np
import pytest
from mpi_files import make_test, make_train, write

from posemamba_jax import data
from posemamba_jax.data.clips import DataError
from posemamba_jax.data.sources.h36m import H36MConfig
from posemamba_jax.data.sources.mpi_inf_3dhp import MpiInf3dhpConfig
from posemamba_jax.data.sources.synthetic import SyntheticConfig
from posemamba_jax.errors import UserError
from posemamba_jax.evaluation import evaluate


@pytest.fixture(scope="module", params=["h36m", "synthetic", "mpi_inf_3dhp"])
def config(request, data_dir, tmp_path_factory):
    mpi = tmp_path_factory.mktemp("mpi")
    return data.DataConfig(
        source=request.param,
        clip_len=27,
        train_stride=9,
        input_2d="ground_truth" if request.param == "mpi_inf_3dhp" else "detected",
        h36m=H36MConfig(
            str(data_dir / "h36m_tiny.pkl"), cache_dir=str(tmp_path_factory.mktemp("cache"))
        ),
        synthetic=SyntheticConfig(num_train_clips=3, num_test_clips=3),
        mpi_inf_3dhp=MpiInf3dhpConfig(
            write(make_train(), mpi / "train.npz"), write(make_test(), mpi / "test.npz")
        ),
    )


def test_clips_have_the_shapes_and_types_of_the_contract(config):
    source = data.build(config, "test")
    assert source.name == config.source and source.clip_len == 27 and source.num_joints == 17
    assert source.fps > 0 and len(source) > 0
    clip = source[len(source) - 1]
    shapes = {"poses_2d": (27, 17, 3), "poses_3d": (27, 17, 3), "poses_3d_mm": (27, 17, 3)}
    for key, shape in {**shapes, "mm_per_unit": (27,)}.items():
        assert clip[key].shape == shape and clip[key].dtype == np.float32, key
        assert np.isfinite(clip[key]).all(), key
    assert clip["frame_ids"].shape == (27,) and clip["frame_ids"].dtype == np.int64
    assert isinstance(clip["subject_source"], str) and isinstance(clip["action"], str)


def test_reading_a_clip_again_gives_the_same_one(config):
    a, b = (data.build(config, "train")[1] for _ in range(2))
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_every_source_can_be_evaluated(config):
    report = evaluate(lambda p: np.zeros((*p.shape[:-1], 3)), data.build(config, "test"))
    assert np.isfinite([report.mpjpe_mm, report.p_mpjpe_mm]).all()
    assert report.input_2d == config.input_2d
    assert f"{report.mpjpe_mm:.1f} mm" in report.summary()


@pytest.mark.parametrize("name", ["h36m", "synthetic"])
def test_ground_truth_input_is_the_projection_of_the_target(data_dir, tmp_path, name):
    config = data.DataConfig(
        source=name,
        clip_len=27,
        input_2d="ground_truth",
        h36m=H36MConfig(str(data_dir / "h36m_tiny.pkl"), cache_dir=str(tmp_path)),
        synthetic=SyntheticConfig(num_train_clips=3, num_test_clips=3),
    )
    exact, detected = (
        data.build(dataclasses.replace(config, input_2d=kind), "test")[0]
        for kind in ("ground_truth", "detected")
    )
    np.testing.assert_array_equal(exact["poses_3d"], detected["poses_3d"])
    assert (exact["poses_2d"][..., 2] == 1).all() and (detected["poses_2d"][..., 2] < 1).any()
    assert (exact["poses_2d"][..., :2] != detected["poses_2d"][..., :2]).any()
    if name == "h36m":
        np.testing.assert_array_equal(exact["poses_2d"][..., :2], exact["poses_3d"][..., :2])


@pytest.mark.parametrize("input_2d", ["ground_truth", "detected"])
def test_a_score_is_never_one_of_depth_alone(data_dir, tmp_path, input_2d):
    """Right depth with wrong x and y is wrong, also where the input says what x and y are."""
    config = data.DataConfig(
        source="h36m",
        clip_len=27,
        input_2d=input_2d,
        h36m=H36MConfig(str(data_dir / "h36m_tiny.pkl"), cache_dir=str(tmp_path)),
    )
    source = data.build(config, "test")
    answers = {source[i]["poses_2d"][..., :2].tobytes(): i for i in range(len(source))}

    def right_depth(poses_2d):
        pred = np.zeros((*poses_2d.shape[:-1], 3))
        for n, clip in enumerate(poses_2d):
            target = source[answers[clip.tobytes()]]["poses_3d"][..., 2]
            pred[n, ..., 2] = target - target[:, :1]
        return pred

    report = evaluate(right_depth, source, flip=False)
    zero = evaluate(lambda p: np.zeros((*p.shape[:-1], 3)), source, flip=False)
    assert report.input_2d == input_2d and 100 < report.mpjpe_mm < zero.mpjpe_mm


def test_unknown_sources_and_splits_are_named():
    with pytest.raises(DataError, match="'cmu'.*h36m, mocap, synthetic, mpi_inf_3dhp"):
        data.build(data.DataConfig(source="cmu"), "train")
    with pytest.raises(DataError, match="'validation'"):
        data.build(data.DataConfig(source="synthetic"), "validation")
    assert issubclass(DataError, UserError), "programs show it without a traceback"


@pytest.mark.parametrize(
    "option", [{"clip_len": 0}, {"train_stride": 0}, {"flip_probability": 1.1}]
)
def test_numbers_out_of_range_are_named(option):
    with pytest.raises(ValueError, match=f"data.{next(iter(option))}"):
        data.DataConfig(**option)

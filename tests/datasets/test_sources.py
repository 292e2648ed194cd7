"""Choosing a source, and what every source must hold to."""

import numpy as np
import pytest

from posemamba_jax import data
from posemamba_jax.data.clips import DataError
from posemamba_jax.data.h36m import H36MConfig
from posemamba_jax.data.synthetic import SyntheticConfig
from posemamba_jax.errors import UserError
from posemamba_jax.evaluation import evaluate


@pytest.fixture(scope="module", params=["h36m", "synthetic"])
def config(request, data_dir, tmp_path_factory):
    return data.DataConfig(
        source=request.param,
        clip_len=27,
        train_stride=9,
        h36m=H36MConfig(
            str(data_dir / "h36m_tiny.pkl"), cache_dir=str(tmp_path_factory.mktemp("cache"))
        ),
        synthetic=SyntheticConfig(num_train_clips=3, num_test_clips=3),
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
    assert np.isfinite([report.mpjpe_mm, report.p_mpjpe_mm, report.n_mpjpe_mm]).all()


def test_unknown_sources_and_splits_are_named():
    with pytest.raises(DataError, match="'cmu'.*h36m, mocap, synthetic"):
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

"""Readers and converters given what others made: bounded, and nothing wrong without a word."""

import os
import pickle
import time

import numpy as np
import pytest

from posemamba_jax.convert import ConvertError, config_from_torch, from_torch, release_shapes
from posemamba_jax.data.sources import h36m_cache
from posemamba_jax.errors import DataError
from posemamba_jax.files import restricted_pickle, writing
from posemamba_jax.files.numbering import find_step, number_names
from posemamba_jax.model import PoseMambaConfig


def numbers(*names):
    return list(number_names(list(names), what="files", order="their names").numbers.values())


def test_the_number_that_changes_is_the_frames():
    assert numbers("frame0_2d.json", "frame9_2d.json", "frame10_2d.json") == [0, 9, 10]
    assert numbers("cam1_007.json", "cam1_008.json") == [7, 8]
    assert numbers("12_a.jpg", "13_b.jpg") == [12, 13]
    assert numbers("v2_take3.json") == [3]
    assert numbers("a1_1.json", "a2_1.json", "a1_2.json") == [0, 1, 2]  # Two numbers change.
    assert numbers("left.json", "right.json") == [0, 1]
    assert numbers("1" * 5000 + "_1.json", "2" * 5000 + "_1.json") == [0, 1]


def test_equal_steps_are_frames_and_gaps_are_told():
    assert find_step(list(range(0, 2400, 40))) == 40
    assert find_step([0, 40, 80, 160, 200, 240]) == 40  # One is missing.
    assert find_step([0, 10, 40]) == find_step([3]) == find_step([1, 2, 3]) == 1
    found = number_names(
        [f"{33 + 40 * i}.jpg" for i in range(9) if i != 4], what="images", order="x"
    )
    assert list(found.numbers.values()) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert (found.origin, found.step) == (33, 40)
    steps, gaps = found.notes
    assert "steps of 40" in steps and "1 of 9 frames" in gaps and "first of them 193" in gaps


def test_a_pickle_of_nested_pairs_takes_no_time(tmp_path):
    value = ()
    for _ in range(200):  # 2^200 values for a reader that follows every path
        value = (value, value)
    (tmp_path / "nested.pkl").write_bytes(pickle.dumps([value]))
    assert len(restricted_pickle.load(tmp_path / "nested.pkl")) == 1


@pytest.fixture(scope="module")
def weights():
    """A state dict of the release's kind."""
    config = PoseMambaConfig(dim=8, depth=1, num_frames=9, state_size=4)
    return {key: np.zeros(shape, np.float32) for key, shape in release_shapes(config).items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"head.1.bias": w["head.1.bias"] * np.nan}, r"head.1.bias\[0\] is nan"),
        (lambda w: w | {"head.1.bias": np.full(3, np.inf)}, r"is inf, not a number \(3 of 3"),
        (lambda w: w | {"head.1.bias": np.full(3, 1e300)}, "is 1e[+]300, more than float32"),
        (lambda w: w | {"module.head.1.bias": w["head.1.bias"]}, "both head.1.bias and module."),
        (lambda w: w | {7: w["head.1.bias"]}, "key 7 is a int"),
    ],
)
def test_weights_that_cannot_be_right_are_refused(weights, change, message):
    with pytest.raises(ConvertError, match=message) as caught:
        from_torch(change(weights))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["meta", "sparse", "quantised"])
def test_tensors_without_plain_numbers_are_refused(weights, kind):
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(3)
    odd = {
        "meta": lambda: tensor.to("meta"),
        "sparse": lambda: tensor.to_sparse(),
        "quantised": lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    }[kind]()
    for read in (from_torch, config_from_torch):
        with pytest.raises(ConvertError, match=f"head.1.bias is .*{kind}"):
            read(weights | {"head.1.bias": odd})


def test_what_a_killed_conversion_left_is_removed(tmp_path):
    for name in (
        ".poses-cache-1234.0a.part",
        ".poses-cache-5678.0b.part",
        ".poses-cache-9.0c.part",
    ):
        (tmp_path / name / "inside").mkdir(parents=True)
        if "-9." not in name:
            os.utime(tmp_path / name, (time.time() - 3600,) * 2)
    held = writing._hold(tmp_path / ".poses-cache-5678.0b.part")  # Somebody is still writing it.
    writing.remove_abandoned(tmp_path, "poses-cache")
    os.close(held)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".poses-cache-5678.0b.part", ".poses-cache-9.0c.part"]


def test_a_damaged_cache_of_an_earlier_file_is_no_obstacle(tmp_path):
    (tmp_path / "poses-cache-aaaa").mkdir()
    (tmp_path / "poses-cache-aaaa" / "cache.json").write_text("")
    (tmp_path / "poses-cache-bbbb").mkdir()
    (tmp_path / "poses-cache-bbbb" / "cache.json").write_text('{"source": "x"}')
    h36m_cache._remove_outdated(tmp_path / "poses-cache-bbbb")


def test_a_damaged_cache_is_named(tmp_path):
    file = tmp_path / "poses.pkl"
    file.write_bytes(b"")
    folder = h36m_cache.cache_folder(file)
    folder.mkdir()
    (folder / "cache.json").write_text("")
    with pytest.raises(DataError, match=f"the cache {folder} is damaged.*delete it"):
        h36m_cache.open_split(file, "train")

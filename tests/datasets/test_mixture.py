"""Mixtures of sources: shares, order, resuming, processes, and clips without 3D poses."""

import itertools
import json

import numpy as np
import pytest
from files_2d import write_instavariety
from skeletons import HAND21, REVERSED
from test_pipeline import NumberedClips, assert_equal_batches, numbers

from posemamba_jax import data
from posemamba_jax.data.augment import AugmentConfig
from posemamba_jax.data.clips import ArrayClips, DataError, Recording
from posemamba_jax.data.mixture import Mixture, MixtureConfig
from posemamba_jax.data.pipeline import steps_per_epoch, train_batches
from posemamba_jax.data.sources.instavariety import InstaVarietyConfig
from posemamba_jax.data.sources.synthetic import SyntheticConfig
from posemamba_jax.evaluation import baselines
from posemamba_jax.skeleton import H36M17


class Shifted(NumberedClips):
    """Clips with numbers from `first`."""

    def __init__(self, clips, first):
        super().__init__(clips)
        self.first = first

    def __getitem__(self, i):
        clip = super().__getitem__(i)
        return {**clip, "poses_2d": clip["poses_2d"] + np.float32([0, self.first, 0])}


def make_mixture(sizes=(12, 5), weights=None, join_epochs=None):
    """Makes a mixture whose second source has clips from number 100, the third from 200."""
    sources = [Shifted(size, 100 * n) for n, size in enumerate(sizes)]
    return Mixture(sources, weights, join_epochs)


def drawn(mixture, epochs, seed=3):
    """Lists the clips at the positions of some epochs, an epoch a list."""
    size = mixture.clips_per_epoch
    return [
        [mixture.clip_at(p, seed) for p in range(e * size, (e + 1) * size)] for e in range(epochs)
    ]


def stream(mixture, **options):
    return train_batches(
        mixture, **{"batch_size": 4, "seed": 3, "num_threads": 0, "flip_probability": 0, **options}
    )


def test_without_weights_every_clip_comes_once_an_epoch():
    mixture = make_mixture((12, 5))
    assert mixture.clips_per_epoch == len(mixture) == 17 and steps_per_epoch(mixture, 4) == 5
    epochs = drawn(mixture, 4)
    for epoch in epochs:
        assert sorted(epoch) == list(range(17))
    assert len(set(map(tuple, epochs))) == 4


@pytest.mark.parametrize("weights", [(3, 1), (1, 3), (1, 1), (0.7, 0.2)])
def test_sources_have_their_shares_in_every_epoch(weights):
    mixture = make_mixture((12, 5), weights)
    share = weights[0] / sum(weights)
    assert mixture.clips_per_epoch == round(12 / share)
    for epoch in drawn(mixture, 5):
        first = sum(clip < 12 for clip in epoch)
        assert abs(first - 12) <= 1, "an epoch shows the first source once"


def test_a_source_shows_all_its_clips_before_any_comes_again():
    mixture = make_mixture((12, 5), (1, 1))  # 24 positions an epoch
    of_second = [clip - 12 for epoch in drawn(mixture, 5) for clip in epoch if clip >= 12]
    rounds = [of_second[i : i + 5] for i in range(0, 60, 5)]
    for clips in rounds:
        assert sorted(clips) == list(range(5))
    assert len(set(map(tuple, rounds))) > 1


def test_places_of_the_sources_are_mixed():
    mixture = make_mixture((500, 500))
    is_first = np.array(drawn(mixture, 1)[0]) < 500
    halves = is_first[:500].mean(), is_first[500:].mean()
    assert all(abs(share - 0.5) < 0.1 for share in halves)


def test_sources_join_at_their_epoch():
    mixture = make_mixture((12, 5, 4), (2, 1, 1), (0, 2, 3))
    counts = [
        np.bincount(np.digitize(epoch, [12, 17]), minlength=3).tolist()
        for epoch in drawn(mixture, 5)
    ]
    assert counts == [[24, 0, 0], [24, 0, 0], [16, 8, 0], [12, 6, 6], [12, 6, 6]]
    # What was shown before counts: the first source goes on where it was.
    of_first = [clip for epoch in drawn(mixture, 5) for clip in epoch if clip < 12]
    for i in range(0, 84, 12):
        assert sorted(of_first[i : i + 12]) == list(range(12))


def test_the_seed_decides():
    mixture = make_mixture((12, 5))
    assert drawn(mixture, 2) == drawn(make_mixture((12, 5)), 2)
    assert drawn(mixture, 2) != drawn(mixture, 2, seed=4)


def test_batches_follow_the_stream_and_resume():
    mixture = make_mixture((12, 5), (1, 1))
    whole = list(itertools.islice(stream(mixture, flip_probability=0.5), 14))
    expected = [
        i if i < 12 else 100 + i - 12 for i in (mixture.clip_at(p, 3) for p in range(4 * 14))
    ]
    assert [n for batch in whole for n in numbers(batch)] == expected
    for taken, threads in ((0, 0), (3, 0), (7, 2)):
        first = stream(mixture, flip_probability=0.5)
        list(itertools.islice(first, taken))
        state = json.loads(json.dumps(first.get_state()))
        resumed = stream(
            make_mixture((12, 5), (1, 1)), flip_probability=0.5, num_threads=threads, prefetch=4
        )
        resumed.set_state(state)
        assert_equal_batches(list(itertools.islice(resumed, 14 - taken)), whole[taken:])


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (((12, 6), (1, 1), (0, 2)), "clips"),
        (((12, 5), (1, 2), (0, 2)), "weights"),
        (((12, 5), (1, 1), (0, 3)), "join_epochs"),
    ],
)
def test_a_state_of_another_mixture_is_refused(other, key):
    state = stream(make_mixture((12, 5), (1, 1), (0, 2))).get_state()
    with pytest.raises(DataError, match=key):
        stream(make_mixture(*other)).set_state(state)


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_batches(process_count):
    whole = list(itertools.islice(stream(make_mixture()), 6))
    shares = [
        list(
            itertools.islice(
                stream(make_mixture(), process_index=p, process_count=process_count), 6
            )
        )
        for p in range(process_count)
    ]
    for step, batch in enumerate(whole):
        together = sorted(n for share in shares for n in numbers(share[step]))
        assert together == sorted(numbers(batch))


def make_2d(rows=27, seed=0, input_2d="detected"):
    poses = np.random.default_rng(seed).uniform(-1, 1, (rows, 17, 3)).astype(np.float32)
    poses[..., 2] = 0.5
    poses[4, 0] = 0  # a frame without its root
    return ArrayClips(
        "flat",
        [Recording("a", "", 0, rows)],
        skeleton=H36M17,
        poses_2d=poses,
        clip_len=3,
        stride=3,
        fps=30.0,
        input_2d=input_2d,
    )


def test_clips_without_3d_are_marked_and_weighted_by_confidence():
    flat = make_2d()
    mixture = Mixture([NumberedClips(9), flat])
    assert not mixture.has_3d
    augmentation = AugmentConfig(mask_joints=0.5)
    batches = itertools.islice(stream(mixture, flip_probability=0.5, augmentation=augmentation), 18)
    seen = 0
    for batch in batches:
        assert batch.keys() == {"poses_2d", "poses_3d", "has_3d", "weights_2d"}
        assert batch["has_3d"].dtype == bool and batch["weights_2d"].shape == (4, 3, 17)
        for i in range(4):
            if batch["has_3d"][i]:
                assert (batch["weights_2d"][i] == 0).all()
                continue
            target, weights = batch["poses_3d"][i], batch["weights_2d"][i]
            originals = [flat[n]["poses_2d"] for n in range(len(flat))]
            originals += [H36M17.flip(pose) for pose in originals]
            (match,) = [pose for pose in originals if (pose[..., :2] == target[..., :2]).all()]
            assert (target[..., 2] == 0).all(), "no depth is made up"
            rootless = match[:, 0, 2] == 0
            np.testing.assert_array_equal(weights[~rootless], match[~rootless][..., 2])
            assert (weights[rootless] == 0).all()
            shown = (batch["poses_2d"][i] != 0).any(-1)
            assert 0 < shown.mean() < 1, "masks are on the input, not on the target"
            seen += 1
    assert seen == 36


def test_sources_with_3d_alone_make_plain_batches():
    assert next(stream(make_mixture())).keys() == {"poses_2d", "poses_3d"}


def test_a_mixture_is_built_from_the_configuration(tmp_path):
    config = data.DataConfig(
        source="mixture",
        clip_len=9,
        mixture=MixtureConfig(
            ("synthetic", "instavariety"), (3.0, 1.0), input_2d=("ground_truth", "detected")
        ),
        synthetic=SyntheticConfig(num_train_clips=6, num_test_clips=2),
        instavariety=InstaVarietyConfig(**write_instavariety(tmp_path / "insta")),
    )
    train, test = data.build(config, "train"), data.build(config, "test")
    assert [source.name for source in train.sources] == ["synthetic", "instavariety"]
    assert train.sources[0].input_2d == "ground_truth" and train.clips_per_epoch == 8
    assert test.name == "synthetic" and len(test) == 2 and test.input_2d == "ground_truth"
    assert baselines.fit(train).keys() == {"mean pose", "linear regression"}
    with pytest.raises(DataError, match="no 3D poses"):
        baselines.fit(Mixture(train.sources[1:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (1.0,)}, "data.mixture.weights: has 1 values for 2 sources"),
        ({"weights": (1.0, 0.0)}, "data.mixture.weights"),
        ({"join_epochs": (1, 2)}, "from epoch 0"),
        ({"join_epochs": (0, -2)}, "data.mixture.join_epochs"),
        ({"input_2d": ("detected", "guessed")}, "guessed"),
    ],
)
def test_lists_that_do_not_go_together_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MixtureConfig(sources=("synthetic", "posetrack"), **options)


def test_sources_that_cannot_be_mixed_are_named():
    for mixture, message in (
        (MixtureConfig(), "data.mixture.sources is empty"),
        (MixtureConfig(("synthetic", "cmu")), "'cmu'"),
        (MixtureConfig(("mixture",)), "'mixture'"),
    ):
        with pytest.raises(DataError, match=message):
            data.build(data.DataConfig(source="mixture", mixture=mixture), "train")
    for skeleton, difference in ((HAND21, "joint 0 is 'root'"), (REVERSED, "joint 0 is 'root'")):
        with pytest.raises(DataError, match=difference):
            Mixture([NumberedClips(3), NumberedClips(3, skeleton)])
    with pytest.raises(DataError, match="no training clips"):
        Mixture([NumberedClips(3), NumberedClips(0)])

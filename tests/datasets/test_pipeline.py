"""The stream of training batches."""

import itertools
import json

import numpy as np
import pytest
from skeletons import HAND21, REVERSED

from posemamba_jax.data.clips import DataError
from posemamba_jax.data.pipeline import steps_per_epoch, train_batches
from posemamba_jax.skeleton import H36M17


class NumberedClips:
    """Clip i holds i + 1 in every x and 1000 + i in y, so that a mirrored one shows."""

    name, clip_len, fps = "numbered", 3, 50.0

    def __init__(self, clips, skeleton=H36M17):
        self.clips, self.skeleton, self.read = clips, skeleton, []

    def __len__(self):
        return self.clips

    def __getitem__(self, i):
        self.read.append(i)
        joints = self.skeleton.num_joints
        pose = np.zeros((self.clip_len, joints, 3), np.float32)
        pose[..., 0], pose[..., 1], pose[..., 2] = i + 1, 1000 + i, np.arange(joints)
        return {"poses_2d": pose, "poses_3d": pose + 0.5, "action": "none"}


def numbers(batch):
    """Finds the clip numbers of a batch, mirrored or not."""
    return (batch["poses_2d"][:, 0, 0, 1] - 1000).astype(int).tolist()


def take(stream, count):
    return list(itertools.islice(stream, count))


def stream(clips=10, source=None, **options):
    return train_batches(
        NumberedClips(clips) if source is None else source,
        **{"batch_size": 4, "seed": 3, "num_threads": 0, **options},
    )


def assert_equal_batches(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])


def test_batches_have_the_shapes_of_the_contract():
    batch = next(stream())
    assert batch.keys() == {"poses_2d", "poses_3d"}
    for array in batch.values():
        assert array.shape == (4, 3, 17, 3) and array.dtype == np.float32


def test_every_epoch_holds_every_clip_once_in_a_new_order():
    drawn = [n for batch in take(stream(clips=10), 15) for n in numbers(batch)]
    epochs = [drawn[i : i + 10] for i in range(0, 60, 10)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len(set(map(tuple, epochs))) == len(epochs)


def test_a_batch_may_be_larger_than_the_source():
    assert sorted(numbers(next(stream(clips=2)))) == [0, 0, 1, 1]


def test_the_seed_decides_the_stream():
    assert_equal_batches(take(stream(), 5), take(stream(), 5))
    assert [numbers(b) for b in take(stream(), 5)] != [numbers(b) for b in take(stream(seed=4), 5)]


def test_reading_ahead_in_threads_gives_the_same_stream():
    assert_equal_batches(take(stream(), 8), take(stream(num_threads=3, prefetch=5), 8))


@pytest.mark.parametrize("taken", [0, 1, 4, 7])
@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_resumed_stream_continues_bit_for_bit(taken, num_threads):
    whole = take(stream(), 12)
    first = stream(num_threads=num_threads)
    take(first, taken)
    state = json.loads(json.dumps(first.get_state()))
    resumed = stream(num_threads=num_threads)
    take(resumed, 2)
    resumed.set_state(state)
    assert_equal_batches(take(resumed, 12 - taken), whole[taken:])


def test_resuming_with_another_number_of_processes_continues_the_same_stream():
    whole = take(stream(), 6)
    first = stream()
    take(first, 3)
    shares = [stream(process_index=p, process_count=2) for p in range(2)]
    for share in shares:
        share.set_state(first.get_state())
    halves = [next(share) for share in shares]
    assert sorted(numbers(halves[0]) + numbers(halves[1])) == sorted(numbers(whole[3]))


@pytest.mark.parametrize(
    ("other", "key"),
    [({"clips": 11}, "clips 10"), ({"batch_size": 2}, "batch_size 4"), ({"seed": 5}, "seed 3")],
)
def test_a_state_of_another_stream_is_refused(other, key):
    with pytest.raises(DataError, match=key):
        stream(**other).set_state(stream().get_state())


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_read_disjoint_shares_that_make_up_the_same_batches(process_count):
    whole = take(stream(clips=8), 4)
    sources = [NumberedClips(8) for _ in range(process_count)]
    shares = [
        take(stream(source=source, process_index=p, process_count=process_count), 4)
        for p, source in enumerate(sources)
    ]
    for step, batch in enumerate(whole):
        together = np.concatenate([share[step]["poses_3d"] for share in shares])
        assert together.shape == batch["poses_3d"].shape
        assert sorted(together[:, 0, 0].tolist()) == sorted(batch["poses_3d"][:, 0, 0].tolist())
    # 4 batches of 4 are two epochs of 8 clips; each process read only its own part of them.
    for source in sources:
        assert len(source.read) == 16 // process_count
    first_epoch = [set(source.read[: 8 // process_count]) for source in sources]
    assert set.union(*first_epoch) == set(range(8))
    assert sum(map(len, first_epoch)) == 8


def test_input_and_target_are_mirrored_together_at_the_given_rate():
    batches = take(stream(clips=50, batch_size=50, flip_probability=0.3), 40)
    mirrored = np.stack([b["poses_2d"][:, 0, 0, 0] < 0 for b in batches])
    assert abs(mirrored.mean() - 0.3) < 4 * (0.3 * 0.7 / mirrored.size) ** 0.5
    by_clip = [
        [
            flag
            for b, row in zip(batches, mirrored, strict=True)
            for n, flag in zip(numbers(b), row, strict=True)
            if n == clip
        ]
        for clip in range(5)
    ]
    assert all(0 < sum(flags) < len(flags) for flags in by_clip), (
        "the choice is made anew each epoch"
    )
    source = NumberedClips(50)
    for batch in batches[:2]:
        for i, n in enumerate(numbers(batch)):
            flipped = batch["poses_2d"][i, 0, 0, 0] < 0
            for key in batch:
                expected = H36M17.flip(source[n][key]) if flipped else source[n][key]
                np.testing.assert_array_equal(batch[key][i], expected)


@pytest.mark.parametrize(("probability", "rate"), [(0.0, 0.0), (1.0, 1.0)])
def test_never_and_always_mirroring(probability, rate):
    batches = take(stream(flip_probability=probability), 5)
    assert np.mean([b["poses_2d"][:, 0, 0, 0] < 0 for b in batches]) == rate


@pytest.mark.parametrize(("clips", "steps"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_an_epoch_has_enough_steps_for_every_clip(clips, steps):
    assert steps_per_epoch(NumberedClips(clips), 4) == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "process_count": 2}, "batch_size 3"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"process_index": 1}, "process_index 1"),
        ({"flip_probability": 1.5}, "flip_probability 1.5"),
        ({"source": NumberedClips(0)}, "no training clips"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        stream(**options)


@pytest.mark.parametrize("skeleton", [H36M17, REVERSED, HAND21])
def test_clips_are_mirrored_with_the_pairs_of_their_own_skeleton(skeleton):
    source = NumberedClips(4, skeleton)
    for batch in take(stream(source=source, flip_probability=1.0), 2):
        for n, pose in zip(numbers(batch), batch["poses_3d"], strict=True):
            np.testing.assert_array_equal(pose, skeleton.flip(source[n]["poses_3d"]))

"""Data files with anything in them are read or refused; values that are not finite are found."""

import dataclasses
import functools
import io
import json
import os
import pickle
import tempfile
from pathlib import Path

import files_2d
import h36m_files
import mpi_files
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from posemamba_jax import data
from posemamba_jax.errors import UserError

FUZZ = settings(
    max_examples=int(os.environ.get("POSEMAMBA_FUZZ", "60")),
    deadline=None,
    derandomize=True,
    # What fails is printed as it was found: making it smaller could take minutes.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(content):
    file = io.BytesIO()
    np.savez(file, data=content)
    return file.getvalue()


def boxed(value):
    """Makes of any value an array that holds it."""
    box = np.empty((), object)
    box[()] = value
    return box


class Kind:
    """A kind of file: a good one, and how it is read.

    Args:
      split: that reads it.
      options: key of the configuration -> file or folder under the test's own.
      make: name of file -> content.
      spoil: the same with one NaN, and what the message must name.
    """

    def __init__(self, source, split, options, make, spoil, names):
        self.source, self.split, self.options = source, split, options
        self.make, self.spoil, self.names = make, spoil, names

    def read(self, folder):
        paths = {key: str(folder / name) for key, name in self.options.items()}
        config = data.DataConfig(
            source=self.source,
            clip_len=9,
            input_2d="ground_truth" if self.source == "mpi_inf_3dhp" else "detected",
        )
        options = dataclasses.replace(getattr(config, self.source), **paths)
        source = data.build(dataclasses.replace(config, **{self.source: options}), self.split)
        return source, source[len(source) - 1]


def h36m_content():
    return h36m_files.make_content((12, 10))


def spoil_h36m():
    content = h36m_content()
    content["test"]["joints_2.5d_image"][13, 4, 1] = np.nan
    return {"h.pkl": pickle.dumps(content)}


def spoil_mpi(make, *path):
    content = make((12, 9)) if make is mpi_files.make_train else make()
    *keys, index = path
    array = content
    for key in keys:
        array = array[key]
    array[index] = np.inf
    return {"m.npz": npz(content)}


def spoil_posetrack():
    video = files_2d.make_video()
    video["annotations"][7]["keypoints"][4] = float("nan")
    return {"p/a.json": json.dumps(video).encode()}


def instavariety(spoiled=False):
    rng = np.random.default_rng(0)
    motion = rng.uniform(0.2, 1, (48, 17, 3))
    if spoiled:
        motion[33, 4, 1] = np.nan
    return {"motion.npy": npy(motion), "ids.npy": npy(np.repeat([0.0, 1, 2], 16))}


KINDS = {
    "h36m": Kind(
        "h36m", "test", {"path": "h.pkl"},
        lambda: {"h.pkl": pickle.dumps(h36m_content())},
        spoil_h36m, ("h.pkl", "(13, 4, 1)"),
    ),
    "mpi_train": Kind(
        "mpi_inf_3dhp", "train", {"train_path": "m.npz"},
        lambda: {"m.npz": npz(mpi_files.make_train((12, 9)))},
        lambda: spoil_mpi(mpi_files.make_train, "S2 Seq1", 0, "8", "data_2d", (5, 3, 1)),
        ("m.npz", "S2 Seq1", "camera 8", "data_2d", "(5, 3, 1)"),
    ),
    "mpi_test": Kind(
        "mpi_inf_3dhp", "test", {"test_path": "m.npz"},
        lambda: {"m.npz": npz(mpi_files.make_test())},
        lambda: spoil_mpi(mpi_files.make_test, "TS5", "data_3d", (1, 2, 0)),
        ("m.npz", "TS5", "data_3d", "(1, 2, 0)"),
    ),
    "posetrack": Kind(
        "posetrack", "train", {"folder": "p"},
        lambda: {"p/a.json": json.dumps(files_2d.make_video()).encode()},
        spoil_posetrack, ("a.json", "annotation 7", "4"),
    ),
    "instavariety": Kind(
        "instavariety", "train", {"motion_path": "motion.npy", "id_path": "ids.npy"},
        instavariety, lambda: instavariety(spoiled=True), ("motion.npy", "(33, 4, 1)"),
    ),
}  # fmt: skip

good_files = functools.cache(lambda name: KINDS[name].make())


def write(parent, files):
    """Makes a new folder with these files."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_what_is_not_finite_is_named_with_file_and_place(name, tmp_path):
    kind = KINDS[name]
    kind.read(write(tmp_path, kind.make()))
    folder = write(tmp_path, kind.spoil())
    with pytest.raises(UserError) as caught:
        kind.read(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in (*kind.names, "finite"):
        assert part in message, message


@dataclasses.dataclass(frozen=True)
class Change:
    """Bytes put in place of some others, at a share of the file's length."""

    at: float
    removed: int
    inserted: bytes

    def apply(self, content):
        start = int(self.at * len(content))
        return content[:start] + self.inserted + content[start + self.removed :]


WORDS = [
    b"\x00",
    b"\xff" * 8,
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"{}",
    b"[[",
    b'"',
    b"cos\nmkdir\n",
]
CHANGES = st.lists(
    st.builds(
        Change,
        at=st.floats(0, 1),
        removed=st.sampled_from([0, 1, 2, 8, 1000, 1 << 30]),
        inserted=st.sampled_from([b"", *WORDS]) | st.binary(max_size=6),
    ),
    min_size=1,
    max_size=4,
)


@FUZZ
@given(changes=CHANGES, name=st.sampled_from(list(KINDS)), which=st.integers(0, 1))
def test_changed_files_are_read_or_refused(changes, name, which, tmp_path):
    kind, files = KINDS[name], dict(good_files(name))
    changed = sorted(files)[which % len(files)]
    for change in changes:
        files[changed] = change.apply(files[changed])
    folder = write(tmp_path, files)
    try:
        _, clip = kind.read(folder)
    except UserError as error:
        text = str(error)
        text.encode()
        assert "\n" not in text
    else:
        assert all(np.isfinite(clip[key]).all() for key in ("poses_2d", "poses_3d") if key in clip)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["train", "test", "joint_2d", "source", "action", "S1 Seq1", "TS1", "data_2d",
                 "data_3d", "valid", "images", "annotations", "id", "image_id", "track_id",
                 "keypoints", "0"]
            ),
            inner,
            max_size=4,
        )
        | st.builds(boxed, inner)
        | st.builds(lambda s: np.zeros(s, np.float32), st.lists(st.integers(0, 3), max_size=4))
    ),
    max_leaves=8,
)  # fmt: skip


class Plain(json.JSONEncoder):
    def default(self, value):
        return value.tolist()


@FUZZ
@given(junk=JUNK, name=st.sampled_from(list(KINDS)))
def test_well_formed_files_of_something_else(junk, name, tmp_path):
    kind = KINDS[name]
    files = dict(good_files(name))
    for file in files:
        if file.endswith(".pkl"):
            files[file] = pickle.dumps(junk)
        elif file.endswith(".npz"):
            files[file] = npz(junk if isinstance(junk, np.ndarray) else boxed(junk))
        elif file.endswith(".json"):
            files[file] = json.dumps(junk, cls=Plain).encode()
        else:
            files[file] = npy(junk if isinstance(junk, np.ndarray) else boxed(junk))
    folder = write(tmp_path, files)
    try:
        kind.read(folder)
    except UserError as error:
        text = str(error)
        text.encode()
        assert "\n" not in text

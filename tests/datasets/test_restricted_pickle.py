"""The reader of pickle files lets through arrays and plain containers, and runs nothing."""

import collections
import io
import os
import pickle
import pickletools

import numpy as np
import pytest
from h36m_files import make_content, write

from posemamba_jax.data.clips import DataError
from posemamba_jax.data.sources import h36m
from posemamba_jax.data.sources.h36m import H36MConfig
from posemamba_jax.files.restricted_pickle import load, load_stream


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def save(tmp_path, value, protocol=4):
    return write(value, tmp_path / "file.pkl", protocol)


PLAIN = {
    "text": "žluťoučký",
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"ab"),
    "numbers": [1, 2.5, -(2**70), True, None],
    "tuple": (1, (2, "a")),
    "sets": [{1, 2}, frozenset({"a"})],
    "ordered": collections.OrderedDict(a=1),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers_come_back_as_they_were(tmp_path, protocol):
    loaded = load(save(tmp_path, PLAIN, protocol))
    assert loaded == {**PLAIN, "bytearray": b"ab"} or loaded == PLAIN


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12, dtype=np.float32)[::2],
        np.arange(3, dtype=">f8"),
        np.full((), 1.5),
        np.zeros((0, 17, 2), np.float32),
        np.array([True, False]),
        np.array(["a", "bcd", "ž"]),
        np.array([b"a", b"bcd"]),
        np.array(["a", "bcd", None, 3], object),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_arrays_come_back_as_they_were(tmp_path, protocol, array):
    loaded = load(save(tmp_path, {"a": [array]}, protocol))["a"][0]
    assert loaded.dtype == array.dtype and loaded.shape == array.shape
    np.testing.assert_array_equal(loaded, array)


def test_numpy_scalars_become_plain_values(tmp_path):
    values = [np.float32(1.5), np.int64(3), np.str_("a"), np.bool_(True)]
    assert load(save(tmp_path, values)) == [1.5, 3, "a", True]


@pytest.mark.parametrize("protocol", [2, 4])
def test_files_written_under_numpy_1_are_read(tmp_path, protocol):
    array = np.arange(5.0)
    path = save(tmp_path, {"a": array}, protocol)
    data = path.read_bytes()
    old = data.replace(b"numpy._core", b"numpy.core")
    if protocol == 4:  # the name's length, and that of the frame, come before it
        old = old.replace(b"\x8c\x16numpy.core", b"\x8c\x15numpy.core")
        assert old[2] == 0x95
        old = old[:3] + (int.from_bytes(old[3:11], "little") - 1).to_bytes(8, "little") + old[11:]
    assert old != data
    path.write_bytes(old)
    np.testing.assert_array_equal(load(path)["a"], array)


def test_files_written_by_python_2_are_read(tmp_path):
    # Python 2 wrote an array's bytes, and text, as strings of its own kind.
    content = (
        b"\x80\x02}q\x00(U\x06sourceq\x01]q\x02U\x03s_1q\x03a"
        b"U\x01aq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06"
        b"K\x00\x85q\x07U\x01bq\x08\x87q\tRq\n(K\x01K\x02\x85q\x0bcnumpy\ndtype\nq\x0cU\x02f4q\r"
        b"K\x00K\x01\x87q\x0eRq\x0f(K\x03U\x01<q\x10NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x11"
        b"b\x89U\x08\x00\x00\x80?\x00\x00\x80\xbfq\x12tq\x13bu."
    )
    (tmp_path / "two.pkl").write_bytes(content)
    loaded = load(tmp_path / "two.pkl")
    assert loaded["source"] == ["s_1"]
    np.testing.assert_array_equal(loaded["a"], np.array([1, -1], np.float32))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(os.system, "touch touched"), "posix.system"),
        (Calls(eval, "open('touched', 'w')"), "builtins.eval"),
        (Calls(getattr, "", "format"), "builtins.getattr"),
        (Calls(np.save, "touched.npy", 1), "numpy.save"),
        (Calls(np.fromfile, "touched"), "fromfile"),
        (np.dtype, "numpy.dtype|something other"),
        (os.path.join, "posixpath.join"),
        (collections.Counter("a"), "collections.Counter"),
        (1j, "builtins.complex"),
        (np.ma.ones(3), "numpy.ma"),
        (np.ones(3).view(np.matrix), "matrix"),
    ],
)
def test_anything_else_is_refused_by_name_and_not_run(tmp_path, monkeypatch, value, name):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, {"train": value})
    with pytest.raises(DataError, match=name) as error:
        load(path)
    assert str(path) in str(error.value)
    assert os.listdir(tmp_path) == ["file.pkl"]


@pytest.mark.parametrize(
    "array",
    [
        np.ones(2, complex),
        np.array(["2020-01-01"], "M8[D]"),
        np.ones(2, [("a", "f4"), ("b", "i4")]),
        np.array([object], object),
        np.array([[1], {}], object),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_anything_but_numbers_and_text_are_refused(tmp_path, array):
    with pytest.raises(DataError, match="file.pkl"):
        load(save(tmp_path, array))


def test_admitted_functions_cannot_be_changed_by_a_file(tmp_path):
    # BUILD sets attributes of whatever object precedes it.
    attack = b"c_codecs\nencode\n}(X\x04\x00\x00\x00nameX\x01\x00\x00\x00xub."
    assert "BUILD" in [opcode.name for opcode, _, _ in pickletools.genops(attack)]
    (tmp_path / "file.pkl").write_bytes(attack)
    with pytest.raises(DataError, match="change to a function"):
        load(tmp_path / "file.pkl")


@pytest.mark.parametrize(
    "state", ["(2, '<', None, None, None, -1, -1, 63)", "'<'", "()", "(1, 'x')"]
)
def test_made_up_data_types_do_not_reach_numpy(tmp_path, state):
    class MakesUp:
        def __reduce__(self):
            return np.dtype, ("O8", False, True), eval(state)

    class Array:
        def __reduce__(self):
            return (
                np._core.multiarray._reconstruct,
                (np.ndarray, (0,), b"b"),
                (1, (1,), MakesUp(), False, b"\x41" * 8),
            )

    with pytest.raises(DataError, match="file.pkl"):
        load(save(tmp_path, Array()))


@pytest.mark.parametrize("shape", [(3,), (-1,), (2.0,), (2**62, 4), [2]])
def test_an_array_whose_bytes_do_not_fill_its_shape_is_refused(tmp_path, shape):
    class Array:
        def __reduce__(self):
            state = (1, shape, np.dtype("f4"), False, b"\0" * 8)
            return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state

    with pytest.raises(DataError, match="file.pkl"):
        load(save(tmp_path, Array()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"PK\x03\x04 a zip file",
        b"\x93NUMPY\x01\x00",
        b"<html>\n<body>",
        b"\x80\x04",
        b".",
    ],
)
def test_files_that_are_no_pickles_are_named(tmp_path, content):
    (tmp_path / "file.pkl").write_bytes(content)
    with pytest.raises(DataError, match="file.pkl is not a complete pickle file"):
        load(tmp_path / "file.pkl")


# 2^60 values for a hash, which remembers nothing: pairs of the pair before.
PAIRS = b")q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60))
PROTOCOL = b"\x80\x04"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"}" + PAIRS + b"K\x01s.", "nests keys"),
        (b"}(" + PAIRS + b"K\x01u.", "nests keys"),
        (b"(" + PAIRS + b"K\x01d.", "nests keys"),
        (b"\x8f(" + PAIRS + b"\x90.", "nests keys"),
        (b"(" + PAIRS + b"\x91.", "nests keys"),
        (b"c__builtin__\nset\n]" + PAIRS + b"a\x85R.", "nests keys"),
        (b"(" + b"c__builtin__\nfrozenset\n" + PAIRS + b"o.", "nests keys"),
        (b"})" + b"\x85" * 10000 + b"K\x01s.", "nests keys"),
        (PAIRS + b"Q.", "outside the file"),
        (b"}r\xf0\xff\xff\xff.", "4294967280 places of memory"),
        (b"}p4000000000\n.", "4000000000 places of memory"),
        (b"}p" + b"0" * 40 + b"5\n.", "not a complete pickle"),
    ],
)
def test_what_would_never_end_or_fill_the_memory_is_refused(tmp_path, content, message):
    (tmp_path / "file.pkl").write_bytes(PROTOCOL + content)
    with pytest.raises(DataError, match=f"file.pkl .*{message}"):
        load(tmp_path / "file.pkl")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("most", [1, 7, 1 << 20])
def test_a_pickle_in_pieces_of_any_size_is_read_whole(protocol, most):
    value = {("a", (1, 2)): [{3, 4.5}, frozenset([("b", None)])], "c": ["d"] * 3, "e": b"f" * 300}
    content = pickle.dumps(value | {str(i): str(-i) for i in range(300)}, protocol)

    class Pieces(io.BytesIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:most])

    assert load_stream(Pieces(content), "pieces") == pickle.loads(content)


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "nothing.pkl", tmp_path):
        with pytest.raises(DataError, match=f"cannot open {path}"):
            load(path)


def test_an_interrupt_is_not_mistaken_for_a_damaged_file(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(save(tmp_path, PLAIN), progress=interrupt)


def test_progress_adds_up_to_the_files_size(tmp_path):
    path = save(tmp_path, np.zeros((1 << 20, 5)))
    steps = []
    load(path, progress=steps.append)
    assert sum(steps) == path.stat().st_size
    assert len(steps) > 2


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    path = save(tmp_path, make_content(lengths=(3, 2)))
    whole = path.read_bytes()
    for end in range(0, len(whole), 41):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match="not a complete pickle"):
            load(path)


def test_damaged_files_are_refused_or_give_usable_clips(tmp_path):
    """Bytes changed at random: a clear error, or clips of finite numbers, and nothing else."""
    whole = save(tmp_path, make_content(lengths=(4, 3))).read_bytes()
    structure = places_outside_values(whole)
    rng = np.random.default_rng(0)
    refused = 0
    for case in range(150):
        damaged = bytearray(whole)
        places = structure if case % 2 else range(len(whole))
        for place in rng.choice(places, size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path = tmp_path / f"{case}.pkl"
        path.write_bytes(damaged)
        try:
            clips = h36m.build(H36MConfig(str(path)), clip_len=3, stride=3, split="test")
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            assert all(np.isfinite(array).all() for array in clips.arrays.values())
    assert refused > 50


def places_outside_values(data: bytes) -> list[int]:
    """Lists the positions of all bytes but those of arrays' values."""
    inside = np.zeros(len(data), bool)
    for _, argument, position in pickletools.genops(data):
        if isinstance(argument, bytes) and len(argument) > 64:
            inside[position + 5 : position + 5 + len(argument)] = True
    return np.flatnonzero(~inside).tolist()


def test_dictionaries_saved_by_numpy_load_when_asked_for(tmp_path):
    inner = {"S1": {"Walk": [np.arange(6.0).reshape(3, 2)]}, "name": "é"}
    path = tmp_path / "object.pkl"
    path.write_bytes(pickle.dumps(np.array(inner, object)))
    with pytest.raises(DataError, match="objects other than text and numbers"):
        load(path)
    loaded = load(path, nested=True).item()
    assert loaded["name"] == "é"
    np.testing.assert_array_equal(loaded["S1"]["Walk"][0], inner["S1"]["Walk"][0])


def test_nested_objects_still_run_no_code(tmp_path):
    path = tmp_path / "object.pkl"
    path.write_bytes(pickle.dumps(np.array([{"a": os.system}], object)))
    with pytest.raises(DataError, match="could run code"):
        load(path, nested=True)

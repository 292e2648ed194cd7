"""Files and folders are whole, or as they were before."""

import os
import subprocess
import sys
import time

import pytest

from posemamba_jax.files import writing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_by_what_was_written(tmp_path):
    writing.write_text(tmp_path / "new" / "a.txt", "één\n")
    writing.write_bytes(tmp_path / "new" / "a.txt", b"two")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"two"
    assert names(tmp_path / "new") == ["a.txt"]


@pytest.mark.parametrize("error", [OSError("disk"), ValueError("bug"), KeyboardInterrupt()])
def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), writing.replacing(path) as part:
        assert part.parent == tmp_path and part.suffix == ".png" and part.name.startswith(".")
        part.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        raise error
    assert names(tmp_path) == ["curves.png"] and path.read_bytes() == b"old"


def test_two_that_write_the_same_file_do_not_meet(tmp_path):
    with writing.replacing(tmp_path / "a") as one, writing.replacing(tmp_path / "a") as other:
        one.write_text("one"), other.write_text("other")
    assert (tmp_path / "a").read_text() == "one" and names(tmp_path) == ["a"]


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path):
    with writing.new_folder(tmp_path / "cache") as part:
        (part / "a").write_text("a")
        assert not (tmp_path / "cache").exists()
    assert names(tmp_path / "cache") == ["a"]
    with pytest.raises(OSError), writing.new_folder(tmp_path / "cache") as part:
        (part / "b").write_text("b")
    with pytest.raises(ValueError), writing.new_folder(tmp_path / "other") as part:
        (part / "b").write_text("b")
        raise ValueError
    assert names(tmp_path) == ["cache"] and names(tmp_path / "cache") == ["a"]


def test_what_a_killed_writer_left_is_removed_later(tmp_path):
    """But neither what is being written nor what was begun this moment."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    program = f"""
import os
from posemamba_jax.files.writing import replacing
with replacing({str(path)!r}) as part:
    part.write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    (left,) = tmp_path.glob(".clip.*.part.mp4")
    assert path.read_bytes() == b"old"

    def write():
        writing.write_bytes(path, b"new")
        return names(tmp_path)

    assert write() == [left.name, "clip.mp4"]  # It may be somebody's who has just begun.
    os.utime(left, (time.time() - 3600,) * 2)
    held = writing._hold(left)
    assert write() == [left.name, "clip.mp4"]
    os.close(held)
    (tmp_path / ".clip.notes.part.mp4").write_text("somebody's")
    assert write() == [".clip.notes.part.mp4", "clip.mp4"]

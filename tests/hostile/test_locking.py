"""A folder has one writer at a time, whatever became of the one before."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from posemamba_jax.files import locking
from posemamba_jax.files.locking import InUseError, lock_folder

HOLD = """
import sys
from posemamba_jax.files.locking import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder `run`."""
    program = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_the_first_is(holder, tmp_path):
    with pytest.raises(InUseError) as caught, lock_folder(tmp_path / "run", "run_dir"):
        pass
    said = str(caught.value)
    assert said.startswith(f"run_dir: {tmp_path / 'run'} is in use by process {holder.pid} on ")
    assert os.uname().nodename in said and " since 20" in said and "\n" not in said
    assert (tmp_path / "run" / locking.LOCK_FILE).exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_ends_with_its_owner(holder, tmp_path, number):
    holder.send_signal(number)
    holder.wait()
    # One process can be two writers too, as threads or by mistake.
    again = pytest.raises(InUseError, match=f"process {os.getpid()}")
    with lock_folder(tmp_path / "run"), again, lock_folder(tmp_path / "run"):
        pass
    assert not list((tmp_path / "run").iterdir())


def test_a_lock_of_garbage_is_no_obstacle(tmp_path):
    for content in (b"", b"\xff\xff", b"[]", b'{"pid": "x"}'):
        (tmp_path / locking.LOCK_FILE).write_bytes(content)
        with lock_folder(tmp_path):
            pass


def test_without_locks_an_owner_on_this_machine_is_found(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locking.fcntl, "flock", unsupported)
    with lock_folder(tmp_path):
        assert "no locks" in caplog.text
        with pytest.raises(InUseError), lock_folder(tmp_path):
            pass
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / locking.LOCK_FILE).write_text(
        f'{{"host": "{os.uname().nodename}", "pid": {dead.pid}}}'
    )
    with lock_folder(tmp_path), contextlib.suppress(InUseError):
        pass

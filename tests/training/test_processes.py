"""Several processes: how they meet, share a batch, write checkpoints together and stop as one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from posemamba_jax import data
from posemamba_jax.config import ConfigError, load_config
from posemamba_jax.config.schema import DistributedConfig, MeshConfig
from posemamba_jax.data import pipeline
from posemamba_jax.errors import UserError
from posemamba_jax.files.metrics_file import read_metrics
from posemamba_jax.model import mesh as mesh_lib
from posemamba_jax.training import processes, signals
from posemamba_jax.training.loop import train

ROOT = Path(__file__).parents[2]
STEPS = 24

# train.py, and a note of the training clips that it read.
RECORDING_TRAIN = """
import atexit, json, sys
from posemamba_jax import data
from posemamba_jax.config import run_program

class Recorder:
    def __init__(self, source):
        self.source, self.read = source, []

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        self.read.append(i)
        return self.source[i]

def build(config, split, build=data.build):
    source = build(config, split)
    if split == "train":
        source = Recorder(source)
        atexit.register(lambda: open(note, "w").write(json.dumps(source.read)))
    return source

note = sys.argv.pop(1)
data.build = build
from train import main
run_program(main)
"""


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":12", "localhost:99999", "a:b"])
def test_addresses_that_are_none(address):
    members = ["--distributed.num_processes", "2", "--distributed.process_id", "1"]
    with pytest.raises(ConfigError, match="distributed.coordinator: .*HOST:PORT"):
        load_config([f"--distributed.coordinator={address}", *members])


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_waits_for_others_in_vain_says_where_and_ends(number):
    address = f"127.0.0.1:{free_port()}"
    members = ["--distributed.num_processes=2", f"--distributed.process_id={number}"]
    done = subprocess.run(
        [sys.executable, "train.py", f"--distributed.coordinator={address}", *members,
         "--distributed.timeout=2"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode not in (0, 2)  # JAX ends it from within.
    waiting = f"process {number} of 2: joining the others at {address}, for at most 2 s"
    assert waiting in done.stderr and "DEADLINE_EXCEEDED" in done.stderr


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--distributed.coordinator", "a:1"], "give all three or none"),
        (["--distributed.num_processes", "2"], "give all three or none"),
        (["a:1", "2", "2"], "must be in 0..1"),
        (["a:1", "0", "0"], "distributed.num_processes: 0"),
        (["a:1", "2", "0", "--distributed.auto", "true"], "distributed.auto"),
        (["--distributed.timeout", "0"], "distributed.timeout"),
    ],
)
def test_contradicting_options(options, part):
    if not options[0].startswith("--"):
        keys = ("coordinator", "num_processes", "process_id")
        named = [f"--distributed.{k}={v}" for k, v in zip(keys, options[:3], strict=True)]
        options = [*named, *options[3:]]
    with pytest.raises(ConfigError, match=part):
        load_config(options)


def test_one_process_needs_none_of_this():
    processes.start(DistributedConfig())
    assert jax.process_count() == 1 and processes.is_first()
    with processes.all_or_none("nothing"):
        pass
    assert processes.from_first(2.5) == 2.5
    request = signals.StopRequest()
    stop = processes.AgreedStop(request)
    stop.poll()
    stop.check()
    assert not stop
    request.exit_code = signals.PREEMPTED
    assert stop.exit_code == signals.PREEMPTED
    with pytest.raises(signals.Stopped):
        stop.check()


def test_no_cluster_is_an_error_where_one_is_asked_for():
    done = subprocess.run(
        [sys.executable, "train.py", "--distributed.auto", "true"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "distributed.auto: no cluster" in done.stderr
    assert "Traceback" not in done.stderr


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


@pytest.mark.parametrize(
    ("sizes", "per_process", "shares"),
    [
        ((8, 1, 1), 4, [(0, 2), (1, 2)]),
        ((1, 8, 1), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 1, 4), 4, [(0, 2), (1, 2)]),
        # The inner channels span two processes, which then feed the same clips.
        ((2, 1, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 8), 4, [(0, 1), (0, 1)]),
        ((4, 1, 2), 1, [(i // 2, 4) for i in range(8)]),
        ((3, 1, 4), 6, None),
    ],
)
def test_shares_of_a_batch(sizes, per_process, shares, monkeypatch):
    """Devices in order of their processes, as JAX lists them."""
    ways, tensor = sizes[0] * sizes[1], sizes[2]
    count = ways * tensor
    slices = {
        Device(i // per_process): (slice(i // tensor, i // tensor + 1),) for i in range(count)
    }

    class Sharding:
        def devices_indices_map(self, shape):
            assert shape == (ways,)
            return slices

    class Mesh:
        shape = dict(zip(mesh_lib.AXES, sizes, strict=True))
        devices = np.empty(count)

    monkeypatch.setattr(mesh_lib, "batch_sharding", lambda mesh: Sharding())
    for process in range(count // per_process):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        if shares is None:
            with pytest.raises(ConfigError, match="mesh.tensor: 4"):
                mesh_lib.batch_share(Mesh())
        else:
            assert mesh_lib.batch_share(Mesh()) == shares[process]


def test_one_process_feeds_every_layout():
    for sizes in ((8, 1, 1), (1, 2, 4), (1, 1, 8)):
        assert mesh_lib.batch_share(mesh_lib.make_mesh(MeshConfig(*sizes))) == (0, 1)


class Pair:
    """Two processes of four devices each that run one training."""

    def __init__(self, folder, argv):
        port = free_port()
        environment = {
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4"
            " --xla_backend_optimization_level=0",
        }
        self.programs = []
        for number in range(2):
            command = [
                *(sys.executable, "-c", RECORDING_TRAIN, str(folder / f"read{number}.json"), *argv),
                *("--distributed.coordinator", f"127.0.0.1:{port}"),
                *("--distributed.num_processes", "2", "--distributed.process_id", str(number)),
            ]
            self.programs.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )  # fmt: skip
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for program in self.programs:
            program.kill()

    def finish(self):
        """Returns (exit codes, what each said, what each complained)"""
        found = [program.communicate(timeout=300) for program in self.programs]
        return [p.returncode for p in self.programs], *zip(*found, strict=True)


def wait_for_lines(run_dir, count, program):
    deadline = time.monotonic() + 300
    while len(read_metrics(run_dir)) < count and program.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_train_as_one(make_config, tmp_path):
    options = [
        *("--data.synthetic.num_train_clips", "600", "--train.batch_size", "8"),
        *("--train.steps", str(STEPS), "--train.log_every", "1", "--mesh.fsdp", "8"),
        *("--train.compilation_cache", str(tmp_path / "cache")),
    ]
    alone = make_config(*options, run_dir=tmp_path / "alone")
    assert train(alone).exit_code == signals.FINISHED

    run_dir = tmp_path / "pair"
    config = make_config(*options, run_dir=run_dir)
    run_dir.with_suffix(".yaml").write_text(
        (tmp_path / "alone" / "config.yaml").read_text().replace(str(alone.run_dir), str(run_dir))
    )
    argv = ["--config", str(run_dir.with_suffix(".yaml")), "--resume"]
    reads = [[], []]

    def collect():
        for number in range(2):
            reads[number] += json.loads((tmp_path / f"read{number}.json").read_text())

    # A signal to one of them stops both.
    with Pair(tmp_path, argv) as pair:
        wait_for_lines(run_dir, 5, pair.programs[0])
        pair.programs[1].send_signal(signal.SIGTERM)
        codes, said, complained = pair.finish()
    assert codes == [signals.PREEMPTED] * 2, complained
    collect()
    (stopped,) = {int(p.name) for p in (run_dir / "checkpoints").iterdir()}
    assert 5 <= stopped < STEPS
    params = run_dir / "checkpoints" / str(stopped) / "params"
    assert all((params / f"ocdbt.process_{number}").is_dir() for number in range(2))

    with Pair(tmp_path, argv) as pair:
        codes, said, complained = pair.finish()
    assert codes == [signals.FINISHED] * 2, complained
    assert not any("Traceback" in text for text in complained)
    collect()
    assert f"resuming at step {stopped}" in said[0]
    # The second one leaves speaking to the first.
    # Gloo's threads may cut each other's lines in two.
    gloo = ("Gloo", "peer ranks")
    assert [x for x in said[1].splitlines() if x and not any(w in x for w in gloo)] == []
    assert (run_dir / "poses.png").is_file() and (run_dir / "report.json").is_file()

    rows, expected = read_metrics(run_dir), read_metrics(tmp_path / "alone")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for key in ("loss", "mpjpe_mm"):
        np.testing.assert_allclose(
            [row[key] for row in rows if key in row],
            [row[key] for row in expected if key in row],
            rtol=1e-5,
        )

    # Which clips are whose; each may read a little ahead.
    source = data.build(config.data, "train")
    assert len(source) > (STEPS + 16) * 8
    for number in range(2):
        read, shares = set(reads[number]), []
        for share in range(2):
            recorder = Recorder(source)
            batches = pipeline.train_batches(
                recorder, batch_size=8, seed=config.seed, num_threads=0,
                process_index=share, process_count=2,
            )  # fmt: skip
            for _ in range(STEPS + 16):
                next(batches)
            shares.append(recorder.read)
        assert set(shares[number][: STEPS * 4]) <= read <= set(shares[number])
        assert not read & set(shares[1 - number])


class Recorder:
    """A source that notes what is read."""

    def __init__(self, source):
        self._source, self.read = source, []

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, i):
        self.read.append(i)
        return self._source[i]


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (UserError("the disk is full"), "error: process 1: the disk is full", 2),
        (KeyboardInterrupt(), "interrupted", signals.INTERRUPTED),
        (jax.errors.JaxRuntimeError("peer closed"), "start all processes again with --resume", 1),
        (ZeroDivisionError("1/0"), "Traceback", 1),
    ],
)
def test_an_error_does_not_wait_for_the_others(error, said, code, monkeypatch, capsys):
    class Left(BaseException):
        pass

    def leave(code):
        raise Left(code)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Left) as left, processes.leaving_at_once():
        raise error
    assert left.value.args == (code,)
    assert said in capsys.readouterr().err

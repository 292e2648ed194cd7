"""The configuration: layers, overrides, and errors that say what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from posemamba_jax.config import ConfigError, from_dict, load_config, to_dict, to_yaml
from posemamba_jax.model import PoseMambaConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path):
    def write(text, name="run.yaml"):
        file = tmp_path / name
        file.write_text(text)
        return str(file)

    return write


def error_of(*argv):
    with pytest.raises(ConfigError) as caught:
        load_config(argv)
    return str(caught.value)


def test_defaults_are_the_recipe():
    config = load_config([])
    assert (config.optim.learning_rate, config.optim.decay, config.optim.weight_decay) == (
        2e-4,
        0.99,
        0.01,
    )
    assert (config.train.epochs, config.train.batch_size) == (120, 4)
    assert (config.loss.pos, config.loss.scale, config.loss.velocity, config.loss.diff) == (
        1.0,
        0.5,
        20.0,
        0.5,
    )
    assert (config.data.clip_len, config.model.num_frames) == (243, 243)


def test_command_line_wins_over_file_wins_over_preset(write):
    file = write("model: {preset: B, depth: 3}\noptim: {learning_rate: 1e-3, ema: 0.9}\n")
    config = load_config(["--config", file, "--optim.learning_rate=5e-4", "--optim.ema", "null"])
    assert config.model.dim == PoseMambaConfig.preset("B").dim
    assert config.model.depth == 3
    assert config.optim.learning_rate == 5e-4
    assert config.optim.ema is None


def test_later_files_win(write):
    first, second = write("seed: 1\nmodel: {dim: 32}\n"), write("seed: 2\n", "second.yaml")
    config = load_config(["--config", first, "--config", second])
    assert (config.seed, config.model.dim) == (2, 32)


def test_dumped_configuration_reads_back_equal(write):
    argv = ["--data.source", "synthetic", "--data.clip_len", "27", "--model.preset", "S"]
    config = load_config([*argv, "--model.limb_walk", str([0] * 17), "--optim.clip_norm", "1"])
    assert load_config(["--config", write(to_yaml(config))]) == config
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda f: f.stem)
def test_shipped_configurations_read(file):
    config = load_config(["--config", str(file)])
    assert config.data.clip_len == config.model.num_frames


def test_clip_length_and_position_embedding_follow_each_other():
    for key in ("--data.clip_len", "--model.num_frames"):
        config = load_config([key, "27"])
        assert (config.data.clip_len, config.model.num_frames) == (27, 27)
    config = load_config(["--data.clip_len", "27", "--model.num_frames", "81"])
    assert (config.data.clip_len, config.model.num_frames) == (27, 81)
    assert "clip_len" in error_of("--data.clip_len", "81", "--model.num_frames", "27")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim: {lerning_rate: 1}\n", ("optim.lerning_rate", "optim.learning_rate")),
        ("learning_rate: 1\n", ("learning_rate", "optim.learning_rate")),
        ("optimizer: {beta1: 1}\n", ("optimizer",)),
        ("optim: {learning_rate: fast}\n", ("optim.learning_rate", "number", "fast")),
        ("train: {epochs: 1.5}\n", ("train.epochs", "integer", "1.5")),
        ("train: {resume: maybe}\n", ("train.resume", "true or false", "maybe")),
        ("optim: {schedule: step}\n", ("optim.schedule", "recipe, cosine", "step")),
        ("model: {preset: XL}\n", ("model.preset", "S, B, L", "XL")),
        ("optim: 3\n", ("optim", "section")),
        ("- 1\n", ("sections",)),
        ("optim: {learning_rate: [1\n", ("YAML",)),
        ("train: {batch_size: 0}\n", ("train.batch_size", "0")),
        ("optim: {learning_rate: -1}\n", ("optim.learning_rate", "-1")),
        ("optim: {learning_rate: .nan}\n", ("optim.learning_rate", "nan")),
        ("train: {batch_size: 4, accumulate: 3}\n", ("train.accumulate", "batch_size")),
        ("model: {dim: -4}\n", ("model.dim", "-4")),
        ("loss: {pos: -1}\n", ("pos", "-1")),
        ("data: {clip_len: 0}\n", ("clip_len", "0")),
    ],
)
def test_errors_in_a_file_name_it_and_the_key(write, text, parts):
    file = write(text)
    message = error_of("--config", file)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert message.startswith(file)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (("--optim.lerning_rate", "1"), ("--optim.lerning_rate", "--optim.learning_rate?")),
        (("--lerning_rate", "1"), ("--optim.learning_rate?",)),
        (("--confg", "x.yaml"), ("--config?",)),
        (("--optim.learning_rate", "fast"), ("--optim.learning_rate", "number", "fast")),
        (("--optim.learning_rate",), ("--optim.learning_rate", "give a value")),
        (("--config",), ("--config", "give a file")),
        (("quickstart.yaml",), ("--config quickstart.yaml?",)),
        (("--seed", "-1"), ("--seed", "-1")),
        (("--optim.decay", "2"), ("--optim.decay", "2")),
        (("-seed", "1"), ("-seed", "--seed?")),
    ],
)
def test_errors_on_the_command_line(argv, parts):
    message = error_of(*argv)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nmodel: {dim: 32}\nseed: 2\n", ("seed", "line 1", "line 3")),
        ("optim: {eps: 1}\nseed: 1\noptim:\n  ema: 0.9\n", ("optim", "line 1", "line 3")),
        ("optim:\n  eps: 1\n  ema: 0.9\n  eps: 2\n", ("eps", "line 2", "line 4")),
        ("optim: {eps: 1}\noptim.eps: 2\n", ("optim.eps", "twice")),
        ("train: {epochs: 010}\n", ("train.epochs", "'010'", "write 10")),
        ("optim: {clip_norm: 010}\n", ("optim.clip_norm", "'010'", "write 10")),
        ("train: {epochs: yes}\n", ("train.epochs", "integer", "'yes'")),
        ("train: {epochs: 1:30}\n", ("train.epochs", "integer", "'1:30'")),
        ("train: {epochs: ²}\n", ("train.epochs", "integer")),
        ("data: {mocap: {train: a.bvh}}\n", ("data.mocap.train", "list")),
    ],
)
def test_yaml_that_does_not_say_what_it_seems_to_is_refused(write, text, words):
    file = write(text)
    message = error_of("--config", file)
    assert message.startswith(file)
    for word in words:
        assert word in message


def test_yaml_is_read_as_the_type_of_its_key_says(write):
    config = load_config(
        [
            "--config",
            write(
                "run_dir: no\ntrain: {resume: off, compilation_cache: on, epochs: 0x10}\n"
                "optim: {learning_rate: 1e-4, clip_norm: 1, ema: ~}\n"
                "data: {h36m: {path: 2024, cache_dir: 'null'}, mocap: {train: [yes, 010]}}\n"
            ),
        ]
    )
    assert config.run_dir == "no" and config.train.compilation_cache == "on"
    assert config.train.resume is False and config.train.epochs == 16
    assert (config.optim.learning_rate, config.optim.clip_norm) == (1e-4, 1.0)
    assert config.optim.ema is None
    assert (config.data.h36m.path, config.data.h36m.cache_dir) == ("2024", "null")
    assert config.data.mocap.train == ("yes", "010")


def test_merge_keys_are_not_repetitions(write):
    text = "optim: &a {eps: 1e-3, ema: 0.5}\neval: {flip: false}\nloss: {<<: {pos: 2}, pos: 3}\n"
    config = load_config(["--config", write(text)])
    assert (config.optim.eps, config.loss.pos) == (1e-3, 3.0)


def test_home_is_expanded_in_the_run_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(["--run_dir", "~/run"]).run_dir == str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("run_dir: ~/run\nseed: 5\n")
    config = load_config(["--resume", "~/run"])
    assert (config.run_dir, config.seed, config.train.resume) == (str(tmp_path / "run"), 5, True)


COUNT = "2147483647"


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("seed", 2**63, "at most 4294967295"),
        ("seed", -1, "at least 0"),
        ("data.synthetic.seed", 2**63, "at most 9223372036854775807"),
        ("data.mocap.seed", 2**63, "at most 9223372036854775807"),
        ("train.steps", 3 * 10**9, COUNT),
        ("train.steps", 0, "at least 1"),
        ("train.epochs", 3 * 10**9, COUNT),
        ("train.log_every", 10**12, COUNT),
        ("train.keep_last", 0, "at least 1"),
        ("train.batch_size", 3 * 10**9, "1000000"),
        ("train.accumulate", 3 * 10**9, "1000000"),
        ("eval.batch_size", 3 * 10**9, "1000000"),
        ("data.clip_len", 10**9, "1000000"),
        ("data.train_stride", 0, "at least 1"),
        ("data.flip_probability", "1.5", "at most 1"),
        ("data.augment.key_frames", 10**9, "1000000"),
        ("data.synthetic.num_train_clips", 10**12, "1000000000"),
        ("data.synthetic.fps", "1e-06", "at least 1"),
        ("data.mocap.fps", "1e-06", "at least 1"),
        ("data.mocap.amc_fps", ".inf", "10000"),
        ("data.mocap.cameras", 10**9, "1000000"),
        ("data.synthetic.camera.width", 10**9, "1000000"),
        ("data.synthetic.detector.sigma", ".nan", "below 1"),
        ("model.dim", 10**9, "65536"),
        ("model.depth", 10**9, "10000"),
        ("model.num_frames", 10**9, "1000000"),
        ("model.num_joints", 10**9, "10000"),
        ("model.state_size", 10**9, "4096"),
        ("model.mlp_ratio", ".inf", "1000"),
        ("model.drop_path", ".nan", "below 1"),
        ("optim.learning_rate", ".inf", "1000000"),
        ("optim.learning_rate", ".nan", "above 0"),
        ("optim.learning_rate", 0, "above 0"),
        ("optim.warmup_epochs", ".inf", "1000000"),
        ("optim.warmup_epochs", -1, "at least 0"),
        ("optim.weight_decay", ".inf", "1000000"),
        ("optim.eps", ".inf", "1000000"),
        ("optim.clip_norm", ".nan", "or null"),
        ("optim.ema", 1, "below 1"),
        ("loss.pos", ".inf", "1e+30"),
        ("mesh.data", 0, "at least 1"),
        ("mesh.tensor", 10**9, "1000000"),
        ("distributed.timeout", 10**12, COUNT),
    ],
)
def test_numbers_out_of_range_are_refused_with_key_value_and_bound(write, key, value, bound):
    shown = str(value).removeprefix(".")
    on_command_line = error_of(f"--{key}={value}")
    assert on_command_line.startswith(f"--{key}: {shown}")
    assert bound in on_command_line
    file = write(f"{key}: {value}\n")
    assert error_of("--config", file).startswith(f"{file}: {key}: {shown}")


def test_missing_file_suggests_a_neighbour(write):
    file = write("seed: 1\n", "quickstart.yaml")
    assert f"did you mean {file}?" in error_of("--config", file.replace("start", "strat"))


def test_resume_needs_a_run(tmp_path):
    assert "config.yaml" in error_of("--resume", str(tmp_path))


def test_program_reports_errors_in_one_line_with_exit_code_2(own_lines):
    done = subprocess.run(
        [sys.executable, "train.py", "--optim.lerning_rate", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert own_lines(done.stderr) == [
        "error: unknown option --optim.lerning_rate; did you mean --optim.learning_rate?"
    ]

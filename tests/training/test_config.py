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

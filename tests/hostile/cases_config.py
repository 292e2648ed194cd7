"""Configurations: files that are odd, numbers out of range, folders that cannot be."""

from pathlib import Path

from cases_predict import fifo, text
from trial import Trial

TRAIN = "train --config tiny.yaml --run_dir new"


def setting(option: str, *says: str, name: str | None = None) -> Trial:
    """A setting of train.py that is refused before anything is made."""
    return Trial(name or option, f"{TRAIN} {option}", says)


def yaml(name: str, content: str | bytes, *says: str) -> Trial:
    """A configuration file that is refused."""
    command = "train --config x.yaml --run_dir new"
    return Trial(f"yaml: {name}", command, says, prepare=text("x.yaml", content))


def folder_is(name: str, run_dir: str, *says: str, prepare=None, arguments=None) -> Trial:
    """A run folder that cannot be one."""
    command = f"train --config tiny.yaml --run_dir {run_dir}"
    return Trial(f"run_dir: {name}", command, says, prepare=prepare, arguments=arguments)


def merge_bomb() -> str:
    """YAML whose merge keys would make 9^9 entries of some hundred bytes."""
    lines = ["a0: &a0 {x: 1}"]
    for n in range(1, 10):
        references = ", ".join([f"*a{n - 1}"] * 9)
        lines.append(f"a{n}: &a{n} {{<<: [{references}]}}")
    return "\n".join(lines)


def unwritable(folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o555)


YAML = [
    yaml("a key twice", "seed: 1\nseed: 2\n", "seed is given twice, in line 1 and in line 2"),
    yaml(
        "a section twice",
        "train:\n  steps: 1\nseed: 3\ntrain:\n  epochs: 2\n",
        "train is given twice",
    ),
    yaml(
        "a key twice by path", "train: {steps: 1}\ntrain.steps: 2\n", "train.steps: is given twice"
    ),
    yaml("octal", "train: {steps: 010}\n", "train.steps", "write 10 without leading zeros"),
    yaml("unknown key", "optim: {learnig_rate: 1}\n", "did you mean optim.learning_rate?"),
    yaml("a list", "- 1\n- 2\n", "expected sections with keys"),
    yaml("a tab", "train:\n\tsteps: 1\n", "not valid YAML"),
    yaml("an object", "seed: !!python/object/apply:os.system [true]\n", "not valid YAML"),
    yaml("no text", b"\xff\xfe\x00", "cannot be read"),
    yaml("a NUL", b"seed: \x00 1\n", "not valid YAML"),
    yaml("an alias to itself", "train: &a\n  steps: *a\n", "x.yaml"),
    yaml("a merge bomb", merge_bomb(), "x.yaml"),
    yaml("deep", "[" * 1500, "not valid YAML"),
    yaml("2 MB", "# " + "x" * (2 << 20), "at most"),
    Trial("yaml: a pipe", "train --config pipe", ("a pipe",), prepare=fifo("pipe")),
    Trial("yaml: an endless device", "train --config /dev/zero", ("a device",)),
    Trial("yaml: a folder", "train --config home", ("a folder",)),
    Trial("yaml: not there", "train --config tinny.yaml", ("did you mean tiny.yaml?",)),
    Trial(
        "yaml: not there in the home folder", "train --config ~/x.yaml", ("no such configuration",)
    ),
]

NUMBERS = [
    setting("--seed 9223372036854775808", "seed", "at most 4294967295"),
    setting("--seed -1", "seed", "at least 0"),
    setting("--train.steps 3000000000", "train.steps", "at most 2147483647"),
    setting("--train.epochs 9223372036854775808", "train.epochs", "at most 2147483647"),
    setting("--optim.warmup_epochs 3e9", "optim.warmup_epochs", "at most"),
    setting("--optim.learning_rate .inf", "optim.learning_rate", "at most"),
    setting("--optim.learning_rate .nan", "optim.learning_rate"),
    setting("--optim.learning_rate 0", "optim.learning_rate", "above 0"),
    setting("--optim.eps .inf", "optim.eps"),
    setting("--optim.weight_decay .inf", "optim.weight_decay"),
    setting("--optim.clip_norm .inf", "optim.clip_norm"),
    setting("--loss.pos .inf", "loss.pos"),
    setting("--loss.velocity .nan", "loss.velocity"),
    setting("--train.batch_size 1000000000", "train.batch_size", "at most 1000000"),
    setting("--train.batch_size ²", "train.batch_size", "an integer"),
    setting("--train.batch_size 1.5", "train.batch_size", "an integer"),
    setting("--eval.batch_size 1000000000", "eval.batch_size", "at most"),
    setting("--model.dim 1000000000", "model.dim", "at most"),
    setting("--model.depth 1000000000", "model.depth", "at most"),
    setting("--model.state_size 1000000000", "model.state_size", "at most"),
    setting("--model.num_frames 1000000000", "model.num_frames", "at most"),
    setting("--model.mlp_ratio 1e-6", "model.mlp_ratio"),
    setting("--data.clip_len 0", "data.clip_len", "at least 1"),
    setting("--data.synthetic.fps 1e-6", "data.synthetic.fps", "at least"),
    setting("--data.synthetic.fps 3e9", "data.synthetic.fps", "at most"),
    setting("--data.synthetic.num_train_clips 1000000000000", "num_train_clips", "at most"),
    setting("--data.mocap.fps 1e-6", "data.mocap.fps", "at least 1"),
    setting("--mesh.data 1000000000", "mesh.data", "at most"),
    setting("--mesh.fsdp 3", "mesh"),
    setting("--train.keep_last 0", "train.keep_last", "at least 1"),
    setting("--train.profile ²..3", "train.profile"),
    setting(
        "--distributed.coordinator a:²  --distributed.num_processes 1 --distributed.process_id 0",
        "distributed.coordinator",
        name="a port that is no number",
    ),
    setting("--model.implementation abacus", "model.implementation", "abacus"),
    setting("--data.source holodeck", "data.source", "one of"),
    setting("--data.skeleton /dev/zero", "data.skeleton", "a device"),
]

FOLDERS = [
    folder_is("a file", "tiny.yaml", "run_dir", "tiny.yaml"),
    folder_is("below a file", "tiny.yaml/run", "run_dir", "tiny.yaml"),
    folder_is("a bucket", "gs://bucket/run", "run_dir", "only folders and files of this machine"),
    folder_is("in /proc", "/proc/run", "/proc/run"),
    folder_is(
        "a NUL", "x", "run_dir", "NUL", arguments=("--config", "tiny.yaml", "--run_dir", "a\0b")
    ),
    folder_is("empty", "x", "run_dir", arguments=("--config", "tiny.yaml", "--run_dir", "")),
    folder_is("a name too long", "x" * 300, "File name too long"),
    folder_is(
        "a link to nothing below a file",
        "link",
        "run_dir",
        prepare=lambda folder: (folder / "link").symlink_to("tiny.yaml/x"),
    ),
    folder_is("a run that is there", "run", "already holds a run"),
    folder_is("an unknown user's home", "~nobody-of-that-name/run", "run_dir", "home folder"),
    Trial("run_dir: resumed without a run", "train --resume home", ("holds no run",)),
    Trial("run_dir: resumed from a bucket", "train --resume gs://bucket/run", ("of this machine",)),
]

DATA = [
    setting(
        f"--data.input_2d ground_truth --data.source {source} {option} {value}",
        *says,
        name=f"{source}: {value}",
    )
    for source, option, value, says in [
        ("h36m", "--data.h36m.path", "/dev/zero", ("/dev/zero", "a device")),
        ("h36m", "--data.h36m.path", "home", ("home",)),
        ("h36m", "--data.h36m.path", "tiny.yaml", ("tiny.yaml",)),
        ("h36m", "--data.h36m.path", "gone.pkl", ("gone.pkl", "data.h36m.path")),
        ("mpi_inf_3dhp", "--data.mpi_inf_3dhp.train_path", "/dev/zero", ("a device",)),
        ("mpi_inf_3dhp", "--data.mpi_inf_3dhp.train_path", "tiny.yaml", ("tiny.yaml",)),
        ("mocap", "--data.mocap.train", "[tiny.yaml]", ("none of them AMC or BVH",)),
        ("mocap", "--data.mocap.train", "[gone/*.bvh]", ("matches no",)),
        ("arrays", "--data.arrays.train", "[gone/*.npz]", ("gone/*.npz",)),
    ]
]

CASES = [*YAML, *NUMBERS, *FOLDERS, *DATA]

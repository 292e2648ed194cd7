"""Runs, checkpoints and models that are damaged, foreign or of another kind than expected."""

import json
import shutil
from pathlib import Path

from trial import Trial

RESUME = "train --resume run"
# What a resumed run of no further steps writes.
WRITES = ("run/*",)
# What it may have written before it was refused.
RECORDED = ("run/config.yaml", "run/versions.json", "run/metrics.jsonl", "run/tensorboard/*")


def replace_by_folder(name: str):
    def prepare(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name / "x").mkdir(parents=True)

    return prepare


def replace_by_file(name: str):
    def prepare(folder: Path) -> None:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).write_text("a file")

    return prepare


def append(name: str, content: bytes):
    def prepare(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(content)

    return prepare


def edit(name: str, before: str, after: str):
    def prepare(folder: Path) -> None:
        text = (folder / name).read_text()
        assert before in text
        (folder / name).write_text(text.replace(before, after))

    return prepare


def change_progress(where: str, **values):
    """Changes what a checkpoint says of itself."""

    def prepare(folder: Path) -> None:
        file = folder / "run" / where / "2" / "progress" / "metadata"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return prepare


def empty(name: str):
    def prepare(folder: Path) -> None:
        for path in (folder / name).rglob("*"):
            if path.is_file():
                path.write_bytes(b"")

    return prepare


def other_best(folder: Path) -> None:
    (folder / "run" / "best" / "2").rename(folder / "run" / "best" / "7")


def no_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / "run" / "checkpoints")


def resumed(name: str, prepare, *says: str, option: str = "", codes=(0,), loses=()) -> Trial:
    """A finished run that is resumed: it takes no step, and writes its files again."""
    command = f"{RESUME} {option}"
    return Trial(
        name, command, says, codes, WRITES if 0 in codes else RECORDED, prepare, loses=loses
    )


ASIDE = ("run/best/*", "run/metrics.jsonl", "run/report.json")
MOVED = [
    resumed("as it should be", None, "resuming at step 2"),
    resumed("a best of a later step", other_best, "is of step 7", "7.aside", loses=ASIDE),
    resumed(
        "a best of another course",
        change_progress("best", course="x"),
        "another course",
        loses=ASIDE,
    ),
    resumed(
        "a best on another test set",
        change_progress("best", test_set="x"),
        "another test set",
        loses=ASIDE,
    ),
    resumed(
        "a best without its error",
        change_progress("best", error_mm=None),
        "is damaged",
        loses=ASIDE,
    ),
    resumed("an empty best", empty("run/best/2/progress"), "is damaged", loses=ASIDE),
    resumed("metrics with odd bytes", append("run/metrics.jsonl", b'\xff\xfe{"step"\n'), "step 2"),
    resumed(
        "metrics with a null loss",
        append("run/metrics.jsonl", b'{"step": 2, "loss": null}\n'),
        "step 2",
    ),
    resumed(
        "metrics of nonsense",
        append("run/metrics.jsonl", b'[]\n"x"\n{"step": "2"}\n{}\n'),
        "step 2",
    ),
    resumed(
        "metrics as a folder", replace_by_folder("run/metrics.jsonl"), "metrics.jsonl", codes=(2,)
    ),
    resumed(
        "TensorBoard's folder as a file",
        replace_by_file("run/tensorboard"),
        "tensorboard",
        codes=(2,),
    ),
    resumed("versions.json of nonsense", append("run/versions.json", b"}"), "step 2", loses=ASIDE),
    resumed(
        "curves.png as a folder", replace_by_folder("run/curves.png"), "curves.png", codes=(2,)
    ),
    Trial(
        "report.json as a folder",
        f"{RESUME} --train.epochs 2",
        ("report.json",),
        leaves=WRITES,
        prepare=replace_by_folder("run/report.json"),
        loses=("run/checkpoints/*", "run/best/*"),
    ),
    resumed(
        "config.yaml as a folder", replace_by_folder("run/config.yaml"), "holds no run", codes=(2,)
    ),
    resumed(
        "config.yaml edited: scan",
        edit("run/config.yaml", "scan: limbs", "scan: global"),
        "has to keep model.scan: limbs -> global",
        codes=(2,),
    ),
    resumed(
        "config.yaml edited: seed",
        edit("run/config.yaml", "seed: 0\ndata", "seed: 1\ndata"),
        "has to keep seed",
        codes=(2,),
    ),
    resumed(
        "other training files",
        change_progress("checkpoints", training_set="x"),
        "not those that the run was trained on",
        codes=(2,),
    ),
    resumed(
        "another learning rate",
        None,
        "changed: optim.learning_rate: 0.001 -> 0.01",
        option="--optim.learning_rate 0.01",
    ),
    resumed(
        "another clip length",
        None,
        "has to keep data.clip_len",
        codes=(2,),
        option="--data.clip_len 5",
    ),
    resumed(
        "another input",
        None,
        "has to keep data.input_2d",
        codes=(2,),
        option="--data.input_2d ground_truth",
    ),
    resumed(
        "all checkpoints empty", empty("run/checkpoints/2"), "no checkpoint can be read", codes=(2,)
    ),
    resumed(
        "an implementation that is not there",
        None,
        "model.implementation: 'abacus'",
        codes=(2,),
        option="--implementation abacus",
    ),
    resumed(
        "an implementation that cannot run",
        None,
        "cannot run here",
        "expected one that can",
        codes=(2,),
        option="--implementation triton",
    ),
]

READ = [
    Trial(f"{program}: {name}", command, says, codes, leaves, prepare)
    for program, command, leaves in [
        ("eval", "eval --checkpoint run --output out", ("out/*",)),
        ("export", "export run out.stablehlo", ("out.stablehlo",)),
    ]
    for name, prepare, codes, says in [
        ("best emptied", empty("run/best/2"), (2,), ("run/best/2",)),
        (
            "best without a file",
            lambda f: shutil.rmtree(f / "run/best/2/params/d"),
            (2,),
            ("best/2",),
        ),
        ("config emptied", empty("run/best/2/config"), (2,), ("config",)),
        ("best by a name of ²", lambda f: (f / "run/best/2").rename(f / "run/best/²"), (0,), ()),
        (
            "both gone",
            lambda f: [shutil.rmtree(f / "run" / d) for d in ("best", "checkpoints")],
            (2,),
            ("holds no checkpoint",),
        ),
    ]
]

PROGRAMS = [
    Trial("eval: no checkpoint", "eval", ("--checkpoint: give",)),
    Trial("eval: a file", "eval --checkpoint tiny.yaml", ("a file",)),
    Trial("eval: a bucket", "eval --checkpoint gs://b/run", ("of this machine",)),
    Trial("eval: ² pictures", "eval --checkpoint run --pictures ²", ("--pictures",)),
    Trial("eval: an unknown which", "eval --checkpoint run --which newest", ("--which",)),
    Trial(
        "eval: results below a file", "eval --checkpoint run --output tiny.yaml/x", ("tiny.yaml",)
    ),
    Trial(
        "eval: cannot run", "eval --checkpoint run --implementation triton", ("cannot run here",)
    ),
    Trial("eval: not there", "eval --checkpoint run --implementation abacus", ("abacus", "xla")),
    Trial(
        "eval: other joints",
        "eval --checkpoint run --model.dim 9 --output out",
        ("as in the checkpoint",),
        (0,),
        ("out/*",),
    ),
    Trial(
        "model: no description",
        "export model out",
        ("model.json",),
        prepare=lambda f: (f / "model/model.json").write_text("{"),
    ),
    Trial(
        "model: parameters elsewhere",
        "export model out",
        ("expected the name of a folder",),
        prepare=edit("model/model.json", '"params": "params"', '"params": "../run"'),
    ),
    Trial("export: into a folder", "export model home", ("home",)),
    Trial("export: a preset of platforms", "export model out --platforms abacus", ("platforms",)),
    Trial("export: 10^9 frames", "export model out --frames 1000000000", ("frames",)),
    Trial(
        "ssm_map: too many frames", "ssm_map --checkpoint run --out maps --frames 27", ("1 to 9",)
    ),
    Trial(
        "ssm_map: ² depths",
        "ssm_map --checkpoint run --out maps --frames 9 --depths ²",
        ("--depths",),
    ),
    Trial(
        "ssm_map: clip 10^9",
        "ssm_map --checkpoint run --out maps --frames 9 --clip 1000000000",
        ("--clip",),
    ),
    Trial("report: nothing there", "report home --out p --curves_only", ("metrics.jsonl",)),
    Trial("report: no folder", "report gone --out p", ("no such folder",)),
    Trial(
        "report: the home folder",
        "report run --out ~/p --curves_only",
        ("wrote",),
        (0,),
        ("home/p/*",),
    ),
    Trial(
        "report: odd metrics",
        "report run --out p --curves_only",
        ("wrote",),
        (0,),
        ("p/*",),
        append("run/metrics.jsonl", b'\xff\n{"step": 3, "loss": null}\n{"step": 4, "loss": "x"}\n'),
    ),
    Trial("report: below a file", "report run --out tiny.yaml/p --curves_only", ("tiny.yaml",)),
    Trial("compare: nothing there", "compare run home", ("holds no checkpoint",)),
    Trial("compare: the same", "compare run run", ("equal bit for bit",), (0,)),
    Trial(
        "convert: implementation",
        "predict keypoints/h36m17.npy --checkpoint run "
        "--image_size 1000x1002 --implementation triton",
        ("cannot run here",),
    ),
    Trial(
        "a preference that cannot run",
        "predict keypoints/h36m17.npy --checkpoint model --image_size 1000x1002 --outputs npz",
        ("preferred the scan 'triton'",),
        (0,),
        ("out/*",),
        edit("model/model.json", '"implementation": null', '"implementation": "triton"'),
    ),
]

CASES = [*MOVED, *READ, *PROGRAMS]

"""Commands drawn by chance: options, configurations and folders, each changed a little.

Whatever comes of one, the exit code is documented, the message is a line, and nothing that was
there is gone or shorter.
"""

import os
import random
import shutil

import pytest
import yaml
from trial import DOCUMENTED, check_message, run_command, snapshot

COMMANDS = [
    "train --config tiny.yaml --run_dir new",
    "train --resume run",
    "eval --checkpoint run --output out",
    "predict keypoints/h36m17.npy --checkpoint run --image_size 1000x1002 --outputs npz,json",
    "predict keypoints/openpose --checkpoint run --image_size 1000x1002 --outputs csv",
    "convert weights.bin out",
    "report run --out out --curves_only",
    "compare run run",
]
ODD = [
    *("", "-1", "0", "9223372036854775808", "1e-6", "3e9", ".inf", ".nan", "null", "true", "²"),
    *("a\0b", "x" * 300, "~", "~/new", "gs://b/x", "/dev/null", "/dev/zero", "/proc/self", "."),
    *("tiny.yaml", "run", "home", "model", "gone", "[1", "{}", "\udcff", "--", "best", "a,b"),
]
USUAL = 24
CASES = int(os.environ.get("POSEMAMBA_FUZZ", USUAL))


def change_arguments(arguments, rng):
    kind = rng.choice(["replace", "drop", "twice", "add", "swap"])
    place = rng.randrange(len(arguments))
    if kind == "replace":
        arguments[place] = rng.choice(ODD)
    elif kind == "drop":
        del arguments[place]
    elif kind == "twice":
        arguments.insert(place, arguments[place])
    elif kind == "add":
        key = rng.choice(["seed", "model.dim", "optim.eps", "data.clip_len", "train.batch_size"])
        arguments += [f"--{key}", rng.choice(ODD)]
    else:
        other = rng.randrange(len(arguments))
        arguments[place], arguments[other] = arguments[other], arguments[place]


def change_files(folder, rng):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    content = path.read_bytes()
    kind = rng.choice(["cut", "flip", "empty", "remove", "folder", "insert", "link"])
    at = rng.randrange(len(content) + 1)
    if kind == "cut":
        path.write_bytes(content[:at])
    elif kind == "flip":
        path.write_bytes(content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :])
    elif kind == "insert":
        path.write_bytes(content[:at] + rng.randbytes(4) + content[at:])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to("nowhere")


def change_config(folder, rng):
    file = folder / "tiny.yaml"
    tree = yaml.safe_load(file.read_text())
    section = rng.choice(sorted(tree))
    value = rng.choice([*ODD[:11], None, [], {}, 1.5, [1, "a"], {"x": 1}])
    # Without its section the model would be one that takes a while to make.
    if isinstance(tree[section], dict) and (section == "model" or rng.random() < 0.8):
        tree[section][rng.choice([*sorted(tree[section]), "odd"])] = value
    else:
        tree[section] = value
    file.write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("seed", range(CASES))
def test_drawn_command(seed, template, tmp_path):
    rng = random.Random(seed)
    folder = tmp_path / "world"
    shutil.copytree(template, folder)
    program, *arguments = rng.choice(COMMANDS).split()
    if program == "convert":
        pytest.importorskip("torch")
    for _ in range(rng.randrange(1, 3)):
        change = rng.choice([change_arguments, change_files, change_config])
        if change is change_arguments:
            change(arguments, rng)
        else:
            change(folder, rng)
    before = snapshot(folder)
    outcome = run_command(program, arguments, folder)
    shown = f"{program} {arguments}: {outcome}"
    assert outcome.code in DOCUMENTED, shown
    assert "Traceback" not in outcome.text, shown
    check_message(outcome)
    after = snapshot(folder)
    lost = [key for key in before if key not in after and not may_be_renamed(key, after)]
    shorter = [key for key in before if key in after and length(after[key]) < length(before[key])]
    rewritten = ("run/metrics.jsonl", "run/report.json", "run/config.yaml", "run/versions.json")
    assert not lost, f"{lost} lost by {shown}"
    assert set(shorter) <= {*rewritten, *(k for k in shorter if k.endswith(".png"))}, shown


def may_be_renamed(key, after):
    """True for a part of a checkpoint or a file that was set aside under a longer name."""
    parts = key.split("/")
    longer = tuple("/".join(parts[:n]) + "." for n in range(2, len(parts) + 1))
    return any(other.startswith(longer) for other in after) or key.startswith("model/params")


def length(digest):
    return int(digest.split()[0]) if digest[0].isdigit() else 0

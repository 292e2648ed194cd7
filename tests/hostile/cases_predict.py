"""What predict.py is asked to read and do."""

import json
import os
import socket
import zipfile
from pathlib import Path

import numpy as np
from trial import Trial

LIFT = "predict {keys} --checkpoint run --image_size 1000x1002 --outputs npz"


def lift(keys: str, *more: str) -> str:
    """Returns the command that lifts a keypoint file."""
    return " ".join([LIFT.format(keys=keys), *more])


def fifo(name: str):
    return lambda folder: os.mkfifo(folder / name)


def text(name: str, content: str | bytes):
    """Writes a file, and the folders it is in."""

    def prepare(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def sparse_npy(folder: Path) -> None:
    """Makes a file of 60 GB that takes no room on the disk, with an honest header."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (300_000_000, 17, 3)}
    with (folder / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 300_000_000 * 17 * 3 * 4)


def bomb(folder: Path) -> None:
    """Makes a small archive that would unpack to 170 MB of zeros."""
    with (
        zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("keypoints.npy", "w") as file,
    ):
        shape = (100_000, 17, 25)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(170):
            file.write(bytes(1_000_000))


def unix_socket(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # Names of sockets are short.
    socket.socket(socket.AF_UNIX).bind("sock.json")
    os.chdir(here)


def odd_name(folder: Path) -> None:
    content = (folder / "keypoints" / "h36m17.npy").read_bytes()
    with open(os.fsencode(folder) + b"/caf\xe9.npy", "wb") as file:
        file.write(content)


def people(num_frames: int, names) -> list[dict]:
    """Makes AlphaPose entries of a standing person, an image each."""
    rng = np.random.default_rng(0)
    pose = np.concatenate([rng.uniform(100, 400, (17, 2)), np.ones((17, 1))], 1)
    return [{"image_id": names(i), "keypoints": pose.ravel().tolist()} for i in range(num_frames)]


def milliseconds(folder: Path) -> None:
    entries = people(60, lambda i: f"{40 * i}.jpg")
    (folder / "ms.json").write_text(json.dumps(entries))


def unordered(folder: Path) -> None:
    (folder / "frames").mkdir()
    for i, entry in enumerate(people(60, str)):
        person = {"pose_keypoints_2d": entry["keypoints"]}
        if i == 30:
            continue
        path = folder / "frames" / f"frame{i}_2d.json"
        path.write_text(json.dumps({"people": [person]}))


def earlier_results(folder: Path) -> None:
    (folder / "out").mkdir()
    for name in ("person_7.npz", "person_12.bvh", "notes.txt"):
        (folder / "out" / name).write_text("of an earlier run")


NPY = "keypoints/h36m17.npy"
CASES = [
    Trial("as it should be", lift(NPY), ("wrote out/person_1.npz",), (0,), ("out/*",)),
    Trial("a pipe", lift("pipe"), ("pipe: a pipe, expected a file",), prepare=fifo("pipe")),
    Trial("an endless device", lift("/dev/zero"), ("/dev/zero: a device",)),
    Trial("a device without content", lift("/dev/null"), ("/dev/null: a device",)),
    Trial("a socket", lift("sock.json"), ("a socket",), prepare=unix_socket),
    Trial("a folder without JSON", lift("home"), ("holds no .json files",)),
    Trial(
        "a link to nothing",
        lift("gone"),
        ("gone: cannot be read (No such file",),
        prepare=lambda folder: (folder / "gone").symlink_to("nowhere"),
    ),
    Trial(
        "a link to itself",
        lift("loop"),
        ("loop: cannot be read",),
        prepare=lambda folder: (folder / "loop").symlink_to("loop"),
    ),
    Trial("no such file", lift("absent.json"), ("absent.json: no such file",)),
    Trial("60 GB of nothing", lift("huge.npy"), ("57 GiB",), prepare=sparse_npy),
    Trial("a decompression bomb", lift("bomb.npz"), ("MiB that would unpack to",), prepare=bomb),
    Trial(
        "an empty file", lift("e.json"), ("e.json: the file is empty",), prepare=text("e.json", "")
    ),
    Trial(
        "a byte that is no text",
        lift("b.json"),
        ("not UTF-8 text at byte 1",),
        prepare=text("b.json", b"[\xff]"),
    ),
    Trial(
        "cut off",
        lift("c.json"),
        ("not valid JSON", "truncated"),
        prepare=text("c.json", '[{"image_id": "1.jpg", '),
    ),
    Trial("deep", lift("d.json"), ("nested too deeply",), prepare=text("d.json", "[" * 100_000)),
    Trial(
        "a number of 5000 digits",
        lift("n.json"),
        ("n.json",),
        prepare=text("n.json", "[" + "9" * 5000 + "]"),
    ),
    Trial("a pickle", lift("p.npy"), ("could run code",), prepare=text("p.npy", b"\x80\x04N.")),
    Trial("another file's format", lift(NPY, "--format openpose"), ("expected JSON",)),
    Trial(
        "a name that is no text",
        "predict",
        ("wrote out",),
        (0,),
        ("out/*",),
        odd_name,
        (os.fsdecode(b"caf\xe9.npy"), *LIFT.split()[2:]),
    ),
    Trial(
        "the home folder",
        lift("~/keys.npy", "--out ~/poses"),
        ("wrote",),
        (0,),
        ("home/poses/*",),
        lambda folder: (folder / NPY).rename(folder / "home" / "keys.npy"),
    ),
    Trial("a NUL in the name", "predict", ("NUL",), arguments=("a\0b", *LIFT.split()[2:])),
    Trial("a bucket", lift("gs://bucket/keys.npy"), ("only folders and files of this machine",)),
    Trial("results in a bucket", lift(NPY, "--out s3://bucket/x"), ("of this machine",)),
    Trial(
        "times in milliseconds",
        lift("ms.json"),
        ("60 frames", "steps of 40", "--fps 25"),
        (0,),
        ("out/*",),
        milliseconds,
    ),
    Trial(
        "frame2 before frame10",
        lift("frames"),
        ("60 frames", "1 of 60 frames", "the first of them 30"),
        (0,),
        ("out/*",),
        unordered,
    ),
    Trial(
        "endless smoothing",
        lift(NPY, "--smooth true --smooth_beta .inf"),
        ("--smooth_beta inf: must be at least 0 and at most",),
    ),
    Trial(
        "smoothing by NaN", lift(NPY, "--smooth true --smooth_beta .nan"), ("--smooth_beta nan",)
    ),
    Trial("no cutoff", lift(NPY, "--smooth true --smooth_min_cutoff 0"), ("--smooth_min_cutoff",)),
    Trial("no outputs", lift(NPY, "--outputs ,"), ("names nothing to write",)),
    Trial("unknown outputs", lift(NPY, "--outputs npz,exe"), ("--outputs exe",)),
    Trial(
        "an image ten times too large",
        lift(NPY, "--image_size 10000x10020"),
        ("is the image size right?",),
        (0,),
        ("out/*",),
    ),
    Trial("an image ten times too small", lift(NPY, "--image_size 100x100"), ("lie outside",)),
    Trial("an image of no width", lift(NPY, "--image_size 0x10"), ("expected WIDTHxHEIGHT",)),
    Trial("digits of another script", lift(NPY, "--image_size ²x³"), ("expected WIDTHxHEIGHT",)),
    Trial("a rate of 1e-6", lift(NPY, "--fps 1e-6"), ("--fps 1e-06: must be at least",)),
    Trial("a rate of 3e9", lift(NPY, "--fps 3e9"), ("--fps 3000000000.0: must be",)),
    Trial("a gap of 2^63", lift(NPY, "--max_gap 9223372036854775808"), ("--max_gap",)),
    Trial("a batch of 2^63", lift(NPY, "--batch_size 9223372036854775808"), ("--batch_size",)),
    Trial("an overlap of 10^9", lift(NPY, "--overlap 1000000000"), ("--overlap", "0 to 8")),
    Trial("nobody by that number", lift(NPY, "--track 5"), ("no such person",)),
    Trial("a person as tall as a house", lift(NPY, "--height_mm 1e9"), ("expected 300 to 2800",)),
    Trial("an unknown bone", lift(NPY, "--bone_length l_hip-r_ear=3"), ("no bone",)),
    Trial(
        "a bone without a length", lift(NPY, "--bone_length l_hip-l_knee"), ("expected BONE=MM",)
    ),
    Trial("a rate that is text", lift(NPY, "--fps many"), ("--fps",)),
    Trial("an unknown option", lift(NPY, "--fpss 3"), ("fpss",)),
    Trial(
        "results of an earlier run",
        lift(NPY),
        ("also holds", "person_7.npz, person_12.bvh"),
        (0,),
        ("out/person_1.npz",),
        earlier_results,
        never=("notes.txt",),
    ),
    Trial("results below a file", lift(NPY, "--out tiny.yaml/out"), ("tiny.yaml",)),
    Trial("results where a file is", lift(NPY, "--out tiny.yaml"), ("tiny.yaml",)),
    Trial(
        "a model that is not installed",
        f"predict {NPY} --checkpoint pretrained:s",
        ("pretrained:s: no such model",),
    ),
    Trial(
        "a checkpoint that is not there",
        f"predict {NPY} --checkpoint gone --image_size 999x999",
        ("--checkpoint gone: no such",),
    ),
    Trial("a video that is text", lift(NPY, "--video tiny.yaml"), ("tiny.yaml: not a video",)),
]

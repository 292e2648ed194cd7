"""Motion capture as training data: recordings seen by cameras placed around them.

Each recording is watched by a few cameras, fixed while it lasts; every (recording, camera) pair is
a sequence of frames that clips are cut out of, as each camera of Human3.6M is.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import track

from posemamba_jax.data.clips import ArrayClips, DataError, Recording
from posemamba_jax.data.formats.joint_maps import parse_overrides
from posemamba_jax.data.formats.recordings import ReadOptions, RecordingReader, find_recordings
from posemamba_jax.data.motion.cameras import (
    CameraConfig,
    DetectorConfig,
    check_input_2d,
    observe,
    place_camera,
)
from posemamba_jax.errors import ConfigError
from posemamba_jax.limits import check_limits, number
from posemamba_jax.skeleton import H36M17


@dataclass(frozen=True)
class MocapConfig:
    """Which motion capture to use and how to look at it.

    Attributes:
      train, test: files, folders, or glob patterns of AMC files (each with its subject's ASF file
        beside it) and BVH files.
      fps: frame rate of the clips.
      amc_fps: frame rate of AMC files, which do not say theirs: 120 in the CMU database.
      cameras: how many watch each recording.
      seed: places cameras and draws the detector's errors, for each recording and camera by itself.
      asf_unit_mm: millimetres in the unit of ASF files before their own `length` factor: inches in
        the CMU database.
      bvh_mm_per_unit: millimetres in the unit of BVH files: 10 for centimetres.
      up_axis: the axis that points up in the files.
      joints: joints to use where a skeleton's names are not known, as "belly=Spine2".
      cache_dir: where parsed files are kept; an empty name keeps none.
      camera: ranges that cameras are drawn from.
      detector: errors of the imitated 2D detector.

    Raises:
      ValueError: a value is out of its range.
    """

    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    fps: float = number(50.0, at_least=1, at_most=1e4)
    amc_fps: float = number(120.0, at_least=1, at_most=1e4)
    cameras: int = number(4, at_least=1, at_most=10**6)
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    asf_unit_mm: float = number(25.4, above=0, at_most=1e4)
    bvh_mm_per_unit: float = number(10.0, above=0, at_most=1e4)
    up_axis: Literal["y", "z"] = "y"
    joints: tuple[str, ...] = ()
    cache_dir: str = "~/.cache/posemamba_jax/mocap"
    camera: CameraConfig = field(default_factory=CameraConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)

    def __post_init__(self):
        check_limits(self, "data.mocap")
        if self.up_axis not in ("y", "z"):
            raise ConfigError(f"{self.up_axis!r}, expected y or z", key="data.mocap.up_axis")
        try:
            parse_overrides(self.joints)
        except ValueError as error:
            raise ConfigError(str(error), key="data.mocap.joints") from None


def build(
    options: MocapConfig, *, clip_len: int, stride: int, split: str, input_2d: str
) -> ArrayClips:
    """Clips of motion capture.

    Args:
      options: which files, and the cameras.
      clip_len: frames in a clip.
      stride: frames between the starts of neighbouring clips.
      split: "train" or "test".
      input_2d: "detected" or "ground_truth".

    Raises:
      DataError: no files, files in both splits, or a file that cannot be used; names it.
    """
    if split not in ("train", "test"):
        raise DataError(f"split is {split!r}, expected 'train' or 'test'")
    check_input_2d(input_2d)
    paths = _paths_of(options, split)
    reader = RecordingReader(
        ReadOptions(
            fps=options.fps,
            amc_fps=options.amc_fps,
            asf_unit_mm=options.asf_unit_mm,
            bvh_mm_per_unit=options.bvh_mm_per_unit,
            up_axis=options.up_axis,
            joints=tuple(sorted(parse_overrides(options.joints).items())),
        ),
        options.cache_dir or None,
    )
    seen, recordings, rows = [], [], 0
    console = Console(stderr=True)
    for path in track(paths, f"reading motion capture ({split})", console=console, transient=True):
        positions = reader.read(path)
        name = f"{path.parent.name}/{path.stem}"
        for camera in range(options.cameras):
            rng = np.random.default_rng((options.seed, zlib.crc32(name.encode()), camera))
            seen.append(
                observe(
                    place_camera(rng, positions, options.camera),
                    positions,
                    input_2d=input_2d,
                    detector=options.detector,
                    rng=rng,
                )
            )
            stop = rows + len(positions)
            recordings.append(Recording(f"{name}.camera{camera}", name, rows, stop))
            rows = stop
    arrays = {key: np.concatenate([one[key] for one in seen]) for key in seen[0]}
    return ArrayClips(
        "mocap",
        recordings,
        skeleton=H36M17,
        **arrays,
        clip_len=clip_len,
        stride=stride,
        fps=options.fps,
        cover_end=split == "test",
        input_2d=input_2d,
    )


def _paths_of(options: MocapConfig, split: str) -> list[Path]:
    """The split's files, none of which the other split has."""
    patterns = {"train": options.train, "test": options.test}
    if not patterns[split]:
        raise DataError(
            f"data.mocap.{split} is empty: give files, folders or patterns of AMC or BVH files, "
            f'for example "cmu/01" (docs/mocap.md says how to get some)'
        )
    paths = find_recordings(patterns[split], f"data.mocap.{split}")
    other = "test" if split == "train" else "train"
    if patterns[other]:
        others = {p.resolve() for p in find_recordings(patterns[other], f"data.mocap.{other}")}
        both = [path for path in paths if path.resolve() in others]
        if both:
            raise DataError(
                f"{both[0]} is matched by both data.mocap.train and data.mocap.test ({len(both)} "
                "file(s) are); a test on training data says nothing, so keep them apart"
            )
    return paths

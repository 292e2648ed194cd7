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
from posemamba_jax.data.formats.jumps import find_jumps, split_at_jumps
from posemamba_jax.data.formats.recordings import (
    MotionFiles,
    ReadOptions,
    RecordingReader,
    find_recordings,
    match_recordings,
)
from posemamba_jax.data.motion.cameras import (
    CameraConfig,
    DetectorConfig,
    check_input_2d,
    observe,
    place_camera,
)
from posemamba_jax.data.sources.drawn_mocap import DrawConfig, DrawnClips, Motion
from posemamba_jax.limits import Section, number
from posemamba_jax.skeleton import H36M17


@dataclass(frozen=True)
class MocapConfig(Section, path="data.mocap"):
    """Which motion capture to use and how to look at it.

    Attributes:
      train, test: files, folders, or glob patterns of AMC files (each with its subject's ASF file
        beside it) and BVH files; or {path: ..., fps: ..., weight: ...}, see `MotionFiles`. Of a
        file that several items match, the last one's options hold.
      fps: frame rate of the clips.
      amc_fps: frame rate of AMC files, which do not say theirs: 120 in the CMU database.
      cameras: how many watch each recording.
      drawn: whether each training clip's camera, person and errors are drawn anew in every epoch,
        as `draw` says; `cameras`, `camera` and `detector` then mean nothing.
      max_jump_mm: a joint that jumps further than this from one frame to the next ends a
        recording there; see `find_jumps`. null keeps everything.
      skip_unreadable: whether a file that cannot be used is named and left out instead of ending
        the program.
      seed: places cameras and draws the detector's errors, for each recording and camera by itself.
      asf_unit_mm: millimetres in the unit of ASF files before their own `length` factor: inches in
        the CMU database.
      bvh_mm_per_unit: millimetres in the unit of BVH files: 10 for centimetres.
      up_axis: the axis that points up in the files.
      joints: joints to use where a skeleton's names are not known, as "belly=Spine2".
      cache_dir: where parsed files are kept; an empty name keeps none.
      camera: ranges that cameras are drawn from.
      detector: errors of the imitated 2D detector.
      draw: how clips are drawn, where `drawn` is true.

    Raises:
      ValueError: a value is out of its range.
    """

    train: tuple[str | MotionFiles, ...] = ()
    test: tuple[str | MotionFiles, ...] = ()
    fps: float = number(50.0, at_least=1, at_most=1e4)
    amc_fps: float = number(120.0, at_least=1, at_most=1e4)
    cameras: int = number(4, at_least=1, at_most=10**6)
    drawn: bool = False
    max_jump_mm: float | None = number(None, above=0, at_most=1e5)
    skip_unreadable: bool = False
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    asf_unit_mm: float = number(25.4, above=0, at_most=1e4)
    bvh_mm_per_unit: float = number(10.0, above=0, at_most=1e4)
    up_axis: Literal["y", "z"] = "y"
    joints: tuple[str, ...] = ()
    cache_dir: str = "~/.cache/posemamba_jax/mocap"
    camera: CameraConfig = field(default_factory=CameraConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    draw: DrawConfig = field(default_factory=DrawConfig)

    def problems(self):
        if self.up_axis not in ("y", "z"):
            yield "up_axis", f"{self.up_axis!r}, expected y or z"
        try:
            parse_overrides(self.joints)
        except ValueError as error:
            yield "joints", str(error)


def build(
    options: MocapConfig, *, clip_len: int, stride: int, split: str, input_2d: str
) -> ArrayClips | DrawnClips:
    """Makes the clips of motion capture.

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
    motions = read_motions(options, split)
    if options.drawn:
        return DrawnClips(
            motions,
            options.draw,
            clip_len=clip_len,
            stride=stride,
            fps=options.fps,
            seed=options.seed,
            split=split,
            input_2d=input_2d,
        )
    seen, recordings, rows = [], [], 0
    for motion in motions:
        for camera in range(options.cameras):
            rng = np.random.default_rng((options.seed, zlib.crc32(motion.name.encode()), camera))
            seen.append(
                observe(
                    place_camera(rng, motion.positions, options.camera),
                    motion.positions,
                    input_2d=input_2d,
                    detector=options.detector,
                    rng=rng,
                )
            )
            stop = rows + len(motion.positions)
            action = motion.name.partition("+")[0]
            recordings.append(Recording(f"{motion.name}.camera{camera}", action, rows, stop))
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
        pad=True,
        input_2d=input_2d,
    )


def read_motions(options: MocapConfig, split: str) -> list[Motion]:
    """Reads a split's recordings, cut where a joint jumps, and says what was left out.

    Raises:
      DataError: no files, files in both splits, or, unless `options.skip_unreadable`, a file that
        cannot be used; names it.
    """
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
    motions, unreadable, jumps, lost, cut = [], [], 0, 0, 0
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for path in track(
        paths.items(),
        f"reading motion capture ({split})",
        total=len(paths),
        console=console,
        transient=True,
    ):
        path, item = path
        try:
            positions = reader.read(path, item.fps)
        except (DataError, OSError) as error:
            if not options.skip_unreadable:
                raise
            unreadable.append(str(error))
            continue
        name = f"{path.parent.name}/{path.stem}"
        found = [] if options.max_jump_mm is None else find_jumps(positions, options.max_jump_mm)
        parts = split_at_jumps(len(positions), found, shortest=round(options.fps / 2))
        jumps, cut = jumps + len(found), cut + bool(len(found))
        lost += len(positions) - sum(stop - start for start, stop in parts)
        for n, (start, stop) in enumerate(parts):
            part = f"{name}+{n}" if n else name
            motions.append(Motion(part, positions[start:stop], item.weight))
    for problem in unreadable:
        console.print(f"left out: {problem}", markup=False)
    if unreadable:
        console.print(f"{len(unreadable)} of {len(paths)} motion files left out ({split})")
    if jumps:
        console.print(
            f"{split}: {jumps} jumps of a joint in {cut} of {len(paths)} recordings, which are cut "
            f"there; {lost} frames between jumps left out"
        )
    if not motions:
        raise DataError(f"data.mocap.{split}: none of {len(paths)} files can be used")
    return motions


def _paths_of(options: MocapConfig, split: str) -> dict[Path, MotionFiles]:
    """Returns the split's files, none of which the other split has."""
    patterns = {"train": options.train, "test": options.test}
    if not patterns[split]:
        raise DataError(
            f"data.mocap.{split} is empty: give files, folders or patterns of AMC or BVH files, "
            f'for example "cmu/01" (docs/mocap.md says how to get some)'
        )
    paths = match_recordings(patterns[split], f"data.mocap.{split}")
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

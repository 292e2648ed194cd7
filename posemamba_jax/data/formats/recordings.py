"""Motion capture files as 17-joint recordings at one frame rate, parsed once and then cached."""

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posemamba_jax.data.clips import DataError
from posemamba_jax.data.formats.amc import read_amc
from posemamba_jax.data.formats.asf import AsfSkeleton, read_asf
from posemamba_jax.data.formats.bvh import read_bvh
from posemamba_jax.data.formats.joint_maps import h36m_weights
from posemamba_jax.files import writing
from posemamba_jax.files.reading import user_path
from posemamba_jax.limits import Section, number
from posemamba_jax.skeleton import H36M17

# Part of the name of cached files: to be raised when what is computed from a file changes.
_CACHE_VERSION = 1
_SUFFIXES = (".amc", ".bvh")
# A leg (hip, knee, ankle) outside this range in millimetres means that the unit is wrong.
_LEG_RANGE = (400.0, 1300.0)


@dataclass(frozen=True)
class ReadOptions:
    """What decides the joint positions that come out of a file.

    Attributes:
      fps: frame rate of the result.
      amc_fps: frame rate of AMC files, which do not say theirs.
      asf_unit_mm: millimetres in the unit that lengths in an ASF file are a multiple of.
      bvh_mm_per_unit: millimetres in a BVH file's unit, which it does not say.
      up_axis: "y" or "z", the axis that points up in the files.
      joints: expressions that replace those of the joint maps.
    """

    fps: float
    amc_fps: float
    asf_unit_mm: float
    bvh_mm_per_unit: float
    up_axis: str
    joints: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MotionFiles(Section, path="data.mocap"):
    """Motion capture files, and what holds for all of them.

    Attributes:
      path: a file, a folder (searched with its subfolders) or a glob pattern ("**" allowed).
      fps: their frame rate, where they do not say it or say it wrong; null takes what they say,
        and `data.mocap.amc_fps` for AMC files.
      weight: how often their frames are shown in training, relative to those of other files.

    Raises:
      ConfigError: a value is out of its range.
    """

    path: str
    fps: float | None = number(None, at_least=1, at_most=1e4)
    weight: float = number(1.0, above=0, at_most=1e6)


def find_recordings(patterns: Sequence[str | MotionFiles], key: str) -> list[Path]:
    """Finds the motion files that match the patterns, sorted and without repetition.

    Args:
      patterns: files, folders (searched with their subfolders), or glob patterns ("**" allowed).
      key: the configuration's key, for the message.

    Raises:
      DataError: a pattern matches no AMC or BVH file.
    """
    return sorted(match_recordings(patterns, key))


def match_recordings(patterns: Sequence[str | MotionFiles], key: str) -> dict[Path, MotionFiles]:
    """Finds the motion files that match the patterns, each with the last pattern that it matches.

    So a folder's files can be given a frame rate and some of them, further down the list, another.

    Args:
      patterns, key: as `find_recordings` has them.

    Raises:
      DataError: a pattern matches no AMC or BVH file.
    """
    found: dict[Path, tuple[Path, MotionFiles]] = {}
    for item in patterns:
        item = MotionFiles(item) if isinstance(item, str) else item
        pattern, matches = item.path, []
        for name in glob.glob(str(user_path(pattern)), recursive=True):
            path = Path(name)
            matches += path.rglob("*") if path.is_dir() else [path]
        motions = [p for p in matches if p.suffix.lower() in _SUFFIXES and p.is_file()]
        if not motions:
            what = f"matches {len(matches)} file(s), none of them" if matches else "matches no"
            raise DataError(
                f"{key}: {pattern!r} {what} AMC or BVH motion (docs/mocap.md says how to get some)"
            )
        found.update((path.resolve(), (path, item)) for path in motions)
    return dict(sorted(found.values(), key=lambda pair: pair[0]))


def find_skeleton(amc: Path) -> Path:
    """Finds the ASF file of an AMC file: SUBJECT.asf beside SUBJECT_CLIP.amc, or the folder's only
    one.

    Raises:
      DataError: there is none, or there are several and none has the subject's name.
    """
    skeletons = sorted(p for p in amc.parent.iterdir() if p.suffix.lower() == ".asf")
    named = [p for p in skeletons if f"{amc.stem}_".startswith(f"{p.stem}_")]
    if named:
        return max(named, key=lambda path: len(path.stem))
    if len(skeletons) == 1:
        return skeletons[0]
    have = f"there are {', '.join(p.name for p in skeletons)}" if skeletons else "there is none"
    raise DataError(
        f"{amc}: an AMC file needs its subject's skeleton, {amc.stem.partition('_')[0]}.asf, "
        f"beside it; {have} in {amc.parent}"
    )


class RecordingReader:
    """Reads recordings, keeping each subject's skeleton and, in a folder, what was read before.

    Args:
      options: what the result depends on besides the file.
      cache_dir: folder of the cache; None reads every file anew.
    """

    def __init__(self, options: ReadOptions, cache_dir: str | Path | None):
        self.options = options
        self.cache_dir = user_path(cache_dir) if cache_dir else None
        self._skeletons: dict[Path, AsfSkeleton] = {}

    def read(self, path: Path, fps: float | None = None) -> np.ndarray:
        """Reads joint positions (frames, 17, 3) float32, world millimetres with y up.

        Args:
          path: an AMC or BVH file.
          fps: its frame rate; None takes what it says, and `options.amc_fps` for AMC files.

        Raises:
          DataError: the file, or an AMC file's skeleton, cannot be used.
        """
        cached = self._cache_file(path, fps)
        if cached and cached.is_file():
            try:
                with np.load(cached, allow_pickle=False) as content:
                    return content["positions"]
            except Exception:  # A damaged header can raise nearly anything.
                pass  # made again below
        positions = self._parse(path, fps)
        if cached:
            _write(cached, positions, path)
        return positions

    def _parse(self, path: Path, file_fps: float | None) -> np.ndarray:
        options = self.options
        if path.suffix.lower() == ".amc":
            asf = find_skeleton(path)
            if asf not in self._skeletons:
                self._skeletons[asf] = read_asf(asf, length_unit_mm=options.asf_unit_mm)
            hierarchy = self._skeletons[asf].hierarchy
            positions, fps = read_amc(path, self._skeletons[asf]), options.amc_fps
        else:
            motion = read_bvh(path, mm_per_unit=options.bvh_mm_per_unit)
            hierarchy, positions, fps = motion.hierarchy, motion.positions, motion.fps
        weights = h36m_weights(hierarchy.names, dict(options.joints), path)
        positions = np.einsum("kj,fjc->fkc", weights, positions)
        if options.up_axis == "z":
            positions = positions[..., [1, 2, 0]]
        check_size(positions, path)
        return resample(positions, file_fps or fps, options.fps).astype(np.float32)

    def _cache_file(self, path: Path, fps: float | None) -> Path | None:
        if self.cache_dir is None:
            return None
        files = [path, find_skeleton(path)] if path.suffix.lower() == ".amc" else [path]
        stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        identity = repr((_CACHE_VERSION, self.options, fps, stats))
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return self.cache_dir / f"{path.stem}-{digest}.npz"


def _write(cached: Path, positions: np.ndarray, source: Path) -> None:
    """Writes a cache file, which names the motion file that it is of, whole or not at all."""
    try:
        with writing.replacing(cached) as part:
            np.savez(part, positions=positions, source=str(source.resolve()))
    except OSError as error:
        raise DataError(
            f"cannot write the cache {cached}: {error.strerror or error}; set data.mocap.cache_dir "
            "to a folder that can be written"
        ) from error


def check_size(positions: np.ndarray, source: str | Path) -> None:
    """Raises DataError if the legs of (frames, 17, 3) poses are not as long as a person's."""
    legs = [
        np.linalg.norm(positions[:, child] - positions[:, parent], axis=-1)
        for parent, child in ((1, 2), (2, 3), (4, 5), (5, 6))
    ]
    leg = float(np.median(np.sum(legs, axis=0))) / 2
    if not _LEG_RANGE[0] <= leg <= _LEG_RANGE[1]:
        raise DataError(
            f"{source}: a leg is {leg:.0f} mm long, expected {_LEG_RANGE[0]:.0f} to "
            f"{_LEG_RANGE[1]:.0f} mm; check data.mocap.asf_unit_mm or data.mocap.bvh_mm_per_unit "
            "(10 for centimetres, 25.4 for inches) and data.mocap.joints"
        )


def resample(positions: np.ndarray, fps: float, new_fps: float) -> np.ndarray:
    """Changes the frame rate.

    Positions in between are interpolated linearly, and bones, which that shortens a little where
    they turn, are then given the interpolated length. Frames that coincide with one of the
    original are unchanged.

    Args:
      positions: (frames, 17, 3).
      fps: its frame rate.
      new_fps: the wanted one.

    Returns:
      (new frames, 17, 3), from the first frame up to the last that is still inside.
    """
    frames = len(positions)
    count = int(np.floor((frames - 1) * new_fps / fps * (1 + 1e-12))) + 1
    at = np.minimum(np.arange(count) * (fps / new_fps), frames - 1)
    # Ratios such as 120 / 30 must land on whole frames in spite of rounding.
    at = np.where(np.abs(at - at.round()) < 1e-6, at.round(), at)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, frames - 1)
    share = (at - low)[:, None]
    before, after = positions[low], positions[high]
    straight = before + share[..., None] * (after - before)
    result = straight.copy()
    for parent, child in H36M17.bones:
        length = (1 - share[:, 0]) * np.linalg.norm(before[:, child] - before[:, parent], axis=-1)
        length += share[:, 0] * np.linalg.norm(after[:, child] - after[:, parent], axis=-1)
        bone = straight[:, child] - straight[:, parent]
        chord = np.linalg.norm(bone, axis=-1)
        scale = length / np.where(chord > 0, chord, 1)
        result[:, child] = result[:, parent] + np.where(share > 0, scale[:, None], 1) * bone
    return result

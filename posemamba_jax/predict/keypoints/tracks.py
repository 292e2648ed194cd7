"""People over time: who is who, what was observed, and what stands in for what was not."""

import dataclasses
import itertools

import numpy as np

from posemamba_jax.data.joint_sets import to_h36m17
from posemamba_jax.predict.keypoints.contract import KeypointError, Keypoints2D
from posemamba_jax.skeleton import H36M17, Skeleton

# A person of whom fewer joints are seen is not observed in that frame: nothing can be lifted.
MIN_JOINTS = 6
# Without identities in the file: boxes that overlap less, or whose centres are further apart (in
# box diagonals), belong to different people.
_MIN_OVERLAP = 0.1
_MAX_DISTANCE = 0.5


@dataclasses.dataclass(frozen=True)
class Track:
    """One person.

    Only the frames with a detection are kept, since a crowded video has thousands of people.

    id: identity in the file, or counted in order of appearance where it has none.
    frames: (detections,) index of each detection's frame, counted from the file's first.
    detections: (detections, joints, 3) float32 in the skeleton's order, pixels and confidence; NaN,
        NaN, 0 where a joint was not observed.
    num_frames: how many frames the file covers.
    skeleton: what the joints are.
    """

    id: int
    frames: np.ndarray
    detections: np.ndarray
    num_frames: int
    skeleton: Skeleton = H36M17

    @property
    def num_observed(self) -> int:
        """Number of frames in which enough joints were seen to call the person observed."""
        return int(_enough(self.detections[..., 2] > 0).sum())

    @property
    def keypoints(self) -> np.ndarray:
        """Makes (frames, 17, 3) float32, a row for every frame of the file; NaN, NaN, 0 if
        unobserved.
        """
        dense = np.full((self.num_frames, *self.detections.shape[1:]), np.nan, np.float32)
        dense[..., 2] = 0
        dense[self.frames] = self.detections
        return dense


def build_tracks(
    detections: Keypoints2D, min_confidence: float = 0.0, max_gap: int = 30
) -> tuple[list[Track], str]:
    """Follows people through the frames.

    Identities of the file are used if every detection has one and none occurs twice in a frame.
    Otherwise detections are associated frame by frame, the best overlap of their boxes first and
    the smallest distance of their centres next, to people seen within the last `max_gap` frames.

    Args:
      detections: as read, in pixels.
      min_confidence: joints with a confidence not above this are treated as missing.
      max_gap: frames after which a person who comes back is somebody new, without identities.

    Returns:
      Tracks with at least one observed frame, longest first, and a sentence on how people were told
      apart.

    Raises:
      KeypointError: nobody is observed in any frame.
    """
    first, _ = detections.frames
    people = sorted(detections.detections, key=lambda d: d.frame)
    people = [d for d in people if (d.keypoints[:, 2] > min_confidence).any()]
    named = [d.track for d in people]
    places = [(d.frame, d.track) for d in people]
    if people and None not in named and len(set(places)) == len(places):
        identities, how = named, "identities from the file"
    else:
        identities = _associate(people, max_gap)
        how = "associated from frame to frame by place"
        if people and None not in named:
            how += " (the file gives one identity to several people in a frame)"

    grouped = {}
    for person, identity in zip(people, identities, strict=True):
        grouped.setdefault(identity, []).append(person)
    tracks = []
    for identity, own in grouped.items():
        raw = np.stack([d.keypoints for d in own])
        raw[..., 2] = np.where(raw[..., 2] > min_confidence, raw[..., 2], 0)
        frames = np.array([d.frame - first for d in own])
        converted = _to_skeleton(raw, detections)
        track = Track(identity, frames, converted, detections.num_frames, detections.skeleton)
        if track.num_observed:
            tracks.append(track)
    if not tracks:
        raise KeypointError(
            f"{detections.path}: no frame shows {MIN_JOINTS} or more joints of anybody with a "
            f"confidence above {min_confidence:g}"
        )
    return sorted(tracks, key=lambda t: -t.num_observed), how


def _to_skeleton(raw: np.ndarray, keypoints: Keypoints2D) -> np.ndarray:
    """Maps (detections, joints, 3) of the file to the skeleton's joints; NaN, NaN, 0 for one
    unseen.
    """
    if keypoints.joint_set != keypoints.skeleton.name:
        return to_h36m17(raw, keypoints.joint_set)
    seen = raw[..., 2:] > 0
    return np.where(seen, raw, np.array([np.nan, np.nan, 0])).astype(np.float32)


def drop_ghosts(tracks: list[Track], least_frames: float) -> tuple[list[Track], int]:
    """Leaves out people who are seen too briefly to be people.

    Args:
      tracks: longest first. least_frames: shorter ones are dropped, unless they are seen in half of
        the file's frames or nobody is seen for longer.

    Returns:
      The tracks that stay, and how many were dropped.
    """
    least = min(least_frames, tracks[0].num_frames / 2, tracks[0].num_observed)
    kept = [track for track in tracks if track.num_observed >= least]
    return kept, len(tracks) - len(kept)


def choose_tracks(tracks: list[Track], wanted: str) -> list[Track]:
    """Selects people: `all` by number, `longest` (most observed frames), or one identity.

    Raises:
      KeypointError: no person has that identity.
    """
    if wanted == "all":
        return sorted(tracks, key=lambda track: track.id)
    if wanted == "longest":
        return tracks[:1]
    chosen = [t for t in tracks if str(t.id) == wanted]
    if not chosen:
        known = ", ".join(str(t.id) for t in tracks[:10]) + (", ..." if len(tracks) > 10 else "")
        raise KeypointError(
            f"--track {wanted}: no such person; give all, longest or one of {known}"
        )
    return chosen


def _associate(people: list, max_gap: int) -> list[int]:
    """Gives each detection an identity; `people` are sorted by frame."""
    boxes = np.array([_box(d.keypoints) for d in people]).reshape(-1, 4)
    identities = [-1] * len(people)
    last: dict[int, tuple[int, int]] = {}  # identity -> (frame, index of its latest detection)
    fresh = itertools.count(1)
    for frame, group in itertools.groupby(range(len(people)), key=lambda i: people[i].frame):
        indices = list(group)
        last = {k: (f, i) for k, (f, i) in last.items() if frame - f <= max_gap + 1}
        known = list(last)
        overlap, distance = _compare(boxes[indices], boxes[[last[k][1] for k in known]])
        pairs = np.argwhere((overlap >= _MIN_OVERLAP) | (distance <= _MAX_DISTANCE))
        best_first = np.lexsort((distance[tuple(pairs.T)], -overlap[tuple(pairs.T)]))
        taken_a, taken_b = set(), set()
        for a, b in pairs[best_first].tolist():
            if a not in taken_a and b not in taken_b:
                taken_a.add(a)
                taken_b.add(b)
                identities[indices[a]] = known[b]
        for i in indices:
            if identities[i] < 0:
                identities[i] = next(fresh)
            last[identities[i]] = (frame, i)
    return identities


def _box(keypoints: np.ndarray) -> tuple[float, float, float, float]:
    """Computes (left, top, right, bottom) of the seen joints."""
    seen = keypoints[keypoints[:, 2] > 0, :2]
    return *seen.min(0), *seen.max(0)


def _compare(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes intersection over union, and distance of the centres in mean diagonals, of (n, 4),
    (m, 4).
    """
    a, b = a.reshape(-1, 1, 4), b.reshape(1, -1, 4)
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    common = np.maximum(high - low, 0).prod(-1)
    union = size_a.prod(-1) + size_b.prod(-1) - common
    diagonal = (np.linalg.norm(size_a, axis=-1) + np.linalg.norm(size_b, axis=-1)) / 2
    apart = np.linalg.norm((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2, axis=-1)
    return common / np.maximum(union, 1e-9), apart / np.maximum(diagonal, 1e-9)


def _enough(joints: np.ndarray) -> np.ndarray:
    """Tells where enough of the joints (frames, joints) were seen, (frames,) bool."""
    return joints.sum(1) >= min(MIN_JOINTS, joints.shape[1])


def observed_masks(keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tells what was observed: joints (frames, 17) bool, and the person (frames,) bool.

    In a frame without the person, the stray joint or two of a detection are not trusted.
    """
    joints = keypoints[..., 2] > 0
    person = _enough(joints)
    return joints & person[:, None], person


def find_segments(observed: np.ndarray, max_gap: int) -> list[tuple[int, int]]:
    """Stretches [start, stop) that begin and end observed, with no gap longer than `max_gap`.

    Args:
      observed: (frames,) bool.
    """
    frames = np.flatnonzero(observed)
    if not len(frames):
        return []
    breaks = np.flatnonzero(np.diff(frames) - 1 > max_gap)
    starts = frames[np.concatenate([[0], breaks + 1])]
    stops = frames[np.concatenate([breaks, [len(frames) - 1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def fill_gaps(track: Track, max_gap: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Completes 2D poses on the stretches of time in which a person can be followed.

    Inside a segment a joint that is missing for a while moves in a straight line between where it
    was last seen and where it is seen next; before the first and after the last sight it stays. One
    that is never seen in a segment takes the place of the nearest seen joint along the skeleton.

    Args:
      track: the person.
      max_gap: longest stretch of frames without the person that is bridged; longer ones split.

    Returns:
      poses (frames, 17, 2) float32 in pixels, NaN outside the segments, and the segments as
      [start, stop) frames.
    """
    keypoints = track.keypoints
    observed_joints, observed = observed_masks(keypoints)
    poses = np.full_like(keypoints[..., :2], np.nan)
    segments = find_segments(observed, max_gap)
    for start, stop in segments:
        seen = observed_joints[start:stop]
        points = keypoints[start:stop, :, :2]
        time = np.arange(stop - start)
        for joint in np.flatnonzero(seen.any(0)):
            when = np.flatnonzero(seen[:, joint])
            for axis in range(2):
                line = np.interp(time, when, points[when, joint, axis])
                poses[start:stop, joint, axis] = line
        for joint, stand_in in _stand_ins(seen.any(0), track.skeleton).items():
            poses[start:stop, joint] = poses[start:stop, stand_in]
    return poses, segments


def _stand_ins(seen: np.ndarray, skeleton: Skeleton) -> dict[int, int]:
    """Finds for each joint that is not seen the seen joint the fewest bones away."""
    neighbours = {joint: [] for joint in range(len(seen))}
    for a, b in skeleton.bones:
        neighbours[a].append(b)
        neighbours[b].append(a)
    found = {}
    for joint in np.flatnonzero(~seen):
        queue = [int(joint)]
        for candidate in queue:
            if seen[candidate]:
                found[int(joint)] = candidate
                break
            queue += [n for n in neighbours[candidate] if n not in queue]
    return found

"""The authors' evaluation protocols, over any clip source.

Per clip: predict, average with the flipped-back prediction of the flipped input, put the root at
zero, scale to millimetres frame by frame, and compare with the target relative to its root. The
source's `protocol` says what becomes of the errors:

- "h36m", also of sources that name none: a frame that occurs in several clips counts once, with its
  mean error; figures are means over the frames of each action, then plain means over the actions.
- "mpi_inf_3dhp": see `posemamba_jax.evaluation.mpi_inf_3dhp`.

All three coordinates are the model's, whatever its input: the release can put ground-truth x and y
into the prediction before scoring (its option gt_2d), which leaves an error of depth alone. Nothing
here does that.

    report = evaluate(predict, source)
    rich.print(report.table())
    report.save("report.json")
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from posemamba_jax import metrics
from posemamba_jax.data.clips import ClipSource, DataError
from posemamba_jax.data.prefetch import read_ahead
from posemamba_jax.evaluation.mpi_inf_3dhp import MpiInf3dhpReport, MpiInf3dhpScores
from posemamba_jax.files.json_report import JsonReport
from posemamba_jax.model.forward import Predict
from posemamba_jax.skeleton import Skeleton

_FIGURES = {
    "mpjpe_mm": "P1 MPJPE",
    "p_mpjpe_mm": "P2 P-MPJPE",
    "n_mpjpe_mm": "N-MPJPE",
    "mpjve_mm": "MPJVE",
}


@dataclasses.dataclass(frozen=True)
class Report(JsonReport):
    """What an evaluation by Human3.6M's protocol found.

    Attributes:
      source: name of the clip source.
      clips, frames: how many were evaluated; frames that occur in several clips count once.
      excluded: recordings that the protocol leaves out.
      flip: whether predictions were averaged with those of the mirrored input.
      input_2d: "ground_truth" or "detected" input; empty if the source does not say.
      mpjpe_mm: Protocol 1, mean joint distance of root-relative poses, millimetres.
      p_mpjpe_mm: Protocol 2, the same after the best similarity transform of each frame.
      n_mpjpe_mm: the same after the best scale of each frame.
      mpjve_mm: mean distance between the joints' frame-to-frame differences, millimetres per frame;
        NaN where no clip has two neighbouring frames.
      per_action: the four figures of each action; those above are their plain means.
    """

    source: str
    clips: int
    frames: int
    excluded: tuple[str, ...]
    flip: bool
    input_2d: str
    mpjpe_mm: float
    p_mpjpe_mm: float
    n_mpjpe_mm: float
    mpjve_mm: float
    per_action: dict[str, dict[str, float]]

    def summary(self) -> str:
        """Sums up the main figures in a few words."""
        return f"P1 {self.mpjpe_mm:.1f} mm, P2 {self.p_mpjpe_mm:.1f} mm"

    def table(self, title: str | None = None) -> Table:
        """Makes a table of the figures per action and overall."""
        table = Table(title=title or f"{self.source}: {self.frames} frames, millimetres")
        table.add_column("action")
        for heading in _FIGURES.values():
            table.add_column(heading, justify="right")
        for action, figures in self.per_action.items():
            table.add_row(action or "(none)", *[f"{figures[key]:.2f}" for key in _FIGURES])
        table.add_section()
        table.add_row("mean", *[f"{getattr(self, key):.2f}" for key in _FIGURES], style="bold")
        return table


def evaluate(
    predict: Predict,
    source: ClipSource,
    *,
    batch_size: int = 16,
    flip: bool = True,
    confidence: bool = False,
    progress: Callable[[int, int], None] | None = None,
    on_clip: Callable[[int, dict, np.ndarray], None] | None = None,
) -> Report | MpiInf3dhpReport:
    """Evaluates a prediction function on every clip of a source, by the source's protocol.

    Args:
      predict: maps (batch, frames, joints, 2) float32 to (batch, frames, joints, 3). It is always
        called with batch_size clips (the last batch is filled up with a repeated clip), so that a
        compiled function is compiled once.
      source: clips with targets in millimetres, usually a test split. Its skeleton says which joint
        is the root and which ones trade places in a mirror.
      batch_size: clips per call.
      flip: whether to average with the flipped-back prediction of the flipped input.
      confidence: whether predict takes (batch, frames, joints, 3), with the confidence of each
        keypoint.
      progress: called with the clips done and the clips in all after every batch.
      on_clip: called with the index, the clip and its prediction (frames, joints, 3), root-relative
        in millimetres, for every clip that counts.

    Raises:
      DataError: the source has no clips, no millimetres, other joints than its protocol scores, or
        a protocol that does not exist.
      ValueError: batch_size is not positive, or predict returns another shape.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    protocol = getattr(source, "protocol", "h36m")
    if protocol not in _PROTOCOLS:
        raise DataError(
            f"{source.name} asks for the protocol {protocol!r}, expected one of "
            f"{', '.join(_PROTOCOLS)}"
        )
    skeleton = source.skeleton
    scores = _PROTOCOLS[protocol](skeleton)
    excluded = getattr(source, "excluded_from_evaluation", frozenset())
    clips, left_out = 0, set()
    for done, batch in read_ahead(_batches(source, batch_size)):
        counts = [clip["subject_source"] not in excluded for clip in batch]
        kept = [clip for clip, counted in zip(batch, counts, strict=True) if counted]
        left_out |= {clip["subject_source"] for clip in batch} & excluded
        if kept:
            preds = _predict(predict, kept, batch_size, flip, confidence, skeleton)
            indices = done - len(batch) + np.flatnonzero(counts)
            for index, clip, pred in zip(indices, kept, preds, strict=True):
                scores.add(clip, pred)
                if on_clip is not None:
                    mm_per_unit = clip["mm_per_unit"].astype(np.float64)[:, None, None]
                    on_clip(int(index), clip, pred * mm_per_unit)
            clips += len(kept)
        if progress is not None:
            progress(done, len(source))
    if not clips:
        raise DataError(
            f"{source.name}: there are no clips to evaluate"
            + (f" ({len(left_out)} recordings are excluded by the protocol)" if left_out else "")
        )
    return scores.report(source=source, clips=clips, excluded=tuple(sorted(left_out)), flip=flip)


def evaluate_h36m(
    predict: Predict,
    dataset: ClipSource,
    *,
    batch_size: int = 16,
    flip: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Protocols 1 and 2 of Human3.6M; see `evaluate`.

    Args:
      predict: maps (batch, frames, joints, 2) float32 to (batch, frames, joints, 3).
      dataset: the test split as `posemamba_jax.data.build` gives it, without its broken recordings.

    Raises:
      DataError: the dataset is not Human3.6M's test split.
    """
    if dataset.name != "h36m":
        raise DataError(f"evaluate_h36m needs the source h36m, got {dataset.name}; use evaluate")
    return evaluate(predict, dataset, batch_size=batch_size, flip=flip, progress=progress)


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Makes a progress bar on stderr, as `evaluate` takes it."""
    console = Console(stderr=True)
    with Progress(console=console, transient=console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _batches(source: ClipSource, batch_size: int) -> Iterator[tuple[int, list[dict]]]:
    for first in range(0, len(source), batch_size):
        last = min(first + batch_size, len(source))
        batch = [source[i] for i in range(first, last)]
        if "poses_3d_mm" not in batch[0]:
            raise DataError(
                f"{source.name} has no targets in millimetres and cannot be evaluated; use its "
                "test split"
            )
        yield last, batch


def _predict(predict, clips, batch_size, flip, confidence, skeleton) -> np.ndarray:
    """Predicts (clips, frames, joints, 3) in float64, with the root at zero."""
    fill = [clips[-1]] * (batch_size - len(clips))
    poses_2d = np.stack([clip["poses_2d"][..., : 2 + confidence] for clip in [*clips, *fill]])
    call = functools.partial(_call, predict)
    pred = skeleton.average_flipped(call, poses_2d) if flip else call(poses_2d)
    pred = pred[: len(clips)]
    # The authors overwrite the root instead of subtracting it: models learn it to be zero.
    pred[:, :, skeleton.root] = 0
    return pred


def _call(predict, poses_2d) -> np.ndarray:
    pred = np.array(predict(poses_2d), np.float64)
    expected = (*poses_2d.shape[:-1], 3)
    if pred.shape != expected:
        raise ValueError(f"predict returned the shape {pred.shape}, expected {expected}")
    return pred


class _H36MScores:
    """Collects the errors of clips' frames."""

    def __init__(self, skeleton: Skeleton):
        self._root = skeleton.root
        self._frames = {key: _Frames() for key in _FIGURES}

    def add(self, clip: dict, pred: np.ndarray) -> None:
        """Adds one clip; pred is (frames, joints, 3) in the source's units, the root at zero."""
        ids, action, frames = clip["frame_ids"], clip["action"], self._frames
        pred = pred * clip["mm_per_unit"].astype(np.float64)[:, None, None]
        target = clip["poses_3d_mm"].astype(np.float64)
        target = target - target[:, self._root : self._root + 1]

        frames["mpjpe_mm"].add(ids, metrics.mpjpe_per_frame(pred, target), action)
        frames["p_mpjpe_mm"].add(ids, metrics.p_mpjpe_per_frame(pred, target), action)
        frames["n_mpjpe_mm"].add(ids, metrics.n_mpjpe_per_frame(pred, target), action)
        # The clip of a short recording repeats frames; a step between equal frames is no motion.
        neighbours = np.diff(ids) == 1
        velocity_error = metrics.mpjpe_per_frame(np.diff(pred, axis=0), np.diff(target, axis=0))
        frames["mpjve_mm"].add(ids[1:][neighbours], velocity_error[neighbours], action)

    def report(
        self, *, source: ClipSource, clips: int, excluded: tuple[str, ...], flip: bool
    ) -> Report:
        means = {key: collected.mean_per_action() for key, collected in self._frames.items()}
        actions = sorted(means["mpjpe_mm"])
        return Report(
            source=source.name,
            clips=clips,
            frames=self._frames["mpjpe_mm"].count(),
            excluded=excluded,
            flip=flip,
            input_2d=getattr(source, "input_2d", ""),
            **{key: _mean(list(means[key].values())) for key in _FIGURES},
            per_action={a: {key: means[key].get(a, math.nan) for key in _FIGURES} for a in actions},
        )


class _Frames:
    """Errors of frames, which may come more than once."""

    def __init__(self):
        self._ids, self._errors, self._actions, self._names = [], [], [], {}

    def add(self, ids, errors, action):
        number = self._names.setdefault(action, len(self._names))
        self._ids.append(ids)
        self._errors.append(errors)
        self._actions.append(np.full(len(ids), number))

    def count(self) -> int:
        return len(np.unique(np.concatenate(self._ids)))

    def mean_per_action(self) -> dict[str, float]:
        """Averages over each action's frames the frame's mean error."""
        _, first, frame = np.unique(
            np.concatenate(self._ids), return_index=True, return_inverse=True
        )
        times = np.bincount(frame)
        errors = np.bincount(frame, np.concatenate(self._errors)) / times
        actions = np.concatenate(self._actions)[first]
        return {
            name: float(errors[actions == number].mean())
            for name, number in self._names.items()
            if (actions == number).any()
        }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


_PROTOCOLS = {"h36m": _H36MScores, "mpi_inf_3dhp": MpiInf3dhpScores}

"""The protocol of MPI-INF-3DHP: PCK, AUC and MPJPE of the frame in the middle of each clip.

Every valid test frame has a clip of its own, in whose middle it is. Poses are compared relative to
the pelvis and are not aligned. PCK is the share of joints closer than 150 mm (Mehta et al., 2017),
AUC the mean PCK over thresholds 0, 5, ..., 150 mm; both over joints 0-13 of the file's order, which
leaves out pelvis, spine and head. MPJPE is the mean over all frames and 17 joints.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from posemamba_jax import metrics
from posemamba_jax.data.sources.mpi_inf_3dhp import FILE_JOINTS
from posemamba_jax.errors import DataError
from posemamba_jax.files.json_report import JsonReport
from posemamba_jax.skeleton import H36M17, Skeleton

# Joints, by the names of Human3.6M-17, that PCK and AUC are over.
PCK_JOINTS = tuple(H36M17.joints[j] for j, file_joint in enumerate(FILE_JOINTS) if file_joint < 14)


@dataclasses.dataclass(frozen=True)
class MpiInf3dhpReport(JsonReport):
    """What an evaluation found.

    Attributes:
      source: name of the clip source.
      clips, frames: how many were evaluated; a clip stands for one frame.
      clip_len: frames in a clip; 81 in the authors' protocol.
      flip: whether predictions were averaged with those of the mirrored input.
      input_2d: "ground_truth" in this protocol.
      mpjpe_mm: mean joint distance of pelvis-relative poses, millimetres.
      pck, auc: shares in 0..1 of joints that are close enough; see the module.
      p_mpjpe_mm: mean joint distance after the best similarity transform of each frame; no part of
        the protocol.
      per_sequence: the four figures of each test sequence; those above are over all frames.
    """

    source: str
    clips: int
    frames: int
    clip_len: int
    flip: bool
    input_2d: str
    mpjpe_mm: float
    pck: float
    auc: float
    p_mpjpe_mm: float
    per_sequence: dict[str, dict[str, float]]

    def summary(self) -> str:
        """Sums up the main figures in a few words."""
        return f"MPJPE {self.mpjpe_mm:.1f} mm, PCK {self.pck:.1%}, AUC {self.auc:.1%}"

    def table(self, title: str | None = None) -> Table:
        """Makes a table of the figures per sequence and overall; PCK and AUC in percent."""
        table = Table(
            title=title or f"{self.source}: {self.frames} frames, {self.clip_len}-frame windows"
        )
        table.add_column("sequence")
        for heading in ("frames", "MPJPE mm", "PCK %", "AUC %", "P-MPJPE mm"):
            table.add_column(heading, justify="right")

        def add_row(name, figures, **options):
            mpjpe, p_mpjpe = (f"{figures[key]:.2f}" for key in ("mpjpe_mm", "p_mpjpe_mm"))
            pck, auc = (f"{100 * figures[key]:.2f}" for key in ("pck", "auc"))
            table.add_row(name, str(figures["frames"]), mpjpe, pck, auc, p_mpjpe, **options)

        for name, figures in self.per_sequence.items():
            add_row(name, figures)
        table.add_section()
        add_row("all", vars(self), style="bold")
        return table


class MpiInf3dhpScores:
    """Collects the poses in the middle of clips.

    Args:
      skeleton: which joint is the pelvis, and where those are that PCK and AUC are over.

    Raises:
      DataError: the skeleton has not all of them.
    """

    def __init__(self, skeleton: Skeleton):
        self._counted = skeleton.find(PCK_JOINTS)
        if self._counted is None:
            raise DataError(
                f"the protocol of MPI-INF-3DHP scores {', '.join(PCK_JOINTS)}; the skeleton "
                f"{skeleton.name} has not all of them"
            )
        self._root = skeleton.root
        self._preds: dict[str, list[np.ndarray]] = {}
        self._targets: dict[str, list[np.ndarray]] = {}

    def add(self, clip: dict, pred: np.ndarray) -> None:
        """Adds one clip.

        Args:
          clip: as the source gives it.
          pred: (frames, joints, 3) in the source's units, the root at zero.
        """
        middle = len(pred) // 2
        target = clip["poses_3d_mm"][middle].astype(np.float64)
        name = clip["subject_source"]
        self._preds.setdefault(name, []).append(pred[middle] * float(clip["mm_per_unit"][middle]))
        self._targets.setdefault(name, []).append(target - target[self._root])

    def report(self, *, source, clips: int, excluded: tuple[str, ...], flip: bool):
        """Computes the figures over all that was added."""
        del excluded  # the valid frames were chosen by the source
        parts = {
            name: (np.stack(self._preds[name]), np.stack(self._targets[name]))
            for name in sorted(self._preds)
        }
        everything = tuple(map(np.concatenate, zip(*parts.values(), strict=True)))
        overall = compute_figures(*everything, self._counted)
        return MpiInf3dhpReport(
            source=source.name,
            clips=clips,
            clip_len=source.clip_len,
            flip=flip,
            input_2d=getattr(source, "input_2d", ""),
            **overall,
            per_sequence={
                name: compute_figures(*part, self._counted) for name, part in parts.items()
            },
        )


def compute_figures(
    pred: np.ndarray, target: np.ndarray, counted: Sequence[int]
) -> dict[str, float]:
    """Computes the figures of poses in millimetres relative to the pelvis.

    Args:
      pred, target: (frames, joints, 3).
      counted: the joints that PCK and AUC are over.
    """
    joints = list(counted)
    return {
        "frames": len(pred),
        "mpjpe_mm": metrics.mpjpe(pred, target),
        "pck": metrics.pck(pred[:, joints], target[:, joints]),
        "auc": metrics.auc(pred[:, joints], target[:, joints]),
        "p_mpjpe_mm": metrics.p_mpjpe(pred, target),
    }

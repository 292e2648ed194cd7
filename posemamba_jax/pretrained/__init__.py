"""Models that are installed with the package, ready to lift people.

    from posemamba_jax import pretrained

    model, variables = pretrained.load("cmu30")
    poses_3d = model.apply(variables, poses_2d)

`python -m posemamba_jax.pretrained` lists them. Wherever a program takes a checkpoint,
`pretrained:cmu30` names one too.
"""

from typing import Any

from posemamba_jax.pretrained.index import PretrainedError, PretrainedModel, available

__all__ = ["PretrainedError", "PretrainedModel", "available", "load"]


def load(name: str) -> tuple[Any, dict[str, Any]]:
    """Reads a model that is installed with the package.

    `model.apply(variables, poses_2d)` lifts keypoints (B, F, J, 2) to poses (B, F, J, 3), with F up
    to `model.config.num_frames` frames. Joints are Human3.6M's 17 (`posemamba_jax.skeleton`).
    Keypoints in pixels p are given as `p * 2 / width - [1, height / width]`; poses are in halves of
    the image's width at the person's depth, x right, y down, z away from the camera. Their root is
    near zero, and subtracting it is left to the caller. Frames follow each other at the rate that
    `posemamba_jax.evaluation.checkpoint.load_frame_rate` gives: 30 per second for `cmu30`.

    `cmu30` was trained on motion from mocap.cs.cmu.edu, a database created with funding from NSF
    EIA-0196217; docs/model_card.md has its terms, its figures, and where it fails.

    Args:
      name: one of `available()`.

    Returns:
      The `PoseMamba` module and its variables, {"params": ...} as float32 NumPy arrays.

    Raises:
      PretrainedError: the name is unknown, or the file is damaged.
    """
    # The reader of checkpoints finds models by this package.
    from posemamba_jax.model import PoseMamba
    from posemamba_jax.model.checkpoint import load_model
    from posemamba_jax.pretrained.index import find

    config, variables = load_model(find(name))
    return PoseMamba(config), variables

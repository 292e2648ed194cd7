"""A model as one file that runs without this package: StableHLO, written by jax.export.

    python -m posemamba_jax.export_model CHECKPOINT OUT.stablehlo

The file holds the program and its weights. `jax.export.deserialize` reads it; see
docs/building_blocks/export.md.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from posemamba_jax.errors import UserError, describe_error
from posemamba_jax.files import writing
from posemamba_jax.files.reading import user_path
from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.skeleton import H36M17, Skeleton

PLATFORMS = ("cpu", "cuda", "tpu")
_KNOWN_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_PRECISIONS = ("default", "high", "highest")


class ExportError(UserError, ValueError):
    """The model cannot be exported as asked, or the file cannot be written."""


def export_model(
    config: PoseMambaConfig,
    variables: Any,
    *,
    frames: int | None = None,
    batch_size: int | None = None,
    flip: bool = False,
    skeleton: Skeleton = H36M17,
    platforms: Sequence[str] = PLATFORMS,
    matmul_precision: str = "highest",
) -> export.Exported:
    """Exports the forward pass of a model as a StableHLO program with the weights inside.

    The scan is the `xla` implementation whatever the configuration names, because a program that
    calls this package's own kernels would need them where it runs.

    Args:
      config: the architecture.
      variables: {"params": ...}, as `PoseMamba.init` or `load_model` return them.
      frames: F, the clip length that the program takes; None takes config.num_frames.
      batch_size: B, where it is to be fixed. None leaves it open: any batch of one or more.
      flip: average with the flipped-back prediction of the flipped input.
      skeleton: left and right for the flip.
      platforms: where the program can run, out of cpu, cuda, rocm and tpu.
      matmul_precision: "default", "high" or "highest" of JAX's matrix products. It is part of the
        program; "default" is TF32 on recent NVIDIA GPUs and bfloat16 on TPUs.

    Returns:
      The program: `.call(poses_2d)`, poses_2d (B, F, J, 2) float32 normalised to the image width,
      gives what the model gives, (B, F, J, 3) float32. Of a model with `config.confidence` it takes
      (B, F, J, 3). `serialise` makes bytes of it.

    Raises:
      ExportError: an argument is out of range, or the skeleton is not the model's.
    """
    frames = config.num_frames if frames is None else frames
    if not 1 <= frames <= config.num_frames:
        raise ExportError(f"frames is {frames}; the model takes 1 to {config.num_frames}")
    try:
        config.order.check_grid(frames, config.num_joints)
    except ValueError as error:
        raise ExportError(f"frames is {frames}: {error}") from None
    if batch_size is not None and batch_size < 1:
        raise ExportError(f"batch_size is {batch_size}; expected 1 or more, or none for any")
    unknown = [name for name in platforms if name not in _KNOWN_PLATFORMS]
    if unknown or not platforms:
        raise ExportError(
            f"platforms are {list(platforms)}; expected some of {', '.join(_KNOWN_PLATFORMS)}"
        )
    if matmul_precision not in _PRECISIONS:
        raise ExportError(
            f"matmul_precision is {matmul_precision!r}; expected one of {', '.join(_PRECISIONS)}"
        )
    if flip and skeleton.num_joints != config.num_joints:
        raise ExportError(
            f"flip averaging needs left and right of the model's {config.num_joints} joints; "
            f"skeleton {skeleton.name!r} has {skeleton.num_joints}. Export without flip, or call "
            "posemamba_jax.predict.export.stablehlo.export_model from Python with the skeleton"
        )

    model = PoseMamba(dataclasses.replace(config, implementation="xla"))
    # NumPy arrays become constants of the program; JAX arrays would bring their devices along.
    variables = jax.tree.map(np.asarray, variables)

    @jax.jit  # One function of the program even where it is called twice.
    def apply(poses_2d):
        return model.apply(variables, poses_2d)

    def lift(poses_2d):
        return skeleton.average_flipped(apply, poses_2d) if flip else apply(poses_2d)

    (batch,) = export.symbolic_shape("batch") if batch_size is None else (batch_size,)
    clips = jax.ShapeDtypeStruct(
        (batch, frames, config.num_joints, config.input_channels), jnp.float32
    )
    with jax.default_matmul_precision(matmul_precision):
        return export.export(jax.jit(lift), platforms=tuple(platforms))(clips)


def serialise(exported: export.Exported) -> bytes:
    """Writes the bytes that `jax.export.deserialize` takes.

    Raises:
      ModuleNotFoundError: flatbuffers is not installed.
    """
    try:
        import flatbuffers  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "exported files need flatbuffers: pip install 'posemamba-jax[export]'"
        ) from error
    return bytes(exported.serialize())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m posemamba_jax.export_model",
        description="Writes a model as one StableHLO file that JAX runs without this package.",
    )
    parser.add_argument(
        "checkpoint", type=Path, help="a run's folder, a model's, or pretrained:NAME"
    )
    parser.add_argument("out", type=Path, help="the file to write, replaced if it exists")
    parser.add_argument(
        "--which", choices=("best", "latest"), default="best", help="checkpoint of a run"
    )
    parser.add_argument("--frames", type=int, help="clip length (default: the model's)")
    parser.add_argument("--batch_size", type=int, help="fix the batch size (default: any)")
    parser.add_argument(
        "--flip", action="store_true", help="average with the flipped input's prediction"
    )
    parser.add_argument(
        "--platforms",
        default=",".join(PLATFORMS),
        help=f"comma-separated, out of {', '.join(_KNOWN_PLATFORMS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--matmul_precision",
        choices=_PRECISIONS,
        default="highest",
        help="precision of matrix products on GPU and TPU (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    # Here, because it brings Orbax, which takes seconds to import and the functions do not need.
    from posemamba_jax.model.checkpoint import load_model

    try:
        config, variables = load_model(args.checkpoint, args.which)
        exported = export_model(
            config,
            variables,
            frames=args.frames,
            batch_size=args.batch_size,
            flip=args.flip,
            platforms=tuple(filter(None, args.platforms.split(","))),
            matmul_precision=args.matmul_precision,
        )
        size = _write(user_path(args.out), serialise(exported))
    except (UserError, OSError, ModuleNotFoundError) as error:
        said = error if isinstance(error, UserError) else describe_error(error)
        print(f"error: {said}", file=sys.stderr)
        return 2
    (clips,), (poses,) = exported.in_avals, exported.out_avals
    print(
        f"{args.out}: {size / 1e6:.1f} MB, {_shape(clips)} to {_shape(poses)}, "
        f"for {', '.join(exported.platforms)}, written by JAX {jax.__version__}"
    )
    return 0


def _write(path: Path, data: bytes) -> int:
    if path.is_dir():
        raise ExportError(f"{path}: a folder; give the name of a file")
    writing.write_bytes(path, data)
    return len(data)


def _shape(aval) -> str:
    return f"{aval.dtype}({', '.join(str(size) for size in aval.shape)})"


if __name__ == "__main__":
    sys.exit(main())

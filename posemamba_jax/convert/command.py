"""The program that turns a PyTorch checkpoint of the authors' release into one for eval.py."""

import argparse
import sys
from pathlib import Path

import jax

from posemamba_jax.convert.torch_file import load_torch_file
from posemamba_jax.convert.weights import config_from_torch, from_torch, preset_name
from posemamba_jax.errors import UserError
from posemamba_jax.files import writing
from posemamba_jax.files.reading import user_path
from posemamba_jax.model.config import Scan


def main(argv: list[str] | None = None) -> int:
    """Runs the program and returns its exit code.

    Args:
      argv: the command line, without the program's name; None takes the process's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m posemamba_jax.convert",
        description="Turns a PyTorch checkpoint of the authors' release into one for eval.py.",
    )
    parser.add_argument("file", type=Path, help="the .bin, .pth or .tr file")
    parser.add_argument("out_dir", type=str, help="directory of the new checkpoint")
    parser.add_argument(
        "--scan",
        choices=Scan.__args__,
        default="limbs",
        help="scan order the model was trained with; the file does not say (default: limbs)",
    )
    parser.add_argument(
        "--limb_walk",
        type=parse_limb_walk,
        help="comma-separated joint indices, for a skeleton other than Human3.6M's",
    )
    parser.add_argument(
        "--directions",
        type=lambda text: tuple(text.split(",")),
        help="comma-separated directions, of a model with others than the release's four "
        "(see docs/model.md)",
    )
    args = parser.parse_args(argv)
    # Here, because it brings Orbax, which takes seconds to import and the functions do not need.
    from posemamba_jax.model.checkpoint import save_model

    try:
        out_dir = user_path(args.out_dir)
        state = load_torch_file(args.file)
        config = config_from_torch(
            state, scan=args.scan, limb_walk=args.limb_walk, directions=args.directions
        )
        variables = from_torch(state)
        with writing.reported_as(args.out_dir):
            save_model(out_dir, config, variables["params"], {"converted_from": args.file.name})
    except (UserError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    print(
        f"{out_dir}: model {preset_name(config) or 'of no preset'}, dim {config.dim}, "
        f"depth {config.depth}, {config.num_frames} frames, {config.num_joints} joints, "
        f"scan {', '.join(config.directions or [config.scan])}, {count:,} parameters"
    )
    return 0


def parse_limb_walk(text: str) -> tuple[int, ...]:
    """Reads joint indices, such as (0, 2, 1) from "0,2,1".

    Raises:
      argparse.ArgumentTypeError: a word is not a number.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{ascii(text)}: expected joint indices, such as 0,2,1")
    return tuple(map(int, words))

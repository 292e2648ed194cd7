"""Tells whether two runs ended alike: python -m posemamba_jax.training.compare RUN OTHER_RUN"""

import argparse
from collections.abc import Sequence

import numpy as np

from posemamba_jax.config import run_program
from posemamba_jax.model.checkpoint import load_arrays


def main(argv: Sequence[str]) -> int:
    """Compares every array of the latest checkpoints bit for bit; 0 if all are equal, else 1.

    Raises:
      UserError: a checkpoint cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m posemamba_jax.training.compare")
    parser.add_argument("runs", nargs=2, metavar="RUN", help="a run, or a checkpoint in it")
    runs = parser.parse_args(argv).runs
    first, second = map(load_arrays, runs)
    different = [
        name
        for name in sorted({*first, *second})
        if name not in first or name not in second or not equal_bits(first[name], second[name])
    ]
    numbers = sum(array.size for array in first.values())
    if different:
        shown = ", ".join(different[:5]) + (", ..." if len(different) > 5 else "")
        print(f"{runs[0]} and {runs[1]}: {len(different)} of {len(first)} arrays differ: {shown}")
        return 1
    print(
        f"{runs[0]} and {runs[1]}: equal bit for bit at step {int(first['rest/step'])} "
        f"({len(first)} arrays, {numbers:,} numbers: parameters and the optimiser's state)"
    )
    return 0


def equal_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Tells whether two arrays have the same shape, type and bytes; NaN equals itself."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


if __name__ == "__main__":
    run_program(main)

"""Lifts 2D keypoints that a detector wrote to 3D poses; see docs/prediction.md."""

from posemamba_jax.config import run_program
from posemamba_jax.predict.run import main

if __name__ == "__main__":
    run_program(main)

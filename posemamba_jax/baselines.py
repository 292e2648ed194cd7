"""Runs `posemamba_jax.evaluation.baselines`: mean pose and linear regression."""

from posemamba_jax.config import run_program
from posemamba_jax.evaluation.baselines import main

__all__ = ["main"]

if __name__ == "__main__":
    run_program(main)

"""Runs `posemamba_jax.pictures.ssm_map`: what the scan looks at."""

from posemamba_jax.config import run_program
from posemamba_jax.pictures.ssm_map import main

__all__ = ["main"]

if __name__ == "__main__":
    run_program(main)

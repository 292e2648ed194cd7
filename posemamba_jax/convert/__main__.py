"""Runs `python -m posemamba_jax.convert`."""

from posemamba_jax.config import run_program
from posemamba_jax.convert import main

if __name__ == "__main__":
    run_program(main)

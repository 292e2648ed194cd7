"""Runs `posemamba_jax.pictures.report`: pictures of evaluated runs."""

from posemamba_jax.config import run_program
from posemamba_jax.pictures.report import main

__all__ = ["main"]

if __name__ == "__main__":
    run_program(main)

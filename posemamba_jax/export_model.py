"""Runs `posemamba_jax.predict.export.stablehlo`: a model for other programs."""

from posemamba_jax.config import run_program
from posemamba_jax.predict.export.stablehlo import export_model, main

__all__ = ["export_model", "main"]

if __name__ == "__main__":
    run_program(main)

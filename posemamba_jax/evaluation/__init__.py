"""The authors' evaluation protocols, baselines to compare with, and evaluating a checkpoint."""

from posemamba_jax.evaluation.protocols import (
    Predict,
    Report,
    evaluate,
    evaluate_h36m,
    progress_bar,
)

__all__ = ["Predict", "Report", "evaluate", "evaluate_h36m", "progress_bar"]

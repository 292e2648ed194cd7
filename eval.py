"""Evaluates a checkpoint: P1, P2, N-MPJPE and velocity error, per action.

python eval.py --checkpoint runs/quickstart
python eval.py --checkpoint converted_model --config configs/h36m/posemamba_b.yaml
"""

from collections.abc import Sequence

from posemamba_jax.config import run_program


def main(argv: Sequence[str]) -> int:
    from posemamba_jax.pictures.evaluation import main

    return main(argv)


if __name__ == "__main__":
    run_program(main)

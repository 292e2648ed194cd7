"""Evaluates a checkpoint: P1, P2, N-MPJPE and velocity error, per action.

python eval.py --checkpoint runs/quickstart
python eval.py --checkpoint converted_model --config configs/h36m/posemamba_b.yaml
"""

from collections.abc import Sequence

from posemamba_jax.training.signals import StopRequest


def main(argv: Sequence[str]) -> int:
    from posemamba_jax.pictures.evaluation import main

    return main(argv)


if __name__ == "__main__":
    with StopRequest("stopped"):  # Before the imports, which take seconds.
        from posemamba_jax.config import run_program

        run_program(main)

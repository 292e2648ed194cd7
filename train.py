"""Trains PoseMamba.

python train.py --config configs/quickstart.yaml [--optim.learning_rate 1e-4 ...]
python train.py --resume runs/quickstart
"""

from collections.abc import Sequence

from posemamba_jax.config import load_config, run_program


def main(argv: Sequence[str]) -> int:
    config = load_config(argv, prog="train.py")
    from posemamba_jax.training.loop import train  # After the options: a mistake shows at once.

    return train(config).exit_code


if __name__ == "__main__":
    run_program(main)

"""Trains PoseMamba.

python train.py --config configs/quickstart.yaml [--optim.learning_rate 1e-4 ...]
python train.py --resume runs/quickstart
"""

from collections.abc import Sequence

from posemamba_jax.training.signals import StopRequest


def main(argv: Sequence[str], stop: StopRequest | None = None) -> int:
    from posemamba_jax.config import load_config

    config = load_config(argv, prog="train.py")
    from posemamba_jax.training.loop import train  # After the options: a mistake shows at once.

    return train(config, stop=stop).exit_code


if __name__ == "__main__":
    with StopRequest() as signals:  # Before the imports, which take seconds.
        from posemamba_jax.config import run_program

        run_program(lambda argv: main(argv, signals))

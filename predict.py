"""Lifts the people in a video, or in 2D keypoints, to 3D poses; see docs/prediction.md."""

from posemamba_jax.training.signals import StopRequest

if __name__ == "__main__":
    with StopRequest("stopped"):  # Before the imports, which take seconds.
        from posemamba_jax.config import run_program
        from posemamba_jax.predict.run import main

        run_program(main)

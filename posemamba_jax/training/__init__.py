"""Training: mesh, optimiser, step, loop, checkpoints and the run's records."""

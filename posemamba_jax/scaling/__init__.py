"""Reports what the training step costs on a slice of accelerators, without the slice.

`python -m posemamba_jax.scaling` compiles the step for a topology with libtpu, reads what the
compiler made of it and estimates how it scales; docs/scaling.md explains the report.

`chips` has the accelerators and their slices, `hlo` reads a compiled program's text, `counting` and
`collectives` add up its work and its communication, `kernels` knows what the scan's kernels take,
`compiled` makes the programs, `roofline` turns them into seconds, `study` scales them from 1 to 256
chips, `virtual` runs the step on virtual CPU devices, `report` shows all of it.
"""

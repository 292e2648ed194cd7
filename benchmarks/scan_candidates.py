"""Selective scans that benchmarks/selective_scan.py measures, each in a process of its own.

`load(name, with_gradient, operands)` returns a function without arguments that runs the scan once,
waits for it and returns y; with the gradient it also computes that of sum(y * u) by every operand.
Operands are float32 NumPy arrays by the names of `selective_scan`; delta comes before its softplus.
"""

from __future__ import annotations

import numpy as np

JAX = {
    "xla": "this package, XLA",
    "cpu": "this package, native kernel",
    "associative": "this package, associative scan",
    "reference": "this package, step by step",
}
TORCH = {
    "torch_chunked": "PyTorch, chunks of 64 (cumulative sums)",
    "torch_steps": "PyTorch, step by step",
    "mambapy": "mambapy, parallel scan",
    "mamba_ssm": "mamba-ssm, selective_scan_ref",
}
EXPS = {"exps": "the exponentials alone, summed (XLA)"}
LABELS = JAX | TORCH | EXPS

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def load(name: str, with_gradient: bool, operands: dict[str, np.ndarray]):
    return (_load_torch if name in TORCH else _load_jax)(name, with_gradient, operands)


def _load_jax(name, with_gradient, operands):
    import jax
    import jax.numpy as jnp
    from selective_scan_jax import selective_scan

    def scan(u, delta, A, B, C, D, delta_bias):
        if name == "exps":
            return jnp.sum(jnp.exp(jax.nn.softplus(delta + delta_bias)[:, :, None] * A.T), axis=1)
        return selective_scan(
            u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=True, implementation=name
        )

    def both(*args):
        y, pull_back = jax.vjp(scan, *args)
        return y, pull_back(args[0])

    args = [jnp.asarray(operands[k]) for k in NAMES]
    compiled = jax.jit(both if with_gradient else scan).lower(*args).compile()

    def run():
        out = jax.block_until_ready(compiled(*args))
        return out[0] if with_gradient else out

    return run


def _load_torch(name, with_gradient, operands):
    import torch

    scan = {
        "torch_chunked": _torch_chunked,
        "torch_steps": _torch_steps,
        "mambapy": _mambapy,
        "mamba_ssm": _mamba_ssm,
    }[name](torch)
    # A first call on a few steps, so that libraries are loaded and threads started.
    few = {k: v[:, :4] if v.ndim > 2 else v for k, v in operands.items()}
    for arrays in (few, operands):
        args = [torch.tensor(arrays[k], requires_grad=with_gradient) for k in NAMES]
        cotangent = args[0].detach()

        def run(args=args, cotangent=cotangent):
            if not with_gradient:
                with torch.no_grad():
                    return scan(*args)
            for x in args:
                x.grad = None
            y = scan(*args)
            y.backward(cotangent)
            return y.detach()

        if arrays is few:
            run()
    return run


def _torch_steps(torch):
    def scan(u, delta, A, B, C, D, delta_bias):
        delta = torch.nn.functional.softplus(delta + delta_bias)
        batch, length, channels = u.shape
        groups, states = B.shape[2:]
        A = A.view(groups, -1, states)
        state = u.new_zeros(batch, groups, channels // groups, states)
        drive = (delta * u).view(batch, length, groups, -1, 1)
        delta = delta.view(batch, length, groups, -1, 1)
        ys = []
        for t in range(length):
            state = torch.exp(delta[:, t] * A) * state + drive[:, t] * B[:, t, :, None]
            ys.append((state @ C[:, t, :, :, None]).view(batch, channels))
        return torch.stack(ys, 1) + D * u

    return scan


def _torch_chunked(torch, chunk: int = 64):
    """With S the running sum of delta A, state_l = e^{S_l} (state_0 + sum_{s<=l} e^{-S_s} x_s).

    The exponents are taken relative to the middle of the chunk's range, which doubles the range
    that float32 can hold.
    """

    def scan(u, delta, A, B, C, D, delta_bias):
        delta = torch.nn.functional.softplus(delta + delta_bias)
        batch, length, channels = u.shape
        groups, states = B.shape[2:]
        A = A.view(groups, -1, states)
        state = u.new_zeros(batch, 1, groups, channels // groups, states)
        drive = (delta * u).view(batch, length, groups, -1, 1)
        delta = delta.view(batch, length, groups, -1, 1)
        ys = []
        for start in range(0, length, chunk):
            part = slice(start, min(start + chunk, length))
            exponents = torch.cumsum(delta[:, part], 1) * A
            middle = exponents[:, -1:] / 2
            shrink = torch.exp(exponents - middle)
            inputs = drive[:, part] * B[:, part, :, None] / shrink
            states_ = shrink * (torch.exp(middle) * state + torch.cumsum(inputs, 1))
            ys.append((states_ @ C[:, part, :, :, None]).flatten(2))
            state = states_[:, -1:]
        return torch.cat(ys, 1) + D * u

    return scan


def _mambapy(torch):
    from mambapy.pscan import pscan

    def scan(u, delta, A, B, C, D, delta_bias):
        delta = torch.nn.functional.softplus(delta + delta_bias)
        drive = (delta * u).unflatten(2, (B.shape[2], -1))
        inputs = drive[..., None] * B[:, :, :, None]
        states = pscan(torch.exp(delta[..., None] * A), inputs.flatten(2, 3))
        y = states.unflatten(2, (B.shape[2], -1)) @ C[..., None]
        return y.flatten(2) + D * u

    return scan


def _mamba_ssm(torch):
    import importlib
    import importlib.util
    import sys
    import types

    # Its __init__ imports Triton kernels and its CUDA extension, which the reference does not need.
    bare = types.ModuleType("mamba_ssm")
    bare.__path__ = list(importlib.util.find_spec("mamba_ssm").submodule_search_locations)
    sys.modules |= {"mamba_ssm": bare, "selective_scan_cuda": types.ModuleType("empty")}
    module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")

    def scan(u, delta, A, B, C, D, delta_bias):
        u, delta, B, C = (x.movedim(1, -1) for x in (u, delta, B, C))
        y = module.selective_scan_ref(
            u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=True
        )
        return y.movedim(-1, 1)

    return scan

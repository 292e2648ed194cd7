"""Selective scans in PyTorch that benchmarks/scan.py measures beside this package's.

A scan takes u, delta before its softplus, A, B, C, D and the bias of delta, in the shapes of
`selective_scan`, and returns y.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np

LABELS = {
    "torch_chunked": "PyTorch, chunks of 64 (cumulative sums)",
    "torch_steps": "PyTorch, step by step",
    "mambapy": "mambapy, parallel scan",
    "mamba_ssm": "mamba-ssm, selective_scan_ref",
}


def missing(name: str) -> bool:
    """Tells whether a candidate's packages are not installed."""
    packages = ["torch", *([name] if name in ("mambapy", "mamba_ssm") else [])]
    return any(importlib.util.find_spec(package) is None for package in packages)


def make_scan(name: str, **options) -> Callable:
    """Makes the scan called `name`, one of LABELS; options are those of its maker."""
    import torch

    makers = (_torch_chunked, _torch_steps, _mambapy, _mamba_ssm)
    return dict(zip(LABELS, makers, strict=True))[name](torch, **options)


def runner(
    scan: Callable, few: Sequence[np.ndarray], arrays: Sequence[np.ndarray], with_gradient: bool
) -> Callable:
    """Prepares a scan and returns a function without arguments that runs it and gives y.

    Args:
      scan: takes tensors to y, which is like the first of them.
      few: the arrays of a few steps, for a first call that loads libraries and starts threads.
      arrays: what is scanned.
      with_gradient: whether a run also computes the gradient of sum(y * the first array) by all.
    """
    import torch

    for operands in (few, arrays):
        args = [torch.tensor(a, requires_grad=with_gradient) for a in operands]
        cotangent = args[0].detach()

        def run(args=args, cotangent=cotangent):
            if not with_gradient:
                with torch.no_grad():
                    return scan(*args)
            for a in args:
                a.grad = None
            y = scan(*args)
            y.backward(cotangent)
            return y.detach()

        if operands is few:
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
    """Scans in chunks: with S the running sum of delta A, state_l = e^{S_l} (state_0 + sum_{s<=l}
    e^{-S_s} x_s).

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

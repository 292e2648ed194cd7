"""PoseMamba in PyTorch, as its authors released it, with a scan that runs without a GPU.

The authors' scan is a CUDA extension; here it is the chunked one of benchmarks/torch_scans.py. As
in theirs, the states are computed again for the backward pass instead of kept. Parameters have the
names of the authors' checkpoints.

Shapes: B batch, F frames, J joints, C model width, E = 2C, N states, R rank of the step
projection, K = 4 directions, L = F * J.
"""

from __future__ import annotations

import math

import torch
from selective_scan_jax.order import H36M_LIMB_WALK
from torch import nn
from torch.nn import functional
from torch_scans import make_scan

DIRECTIONS = 4
JOINTS = len(H36M_LIMB_WALK)


class Recomputed(torch.autograd.Function):
    """Keeps a function's operands alone, and runs it again for its gradients.

    `torch.utils.checkpoint` does the same and more, and imports PyTorch's compiler for it.
    """

    @staticmethod
    def forward(ctx, function, *operands):
        ctx.function = function
        ctx.save_for_backward(*operands)
        return function(*operands)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            operands = [operand.detach().requires_grad_() for operand in ctx.saved_tensors]
            y = ctx.function(*operands)
        return None, *torch.autograd.grad(y, operands, grad)


class Scan(nn.Module):
    """Scans the grid of frames and joints in four directions (the paper's Figure 3c)."""

    def __init__(self, dim: int, chunk: int, states: int = 16):
        super().__init__()
        E, R = 2 * dim, math.ceil(dim / 16)
        self.states, self.rank = states, R
        self.scan = make_scan("torch_chunked", chunk=chunk)
        self.in_proj = nn.Linear(dim, 2 * E, bias=False)
        self.conv2d = nn.Conv2d(E, E, 3, padding=1, groups=E)
        self.x_proj_weight = nn.Parameter(_uniform(E**-0.5, DIRECTIONS, R + 2 * states, E))
        self.dt_projs_weight = nn.Parameter(_uniform(R**-0.5, DIRECTIONS, E, R))
        # Steps drawn log-uniformly from 1e-3 to 1e-1, through the inverse of softplus.
        steps = torch.exp(torch.empty(DIRECTIONS, E).uniform_(math.log(1e-3), math.log(1e-1)))
        self.dt_projs_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))
        decays = torch.arange(1, states + 1, dtype=torch.float32).log()
        self.A_logs = nn.Parameter(decays.repeat(DIRECTIONS * E, 1))
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * E))
        self.out_norm = nn.LayerNorm(E)
        self.out_proj = nn.Linear(E, dim, bias=False)

    def forward(self, h):
        frames, joints = h.shape[1:3]
        x, z = self.in_proj(h).chunk(2, -1)
        x = functional.silu(self.conv2d(x.permute(0, 3, 1, 2)))  # (B, E, F, J)
        with_limbs = x + x[..., list(H36M_LIMB_WALK)]
        sequences = torch.stack([with_limbs.flatten(2), x.transpose(2, 3).flatten(2)], 1)
        u = torch.cat([sequences, sequences.flip(-1)], 1)  # (B, K, E, L)
        rows = torch.einsum("bkel,kre->bkrl", u, self.x_proj_weight)
        steps, B, C = rows.split([self.rank, self.states, self.states], 2)
        delta = torch.einsum("bkrl,ker->bkel", steps, self.dt_projs_weight)
        u, delta = (a.permute(0, 3, 1, 2).flatten(2) for a in (u, delta))  # (B, L, K E)
        B, C = (a.permute(0, 3, 1, 2) for a in (B, C))  # (B, L, K, N)
        operands = (u, delta, -self.A_logs.exp(), B, C, self.Ds, self.dt_projs_bias.flatten())
        y = Recomputed.apply(self.scan, *operands)
        y = y.unflatten(2, (DIRECTIONS, -1))
        forwards = y[:, :, :2] + y[:, :, 2:].flip(1)  # (B, L, 2, E)
        by_frame = forwards[:, :, 0].unflatten(1, (frames, joints))
        by_joint = forwards[:, :, 1].unflatten(1, (joints, frames)).transpose(1, 2)
        return self.out_proj(self.out_norm(by_frame + by_joint) * functional.silu(z))


class MLP(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, dim: int, ratio: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, ratio * dim), nn.Linear(ratio * dim, dim)

    def forward(self, h):
        return self.fc2(functional.gelu(self.fc1(h)))


class Block(nn.Module):
    """h + DropPath(Scan(LN(h))), then h + DropPath(MLP(LN(h)))."""

    def __init__(self, dim: int, mlp_ratio: int, drop_rate: float, chunk: int):
        super().__init__()
        self.drop_rate = drop_rate
        self.norm, self.op = nn.LayerNorm(dim, eps=1e-6), Scan(dim, chunk)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), MLP(dim, mlp_ratio)

    def forward(self, h):
        h = h + self._drop_path(self.op(self.norm(h)))
        return h + self._drop_path(self.mlp(self.norm2(h)))

    def _drop_path(self, branch):
        if not self.training or self.drop_rate == 0:
            return branch
        keep = 1 - self.drop_rate
        kept = branch.new_empty(branch.shape[0], 1, 1, 1).bernoulli_(keep)
        return branch * kept / keep


class TorchPoseMamba(nn.Module):
    """The authors' model. (B, F, J, 2) keypoints to (B, F, J, 3) poses.

    The scan runs in chunks of so many steps. In longer ones the decay over a chunk leaves the range
    of float32: with 64, gradients at the initial weights are not finite.
    """

    def __init__(self, dim: int, depth: int, frames: int = 243, chunk: int = 32):
        super().__init__()
        mlp_ratio = 2
        self.Spatial_patch_to_embedding = nn.Linear(2, dim)
        self.Spatial_pos_embed = nn.Parameter(torch.zeros(1, JOINTS, dim))
        self.Temporal_pos_embed = nn.Parameter(torch.zeros(1, frames, dim))
        rates = torch.linspace(0, 0.2, depth).tolist()
        self.STEblocks = nn.ModuleList(Block(dim, mlp_ratio, rate, chunk) for rate in rates)
        self.TTEblocks = nn.ModuleList(Block(dim, mlp_ratio, rate, chunk) for rate in rates)
        self.Spatial_norm = nn.LayerNorm(dim, eps=1e-6)
        self.Temporal_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 3))

    def forward(self, poses_2d):
        h = self.Spatial_patch_to_embedding(poses_2d) + self.Spatial_pos_embed
        for i, (spatial, temporal) in enumerate(zip(self.STEblocks, self.TTEblocks, strict=True)):
            h = self.Spatial_norm(spatial(h))
            if i == 0:
                h = h + self.Temporal_pos_embed[:, : h.shape[1], None]
            h = self.Temporal_norm(temporal(h))
        return self.head(h)


def _uniform(bound: float, *shape: int) -> torch.Tensor:
    return torch.empty(shape).uniform_(-bound, bound)

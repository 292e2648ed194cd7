"""Other networks from 2D keypoints to 3D poses in PyTorch, built for benchmarks/other_models.py.

MotionBERT (Zhu et al., 2023), MotionAGFormer (Mehraban et al., 2024) and VideoPose3D (Pavllo et
al., 2019): the operations and shapes of the authors' releases, so that their time is that of what
people run. There are no trained weights.

Shapes: B batch, F frames, J joints, C channels; all take and return (B, F, J, C).
"""

from __future__ import annotations

import torch
from torch import nn

from posemamba_jax.skeleton import H36M17


class Attention(nn.Module):
    """Multi-head self-attention among the joints of each frame or the frames of each joint."""

    def __init__(self, channels: int, heads: int, axis: str, bias: bool):
        super().__init__()
        self.heads, self.axis = heads, axis
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x):
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(3)
        # (B, F, J, heads, C / heads), with the tokens moved to the last axis but one.
        order = (0, 1, 3, 2, 4) if self.axis == "joints" else (0, 2, 3, 1, 4)
        q, k, v = (part.permute(order) for part in (q, k, v))
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        y = weights @ v
        back = (0, 1, 3, 2, 4) if self.axis == "joints" else (0, 3, 1, 2, 4)
        return self.out(y.permute(back).flatten(3))


class GraphConvolution(nn.Module):
    """Mixes each node with its neighbours (MotionAGFormer, equations 5 and 6).

    Nodes are joints, and neighbours those at the other ends of their bones, or nodes are frames,
    and neighbours the `NEIGHBOURS` frames in which the joint's features are most alike.
    """

    NEIGHBOURS = 2

    def __init__(self, channels: int, axis: str, frames: int):
        super().__init__()
        self.axis = axis
        self.own, self.others = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.norm = nn.BatchNorm1d(H36M17.num_joints if axis == "joints" else frames)
        bones = torch.zeros(H36M17.num_joints, H36M17.num_joints)
        for a, b in H36M17.bones:
            bones[a, b] = bones[b, a] = 1
        self.register_buffer("bones", bones, persistent=False)

    def forward(self, x):
        x = x if self.axis == "joints" else x.transpose(1, 2)
        grid = x.shape[:2]
        x = x.flatten(0, 1)
        if self.axis == "joints":
            adjacency = self.bones.repeat(x.shape[0], 1, 1)
        else:
            alike = x @ x.transpose(1, 2)
            least = alike.topk(self.NEIGHBOURS, dim=-1).values[..., -1:]
            adjacency = (alike >= least).float()
        # The release scales rows and columns by products with a diagonal matrix.
        scale = torch.diag_embed(adjacency.sum(-1) ** -0.5)
        adjacency = scale @ adjacency @ scale
        mixed = self.norm(adjacency @ self.others(x) + self.own(x))
        y = torch.relu(x + mixed).unflatten(0, grid)
        return y if self.axis == "joints" else y.transpose(1, 2)


class Layer(nn.Module):
    """x + mixer(LN(x)), then x + MLP(LN(x)); each branch scaled per channel if `scaled`."""

    def __init__(self, channels: int, mlp_ratio: int, mixer: nn.Module, scaled: bool):
        super().__init__()
        self.mixer_norm, self.mixer = nn.LayerNorm(channels), mixer
        self.mlp_norm = nn.LayerNorm(channels)
        wide = mlp_ratio * channels
        self.mlp = nn.Sequential(nn.Linear(channels, wide), nn.GELU(), nn.Linear(wide, channels))
        scales = (nn.Parameter(torch.full((channels,), 1e-5)) for _ in range(2))
        self.scales = nn.ParameterList(scales) if scaled else (1, 1)

    def forward(self, x):
        for scale, norm, branch in zip(
            self.scales, (self.mixer_norm, self.mlp_norm), (self.mixer, self.mlp), strict=True
        ):
            change = branch(norm(x))
            x = x + (change if isinstance(scale, int) else scale * change)
        return x


class TwoStreams(nn.Module):
    """Runs two streams on the same input and adds them with weights from both, position by
    position.
    """

    def __init__(self, channels: int, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second
        self.weigh = nn.Linear(2 * channels, 2)

    def forward(self, x):
        a, b = self.first(x), self.second(x)
        weights = self.weigh(torch.cat([a, b], -1)).softmax(-1)
        return a * weights[..., :1] + b * weights[..., 1:]


def _head(channels: int, representation: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(channels),
        nn.Linear(channels, representation),
        nn.Tanh(),
        nn.Linear(representation, 3),
    )


class MotionBERT(nn.Module):
    """The motion encoder with its head for 3D poses (DSTformer; Zhu et al., 2023, section 3.2).

    Its input has x, y and the confidence of each keypoint.
    """

    def __init__(
        self, channels: int, mlp_ratio: int, depth=5, heads=8, representation=512, frames=243
    ):
        super().__init__()
        self.embed = nn.Linear(3, channels)
        self.joints = nn.Parameter(torch.zeros(H36M17.num_joints, channels))
        self.frames = nn.Parameter(torch.zeros(frames, 1, channels))

        def stream(*axes):
            mixers = (Attention(channels, heads, axis, bias=True) for axis in axes)
            return nn.Sequential(*(Layer(channels, mlp_ratio, x, scaled=False) for x in mixers))

        self.layers = nn.Sequential(
            *(
                TwoStreams(channels, stream("joints", "frames"), stream("frames", "joints"))
                for _ in range(depth)
            )
        )
        self.head = _head(channels, representation)

    def forward(self, x):
        x = self.embed(x) + self.joints
        return self.head(self.layers(x + self.frames[: x.shape[1]]))


class MotionAGFormer(nn.Module):
    """A stream of attention beside one of graph convolutions (Mehraban et al., 2024, section 3).

    Its input has x, y and the confidence of each keypoint.
    """

    def __init__(
        self, channels: int, depth: int, frames: int, mlp_ratio=4, heads=8, representation=512
    ):
        super().__init__()
        self.embed = nn.Linear(3, channels)
        self.joints = nn.Parameter(torch.zeros(H36M17.num_joints, channels))
        axes = ("joints", "frames")

        def stream(mixer):
            layers = (Layer(channels, mlp_ratio, mixer(axis), scaled=True) for axis in axes)
            return nn.Sequential(*layers)

        self.layers = nn.Sequential(
            *(
                TwoStreams(
                    channels,
                    stream(lambda axis: Attention(channels, heads, axis, bias=False)),
                    stream(lambda axis: GraphConvolution(channels, axis, frames)),
                )
                for _ in range(depth)
            )
        )
        self.head = _head(channels, representation)

    def forward(self, x):
        return self.head(self.layers(self.embed(x) + self.joints))


class VideoPose3D(nn.Module):
    """Dilated convolutions over time (Pavllo et al., 2019, section 3), on a whole clip at once.

    Its input has x and y. The result is shorter by `receptive_field - 1` frames, so that a clip
    comes with half as many frames on each side.
    """

    def __init__(self, channels: int = 1024, widths=(3, 3, 3, 3, 3), dropout: float = 0.25):
        super().__init__()
        joints = H36M17.num_joints

        def layer(inputs, width, dilation):
            return nn.Sequential(
                nn.Conv1d(inputs, channels, width, dilation=dilation, bias=False),
                nn.BatchNorm1d(channels),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
            )

        self.expand = layer(2 * joints, widths[0], 1)
        blocks, self.receptive_field = [], widths[0]
        for width in widths[1:]:
            wide = layer(channels, width, self.receptive_field)
            blocks.append(nn.Sequential(wide, layer(channels, 1, 1)))
            self.receptive_field *= width
        self.blocks = nn.ModuleList(blocks)
        self.shrink = nn.Conv1d(channels, 3 * joints, 1)

    def forward(self, x):
        x = self.expand(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            y = block(x)
            lost = (x.shape[-1] - y.shape[-1]) // 2
            x = x[..., lost : x.shape[-1] - lost] + y
        return self.shrink(x).transpose(1, 2).unflatten(2, (-1, 3))

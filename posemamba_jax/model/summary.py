"""What a model costs: parameters and multiply-adds layer by layer, counted two ways.

The figures of the paper come from a counter that attaches to Dense, convolution and norm modules.
It sees neither position embeddings nor anything that the scan keeps as bare arrays (the projections
to dt, B, C and delta, A, D), and none of the scan's arithmetic. Here both counts are taken.
"""

import argparse
import dataclasses
import sys
from typing import get_args, get_origin

from rich.console import Console
from rich.table import Table

from posemamba_jax.model.config import PRESETS, PoseMambaConfig

# Operations per element that the paper's counter books for a norm with scale and bias.
NORM_OPS = 4


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One kind of layer.

    Attributes:
      name: path of its parameters, or what it computes.
      copies: how many sets of its parameters there are.
      parameters: in one copy.
      runs: how often it runs in a forward pass.
      multiply_adds: in one run on one clip.
      counted: whether the paper's counter sees it.
    """

    name: str
    copies: int
    parameters: int
    runs: int
    multiply_adds: int
    counted: bool

    @property
    def all_parameters(self) -> int:
        return self.copies * self.parameters

    @property
    def all_multiply_adds(self) -> int:
        return self.runs * self.multiply_adds


def layer_costs(config: PoseMambaConfig, frames: int | None = None) -> list[LayerCost]:
    """Lists the cost of every layer for one clip of `frames` frames (default: num_frames)."""
    C, E, N, R = config.dim, config.inner_dim, config.state_size, config.dt_rank
    K, hidden, blocks = len(config.order.directions), config.mlp_width, 2 * config.depth
    L = (frames or config.num_frames) * config.num_joints

    def dense(name, inputs, outputs, copies, bias=True):
        size = inputs * outputs
        return LayerCost(name, copies, size + bias * outputs, copies, L * size, True)

    def norm(name, width, copies, runs=None):
        return LayerCost(name, copies, 2 * width, runs or copies, L * NORM_OPS * width, True)

    def bare(name, parameters, per_position=0, copies=blocks):
        return LayerCost(name, copies, parameters, copies, L * per_position, False)

    return [
        dense("embed", config.input_features, C, 1),
        bare("spatial_pos", config.num_joints * C, copies=1),
        bare("temporal_pos", config.num_frames * C, copies=1),
        norm("block/norm", C, blocks),
        dense("block/scan/in_proj", C, 2 * E, blocks, bias=False),
        LayerCost("block/scan/conv", blocks, 10 * E, blocks, L * 9 * E, True),
        bare("block/scan/x_proj", K * E * (R + 2 * N), K * E * (R + 2 * N)),
        bare("block/scan/dt_proj", K * E * (R + 1), K * E * R),
        # Per state: delta*A, (delta*u)*B, the step of the recurrence and C*state; per channel:
        # delta*u and D*u. The exponential of delta*A is not a multiply-add.
        bare("block/scan/recurrence", K * E * (N + 1), K * E * (4 * N + 2)),
        norm("block/scan/out_norm", E, blocks),
        dense("block/scan/out_proj", E, C, blocks, bias=False),
        norm("block/mlp_norm", C, blocks),
        dense("block/mlp/fc1", C, hidden, blocks),
        dense("block/mlp/fc2", hidden, C, blocks),
        norm("spatial_norm", C, 1, runs=config.depth),
        norm("temporal_norm", C, 1, runs=config.depth),
        norm("head_norm", C, 1),
        dense("head", C, 3, 1),
    ]


def totals(costs: list[LayerCost], *, counted_only: bool = False) -> tuple[int, int]:
    """Adds up (parameters, multiply-adds) of all layers, or of those that the paper's counter
    sees.
    """
    chosen = [cost for cost in costs if cost.counted or not counted_only]
    parameters = sum(cost.all_parameters for cost in chosen)
    return parameters, sum(cost.all_multiply_adds for cost in chosen)


def print_summary(config: PoseMambaConfig, console: Console, frames: int | None = None):
    frames = frames or config.num_frames
    costs = layer_costs(config, frames)
    title = f"PoseMamba, dim {config.dim}, depth {config.depth}: one clip of {frames} frames"
    table = Table(title=title)
    table.add_column("layer", no_wrap=True)
    for heading in ("copies", "parameters", "runs", "multiply-\nadds (M)", "counted"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cost in costs:
        table.add_row(
            cost.name,
            str(cost.copies),
            f"{cost.all_parameters:,}",
            str(cost.runs),
            f"{cost.all_multiply_adds / 1e6:,.1f}",
            "yes" if cost.counted else "no",
        )
    table.add_section()
    for label, counted_only in (("all", False), ("counted by the paper", True)):
        parameters, multiply_adds = totals(costs, counted_only=counted_only)
        table.add_row(label, "", f"{parameters:,}", "", f"{multiply_adds / 1e6:,.1f}", "")
    console.print(table)
    positions = frames * config.num_joints
    states = len(config.order.directions) * config.inner_dim * config.state_size
    exps = 2 * config.depth * positions * states
    console.print(
        "The published figures are the last row: the paper's counter sees Dense, convolution and "
        f"norm layers only, a norm at {NORM_OPS} operations per element. The scans' "
        f"{exps / 1e9:,.2f} G exponentials come on top of either count.",
        highlight=False,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m posemamba_jax.model",
        description="Prints parameters and multiply-adds of a model, layer by layer.",
    )
    parser.add_argument("--preset", choices=list(PRESETS), default="S", help="default: S")
    parser.add_argument("--frames", type=int, help="length of the clip (default: num_frames)")
    for field in dataclasses.fields(PoseMambaConfig):
        if field.type in (int, float):
            parser.add_argument(f"--{field.name}", type=field.type, help="overrides the preset")
        elif get_origin(field.type) is not None and str in map(type, get_args(field.type)):
            parser.add_argument(f"--{field.name}", choices=get_args(field.type))
    args = vars(parser.parse_args(argv))
    preset, frames = args.pop("preset"), args.pop("frames")
    overrides = {name: value for name, value in args.items() if value is not None}
    try:
        config = PoseMambaConfig.preset(preset, **overrides)
        if frames is not None and not 1 <= frames <= config.num_frames:
            raise ValueError(f"--frames is {frames}; num_frames allows 1 to {config.num_frames}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_summary(config, Console(), frames)
    return 0

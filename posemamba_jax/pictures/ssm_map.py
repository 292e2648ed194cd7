"""How much each (frame, joint) contributes to each other through the scan (the paper's Figure 5).

With its own delta, B and C held fixed, a selective scan is linear in what it scans. In direction k
and channel e the output at step l answers to the input at step s <= l with

    M_e[l, s] = sum_n C_l[n] exp(A[e, n] (delta_{s+1}[e] + ... + delta_l[e])) delta_s[e] B_s[n]

and not at all to later steps. The map is the mean over channels of |M|, from every position of the
grid to every other; where the order adds a limb term, a position also acts through the slots that
gather it. It is computed by sending an impulse from every position through the recurrence at once.

python -m posemamba_jax.ssm_map --checkpoint RUN --out DIR
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from selective_scan_jax import Permutation, ScanOrder, limb_term

from posemamba_jax.config import run_program
from posemamba_jax.errors import UserError
from posemamba_jax.evaluation import progress_bar
from posemamba_jax.evaluation.checkpoint import open_checkpoint
from posemamba_jax.files import writing
from posemamba_jax.files.reading import user_path
from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.model.block import scan_order
from posemamba_jax.model.layers import DepthwiseConv
from posemamba_jax.pictures.plots import save_figure
from posemamba_jax.skeleton import Skeleton

BLOCKS = ("spatial", "temporal")


@dataclasses.dataclass(frozen=True)
class ScanOperands:
    """What one block's cross scan works on for one clip, in grid order.

    Attributes:
      name: "spatial 0" to "temporal 9": the block and its depth.
      x: (frames, joints, E) activations.
      delta: (frames, joints, K, E) positive steps.
      B, C: (frames, joints, K, N).
      A: (K, E, N), negative. D: (K, E).
      order: the K directions.
    """

    name: str
    x: jax.Array
    delta: jax.Array
    B: jax.Array
    C: jax.Array
    A: jax.Array
    D: jax.Array
    order: ScanOrder


def scan_operands(config: PoseMambaConfig, variables, poses_2d) -> list[ScanOperands]:
    """Runs the model on a clip and collects the operands of every block's scan.

    Args:
      config: of the model.
      variables: {"params": ...}.
      poses_2d: (frames, joints, 2) normalised keypoints, or (frames, joints, 3) with their
        confidence.

    Returns:
      Two entries per depth, in the order in which the model runs them.

    Raises:
      ValueError: poses_2d does not fit the configuration.
    """
    # Recomputation saves memory in training; here it would only hide the intermediate values.
    model = PoseMamba(dataclasses.replace(config, remat="none"))
    stacked = _collect(model, variables, jnp.asarray(poses_2d)[None])
    order = scan_order(config)
    return [
        ScanOperands(f"{block} {depth}", *(leaf[depth] for leaf in stacked[block]), order=order)
        for depth in range(config.depth)
        for block in BLOCKS
    ]


@partial(jax.jit, static_argnums=0)
def _collect(model: PoseMamba, variables, poses_2d):
    """Collects x, delta, B, C, A and D of both kinds of block, stacked over depth."""
    _, captured = model.apply(
        variables,
        poses_2d,
        capture_intermediates=lambda module, _: isinstance(module, DepthwiseConv),
        mutable=["intermediates"],
    )
    found, params = captured["intermediates"]["blocks"], variables["params"]["blocks"]
    stacked = {}
    for block in BLOCKS:
        x = found[block]["scan"]["conv"]["__call__"][0][:, 0].astype(jnp.float32)
        stacked[block] = _project(x, params[block]["scan"], model.config)
    return stacked


def _project(x, params, config: PoseMambaConfig):
    """Computes the projections in front of the scan, as `posemamba_jax.model.block` makes them.

    x (depth, frames, joints, E), params stacked over depth.
    """
    order, R, N = scan_order(config), config.dt_rank, config.state_size
    x_limbs = limb_term(x, order)
    seen = [x_limbs if order.takes_limb_term(k) else x for k in range(len(order.directions))]
    projected = jnp.einsum(
        "kdfje,dkre->dfjkr", jnp.stack(seen), params["x_proj"], precision="highest"
    )
    dt, B, C = jnp.split(projected, [R, R + N], axis=-1)
    steps = jnp.einsum("dfjkr,dker->dfjke", dt, params["dt_weight"], precision="highest")
    delta = jax.nn.softplus(steps + params["dt_bias"][:, None, None])
    return x, delta, B, C, -jnp.exp(params["A_log"]), params["D"]


def position_map(
    operands: ScanOperands,
    direction: int,
    *,
    contribution: bool = False,
    include_skip: bool = False,
) -> np.ndarray:
    """Computes the map of one direction, from every position to every other.

    Args:
      operands: of one block.
      direction: 0 to K - 1.
      contribution: weigh each position's response with its activation: |M x| instead of |M|.
      include_skip: add the path through D, which leads from a position to itself (and to the slots
        that gather it) without passing through the state.

    Returns:
      (frames, joints, frames, joints): [target frame, target joint, source frame, source joint].
    """
    frames, joints, _ = operands.x.shape
    path = operands.order.directions[direction].path(frames, joints)
    gathered = np.full_like(path, -1)
    if operands.order.takes_limb_term(direction):
        walk = np.asarray(operands.order.limb_walk)
        gathered = path // joints * joints + walk[path % joints]

    def steps(array):
        return array[:, :, direction].reshape(frames * joints, -1)[path]

    x = operands.x.reshape(frames * joints, -1)
    rows = _impulse_responses(
        steps(operands.delta),
        steps(operands.B),
        steps(operands.C),
        operands.A[direction],
        operands.D[direction] * include_skip,
        x if contribution else jnp.ones_like(x),
        jnp.asarray(path),
        jnp.asarray(gathered),
    )
    targets = np.empty((frames * joints,) * 2, np.float32)
    targets[path] = np.asarray(rows)
    return targets.reshape(frames, joints, frames, joints)


@jax.jit
def _impulse_responses(delta, B, C, A, D, scale, path, gathered):
    """Rows of the map in path order, columns in grid order.

    delta (L, E), B and C (L, N), A (E, N), D (E,), scale (L, E) in grid order, path and gathered
    (L,) grid positions that enter at each step, the latter -1 for none.
    """

    def step(state, now):
        delta_l, B_l, C_l, here, limb = now
        # state (L, E, N): for each position, what an impulse that entered there has become.
        enters = delta_l[:, None] * B_l
        has_limb = (limb >= 0).astype(enters.dtype)
        state = state * jnp.exp(delta_l[:, None] * A)
        state = state.at[here].add(enters).at[limb].add(has_limb * enters)
        row = jnp.einsum("pen,n->pe", state, C_l, precision="highest")
        row = row.at[here].add(D).at[limb].add(has_limb * D)
        return state, jnp.abs(row * scale).mean(axis=1)

    start = jnp.zeros((len(path), *A.shape), delta.dtype)
    return jax.lax.scan(step, start, (delta, B, C, path, gathered))[1]


def over_joints(position: np.ndarray) -> np.ndarray:
    """Sums over source frames and averages over target frames: (joints, joints) [target,
    source].
    """
    return position.sum(axis=2).mean(axis=0)


def over_frames(position: np.ndarray) -> np.ndarray:
    """Sums over source joints and averages over target joints: (frames, frames) [target,
    source].
    """
    return position.sum(axis=3).mean(axis=1)


def compute_maps(
    layers: Sequence[ScanOperands], **options
) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """Yields (layer name, direction, map over joints, map over frames) for all layers."""
    for layer in layers:
        for direction in range(len(layer.order.directions)):
            position = position_map(layer, direction, **options)
            yield layer.name, direction, over_joints(position), over_frames(position)


def describe_direction(order: ScanOrder, k: int) -> str:
    """Says in words what direction k runs over."""
    direction = order.directions[k]
    backwards = ", backwards" if direction.reverse else ""
    if isinstance(direction, Permutation):
        return f"permutation of {len(direction.positions)} positions{backwards}"
    words = "frame by frame" if direction.frame_by_frame else "joint by joint"
    if direction.inner_reversed:
        words += ", inner reversed"
    return words + backwards


def plot_maps(
    maps: Sequence[Sequence[np.ndarray]],
    path: str | Path,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    skeleton: Skeleton | None,
    title: str = "",
) -> Path:
    """Draws a table of maps: a layer in each row, a direction in each column.

    Args:
      maps: one list per row of (n, n) arrays [target, source].
      path: the picture to write; folders are made.
      rows, columns: what stands beside and above them.
      skeleton: whose joints label the axes; None for maps over frames.
      title: stands over everything.

    Every map has a colour scale of its own, from 0 to its largest value.
    """
    figure = Figure(figsize=(1.2 + 3.4 * len(columns), 1 + 3.2 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, (row, row_maps) in enumerate(zip(rows, maps, strict=True)):
        for k, (column, values) in enumerate(zip(columns, row_maps, strict=True)):
            axis = axes[i, k]
            image = axis.imshow(values, cmap="magma", vmin=0, interpolation="nearest")
            figure.colorbar(image, ax=axis, shrink=0.75).ax.tick_params(labelsize=7)
            axis.tick_params(labelsize=6)
            if skeleton is not None:
                ticks = range(skeleton.num_joints)
                axis.set_xticks(ticks, skeleton.joints, rotation=90)
                axis.set_yticks(ticks, skeleton.joints)
            if i == 0:
                axis.set_title(column, fontsize=9)
            if i == len(rows) - 1:
                axis.set_xlabel("from", fontsize=8)
            axis.set_ylabel(f"{row}\nto" if k == 0 else "", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return save_figure(figure, path)


def main(argv: Sequence[str]) -> int:
    """Reads the command line, computes the maps for one clip, draws and saves them."""
    parser = argparse.ArgumentParser(
        prog="python -m posemamba_jax.ssm_map",
        description="What each frame and joint contributes to each other through a model's scans, "
        "for one clip of its test data. Keys of the configuration, such as --data.source, are "
        "options too.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint", required=True, help="a run, a checkpoint, a model, or pretrained:NAME"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        required=True,
        help="folder for pictures and numbers",
    )
    parser.add_argument("--which", choices=("best", "latest"), default="best")
    parser.add_argument("--clip", type=int, default=0, help="which test clip")
    parser.add_argument("--frames", type=int, default=27, help="how many of its first frames")
    parser.add_argument("--depths", help="which depths, such as 0,4,9; default: all")
    parser.add_argument("--contribution", action="store_true", help="weigh with the activations")
    parser.add_argument("--include_skip", action="store_true", help="count the path through D")
    options, keys = parser.parse_known_args(argv)
    opened = open_checkpoint(options.checkpoint, keys, which=options.which)
    config, source = opened.config, opened.source
    depths = _parse_depths(options.depths, config.model.depth)
    if not 0 <= options.clip < len(source):
        raise UserError(f"--clip {options.clip}: {source.name} has clips 0 to {len(source) - 1}")
    clip = source[options.clip]
    available = min(len(clip["poses_2d"]), config.model.num_frames)
    if not 1 <= options.frames <= available:
        raise UserError(f"--frames {options.frames}: expected 1 to {available}")
    poses_2d = clip["poses_2d"][: options.frames, :, : config.model.input_channels]
    layers = scan_operands(config.model, opened.variables, poses_2d)
    layers = [layers[2 * depth + i] for i in range(len(BLOCKS)) for depth in depths]
    order = layers[0].order
    how = {"contribution": options.contribution, "include_skip": options.include_skip}
    found: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    total = len(layers) * len(order.directions)
    with progress_bar("computing maps") as progress:
        for done, (name, k, joints, frames) in enumerate(compute_maps(layers, **how), start=1):
            found.setdefault(name, {})[k] = (joints, frames)
            progress(done, total)
    with writing.reported_as(f"--out: {options.out}"):
        written = _write_maps(found, order, source, options)
    for path in written:
        print(f"wrote {path}")
    return 0


def _parse_depths(text: str | None, depth: int) -> list[int]:
    if text is None:
        return list(range(depth))
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and int(word) < depth for word in words):
        raise UserError(f"--depths {text}: expected numbers from 0 to {depth - 1}, such as 0,1")
    return [int(word) for word in words]


def _write_maps(found, order: ScanOrder, source, options) -> list[Path]:
    columns = [describe_direction(order, k) for k in range(len(order.directions))]
    written = []
    for block in BLOCKS:
        rows = [name for name in found if name.startswith(block)]
        for i, (kind, labels) in enumerate((("joints", source.skeleton), ("frames", None))):
            maps = [[found[name][k][i] for k in range(len(columns))] for name in rows]
            path = options.out / f"{block}_{kind}.png"
            title = f"SSM map over {kind}, clip {options.clip} of {source.name}"
            look = {"rows": rows, "columns": columns, "skeleton": labels, "title": title}
            written.append(plot_maps(maps, path, **look))
    numbers = {
        f"{name.replace(' ', '_')}/direction_{k}/{kind}": values
        for name, directions in found.items()
        for k, pair in directions.items()
        for kind, values in zip(("joints", "frames"), pair, strict=True)
    }
    with writing.replacing(options.out / "maps.npz") as part:
        np.savez_compressed(part, **numbers)
    return [*written, options.out / "maps.npz"]


if __name__ == "__main__":
    run_program(main)

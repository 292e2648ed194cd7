"""PoseMamba (Huang et al., 2024): 2D keypoints of a clip to 3D poses, by selective scans alone.

Shapes: B batch, F frames, J joints, C model width, channels last everywhere.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from selective_scan_jax import ScanSharding
from selective_scan_jax.derivative import RESULTS

from posemamba_jax.model.block import (
    NORM_EPS,
    OUT_NORM_EPS,
    Block,
    recomputes,
    unrolls,
    uses_native_layers,
)
from posemamba_jax.model.config import PoseMambaConfig
from posemamba_jax.model.layers import Dense, LayerNorm, NormParameters, layer_norm


class PoseMamba(nn.Module):
    """The model. `init(key, poses_2d)` makes its variables, `apply(variables, poses_2d)` runs it.

    The parameters of the blocks are stacked over depth: every leaf under `blocks` has a leading
    axis of length `config.depth`.

    Attributes:
      config: what it is.
      sharding: how its scans are split over a device mesh, None for one device. It changes no
        result and is no part of the configuration.
    """

    config: PoseMambaConfig
    sharding: ScanSharding | None = None

    @nn.compact
    def __call__(self, poses_2d, *, deterministic: bool = True):
        """Lifts clips to 3D.

        Args:
          poses_2d: (B, F, J, 2) keypoints normalised to the image width, F <= num_frames. A model
            with `config.confidence` takes (B, F, J, 3), the last being the confidence from 0 to 1;
            without it every keypoint counts as certain.
          deterministic: False turns stochastic depth on; needs rngs={"dropout": key}.

        Returns:
          (B, F, J, 3) float32 poses in the targets' units.

        Raises:
          ValueError: poses_2d does not fit the configuration.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        poses_2d = jnp.asarray(poses_2d)
        _check_input(poses_2d.shape, config)
        frames = poses_2d.shape[1]

        zeros = nn.initializers.zeros
        spatial_pos = self.param("spatial_pos", zeros, (1, config.num_joints, config.dim))
        temporal_pos = self.param("temporal_pos", zeros, (1, config.num_frames, config.dim))
        # One norm after every spatial block and one after every temporal block, shared by depths.
        spatial_norm = NormParameters(config.dim, name="spatial_norm")()
        temporal_norm = NormParameters(config.dim, name="temporal_norm")()

        features, size = poses_2d[..., :2], None
        if config.input_frame == "person":
            features, size = person_frame(features)
        if config.confidence:
            certain = jnp.ones_like(poses_2d[..., :1])
            confidence = poses_2d[..., 2:] if poses_2d.shape[-1] == 3 else certain
            features = jnp.concatenate([features, confidence], axis=-1)
        h = Dense(config.dim, dtype=dtype, name="embed")(features)
        h = h + spatial_pos[:, None].astype(dtype)
        per_depth = {
            "drop_rate": jnp.asarray(np.linspace(0, config.drop_path, config.depth), jnp.float32),
            # The temporal embedding joins once, between the first two blocks.
            "takes_temporal_pos": jnp.arange(config.depth) == 0,
        }
        shared = {
            "temporal_pos": temporal_pos[:, :frames, None].astype(dtype),
            "spatial_norm": spatial_norm,
            "temporal_norm": temporal_norm,
        }
        blocks = nn.scan(
            BlockPair,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=config.depth,
            unroll=config.depth if unrolls(config, deterministic, self.sharding) else 1,
        )(config, deterministic, self.sharding, name="blocks")
        h, _ = blocks(h, per_depth, shared)
        h = LayerNorm(OUT_NORM_EPS, name="head_norm")(h)
        poses_3d = Dense(3, name="head")(h)
        return poses_3d if size is None else poses_3d * size


def person_frame(poses_2d):
    """Measures the keypoints of a clip in units of the person.

    Args:
      poses_2d: (B, F, J, 2) keypoints in any units.

    Returns:
      (features, size): (B, F, J, 4), x and y from the middle of all keypoints of the clip and from
      joint 0 of the same frame, both divided by `size` (B, 1, 1, 1), the mean over frames of the
      root mean square distance of the joints from their middle.
    """
    poses_2d = jnp.asarray(poses_2d, jnp.float32)
    middle = jnp.mean(poses_2d, axis=-2, keepdims=True)
    square = jnp.mean(jnp.sum((poses_2d - middle) ** 2, axis=-1), axis=-1)
    # A person seen as a single point has no size: such a clip is left in the image's units.
    spread = jnp.mean(jnp.sqrt(square), axis=-1)[:, None, None, None]
    size = jnp.where(spread > 1e-6, spread, 1)
    from_middle = poses_2d - jnp.mean(middle, axis=-3, keepdims=True)
    from_root = poses_2d - poses_2d[..., :1, :]
    return jnp.concatenate([from_middle, from_root], axis=-1) / size, size


class BlockPair(nn.Module):
    """A spatial and a temporal block, each followed by its shared norm: one step of the depth loop.

    The two have the same structure; their names are those of the release.
    """

    config: PoseMambaConfig
    deterministic: bool
    sharding: ScanSharding | None

    @nn.compact
    def __call__(self, h, step, shared):
        """Runs a depth on h (B, F, J, C); `step` differs from depth to depth, `shared` is the
        same for all.
        """
        config = self.config
        run = {name: functools.partial(_block_and_norm, name) for name in ("spatial", "temporal")}
        recomputed = recomputes(config)
        if recomputed != "none":
            # Inside a loop XLA cannot merge the recomputation with the forward pass.
            unrolled = unrolls(config, self.deterministic, self.sharding)
            kept = jax.checkpoint_policies.save_only_these_names(RESULTS)
            policy = kept if recomputed == "layers" else None
            run = {n: nn.remat(f, prevent_cse=unrolled, policy=policy) for n, f in run.items()}
        h = run["spatial"](self, h, step["drop_rate"], shared["spatial_norm"])
        h = jnp.where(step["takes_temporal_pos"], h + shared["temporal_pos"], h)
        h = run["temporal"](self, h, step["drop_rate"], shared["temporal_norm"])
        return h, None


def _block_and_norm(name: str, pair: BlockPair, h, drop_rate, norm):
    """Runs the block of that name and then the norm, of which `norm` has scale and bias."""
    config = pair.config
    h = Block(config, pair.deterministic, pair.sharding, name=name)(h, drop_rate)
    native = uses_native_layers(config, pair.sharding)
    return layer_norm(h, **norm, eps=NORM_EPS, dtype=h.dtype, native=native)


def _check_input(shape, config):
    channels = "2 or 3" if config.confidence else "2"
    expected = f"(batch, frames, {config.num_joints} joints, {channels})"
    fits = len(shape) == 4 and 2 <= shape[3] <= config.input_channels
    if not fits or shape[2] != config.num_joints:
        surplus = shape[-1:] == (3,) and not config.confidence
        hint = "; pass x and y without the confidence" if surplus else ""
        raise ValueError(f"poses_2d has shape {shape}; expected {expected}{hint}")
    if not 1 <= shape[1] <= config.num_frames:
        raise ValueError(
            f"poses_2d has {shape[1]} frames; model.num_frames allows 1 to {config.num_frames}: "
            "cut the clip into shorter ones"
        )
    try:
        config.order.check_grid(*shape[1:3])
    except ValueError as error:
        raise ValueError(f"poses_2d has {shape[1]} frames: {error}") from None

"""One optimiser step, compiled for a mesh."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from posemamba_jax import losses
from posemamba_jax.config.schema import Config
from posemamba_jax.model import PoseMamba
from posemamba_jax.model import mesh as mesh_lib
from posemamba_jax.model.posemamba import person_frame
from posemamba_jax.skeleton import H36M17, Skeleton
from posemamba_jax.training.optim import clip_gradients, make_optimizer, make_schedule
from posemamba_jax.training.state import TrainState, abstract_state

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

_BATCH_KEYS = ("poses_2d", "poses_3d", "has_3d", "weights_2d", "frame_mask")


def make_train_step(
    config: Config,
    mesh: jax.sharding.Mesh,
    skeleton: Skeleton = H36M17,
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles `step(state, batch) -> (state, metrics)`; the state given to it is consumed.

    The batch is {"poses_2d": (B, F, J, 2 or 3), "poses_3d": (B, F, J, 3)} as `put_batch` places it.
    A batch from sources some of which have 2D poses only also has "has_3d" (B,) and "weights_2d"
    (B, F, J), and one from a source with recordings shorter than a clip "frame_mask" (B, F); see
    `posemamba_jax.data.pipeline.train_batches`.
    The loss compares the prediction, as it is, with the target relative to its root in every frame;
    both are in units of the image's half width. Metrics are float32 scalars on the device: `loss`,
    each of its terms, `grad_norm` (before clipping), `learning_rate` and `skipped`, which is 1
    where the loss or a gradient was not finite and everything but the step count stayed as it was.

    Args:
      config: all of it; see `posemamba_jax.config.schema`.
      mesh: made by `make_mesh`.
      skeleton: what the joints of the poses are.
      steps_per_epoch: for the learning rate.
      total_steps: for the learning rate.
    """
    apply_model = _apply_by_clips(config, mesh)
    optimizer = make_optimizer(config.optim)
    schedule = make_schedule(config.optim, steps_per_epoch, total_steps)
    accumulate = config.train.accumulate
    in_use = mesh_lib.shardings_in_use(mesh, abstract_state(config, mesh).params)

    def compute_loss(params, batch, key):
        params = jax.lax.with_sharding_constraint(params, in_use)
        pred = apply_model(params, batch["poses_2d"][..., : config.model.input_channels], key)
        target = root_relative(batch["poses_3d"], skeleton.root)
        if config.model.input_frame == "person":
            # In the model's own units a person far away counts as much as one near the camera.
            _, size = person_frame(batch["poses_2d"][..., :2])
            pred, target = pred / size, target / size
        mask = batch.get("frame_mask")
        if "has_3d" in batch:
            flags = batch["has_3d"], batch["weights_2d"]
            return losses.mixed_total(pred, target, *flags, config.loss, skeleton, mask=mask)
        return losses.total(pred, target, config.loss, skeleton, mask=mask)

    loss_and_grad = jax.value_and_grad(compute_loss, has_aux=True)

    def compute_gradients(params, batch, key):
        if accumulate == 1:
            return loss_and_grad(params, batch, key)
        parts = jax.tree.map(
            lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), batch
        )

        def add_part(sums, indexed):
            index, part = indexed
            part = jax.lax.with_sharding_constraint(part, mesh_lib.batch_sharding(mesh))
            out = loss_and_grad(params, part, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, sums, out), None

        one = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(loss_and_grad, params, one, key))
        sums, _ = jax.lax.scan(add_part, zeros, (jnp.arange(accumulate), parts))
        return jax.tree.map(lambda x: x / accumulate, sums)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # Folding the step in, not splitting a key that moves along, makes any step repeatable.
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        (loss, terms), grads = compute_gradients(state.params, batch, key)
        grad_norm = optax.tree.norm(grads)
        learning_rate = schedule(state.step)

        grads = clip_gradients(grads, grad_norm, config.optim.clip_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(
            state.params, jax.tree.map(lambda update: learning_rate * update, updates)
        )
        ema = state.ema
        if ema is not None:
            decay = config.optim.ema
            ema = jax.tree.map(lambda mean, p: decay * mean + (1 - decay) * p, ema, params)

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        params, ema, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, ema, opt_state),
            (state.params, state.ema, state.opt_state),
        )
        skipped = 1 - finite.astype(jnp.int32)
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            ema=ema,
            opt_state=opt_state,
            skipped=state.skipped + skipped,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
        )
        metrics = {
            "loss": loss,
            **terms,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "skipped": skipped,
        }
        return new_state, jax.tree.map(lambda x: x.astype(jnp.float32), metrics)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    return jax.jit(
        train_step,
        in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
        out_shardings=(shardings, mesh_lib.replicated(mesh)),
        donate_argnums=0,
    )


def _apply_by_clips(
    config: Config, mesh: jax.sharding.Mesh
) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    """Returns `apply(params, poses_2d, key)`, in which each device runs the model on its own clips.

    Left to the compiler, the gradients of every depth are summed over the devices as soon as the
    backward pass has them, a message for each depth. Here a device adds up nothing but its own
    clips' until the loop over depths is over, and all depths' gradients travel together.
    """
    model = PoseMamba(config.model, mesh_lib.scan_sharding(mesh, config.model.inner_dim))

    def apply(params: Any, poses_2d: jax.Array, key: jax.Array) -> jax.Array:
        rngs = {"dropout": key}
        return model.apply({"params": params}, poses_2d, deterministic=False, rngs=rngs)

    clips = mesh_lib.batch_sharding(mesh).spec
    if mesh.shape["data"] * mesh.shape["fsdp"] == 1:
        return apply
    whole = {axis for axis, size in mesh.shape.items() if size == 1}
    return jax.shard_map(
        apply,
        mesh=mesh,
        in_specs=(PartitionSpec(), clips, PartitionSpec()),
        out_specs=clips,
        axis_names={"data", "fsdp"} | whole,
        # The check of what varies over the mesh has no rules for kernels.
        check_vma=False,
    )


def abstract_batch(
    config: Config, mesh: jax.sharding.Mesh, keys: Sequence[str] = ("poses_2d", "poses_3d")
) -> dict[str, jax.ShapeDtypeStruct]:
    """Describes shapes, types and shardings of a batch as `put_batch` places it.

    Args:
      config: of the run.
      mesh: made by `make_mesh`.
      keys: what the batch holds, as `posemamba_jax.data.pipeline.batch_keys` gives it.
    """
    clips, poses = config.train.batch_size, (config.data.clip_len, config.model.num_joints)
    leaves = {
        "poses_2d": ((clips, *poses, 3), np.float32),
        "poses_3d": ((clips, *poses, 3), np.float32),
        "has_3d": ((clips,), np.bool_),
        "weights_2d": ((clips, *poses), np.float32),
        "frame_mask": ((clips, config.data.clip_len), np.bool_),
    }
    sharding = mesh_lib.batch_sharding(mesh)
    return {key: jax.ShapeDtypeStruct(*leaves[key], sharding=sharding) for key in keys}


def put_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> Batch:
    """Places this process's share of a batch on its devices, without waiting for the transfer."""
    sharding = mesh_lib.batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(batch[name]))
        for name in _BATCH_KEYS
        if name in batch
    }


def root_relative(poses_3d: jax.Array, root: int) -> jax.Array:
    """Subtracts from poses (..., J, 3) the root joint of the same frame."""
    return poses_3d - poses_3d[..., root : root + 1, :]


def compile_train_step(
    config: Config,
    mesh: jax.sharding.Mesh,
    skeleton: Skeleton,
    batch_keys: Sequence[str],
    *,
    steps_per_epoch: int,
    total_steps: int,
    say: Callable[[str], None],
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles the training step ahead, so that the first rate shown is that of training.

    Args:
      config, mesh, skeleton, steps_per_epoch, total_steps: as for `make_train_step`.
      batch_keys: what the batches hold.
      say: shows a line of text.
    """
    say("compiling the training step")
    start = time.monotonic()
    train_step = make_train_step(
        config, mesh, skeleton, steps_per_epoch=steps_per_epoch, total_steps=total_steps
    )
    shapes = abstract_state(config, mesh), abstract_batch(config, mesh, batch_keys)
    compiled = train_step.lower(*shapes).compile()
    say(f"compiled in {time.monotonic() - start:.1f} s")
    return compiled

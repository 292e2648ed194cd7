"""Two well-known ways of lifting, to compare a model with, and their training.

- A network per frame: Martinez et al., "A simple yet effective baseline for 3D human pose
  estimation", ICCV 2017.
- Convolutions over time: Pavllo et al., "3D human pose estimation in video with temporal
  convolutions and semi-supervised training", CVPR 2019.

Both take what the model with `input_frame: person` takes, keypoints in units of the person, and are
trained by the run's loss. No clip is drawn twice, so there is no dropout.

Shapes: B clips, F frames, J joints.
"""

import math
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from posemamba_jax import losses
from posemamba_jax.data import pipeline
from posemamba_jax.data.clips import ClipSource
from posemamba_jax.evaluation import Predict, baselines
from posemamba_jax.model.posemamba import person_frame


class FrameNetwork(nn.Module):
    """Two residual blocks of two layers each, on every frame by itself.

    Attributes:
      joints: J.
      width: units of a layer; 1024 in the paper.
    """

    joints: int
    width: int

    @nn.compact
    def __call__(self, features, train: bool):
        """Lifts features (B, F, J, D) to poses (B, F, J, 3)."""

        def layer(h):
            h = nn.Dense(self.width)(h)
            return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(h))

        h = layer(features.reshape(*features.shape[:2], -1))
        for _ in range(2):
            h = h + layer(layer(h))
        return nn.Dense(3 * self.joints)(h).reshape(*features.shape[:3], 3)


class TimeNetwork(nn.Module):
    """Convolutions over 3 frames whose steps grow threefold, until they see `frames` of them.

    As in the paper a clip is extended at both ends by its first and last frame, and every block
    adds to its middle frames a dilated convolution and one of a single frame.

    Attributes:
      joints: J.
      width: channels; 1024 in the paper.
      frames: that one output depends on, rounded up to a power of 3.
    """

    joints: int
    width: int
    frames: int

    @nn.compact
    def __call__(self, features, train: bool):
        """Lifts features (B, F, J, D) to poses (B, F, J, 3)."""

        def layer(h, size, dilation=1):
            h = nn.Conv(self.width, (size,), kernel_dilation=(dilation,), padding="VALID")(h)
            return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(h))

        levels = max(1, math.ceil(math.log(self.frames, 3) - 1e-9))
        ends = (3**levels - 1) // 2
        h = features.reshape(*features.shape[:2], -1)
        h = layer(jnp.pad(h, ((0, 0), (ends, ends), (0, 0)), mode="edge"), 3)
        for level in range(1, levels):
            apart = 3**level
            h = h[:, apart:-apart] + layer(layer(h, 3, apart), 1)
        return nn.Dense(3 * self.joints)(h).reshape(*features.shape[:3], 3)


def train(
    network: nn.Module,
    source: ClipSource,
    weights: losses.LossWeights,
    progress: Callable[[int], float],
    *,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
) -> tuple[Predict, int]:
    """Trains a network on clips drawn as in the training of a model.

    Args:
      network: called with features (B, F, J, 4) and `train`.
      source: training clips.
      weights: of the terms of the loss.
      progress: given the number of steps done, returns the share of the training that is done;
        training ends at 1, and the rate falls to zero along half a cosine.
      batch_size: clips in a step.
      learning_rate: at the start.

    Returns:
      A function from keypoints (B, F, J, 2) to poses (B, F, J, 3), and the number of steps.
    """
    batches = pipeline.train_batches(source, batch_size=batch_size, seed=0)
    root, optimizer = source.skeleton.root, optax.adamw(1.0, weight_decay=0.01)

    def compute_loss(params, stats, batch):
        features, size = person_frame(batch["poses_2d"][..., :2])
        variables = {"params": params, "batch_stats": stats}
        pred, updated = network.apply(variables, features, True, mutable=["batch_stats"])
        target = batch["poses_3d"] - batch["poses_3d"][..., root : root + 1, :]
        mask = batch.get("frame_mask")
        total, _ = losses.total(pred, target / size, weights, source.skeleton, mask=mask)
        return total, updated["batch_stats"]

    @jax.jit
    def step(state, batch, rate):
        params, stats, moments = state
        grads, stats = jax.grad(compute_loss, has_aux=True)(params, stats, batch)
        updates, moments = optimizer.update(grads, moments, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u: rate * u, updates))
        return params, stats, moments

    batch = next(batches)
    features, _ = person_frame(batch["poses_2d"][..., :2])
    variables = network.init(jax.random.key(0), features, False)
    params = variables["params"]
    state = (params, variables["batch_stats"], optimizer.init(params))
    steps = 0
    while (done := progress(steps)) < 1:
        rate = learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        state = jax.block_until_ready(step(state, batch, rate))
        steps, batch = steps + 1, next(batches)
    params, stats, _ = state

    @jax.jit
    def predict(poses_2d):
        features, size = person_frame(poses_2d)
        return size * network.apply({"params": params, "batch_stats": stats}, features, False)

    return lambda poses_2d: np.asarray(predict(poses_2d)), steps


def for_minutes(minutes: float) -> Callable[[int], float]:
    """Makes a `progress` of `train` that follows the clock from the first step on."""
    start = []

    def progress(steps: int) -> float:
        if not steps:
            return 0.0
        start[:] = start or [time.monotonic()]
        return (time.monotonic() - start[0]) / (60 * minutes)

    return progress


class _InPersonFrame:
    """The first clips of a source, input and target in units of the person."""

    def __init__(self, source: ClipSource, count: int):
        self.name, self.skeleton = source.name, source.skeleton
        self._source, self._count = source, min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> dict:
        clip = self._source[i]
        features, size = person_frame(clip["poses_2d"][None, ..., :2])
        pose = clip["poses_3d"] / np.asarray(size[0])
        return {"poses_2d": np.asarray(features[0, ..., :2]), "poses_3d": pose}


def fit_plain(source: ClipSource, count: int) -> dict[str, Predict]:
    """Fits mean pose and linear regression in units of the person.

    Args:
      source: training clips.
      count: how many of them to fit on.

    Returns:
      As `posemamba_jax.evaluation.baselines.fit`, for keypoints in units of the image.
    """

    def in_image(predict):
        def call(poses_2d):
            features, size = map(np.asarray, person_frame(poses_2d))
            return size * predict(features[..., :2])

        return call

    fitted = baselines.fit(_InPersonFrame(source, count))
    return {name: in_image(predict) for name, predict in fitted.items()}

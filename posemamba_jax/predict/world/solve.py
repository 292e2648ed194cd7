"""Least squares for where people are: roots over time, footholds, ground, sizes, focal length.

All people share the camera and the ground, so all are solved for together, by Gauss-Newton steps on
sparse normal equations. Residuals are millimetres over what they are expected to be; robust weights
take joints and stances out that fit nothing.

N frames of all people one after the other, K stances, P people.
"""

import dataclasses

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from posemamba_jax.skeleton import H36M17

# What residuals are expected to be, millimetres. Joints: the lifted pose against the keypoints, by
# how well the joint is lifted. Foothold: the lifted ankle against where its foot stands, and the
# detected ankle against the same. Ground: how even footholds are.
JOINT = 40.0
LIFTED_ANKLE = 25.0
SEEN_ANKLE = 12.0
GROUND = 20.0
_HARD = {"nose": 2.0, "head": 2.0, "l_wrist": 1.5, "r_wrist": 1.5, "l_elbow": 1.25, "r_elbow": 1.25}
# The root's acceleration, millimetres per second squared.
ACCELERATION = 2500.0
# Errors of neighbouring frames are alike: evidence is counted as if new once in this time.
MEMORY_SECONDS = 0.2
# Tilt and roll of a camera before anything is known, and of a person who stands, radians.
TILT, ROLL, UPRIGHT = np.radians([20.0, 8.0, 6.0])
# What no amount of frames removes from an estimated focal length: lifted depths are off alike.
SYSTEMATIC = 0.07
_STEPS = 30


@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything that is known, in one row per frame of every person.

    Attributes:
      rays: (N, 17, 2) keypoints in pixels from the image's middle.
      weights: (N, 17) trust in each keypoint, 0 to 1.
      poses: (N, 17, 3) root-relative millimetres in camera axes.
      person: (N,) index of the person. chained: (C, 3) rows of three successive frames.
      feet: (K,) joint of each stance. members: (M,) rows, and of_stance (M,) their stance.
      fps: frames per second.
      uprights: (P, 3) what is up in each person's poses, in camera axes; NaN where unknown.
      focal: first guess in pixels, and focal_deviation of its logarithm, 0 if it is known.
      scale_deviation: of the logarithm of each person's size, 0 if it is known.
    """

    rays: np.ndarray
    weights: np.ndarray
    poses: np.ndarray
    person: np.ndarray
    chained: np.ndarray
    feet: np.ndarray
    members: np.ndarray
    of_stance: np.ndarray
    fps: float
    uprights: np.ndarray
    focal: float
    focal_deviation: float
    scale_deviation: float


@dataclasses.dataclass
class State:
    """The unknowns: roots (N, 3) and footholds (K, 3) in camera-space millimetres, log_scale (P,),
    slope (2,) and offset of the ground, and log_focal."""

    roots: np.ndarray
    footholds: np.ndarray
    log_scale: np.ndarray
    slope: np.ndarray
    offset: float
    log_focal: float

    @property
    def up(self) -> np.ndarray:
        """(3,) unit vector away from the ground, in camera axes."""
        vector = np.array([self.slope[0], -1.0, self.slope[1]])
        return vector / np.linalg.norm(vector)


def solve(problem: Problem, start: State | None = None) -> tuple[State, float]:
    """Finds the most likely world, and the standard deviation of the logarithm of the focal length.

    Args:
      start: a world to begin with, of which the stances may be others; None fits each frame's pose
        to its keypoints.
    """
    state = _first_guess(problem) if start is None else _with_stances(problem, start)
    depth = state.roots[:, 2].copy()
    cost, damping = np.inf, 1e-3
    matrix = gradient = None
    for _ in range(_STEPS):
        matrix, gradient, before = _normal_equations(problem, state, depth)
        improved = False
        for _ in range(6):
            diagonal = sparse.diags(damping * matrix.diagonal() + 1e-12)
            step = _factor(matrix + diagonal).solve(-gradient)
            proposal = _moved(state, step)
            after = _normal_equations(problem, proposal, depth, only_cost=True)
            if np.isfinite(after) and proposal.roots[:, 2].min() > 200 and after <= before:
                improved = True
                break
            damping *= 8
        if not improved:
            break
        state, damping = proposal, max(damping / 5, 1e-9)
        if abs(cost - after) < 1e-5 * after:
            break
        cost = after
    matrix, _, _ = _normal_equations(problem, state, depth)
    unit = np.zeros(matrix.shape[0])
    unit[-1] = 1
    variance = _factor(matrix).solve(unit)[-1]
    deviation = float(np.hypot(np.sqrt(max(variance, 0)), SYSTEMATIC))
    return state, deviation if problem.focal_deviation else 0.0


def _factor(matrix: sparse.spmatrix):
    """Factors a symmetric positive matrix, in an order that keeps the factors sparse."""
    options = {"SymmetricMode": True}
    return splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)


def fit_roots(problem: Problem) -> np.ndarray:
    """Fits (N, 3) roots that bring each frame's pose onto its keypoints, each frame on its own.

    (X + x) f = (Z + z) u is linear in the root (x, y, z); the equations are weighted by trust.
    """
    f = problem.focal
    weight = np.maximum(problem.weights, 1e-3)
    u, v = problem.rays[..., 0], problem.rays[..., 1]
    x, y, z = np.moveaxis(problem.poses, -1, 0)
    zero = np.zeros_like(u)
    rows = np.stack(
        [np.stack([zero + f, zero, -u], -1), np.stack([zero, zero + f, -v], -1)], axis=-2
    )
    wanted = np.stack([z * u - f * x, z * v - f * y], axis=-1)
    matrix = np.einsum("njar,njas,nj->nrs", rows, rows, weight)
    vector = np.einsum("njar,nja,nj->nr", rows, wanted, weight)
    return np.linalg.solve(matrix + 1e-9 * np.eye(3), vector[..., None])[..., 0]


def _first_guess(problem: Problem) -> State:
    roots = fit_roots(problem)
    roots[:, 2] = np.maximum(roots[:, 2], 500.0)
    known = problem.uprights[np.isfinite(problem.uprights).all(1)]
    up = known.mean(0) if len(known) else np.array([0.0, -1.0, 0.0])
    slope = np.clip(np.array([up[0], up[2]]) / max(-up[1], 0.2), -1.5, 1.5)
    state = State(
        roots,
        np.zeros((0, 3)),
        np.zeros(len(problem.uprights)),
        slope,
        0.0,
        float(np.log(problem.focal)),
    )
    return _with_stances(problem, state)


def _with_stances(problem: Problem, state: State) -> State:
    """Puts every foothold where its stance's lifted ankles are on average, and the ground there."""
    stances = len(problem.feet)
    footholds = np.zeros((stances, 3))
    np.add.at(footholds, problem.of_stance, _ankles(problem, state.roots, state.log_scale))
    footholds /= np.maximum(np.bincount(problem.of_stance, minlength=stances), 1)[:, None]
    offset = float(np.median(footholds @ state.up)) if stances else 0.0
    return dataclasses.replace(state, footholds=footholds, offset=offset)


def _ankles(problem: Problem, roots: np.ndarray, log_scale: np.ndarray) -> np.ndarray:
    """Finds the lifted ankle of every frame of every stance, (M, 3)."""
    rows, joints = problem.members, problem.feet[problem.of_stance]
    size = np.exp(log_scale)[problem.person[rows]][:, None]
    return size * problem.poses[rows, joints] + roots[rows]


def _moved(state: State, step: np.ndarray) -> State:
    n, k, p = len(state.roots), len(state.footholds), len(state.log_scale)
    roots, footholds, scale, rest = np.split(step, np.cumsum([3 * n, 3 * k, p]))
    limit = 1500.0
    return State(
        state.roots + np.clip(roots.reshape(n, 3), -limit, limit),
        state.footholds + np.clip(footholds.reshape(k, 3), -limit, limit),
        state.log_scale + np.clip(scale, -0.2, 0.2),
        state.slope + np.clip(rest[:2], -0.2, 0.2),
        state.offset + float(np.clip(rest[2], -limit, limit)),
        state.log_focal + float(np.clip(rest[3], -0.2, 0.2)),
    )


class _Equations:
    """Collects residuals with their derivatives and sums them into normal equations."""

    def __init__(self, size: int, only_cost: bool):
        self._size = size
        self._rows, self._columns, self._values = [], [], []
        self._gradient = np.zeros(size)
        self._only_cost = only_cost
        self.cost = 0.0

    def trust(self, square: np.ndarray, soft: float | None, weight) -> np.ndarray:
        """Adds squared residuals to the cost and returns the weight that each has in this step.

        Args:
          square: squared residuals, in standard deviations.
          soft: length of a residual from which it counts ever less; None trusts all.
          weight: how often each residual counts.
        """
        if soft is None:
            self.cost += float((weight * square).sum())
            return np.broadcast_to(weight, square.shape)
        self.cost += float((weight * soft**2 * np.log1p(square / soft**2)).sum())
        return weight / (1 + square / soft**2)

    def add(self, residual: np.ndarray, parts, soft: float | None = None, weight=1.0):
        """Adds (R, C) residuals, each row trusted as a whole.

        Args:
          residual: C components each, in standard deviations.
          parts: (columns (R, V), derivative (R, C, V)) for every group of V unknowns.
          soft, weight: as in `trust`.
        """
        trusted = self.trust((residual**2).sum(-1), soft, weight)
        self.add_trusted(residual, parts, np.broadcast_to(trusted[:, None], residual.shape))

    def add_trusted(self, residual: np.ndarray, parts, trusted: np.ndarray):
        """Adds (R, C) residuals whose cost and trust (R, C) are known."""
        if self._only_cost:
            return
        columns = np.concatenate([c for c, _ in parts], axis=1)
        derivative = np.concatenate([d for _, d in parts], axis=2)
        weighted = np.swapaxes(derivative * trusted[..., None], 1, 2)
        blocks = weighted @ derivative
        slopes = (weighted @ residual[..., None])[..., 0]
        self._gradient += np.bincount(columns.ravel(), slopes.ravel(), self._size)
        self._rows.append(np.broadcast_to(columns[:, :, None], blocks.shape).ravel())
        self._columns.append(np.broadcast_to(columns[:, None, :], blocks.shape).ravel())
        self._values.append(blocks.ravel())

    def finish(self) -> tuple[sparse.csc_matrix, np.ndarray]:
        index = (np.concatenate(self._rows), np.concatenate(self._columns))
        shape = (self._size, self._size)
        return sparse.coo_matrix((np.concatenate(self._values), index), shape).tocsc(), (
            self._gradient
        )


def _normal_equations(problem: Problem, state: State, depth: np.ndarray, only_cost=False):
    """Computes matrix, gradient and cost at a state; the cost alone if that is all that is asked
    for.

    `depth` (N,) turns pixels into millimetres; it is fixed, lest far away be cheap.
    """
    n, k, p = len(state.roots), len(state.footholds), len(state.log_scale)
    at_foothold, at_scale, at_slope = 3 * n, 3 * (n + k), 3 * (n + k) + p
    at_offset, at_focal = at_slope + 2, at_slope + 3
    equations = _Equations(at_focal + 1, only_cost)
    share = 1 / max(MEMORY_SECONDS * problem.fps, 1.0)
    root_columns = 3 * np.arange(n)[:, None] + np.arange(3)
    per_mm = depth / problem.focal

    _add_joints(problem, state, per_mm, share, equations, root_columns, at_scale, at_focal)
    a, b, c = problem.chained.T
    if len(a):
        bend = problem.fps**2 / ACCELERATION
        residual = bend * (state.roots[a] - 2 * state.roots[b] + state.roots[c])
        parts = [
            (root_columns[rows], np.broadcast_to(sign * bend * np.eye(3), (len(a), 3, 3)))
            for rows, sign in ((a, 1), (b, -2), (c, 1))
        ]
        equations.add(residual, parts, soft=3.0, weight=share)
    if k:
        _add_stances(
            problem,
            state,
            per_mm,
            share,
            equations,
            (root_columns, at_foothold, at_scale, at_focal),
        )
        up = state.up
        length = np.sqrt(1 + (state.slope**2).sum())
        columns = at_foothold + 3 * np.arange(k)[:, None] + np.arange(3)
        sideways = (np.eye(3) - np.outer(up, up))[:, [0, 2]] / length
        parts = [
            (columns, np.broadcast_to(up / GROUND, (k, 1, 3))),
            (_all(at_slope, k, 2), (state.footholds @ sideways)[:, None] / GROUND),
            (_all(at_offset, k), np.full((k, 1, 1), -1 / GROUND)),
        ]
        residual = (state.footholds @ up - state.offset)[:, None] / GROUND
        frames = np.bincount(problem.of_stance, minlength=k)
        equations.add(residual, parts, soft=2.5, weight=np.minimum(1, frames * share))
    _add_expectations(problem, state, equations, (at_scale, at_slope, at_offset, at_focal))
    if only_cost:
        return equations.cost
    return *equations.finish(), equations.cost


def _add_joints(problem, state, per_mm, share, equations, root_columns, at_scale, at_focal):
    """Adds every lifted joint against its keypoint."""
    size = np.exp(state.log_scale)[problem.person][:, None, None]
    body = size * problem.poses
    points = body + state.roots[:, None]
    hard = np.array([_HARD.get(name, 1.0) for name in H36M17.joints])
    scale = per_mm[:, None] / (JOINT * hard)
    flat, by_point = _project(points, state.log_focal)
    residual = scale[..., None] * (flat - problem.rays)
    by_point = scale[..., None, None] * by_point
    by_focal = (scale[..., None] * flat)[..., None]
    by_scale = by_point @ body[..., None]
    rows = len(body)
    trusted = equations.trust((residual**2).sum(-1), 2.5, share * problem.weights)
    parts = [
        (root_columns, by_point.reshape(rows, -1, 3)),
        ((at_scale + problem.person)[:, None], by_scale.reshape(rows, -1, 1)),
        (_all(at_focal, rows), by_focal.reshape(rows, -1, 1)),
    ]
    equations.add_trusted(residual.reshape(rows, -1), parts, np.repeat(trusted, 2, axis=1))


def _add_stances(problem, state, per_mm, share, equations, columns):
    """Adds lifted and detected ankles against the foothold of their stance."""
    root_columns, at_foothold, at_scale, at_focal = columns
    rows, stance = problem.members, problem.of_stance
    joints = problem.feet[stance]
    count = len(rows)
    held = at_foothold + 3 * stance[:, None] + np.arange(3)
    size = np.exp(state.log_scale)[problem.person[rows]][:, None]
    body = size * problem.poses[rows, joints]
    eye = np.broadcast_to(np.eye(3) / LIFTED_ANKLE, (count, 3, 3))
    residual = (body + state.roots[rows] - state.footholds[stance]) / LIFTED_ANKLE
    parts = [
        (root_columns[rows], eye),
        (held, -eye),
        (at_scale + problem.person[rows][:, None], (body / LIFTED_ANKLE)[..., None]),
    ]
    equations.add(residual, parts, soft=2.5, weight=share)
    flat, by_point = _project(state.footholds[stance], state.log_focal)
    scale = (per_mm[rows] / SEEN_ANKLE)[:, None]
    parts = [
        (held, scale[..., None] * by_point),
        (_all(at_focal, count), (scale * flat)[..., None]),
    ]
    weight = share * problem.weights[rows, joints]
    equations.add(scale * (flat - problem.rays[rows, joints]), parts, soft=2.5, weight=weight)


def _add_expectations(problem, state, equations, columns):
    """Adds what is expected of cameras, people and the ground before anything is seen."""
    at_scale, at_slope, at_offset, at_focal = columns
    p = len(state.log_scale)

    def expect(at, values, deviations):
        values, deviations = np.atleast_1d(values), np.atleast_1d(deviations)
        residual = (values / deviations)[:, None]
        index = (at + np.arange(len(values)))[:, None]
        equations.add(residual, [(index, (1 / deviations)[:, None, None])])

    expect(at_scale, state.log_scale, np.full(p, problem.scale_deviation or 1e-6))
    expect(at_slope, state.slope, [ROLL, TILT])
    for up in problem.uprights:
        if np.isfinite(up).all() and up[1] < -0.2:
            expect(at_slope, state.slope + np.array([up[0], up[2]]) / up[1], [UPRIGHT, UPRIGHT])
    expect(at_offset, state.offset if not len(state.footholds) else 0.0, 1e5)
    off = state.log_focal - np.log(problem.focal)
    expect(at_focal, off, problem.focal_deviation or 1e-6)


def _project(points: np.ndarray, log_focal: float) -> tuple[np.ndarray, np.ndarray]:
    """Projects points (..., 3) to pixels (..., 2), with their derivative (..., 2, 3) by the
    points.
    """
    focal = np.exp(log_focal)
    x, y, z = np.moveaxis(points, -1, 0)
    z = np.maximum(z, 100.0)
    zero = np.zeros_like(x)
    derivative = np.stack(
        [
            np.stack([focal / z, zero, -focal * x / z**2], -1),
            np.stack([zero, focal / z, -focal * y / z**2], -1),
        ],
        axis=-2,
    )
    return focal * points[..., :2] / z[..., None], derivative


def _all(column: int, rows: int, width: int = 1) -> np.ndarray:
    """Repeats the same columns for every residual, (rows, width)."""
    return np.broadcast_to(column + np.arange(width), (rows, width))

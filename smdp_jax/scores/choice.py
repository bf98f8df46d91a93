"""Choose a backward kernel's blocks, and what its regression starts from, by unseen paths."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.compiled import once
from smdp_jax.scores import blocks
from smdp_jax.scores.blocks import Transform
from smdp_jax.scores.chain import drawn_back
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.moments import Base, physics_of, tables_of
from smdp_jax.sde import SDE, Args, Scalar, State
from smdp_jax.trajectories import Trajectories

_LEAST_PATHS = 8
_JOINT_ENTRIES = 256
_KNOWN = 2000
_COMPARED_STEPS = 6
# Paths, entries in all and draws of the chains that compare bases. A network makes up for less than
# a factor of two, and does it better without the noise that a step back amplifies.
_CHAINS, _LEAST_CHAINS, _CHAINED, _DRAWS = 100, 20, 4_000_000, 8
_NEARER = 2.0
# Of a state's size: rounding, not physics.
_LINEAR = 1e-5
# Nats per entry, and excess kurtosis.
_MUCH, _FAR = 0.2, 0.5


def best_transform(sde: SDE, data: Trajectories, axes: int, network: bool) -> Transform:
    """Choose the transform whose kernel gives unseen steps the highest likelihood."""
    entries = sum(leaf.size for leaf in jax.tree.leaves(data.at(0, 0)))
    if axes == 0 or entries <= _LEAST_PATHS:
        return blocks.Joint()
    candidates: list[Transform] = [blocks.Periodic(axes), blocks.Cosine(axes), blocks.Points(axes)]
    held = max(min(data.num_samples // 5, 500), 2)
    known = min(data.num_samples - held, _KNOWN)
    if entries <= _JOINT_ENTRIES and known >= 2 * entries:
        candidates.append(blocks.Joint())
    last = data.num_times - 2
    # The first step may start from a prior that lives on few modes, where floors decide.
    steps = np.unique(np.linspace(min(1, last), last, _COMPARED_STEPS).astype(int))
    seen, unseen = data[:known], data[known : known + held]

    def likelihood(transform: Transform) -> float:
        tables = tables_of(sde, seen, transform, None, 0.0, jax.random.key(0), steps)
        value = float(_likelihood(LearnedKernel(None, {}, tables), unseen, jnp.asarray(steps)))
        return value if np.isfinite(value) else -np.inf

    found = {transform: likelihood(transform) for transform in candidates}
    best = max(candidates, key=lambda transform: found[transform])
    # Where states are far from Gaussian the network does most of it, and does it best where an
    # entry's noise is its own, unless the blocks explain much more.
    near = found[best] - found[blocks.Points(axes)] < _MUCH * entries
    if network and near and not isinstance(best, blocks.Periodic) and abs(_excess(seen.xs)) > _FAR:
        return blocks.Points(axes)
    return best


@once
def _likelihood(kernel: LearnedKernel, paths: Trajectories, steps: Array) -> Scalar:
    """Mean log density of some steps back; the kernel knows only these."""

    def one(i: Array, n: Array) -> Scalar:
        earlier, later = paths.at(i, steps[n]), paths.at(i, steps[n] + 1)
        return kernel.log_density(n, earlier, later, paths.args_of(i))

    each = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return each(jnp.arange(paths.num_samples), jnp.arange(len(steps))).mean()


def best_base(sde: SDE, data: Trajectories, transform: Transform) -> Base:
    """Choose the base whose chains come nearer to the unseen paths whose ends they start at."""
    entries = sum(leaf.size for leaf in jax.tree.leaves(data.at(0, 0)))
    bearable = max(_CHAINED // (entries * data.num_times), _LEAST_CHAINS)
    held = min(data.num_samples // 5, _CHAINS, bearable)
    if held < _LEAST_CHAINS or not _bends(sde, data):
        return "state"
    seen, unseen = data[: min(data.num_samples - held, _KNOWN)], data[data.num_samples - held :]

    def miss(base: Base) -> np.ndarray:
        tables = tables_of(sde, seen, transform, physics_of(sde, base), 0.0, jax.random.key(0))
        found = np.asarray(_chain_miss(LearnedKernel(None, {}, tables), unseen, jax.random.key(1)))
        return np.where(np.isfinite(found), found, np.inf)

    state, inverse = miss("state"), miss("inverse")
    nearer = inverse[0] < state[0] / _NEARER and inverse.mean() < _NEARER * state.mean()
    return "inverse" if nearer else "state"


def _bends(sde: SDE, data: Trajectories) -> bool:
    """Whether a step back is more than a linear one: between two states of the paths."""
    off, size = _bend(sde, data.ts[-2:], data.at(0, -1), data.at(1, -1), data.args_of(0))
    return not float(off) <= _LINEAR * float(size)


@once
def _bend(sde: SDE, ts: Array, x: State, y: State, args: Args) -> tuple[Array, Array]:
    physics = physics_of(sde, "inverse")
    assert physics is not None
    middle = jax.tree.map(lambda x, y: (x + y) / 2, x, y)
    b, c, m = (ravel_pytree(physics(ts[1], ts[0], v, args))[0] for v in (x, y, middle))
    start = ravel_pytree(jax.tree.map(jnp.subtract, x, y))[0]
    return jnp.abs((b + c) / 2 - m).max(), jnp.maximum(jnp.abs(b).max(), jnp.abs(start).max())


@partial(once, light=False)
def _chain_miss(kernel: LearnedKernel, paths: Trajectories, key: PRNGKeyArray) -> Array:
    """Mean CRPS over entries and paths, in units of the data's spread, at every earlier time."""

    def flat(x: State) -> Array:
        scaled = lambda v, s: v.astype(float) / s.astype(float)
        return ravel_pytree(jax.tree.map(scaled, x, kernel.tables.size[1]))[0]

    def of_path(i: Array) -> Array:
        def crps(states: State, step: Array) -> Array:
            draws, truth = jax.vmap(flat)(states), flat(paths.at(i, step))
            # Half the mean distance of two draws, from their order.
            weights = 2 * jnp.arange(1, _DRAWS + 1) - _DRAWS - 1
            apart = weights.astype(draws.dtype) @ jnp.sort(draws, axis=0)
            off = jnp.abs(draws - truth[None]).mean(axis=0)
            return (off - apart / (_DRAWS * (_DRAWS - 1))).mean()

        return drawn_back(kernel, paths, i, key, _DRAWS, crps)[1]

    indices = jnp.arange(paths.num_samples)
    return jax.lax.map(of_path, indices, batch_size=min(paths.num_samples, 32)).mean(axis=0)


@once
def _excess(xs: State) -> Array:
    """Mean excess kurtosis of the entries that vary, at all times: 0 where they are Gaussian."""
    total, count = jnp.zeros(()), jnp.zeros((), int)
    for x in jax.tree.leaves(xs):
        off = x - x.mean(axis=0, keepdims=True)
        square = (off**2).mean(axis=0, keepdims=True)
        varies = square > 0
        unit = off / jnp.sqrt(jnp.where(varies, square, 1))
        total += jnp.where(varies[0], (unit**4).mean(axis=0) - 3, 0).sum().astype(total.dtype)
        count += varies.sum()
    return total / jnp.maximum(count, 1).astype(total.dtype)

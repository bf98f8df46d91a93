"""Chains walked back from the ends of unseen paths: where do the paths' own starts rank in them?

Steps share errors that none shows alone: each may have the right noise and the chain be too narrow.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import warn
from smdp_jax.compiled import once
from smdp_jax.scores.chain import drawn_back
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.verdict import LEVELS, Starts, said_of, within
from smdp_jax.sde import State
from smdp_jax.trajectories import Trajectories

# Draws of each path, entries in all, paths at least, and by what noise may change each time.
_DRAWS = 16
_CHAINED, _LEAST_CHAINS = 6_000_000, 16
_FACTORS = (0.75, 1.5)
_PASSES, _SMALL_CHANGE = 4, 0.03
# What a network that learned well adds to the variance, on the average.
_EXCESS = 0.1
# Slope of E (u - 1/2)^2 over the variance v, at 1.
_SLOPE = 1 / (8 * math.sqrt(0.75) * math.pi)
_SMALL = 8
# Of a state's size, or in the log: what differs by less is the same (mass that a process keeps is
# the same in all draws, but for rounding), and its ties are broken at random.
_SAME, _LEAST = 1e-5, 1e-10


class Ranks(NamedTuple):
    """Of the states of unseen paths among draws that start at the paths' ends."""

    squares: np.ndarray
    """Mean over entries of (u - 1/2)^2, u in (0, 1) being the rank (times - 1, paths)."""
    starts: Starts
    """Of the paths' own starts."""


def calibrated(kernel: LearnedKernel, paths: Trajectories, key: PRNGKeyArray) -> LearnedKernel:
    """Give chains the spread that unseen paths ask for, and warn where that does not mend them."""
    found = ranks_of(kernel, paths, key)
    for again in range(_PASSES):
        factor = factor_of(found)
        assert kernel.left is not None
        kernel = replace(kernel, left=tuple(root * factor for root in kernel.left))
        if abs(factor - 1) < _SMALL_CHANGE:
            break
        found = ranks_of(kernel, paths, jax.random.fold_in(key, again))
    warn_of_ranks(found.starts)
    return kernel


def factor_of(ranks: Ranks) -> float:
    """By what the noise is to be scaled for the early states of unseen paths to rank evenly.

    If u = Phi(z), z of variance v, then E (u - 1/2)^2 = asin(v / (1 + v)) / (2 pi), and noise
    sqrt(v) times as large suits. A network's errors make v > 1, hardly less: v - 1 has an
    exponential prior.
    """
    early = ranks.squares[: max((len(ranks.squares) + 1) // 4, 1)]
    # At their median: the first time may be of another kind, its paths still on few modes.
    early = early[np.argsort(early.mean(axis=1))[len(early) // 2]]
    # Ranks of a few draws are binomial about those of infinitely many.
    early = (early - 1 / (4 * _DRAWS)) / (1 - 1 / _DRAWS)
    share = np.sin(2 * np.pi * np.clip(early.mean(), 0, 0.15))
    excess = share / (1 - share) - 1
    error = math.sqrt(early.var() / max(len(early) - 1, 1)) / _SLOPE
    # Few paths may agree by chance: no less than the error of independent uniform ranks.
    error = max(error, 1 / (math.sqrt(180 * len(early) * ranks.starts.entries) * _SLOPE))
    if excess > -2 * error:
        excess = _positive_mean(excess - error**2 / _EXCESS, error)
    else:
        excess *= 1 - (error / excess) ** 2  # James, Stein (1961)
    return float(np.clip(math.sqrt(1 + excess), *_FACTORS))


def _positive_mean(mean: float, std: float) -> float:
    """Mean of a normal number that is known to be positive."""
    z = mean / std
    if z < -6:
        return -std / z
    density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return mean + std * density / (math.erfc(-z / math.sqrt(2)) / 2)


def warn_of_ranks(starts: Starts) -> None:
    """Say which intervals of unseen starts hold too few of them or too many, or what is unknown."""
    for said in said_of(starts):
        warn(f"fit: {said}")


def ranks_of(kernel: LearnedKernel, paths: Trajectories, key: PRNGKeyArray) -> Ranks:
    """Walk back from the ends of as many paths as there is time for."""
    entries = sum(leaf[0].size for leaf in jax.tree.leaves(paths.xs))
    number = int(min(max(_CHAINED // (entries * _DRAWS), _LEAST_CHAINS), paths.num_samples))
    walked = jax.tree.map(np.asarray, _walked(kernel, paths[:number], key))
    squares, found, inside, nearer = walked
    size = entries // paths.num_times
    starts = Starts(found, inside, nearer, _DRAWS, size, paths.num_samples)
    return Ranks(np.asarray(squares, float), starts)


@partial(once, light=False)
def _walked(
    kernel: LearnedKernel, paths: Trajectories, key: PRNGKeyArray
) -> tuple[Array, dict[str, Array], Array, Array]:
    steps, sizes = paths.num_times - 1, kernel.tables.size[1]
    k_draws, k_ties, k_places = jax.random.split(key, 3)

    def scaled(x: State) -> State:
        return jax.tree.map(lambda v, size: v.astype(float) / size.astype(float), x, sizes)

    def flat(x: State) -> Array:
        return ravel_pytree(scaled(x))[0]

    indices = jnp.arange(paths.num_samples)
    truths = jax.vmap(lambda i: flat(paths.at(i, 0)))(indices)
    low, high, size = truths.min(axis=0), truths.max(axis=0), truths.std(axis=0)
    size = jnp.where(size > 0, size, 1)
    inner = jnp.asarray(within(_DRAWS, LEVELS))

    def of_path(i: Array) -> tuple[Array, dict[str, Array], Array, Array]:
        ties = jax.random.fold_in(k_ties, i)

        def ranks(states: State, step: Array) -> Array:
            truth = flat(paths.at(i, step))
            return below(jax.vmap(flat)(states), truth, jax.random.fold_in(ties, step))

        def square(states: State, step: Array) -> Array:
            return ((ranks(states, step) / _DRAWS - 0.5) ** 2).mean()

        states, squares = drawn_back(kernel, paths, i, k_draws, _DRAWS, square)
        truth, drawn = looks(scaled(paths.at(i, 0))), jax.vmap(lambda x: looks(scaled(x)))(states)
        drawn, own = (jnp.stack([v[k] for k in truth], axis=-1) for v in (drawn, truth))
        found = below(drawn, own, jax.random.fold_in(ties, steps))
        # By the distance to a random place (Lemos et al. 2023), all entries count at once.
        place = jax.random.uniform(jax.random.fold_in(k_places, i), low.shape, low.dtype, low, high)
        far = lambda x: (((flat(x) - place) / size) ** 2).sum(keepdims=True)
        last = jax.random.fold_in(ties, steps + 1)
        nearer = below(jax.vmap(far)(states), far(paths.at(i, 0)), last)[0]
        inside = inner[:, ranks(states, jnp.zeros_like(i))].mean(axis=1)
        return squares, dict(zip(truth, found, strict=True)), inside, nearer

    batch = min(paths.num_samples, 32)
    squares, *found = jax.lax.map(of_path, indices, batch_size=batch)
    return squares.T, *found


def below(draws: Array, truth: Array, key: PRNGKeyArray) -> Array:
    """Count the draws (draws, n) below the truth (n,); of what is the same, a random number."""
    off = draws - truth[None]
    low, same = (v.sum(axis=0) for v in (off < -_SAME, jnp.abs(off) <= _SAME))
    return low + jax.random.randint(key, truth.shape, 0, same + 1)


def looks(x: State) -> dict[str, Array]:
    """Entries of small leaves; of others mean, largest, logs of mean square and roughness."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "state"
        if leaf.size <= _SMALL:
            flat = leaf.ravel()
            names = [name if leaf.size == 1 else f"{name}[{i}]" for i in range(leaf.size)]
            found |= dict(zip(names, flat, strict=True))
            continue
        axes = [axis for axis in range(leaf.ndim) if leaf.shape[axis] > 1]
        rough = sum(jnp.mean(jnp.square(jnp.diff(leaf, axis=axis))) for axis in axes)
        parts = {"mean": leaf.mean(), "mean square": jnp.log(jnp.mean(jnp.square(leaf)) + _LEAST)}
        parts |= {"maximum": leaf.max(), "roughness": jnp.log(rough + _LEAST)}
        found |= {f"{part} of {name}": value for part, value in parts.items()}
    return found

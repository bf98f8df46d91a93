"""Chains walked back from the ends of unseen paths: where do the paths' own starts rank in them?

Steps share errors that none shows alone: each may have the right noise and the chain be too narrow.
"""

import math
import warnings
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.compiled import once
from smdp_jax.scores.chain import drawn_back
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.sde import State
from smdp_jax.trajectories import Trajectories

# Draws of each path, entries in all, and by what noise may change each time.
_DRAWS = 16
_CHAINED = 6_000_000
_FACTORS = (0.75, 1.5)
_PASSES, _SMALL_CHANGE = 2, 0.03
# What a network that learned well adds to the variance, on the average.
_EXCESS = 0.1
# Slope of E (u - 1/2)^2 over the variance v, at 1.
_SLOPE = 1 / (8 * math.sqrt(0.75) * math.pi)
# What is said of intervals: they hold so much less than they should, beyond chance.
_MISS, _ERRORS = 0.04, 4.0
# Uneven ranks: chi squared of five groups, and the share that is in the wrong one.
_CHANCE, _APART = 28.5, 0.15
_SMALL = 8
# Of a state's size, or in the log: what differs by less is the same (mass that a process keeps is
# the same in all draws, but for rounding), and its ties are broken at random.
_SAME, _LEAST = 1e-5, 1e-10


class Ranks(NamedTuple):
    """Of the states of unseen paths among draws that start at the paths' ends."""

    squares: np.ndarray
    """Mean over entries of (u - 1/2)^2, u in (0, 1) being the rank (times - 1, paths)."""
    starts: dict[str, np.ndarray]
    """Draws below the path's own start, by what is looked at (paths,)."""
    entries: int
    """Numbers of one state."""


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

    If u = Phi(z) with z of variance v, then E (u - 1/2)^2 = asin(v / (1 + v)) / (2 pi), and noise
    that is sqrt(v) times as large suits. Errors of a network make v larger than 1, hardly ever
    smaller: v - 1 has an exponential prior, unless it is clearly negative.
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
    error = max(error, 1 / (math.sqrt(180 * len(early) * ranks.entries) * _SLOPE))
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


def warn_of_ranks(starts: dict[str, np.ndarray]) -> None:
    """Say which intervals of unseen starts hold too few of them, or too many."""
    expected, said, n = 2 / (_DRAWS + 1), [], len(next(iter(starts.values())))
    for name, below in starts.items():
        slack = max(_MISS, _ERRORS * math.sqrt(expected * (1 - expected) / n))
        outside = float(np.mean((below == 0) | (below == _DRAWS)))
        off = float(np.mean(below) / _DRAWS - 0.5)
        kind = ""
        if abs(outside - expected) > slack:
            kind = f"too {'narrow' if outside > expected else 'wide'}"
        elif abs(off) > max(_MISS, _ERRORS / math.sqrt(12 * n)):
            kind = "biased"
        elif _uneven(below):
            kind = "of another shape: two lumps, or a long tail"
        if kind:
            said.append(f"{name}: {1 - outside:.0%} ({kind})")
    if said:
        warnings.warn(
            f"fit: posteriors of {n} unseen paths miss their starts; intervals of "
            f"{1 - expected:.0%} hold {', '.join(said)}. More paths, more updates or a larger "
            "network mend it, or another number of stored times; smdp.calibration_report shows all "
            "of it",
            stacklevel=4,
        )


def _uneven(below: np.ndarray) -> bool:
    """Whether ranks crowd in some parts, as where one lump stands for two."""
    edges = np.array([0, 4, 8, 9, 13, _DRAWS + 1])
    want = np.diff(edges) / (_DRAWS + 1)
    got = np.histogram(below, edges - 0.5)[0] / len(below)
    # 1e-5 of chi squared of four degrees of freedom.
    beyond = len(below) * np.sum((got - want) ** 2 / want) > _CHANCE
    return bool(beyond and np.abs(got - want).sum() / 2 > _APART)


def ranks_of(kernel: LearnedKernel, paths: Trajectories, key: PRNGKeyArray) -> Ranks:
    """Walk back from the ends of as many paths as there is time for."""
    entries = sum(leaf[0].size for leaf in jax.tree.leaves(paths.xs))
    number = int(min(max(_CHAINED // (entries * _DRAWS), 8), paths.num_samples))
    squares, starts = _walked(kernel, paths[:number], key)
    size = entries // paths.num_times
    return Ranks(np.asarray(squares, float), {k: np.asarray(v) for k, v in starts.items()}, size)


@partial(once, light=False)
def _walked(
    kernel: LearnedKernel, paths: Trajectories, key: PRNGKeyArray
) -> tuple[Array, dict[str, Array]]:
    steps, sizes = paths.num_times - 1, kernel.tables.size[1]
    k_draws, k_ties = jax.random.split(key)

    def scaled(x: State) -> State:
        return jax.tree.map(lambda v, size: v.astype(float) / size.astype(float), x, sizes)

    def of_path(i: Array) -> tuple[Array, dict[str, Array]]:
        ties = jax.random.fold_in(k_ties, i)

        def ranked(states: State, step: Array) -> Array:
            flat = jax.vmap(lambda x: ravel_pytree(scaled(x))[0])(states)
            truth = ravel_pytree(scaled(paths.at(i, step)))[0]
            share = below(flat, truth, jax.random.fold_in(ties, step)) / _DRAWS
            return ((share - 0.5) ** 2).mean()

        states, squares = drawn_back(kernel, paths, i, k_draws, _DRAWS, ranked)
        truth, drawn = looks(scaled(paths.at(i, 0))), jax.vmap(lambda x: looks(scaled(x)))(states)
        drawn, own = (jnp.stack([v[k] for k in truth], axis=-1) for v in (drawn, truth))
        found = below(drawn, own, jax.random.fold_in(ties, steps))
        return squares, dict(zip(truth, found, strict=True))

    indices = jnp.arange(paths.num_samples)
    batch = min(paths.num_samples, 32)
    squares, starts = jax.lax.map(of_path, indices, batch_size=batch)
    return squares.T, starts


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
        rough = sum(
            jnp.mean(jnp.square(jnp.diff(leaf, axis=axis)))
            for axis in range(leaf.ndim)
            if leaf.shape[axis] > 1
        )
        parts = {"mean": leaf.mean(), "mean square": jnp.log(jnp.mean(jnp.square(leaf)) + _LEAST)}
        parts |= {"maximum": leaf.max(), "roughness": jnp.log(rough + _LEAST)}
        found |= {f"{part} of {name}": value for part, value in parts.items()}
    return found

"""How far to trust a kernel's network, and the noise that it leaves, on unseen paths."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.compiled import once
from smdp_jax.scores.blocks import Blocks
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.kernel_step import remainder, residual, whitened
from smdp_jax.scores.tables import with_input_noise
from smdp_jax.sde import State
from smdp_jax.trajectories import Trajectories

_NEIGHBOURS = 2
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Of h and of w: directions may carry the noise of rough modes to smooth ones, which have little.
_OF_NOISE = tuple((h, w) for h in _SHARES for w in _SHARES if w <= h)
_HIDDEN = 1e-6  # of a variance
_ENOUGH = 2_000_000
# What the log likelihood must gain, in nats, for less than full trust, or for noise that varies.
_GAIN = 3.0


def trusted(
    kernel: LearnedKernel, paths: Trajectories, input_noise: float, key: PRNGKeyArray
) -> LearnedKernel:
    """Scale the network's mean and noise down as far as the likelihood of unseen steps gains."""
    if kernel.model is None:
        return kernel
    leaves = jax.tree.leaves(paths.xs)
    entries = sum(leaf[0].size for leaf in leaves)
    some = paths[: min(max(_ENOUGH // entries, 1), paths.num_samples)]
    sigma = jnp.asarray(input_noise, leaves[0].dtype)
    gains = np.array(_likelihoods(kernel, some, sigma, key))
    gains[:, 0] += _GAIN
    gains[-1, -1] += _GAIN
    if not np.isfinite(gains[-1, -1]):
        return kernel
    best = np.unravel_index(np.nanargmax(gains), gains.shape)
    shares = [_SHARES[best[0]], *_OF_NOISE[best[1]]]
    return replace(kernel, trust=jnp.asarray(shares, leaves[0].dtype))


@once
def _likelihoods(
    kernel: LearnedKernel, paths: Trajectories, input_noise: Array, key: PRNGKeyArray
) -> Array:
    """Log likelihood (shares of N, of S), the noise that is left being free in every block."""
    shares, of_noise = jnp.asarray(_SHARES), jnp.asarray(_OF_NOISE)
    transform, like = kernel.tables.transform, paths.at(0, 0)

    def one(step: Array) -> tuple[Blocks, Array]:
        def one_path(i: Array) -> tuple[Blocks, Array]:
            own = jax.random.fold_in(jax.random.fold_in(key, step), i)
            later = with_input_noise(kernel.tables, own, step, paths.at(i, step + 1), input_noise)
            args = paths.args_of(i)
            white = whitened(kernel, step, paths.at(i, step), later, args)
            mean, noise = remainder(kernel, step, later, args)

            def squares(a: Array, b: Array) -> Blocks:
                missed = jax.tree.map(lambda w, n: w - a.astype(w.dtype) * n, white, mean)
                return tuple(jnp.abs(r) ** 2 for r in transform.to(noise.shared(*b).over(missed)))

            found = jax.lax.map(lambda a: jax.lax.map(lambda b: squares(a, b), of_noise), shares)
            logs = jax.lax.map(lambda b: noise.shared(*b).log_determinant(), of_noise)
            return found, logs.astype(shares.dtype)

        squares, logs = jax.vmap(one_path)(jnp.arange(paths.num_samples))
        return tuple(r.mean(axis=0) for r in squares), logs.mean(axis=0)

    squares, logs = jax.lax.map(one, jnp.arange(paths.num_times - 1))
    total: Any = -logs.sum(axis=0)[None]
    for square, weight in zip(squares, transform.multiplicity(like), strict=True):
        near = jnp.log(_averaged(square) + _HIDDEN).sum(axis=(0, -1))  # (N, S, K)
        total = total - near @ jnp.asarray(weight, near.dtype) / 2
    return paths.num_samples * total


@once
def _second_moments(
    kernel: LearnedKernel, paths: Trajectories, input_noise: Array, key: PRNGKeyArray
) -> tuple[Array, ...]:
    """Mean of r r^H of the whitened residual r, leaves (steps, K, c, c)."""

    def one(step: Array) -> tuple[Array, ...]:
        def one_path(i: Array) -> tuple[Array, ...]:
            own = jax.random.fold_in(jax.random.fold_in(key, step), i)
            later = with_input_noise(kernel.tables, own, step, paths.at(i, step + 1), input_noise)
            missed, noise = residual(kernel, step, paths.at(i, step), later, paths.args_of(i))
            return kernel.tables.transform.to(noise.over(missed))

        left = jax.vmap(one_path)(jnp.arange(paths.num_samples))
        return tuple(jnp.einsum("skc,skd->kcd", r, r.conj()) / r.shape[0] for r in left)

    return jax.lax.map(one, jnp.arange(paths.num_times - 1))


def noise_left(
    kernel: LearnedKernel, paths: Trajectories, input_noise: float, key: PRNGKeyArray
) -> LearnedKernel:
    """Give the kernel the noise that is left, averaged over neighbouring steps."""
    dtype = jax.tree.leaves(paths.xs)[0].dtype
    moments = _second_moments(kernel, paths, jnp.asarray(input_noise, dtype), key)
    count = paths.num_samples * (2 * min(_NEIGHBOURS, paths.num_times - 2) + 1)

    def root(moment: Array) -> Array:
        mean, size = _averaged(moment), moment.shape[-1]
        # Correlations that the few paths can't tell from chance are taken back.
        identity = jnp.eye(size, dtype=moment.dtype)[None, None]
        share = min(2 * size / count, 1.0)
        mean = mean * (1 - share + share * identity) + _HIDDEN * identity
        return jnp.linalg.cholesky(mean)

    return replace(kernel, left=tuple(root(m) for m in moments))


def _averaged(moment: Array) -> Array:
    """Mean of (steps, ...) over neighbouring steps."""
    near = min(_NEIGHBOURS, len(moment) - 1)
    ends = (jnp.repeat(moment[:1], near, axis=0), jnp.repeat(moment[-1:], near, axis=0))
    padded = jnp.concatenate([ends[0], moment, ends[1]])
    total: Any = sum(padded[i : i + len(moment)] for i in range(2 * near + 1))
    return total / (2 * near + 1)


def miss_of(kernel: LearnedKernel, x: State) -> Array:
    """Mean square of the remainder that is left at each step; 1 without a network."""
    assert kernel.left is not None
    times = kernel.tables.transform.multiplicity(x)
    total: Any = 0.0
    for root, weight in zip(kernel.left, times, strict=True):
        square = (jnp.abs(root) ** 2).sum(axis=(-2, -1))
        total = total + square @ jnp.asarray(weight, square.dtype)
    return total / sum(leaf.size for leaf in jax.tree.leaves(x))

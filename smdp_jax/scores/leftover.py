"""How far to trust a kernel's network, and the noise that it leaves, on unseen paths."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.compiled import once
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.kernel_step import remainder, residual, whitened
from smdp_jax.scores.tables import with_input_noise
from smdp_jax.sde import State
from smdp_jax.trajectories import Trajectories

_NEIGHBOURS = 2
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_ENOUGH = 2_000_000
# What the log likelihood must gain, in nats, for less than full trust.
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
    gains[-1, -1] += _GAIN
    if not np.isfinite(gains[-1, -1]):
        return kernel
    best = np.unravel_index(np.nanargmax(gains), gains.shape)
    shares = [_SHARES[i] for i in best]
    return replace(kernel, trust=jnp.asarray(shares, leaves[0].dtype))


@once
def _likelihoods(
    kernel: LearnedKernel, paths: Trajectories, input_noise: Array, key: PRNGKeyArray
) -> Array:
    """Log likelihood (shares of N, shares of S), the size of the noise being free."""
    shares = jnp.asarray(_SHARES)

    def one(step: Array) -> tuple[Array, Array]:
        def one_path(i: Array) -> tuple[Array, Array]:
            own = jax.random.fold_in(jax.random.fold_in(key, step), i)
            later = with_input_noise(kernel.tables, own, step, paths.at(i, step + 1), input_noise)
            args = paths.args_of(i)
            white = whitened(kernel, step, paths.at(i, step), later, args)
            mean, noise = remainder(kernel, step, later, args)

            def square(a: Array, b: Array) -> Array:
                missed = jax.tree.map(lambda w, n: w - a.astype(w.dtype) * n, white, mean)
                return (ravel_pytree(noise.shared(b).over(missed))[0] ** 2).mean()

            squares = jax.lax.map(lambda a: jax.lax.map(lambda b: square(a, b), shares), shares)
            logs = jax.lax.map(lambda b: noise.shared(b).log_determinant(), shares)
            return squares.astype(shares.dtype), logs.astype(shares.dtype)

        squares, logs = jax.vmap(one_path)(jnp.arange(paths.num_samples))
        return squares.mean(axis=0), logs.sum(axis=0)

    squares, logs = jax.lax.map(one, jnp.arange(paths.num_times - 1))
    count = sum(leaf[:, 1:].size for leaf in jax.tree.leaves(paths.xs))
    return -(count * jnp.log(squares.mean(axis=0)) / 2 + logs.sum(axis=0)[None])


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
    near = min(_NEIGHBOURS, paths.num_times - 2)
    count = paths.num_samples * (2 * near + 1)

    def root(moment: Array) -> Array:
        ends = (jnp.repeat(moment[:1], near, axis=0), jnp.repeat(moment[-1:], near, axis=0))
        padded = jnp.concatenate([ends[0], moment, ends[1]])
        mean: Any = sum(padded[i : i + len(moment)] for i in range(2 * near + 1)) / (2 * near + 1)
        size = moment.shape[-1]
        # Correlations that the few paths can't tell from chance are taken back.
        identity = jnp.eye(size, dtype=moment.dtype)[None, None]
        share = min(2 * size / count, 1.0)
        mean = mean * (1 - share + share * identity) + 1e-6 * identity
        return jnp.linalg.cholesky(mean)

    return replace(kernel, left=tuple(root(m) for m in moments))


def miss_of(kernel: LearnedKernel, x: State) -> Array:
    """Mean square of the remainder that is left at each step; 1 without a network."""
    assert kernel.left is not None
    times = kernel.tables.transform.multiplicity(x)
    total: Any = 0.0
    for root, weight in zip(kernel.left, times, strict=True):
        square = (jnp.abs(root) ** 2).sum(axis=(-2, -1))
        total = total + square @ jnp.asarray(weight, square.dtype)
    return total / sum(leaf.size for leaf in jax.tree.leaves(x))

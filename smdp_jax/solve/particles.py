"""Weighted particles: effective sizes, systematic resampling, tempering, means of weights."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.sde import State
from smdp_jax.solve.batches import Split


def effective_size(log_weights: Array) -> Array:
    """``(sum w)^2 / sum w^2``; 0 where no weight is left."""
    top = jnp.max(log_weights)
    w = jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, 0))
    total = jnp.sum(w**2)
    return jnp.where(total > 0, jnp.sum(w) ** 2 / jnp.where(total > 0, total, 1), 0)


def log_mean_exp(log_weights: Array) -> Array:
    """Log of the mean weight."""
    count = log_weights.shape[0]
    return jax.nn.logsumexp(log_weights) - math.log(count)


_FEW, _ELSEWHERE = 32, 500.0  # particles; nats below the best, where a path counts for nothing


def doubts(log_weights: Array) -> Array:
    """Of the log of the mean weight: squared error, (N / ESS - 1) / N, and nats missed, (2,).

    Larger weights may be missing: where few count, ``F(b) = log E[w^b]``, known up to some ``b <
    1``, is continued as the parabola that it is for log-normal weights. Doubts of several means add
    up.
    """
    logs = jax.lax.stop_gradient(log_weights - jnp.max(log_weights))
    logs = jnp.where(logs < -_ELSEWHERE, -jnp.inf, logs)
    count = logs.shape[0]
    few = min(_FEW, count / 2)
    b = next_temperature(logs, jnp.zeros_like(logs[0]), max(few, count / 4) / count)
    weights = jax.nn.softmax(b * logs)
    kept = jnp.where(weights > 0, logs, 0)
    mean = jnp.sum(weights * kept)
    variance = jnp.sum(weights * (kept - mean) ** 2)
    far = log_mean_exp(b * logs) + (1 - b) * mean + 0.5 * (1 - b) ** 2 * variance
    missed = jnp.maximum(far - log_mean_exp(logs), 0)
    missed = jnp.where(effective_size(logs) < few, missed, 0)
    return jnp.stack([1 / effective_size(logs) - 1 / count, missed])


def stated_error(doubt: Array) -> Array:
    """Standard error and missing nats in one."""
    return jnp.sqrt(doubt[0] + doubt[1] ** 2)


def independent_number(families: Array, log_weights: Array, x: Array) -> Array:
    """How many independent draws weighted particles (count, entries) are worth: the least of rows.

    ``families`` (rows, count) name the common ancestors at some times. The variance of a mean is
    that of its families (Chan and Lai 2013; Lee and Whiteley 2018, arXiv 1509.00394), over the
    coordinates.
    """
    count = len(x)
    w = jax.nn.softmax(log_weights)[:, None]
    x = jnp.where(w > 0, x, 0)
    off = x - jnp.sum(w * x, axis=0, keepdims=True)
    variance = jnp.sum(w * off**2, axis=0)
    known = variance > 0

    def share(row: Array) -> Array:
        of_means = jnp.sum(jax.ops.segment_sum(w * off, row, count) ** 2, axis=0)
        ratio = jnp.where(known, of_means / jnp.where(known, variance, 1), 0)
        return jnp.sum(ratio) / jnp.maximum(jnp.sum(known), 1).astype(ratio.dtype)

    least = 1 / jnp.maximum(jnp.max(jax.lax.map(share, families)), 1 / count)
    return jnp.minimum(least, effective_size(log_weights))


def family_doubt(families: Array, log_weights: Array, first: Array) -> Array:
    """Squared error of the log evidence by what has become of each of the ``first`` families."""
    count = len(log_weights)
    share = lambda w, ids: jnp.sum(jax.ops.segment_sum(w, ids, count) ** 2)
    equal = jnp.full_like(log_weights, 1 / count)
    return share(jax.nn.softmax(log_weights), families) - share(equal, first)


def systematic(key: PRNGKeyArray, log_weights: Array, count: int | None = None) -> Array:
    """Ancestors by one uniform draw and a comb: each particle i gets N w_i, up to rounding."""
    count = log_weights.shape[0] if count is None else count
    cumulated = jnp.cumsum(jax.nn.softmax(log_weights))
    comb = jnp.arange(count, dtype=cumulated.dtype)
    comb = (comb + jax.random.uniform(key, dtype=cumulated.dtype)) / count
    ancestors = jnp.searchsorted(cumulated / cumulated[-1], comb)
    return jnp.clip(ancestors, 0, log_weights.shape[0] - 1)


def resampled(key: PRNGKeyArray, particles: State, log_weights: Array) -> tuple[State, Array]:
    """Equal particles: weights of 1, with the derivative of those that they were picked by.

    So the mean weight keeps a gradient without bias (Scibior and Wood 2021, arXiv 2106.10314).
    """
    ancestors = systematic(key, log_weights)
    picked = jax.nn.log_softmax(log_weights)[ancestors]
    picked = jnp.where(jnp.isfinite(picked), picked, 0)
    return choose(particles, ancestors), picked - jax.lax.stop_gradient(picked)


def choose(particles: State, ancestors: Array) -> State:
    """Copy particles."""
    return jax.tree.map(lambda x: x[ancestors], particles)


def next_temperature(log_likelihoods: Array, beta: Array, target: float) -> Array:
    """Largest step in beta that keeps the effective size above a share of the particles."""
    count, left = log_likelihoods.shape[0], 1 - beta

    def enough(step: Array) -> Array:
        return effective_size(step * log_likelihoods) >= target * count

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = jnp.where(low > 0, jnp.sqrt(low * high), 1e-3 * high)
        fits = enough(middle)
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    low, _ = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(beta), left))
    # A step below rounding would never end.
    return jnp.where(enough(left), 1.0, beta + jnp.maximum(low, 1e-7)).clip(max=1.0)


def over_particles(
    function: Any,
    *batches: Any,
    chunk_size: int | None = None,
    split: Split | None = None,
    shared: Any = (),
) -> Any:
    """Map over particles (what is ``shared`` comes first), at once, in chunks, or by device."""
    if split is not None:

        def local(shared: Any, *batches: Any) -> Any:
            return over_particles(function, *batches, chunk_size=chunk_size, shared=shared)

        return split.over(local, *batches, whole=(shared,))
    function = partial(function, *shared)
    if chunk_size is None:
        return jax.vmap(function)(*batches)
    return jax.lax.map(lambda entry: function(*entry), batches, batch_size=chunk_size)


class Weighted:
    """Samples, leaves (n, *state), with the logs of weights of sum 1."""

    samples: Any
    log_weights: Any

    def mean(self, function: Callable[[Any], Any] = lambda x: x) -> Any:
        """Posterior expectation of ``function(x)`` of one state, by default of the state."""
        weights = jnp.exp(self.log_weights)
        return jax.tree.map(
            lambda f: jnp.tensordot(weights.astype(f.dtype), f, 1), jax.vmap(function)(self.samples)
        )

    def resample(self, key: PRNGKeyArray, count: int | None = None) -> Any:
        """Draw equally weighted samples, by default as many as there are."""
        return choose(self.samples, systematic(key, self.log_weights, count))

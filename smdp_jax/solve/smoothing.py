r"""Particles carried back in time past everything that was seen.

In reversed time smoothing is filtering. Between ``t_1`` and ``t_0`` a particle moves by the
backward law ``N(mu, Sigma)`` times the linear-Gaussian ``h_0(x_0) = N(y; B x_0 + c, R)`` of what is
left to be seen at ``t_0`` and before. That product is Gaussian, so it is drawn exactly, and the
weight ``N(y; B mu + c, B Sigma B^T + R) / h_1(x_1)`` is known before the move: particles are
resampled first. (A mean shifted by ``Sigma grad log h``, Wu et al. 2023, is its limit of small
steps, and overshoots where a sensor is sharper than a step is wide.)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.solve.batches import Split
from smdp_jax.solve.particles import (
    doubts,
    effective_size,
    log_mean_exp,
    over_particles,
    systematic,
)


class Sight(NamedTuple):
    """``N(y; B x + c, R)`` of the sensors that are not yet passed; leaves may have a time axis.

    ``missing`` is y - c; sensors that are out of it have zero rows and a unit of R.
    """

    gain: Array
    missing: Array
    noise: Array
    active: Array

    @classmethod
    def of(cls, gain: Array, missing: Array, noise: Array, active: Array) -> "Sight":
        """Take sensors out: those where ``active`` is false."""
        on = active.astype(gain.dtype)
        eye = jnp.eye(len(on), dtype=gain.dtype)
        both = on[:, None] * on[None, :]
        return cls(on[:, None] * gain, on * missing, both * noise + (1 - both) * eye, active)

    def widened(self, spread: Callable[[float, Array], Array]) -> "Sight":
        """Through a state with the covariance ``spread``."""
        roots = jax.vmap(lambda row: spread(0.5, row))(self.gain)
        return self._replace(noise=self.noise + roots @ roots.T)

    def factor(self) -> Array:
        """Cholesky factor of R."""
        return jnp.linalg.cholesky(self.noise)

    def whitened(self) -> tuple[Array, Array, Array]:
        """B and y with unit noise, and the log of the normalising constant."""
        factor = self.factor()
        solve = lambda a: jax.scipy.linalg.solve_triangular(factor, a, lower=True)
        count = jnp.sum(self.active).astype(self.gain.dtype)
        constant = -jnp.sum(jnp.log(jnp.diagonal(factor))) - count * math.log(2 * math.pi) / 2
        return solve(self.gain), solve(self.missing), constant

    def log_density(self, x: Array) -> Array:
        """In nats, of rows of states."""
        gain, seen, constant = self.whitened()
        return constant - 0.5 * jnp.sum((seen[None] - x @ gain.T) ** 2, axis=1)


class Smoothed(NamedTuple):
    """Particles at the first time, and what happened on the way to each time but the last."""

    x: Array
    log_weights: Array
    log_evidence: Array
    doubt: Array
    ess: Array
    resampled: Array
    families: Array


class _Carried(NamedTuple):
    """Particles on their way: rows (count, entries), families (rows, count), weights so far."""

    x: Array
    families: Array
    log_weights: Array
    log_evidence: Array
    doubt: Array

    def counted(self) -> "_Carried":
        """With the mean of the weights in the evidence."""
        return self._replace(
            log_evidence=self.log_evidence + log_mean_exp(self.log_weights),
            doubt=self.doubt + doubts(self.log_weights),
        )

    def resampled(self, key: PRNGKeyArray) -> "_Carried":
        """Particles of equal weights."""
        ancestors = systematic(key, self.log_weights)
        return self.counted()._replace(
            x=self.x[ancestors],
            families=self.families[:, ancestors],
            log_weights=jnp.zeros_like(self.log_weights),
        )


def _or_lost(log_weights: Array) -> Array:
    return jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)


_MARKS = 16  # times whose ancestors are kept

Backward = Callable[[Any, Any, Any, Array], tuple[Array, Callable[[float, Array], Array]]]
"""``(shared, t1, t0, x (entries,))`` to the mean (entries,) and the powers of the covariance."""


def smooth(
    key: PRNGKeyArray,
    x: Array,
    families: Array,
    ts: Array,
    backward: Backward,
    before: Sight,
    after: Sight,
    rest: Callable[[Array, Array], Array],
    *,
    threshold: float,
    chunk_size: int | None,
    split: Split | None = None,
    shared: Any = None,
) -> Smoothed:
    """Carry particles (count, entries) from ``ts[-1]`` to ``ts[0]``.

    ``before`` and ``after`` hold one sight per time: without and with the sensors at that very
    time. ``rest(j, x)`` is the log-likelihood of everything else at ``ts[j]``. Particles come with
    ``families``, and go with those (rows, count) of some of the times, too.
    """
    count, last = len(x), len(ts) - 1
    marks = jnp.asarray([-1, *{round(last * (1 - i / _MARKS)) for i in range(_MARKS)}])
    own = jnp.arange(count, dtype=families.dtype)

    def step(at: _Carried, j: Array) -> tuple[_Carried, tuple]:
        families = jnp.where((marks == j + 1)[:, None], own[None], at.families)
        k_resample, k_draw, k_sensor = jax.random.split(jax.random.fold_in(key, j), 3)
        old = jax.tree.map(lambda a: a[j + 1], before)
        new = jax.tree.map(lambda a: a[j], after)
        given = (shared, ts[j + 1], ts[j])
        mean = lambda *given: backward(*given)[0]
        means = over_particles(mean, at.x, chunk_size=chunk_size, split=split, shared=given)
        _, spread = backward(*given, at.x[0])
        wide = new.widened(spread)
        log_weights = at.log_weights + wide.log_density(means) - old.log_density(at.x)
        at = at._replace(x=means, families=families, log_weights=_or_lost(log_weights))
        size = effective_size(at.log_weights)
        few = size < threshold * count
        at = jax.lax.cond(few, lambda at: at.resampled(k_resample), lambda at: at, at)
        moved = _draw(k_draw, k_sensor, at.x, spread, new, wide)
        log_weights = at.log_weights + rest(j, moved)
        return at._replace(x=moved, log_weights=log_weights), (size, few)

    known = jnp.broadcast_to(families, (len(marks), count))
    nothing = [jnp.zeros(shape, x.dtype) for shape in (count, (), 2)]
    start = _Carried(x, known, *nothing)
    end, (sizes, resampled) = jax.lax.scan(step, start, jnp.arange(last)[::-1])
    end = end._replace(log_weights=_or_lost(end.log_weights)).counted()
    # What else was seen at the first time is weighed after the last step.
    sizes = sizes[::-1].at[0].min(effective_size(end.log_weights))
    x, families, log_weights, log_evidence, doubt = end
    return Smoothed(x, log_weights, log_evidence, doubt, sizes, resampled[::-1], families)


def _draw(
    k_state: PRNGKeyArray,
    k_sensor: PRNGKeyArray,
    means: Array,
    spread: Callable[[float, Array], Array],
    sight: Sight,
    wide: Sight,
) -> Array:
    """Rows of ``N(mu, Sigma) h``: draws without h, corrected by what they would have shown."""
    white = jax.random.normal(k_state, means.shape, means.dtype)
    draws = means + jax.vmap(lambda z: spread(0.5, z))(white)
    noise = jax.random.normal(k_sensor, (len(means), len(sight.missing)), means.dtype)
    shown = draws @ sight.gain.T + noise @ sight.factor().T
    missing = jnp.where(sight.active[None], sight.missing[None] - shown, 0)
    solved = jax.scipy.linalg.cho_solve((wide.factor(), True), missing.T).T
    return draws + solved @ jax.vmap(lambda row: spread(1.0, row))(sight.gain)

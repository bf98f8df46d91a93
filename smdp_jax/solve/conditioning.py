"""The two halves of conditioning: the end state tempered, then carried back past all sensors."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.sde import Args, ScoreFn, State
from smdp_jax.solve.batches import Split
from smdp_jax.solve.covariance import Spread
from smdp_jax.solve.particles import over_particles
from smdp_jax.solve.smoothing import Sight, Smoothed, smooth
from smdp_jax.solve.tempering import Metric, Target, Tempered, Tempering, temper
from smdp_jax.solve.transitions import Transitions

Unravel = Callable[[Array], State]


class Conditioning(eqx.Module):
    """Everything that is decided before the particles start; particles are rows (count, entries).

    ``sights`` hold what linear sensors have yet to show, ``rest`` the log-likelihoods of all other
    observations with the index of their time, ``metric`` the covariance of the end states.
    """

    ts: Array
    steps: Transitions
    sights: tuple[Sight, Sight]
    rest: tuple[tuple[int, Callable], ...] = eqx.field(static=True)
    metric: Spread
    tempering: Tempering = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    chunk_size: int | None = eqx.field(static=True)
    split: Split | None = eqx.field(static=True, default=None)

    def temper(
        self,
        key: PRNGKeyArray,
        score: ScoreFn,
        x: Array,
        families: Array,
        unravel: Unravel,
        args: Args,
    ) -> Tempered:
        """Carry draws of the end state to what the observations make of them."""
        last = len(self.ts) - 1
        gain, seen, constant = jax.tree.map(lambda x: x[-1], self.sights[1]).whitened()

        def scores(x: Array) -> Array:
            one = lambda score, t, args, v: _flat(score(t, unravel(v), args))
            shared = (score, self.ts[-1], args)
            named = {"chunk_size": self.chunk_size, "split": self.split, "shared": shared}
            return over_particles(one, x, **named)

        def rest(x: Array) -> tuple[Array, Array]:
            return jax.vmap(jax.value_and_grad(lambda v: self._rest(last, v, unravel, args)))(x)

        metric, reach, foreign = _metric(self.metric, unravel, x, scores(x))
        target = Target(scores, gain, seen, rest)
        end = temper(key, x, families, target, metric, self.tempering)
        return end._replace(
            log_evidence=constant + end.log_evidence,
            step_sizes=reach * end.step_sizes,
            foreign=foreign,
        )

    def wander(
        self, key: PRNGKeyArray, score: ScoreFn, x: Array, unravel: Unravel, args: Args
    ) -> Array:
        """Paths (times, count, entries) from end states, blind to sensors on their way."""

        def step(x: Array, j: Array) -> tuple[Array, Array]:
            shared = ((self.steps, score, args), self.ts[j + 1], self.ts[j])
            mean = lambda *given: _backward(unravel, *given)[0]
            named = {"chunk_size": self.chunk_size, "split": self.split, "shared": shared}
            means = over_particles(mean, x, **named)
            _, spread = _backward(unravel, *shared, x[0])
            white = jax.random.normal(jax.random.fold_in(key, j), x.shape, x.dtype)
            moved = means + jax.vmap(lambda z: spread(0.5, z))(white)
            return moved, moved

        steps = jnp.arange(len(self.ts) - 1)
        _, paths = jax.lax.scan(step, x, steps, reverse=True)
        return jnp.concatenate([paths, x[None]])

    def carry(
        self,
        key: PRNGKeyArray,
        score: ScoreFn,
        x: Array,
        families: Array,
        unravel: Unravel,
        args: Args,
    ) -> Smoothed:
        """Carry particles from the last time to the first."""

        def rest(j: Array, x: Array) -> Array:
            nothing = total = jnp.zeros(len(x), x.dtype)
            for i in sorted({i for i, _ in self.rest}):
                value = lambda v, i=i: self._rest(i, v, unravel, args)
                total = total + jax.lax.cond(j == i, jax.vmap(value), lambda _: nothing, x)
            return total

        return smooth(
            key,
            x,
            families,
            self.ts,
            partial(_backward, unravel),
            *self.sights,
            rest,
            threshold=self.threshold,
            chunk_size=self.chunk_size,
            split=self.split,
            shared=(self.steps, score, args),
        )

    def _rest(self, index: int, x: Array, unravel: Unravel, args: Args) -> Array:
        values = [jnp.asarray(f(unravel(x), args)) for i, f in self.rest if i == index]
        return sum((v.astype(x.dtype) for v in values), jnp.zeros((), x.dtype))


def _backward(
    unravel: Unravel, shared: tuple, t1: Any, t0: Any, x: Array
) -> tuple[Array, Callable]:
    """Mean of one flat state's backward step, and the powers of its covariance."""
    steps, score, args = shared
    mean, spread = steps.backward(score, t1, t0, unravel(x), args)
    return _flat(mean), lambda p, w: _flat(spread.power(p, unravel(w)))


def _metric(spread: Spread, unravel: Unravel, x: Array, slopes: Array) -> tuple:
    """What moves are measured by, how far they reach in it, and the share of foreign coordinates.

    A law that bends is thin where it is, ``1 / E[s^2]`` (Titsias 2023, arXiv 2305.14442), and wide
    as a whole. ``E[s x] = -1`` in every coordinate of a law and its own score (Stein).
    """
    own = jax.vmap(lambda s, x: _flat(spread.products(unravel(s), unravel(x))))
    square = own(slopes, slopes).mean(axis=0)
    along = own(slopes, x - x.mean(axis=0, keepdims=True))
    variance, rebuild = ravel_pytree(spread.variance)
    wide = jnp.broadcast_to(variance, square.shape)
    thin = jnp.where((wide * square > 2) & jnp.isfinite(square), 1 / square, wide)
    narrow = Spread(rebuild(thin), spread.transform)
    error = along.std(axis=0) / len(x) ** 0.5
    foreign = jnp.abs(along.mean(axis=0) + 1) > 0.5 + 5 * error
    metric = Metric(lambda p, v: _flat(narrow.power(p, unravel(v))))
    return metric, thin.sum() / wide.sum(), foreign.mean(dtype=x.dtype)


def _flat(tree: State) -> Array:
    return ravel_pytree(tree)[0]

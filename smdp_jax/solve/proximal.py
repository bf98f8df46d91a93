r"""Samples of a past drawn to the end that was seen, through the simulator's derivatives.

With F the simulation without noise, N(m, R) what noise adds to its end, N(mu, C) the prior as a
Gaussian, and e ~ N(0, R), p ~ N(mu, C), q ~ N(0, C), each sample x moves to

    argmin |y + e - m - F(x')|_R^2 / 2 + |x' - p|_C^2 / 2 + a |x' - x - sqrt(2 / a) q|_C^2 / 2.

Where F is linear this keeps the posterior exactly, for every a >= 0: in a direction with
l = J C J^T / R the result is (1 - h) x + h E[x | y] + sqrt(2 h - h^2) std[x | y] z, with
h = (1 + l) / (1 + l + a). So what the end tells (l >> a) is drawn anew from it, and what it does
not tell (l << a) stays as it is but for a share 1 / (1 + a). At a = 0 this is randomised maximum
likelihood (Oliver et al. 1996), as a grows a step of Langevin dynamics (a proximal one: Pereyra
2016). C is that of the leading principal components of the starts; others do not move, but for
what no start has there, which is taken out. A sample that lies where no start does is drawn anew.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

_LEAST = 1e-8  # variance of a direction over the largest
_BEYOND = 5.0  # deviations, beside the components, that no start has
_FARTHER = 1.5  # than any start, in the square of the distance


class Spread(NamedTuple):
    """Principal components of draws: ``mean + components @ (deviations * z)``."""

    mean: Array
    components: Array
    deviations: Array
    rest: Array
    """Standard deviation in each direction that is no component."""
    farthest: Array
    """Largest squared distance of a draw, in standard deviations of the others."""

    @classmethod
    def of(cls, draws: np.ndarray, most: int) -> "Spread":
        """Of draws (n, size), at most so many, the largest."""
        mean = draws.mean(axis=0, dtype=np.float64)
        _, scales, rows = np.linalg.svd(draws - mean, full_matrices=False)
        variances = scales**2 / (len(draws) - 1)
        least = _LEAST * variances[0]
        kept = min(most, int(np.sum(variances > least)))
        others = draws.shape[1] - kept  # without any, rounding is all that is left
        beyond = max(variances[kept:].sum() / others, least) if others else variances[kept - 1]
        deviations = np.sqrt(variances[:kept])
        own = np.square((draws - mean) @ rows[:kept].T / deviations).sum(axis=1).max()
        # In those of all draws a draw is never far: it widens them (Sherman and Morrison 1950).
        n = len(draws)
        left = max(1 - n * own / (n - 1) ** 2, 0)
        farthest = own * (n - 2) / (n - 1) * (n / (n - 1)) ** 2 / left if left > 1e-6 else np.inf
        numbers = mean, rows[:kept].T, deviations, np.sqrt(beyond), farthest
        return cls(*(jnp.asarray(v, draws.dtype) for v in numbers))

    def along(self, x: Array) -> Array:
        """Coordinates of a state, in standard deviations."""
        return self.components.T @ (x - self.mean) / self.deviations

    def holds(self, x: Array) -> Array:
        """Whether a state is no farther off than draws are, along the components."""
        size = jnp.sum(self.along(x) ** 2)
        return jnp.isfinite(size) & (size <= _FARTHER * self.farthest)

    def possible(self, key: PRNGKeyArray, x: Array) -> Array:
        """A state less what no draw has beside the components; a new draw where none is like it."""
        off = x - self.mean
        beside = off - self.components @ (self.components.T @ off)
        size = jnp.sum(beside**2) / max(len(x) - self.deviations.shape[0], 1)
        x = jnp.where(size <= (_BEYOND * self.rest) ** 2, x, x - beside)
        anew = self.deviations * jax.random.normal(key, self.deviations.shape, x.dtype)
        return jnp.where(self.holds(x), x, self.mean + self.components @ anew)

    def whiten(self, x: Array) -> Array:
        """Divide by the standard deviations, those of all directions."""
        along = self.components.T @ x
        rest = x - self.components @ along
        return rest / self.rest + self.components @ (along / self.deviations)

    def colour(self, white: Array) -> Array:
        """Undo ``whiten``."""
        along = self.components.T @ white
        rest = (white - self.components @ along) * self.rest
        return rest + self.components @ (along * self.deviations)


class Noise(NamedTuple):
    """What noise does to an end: a spread in the coordinates in which that of all paths is white.

    Of few draws, and so drawn to a multiple of the identity there (Chen et al. 2010: OAS).
    """

    mean: Array
    of_all: Spread
    own: Spread

    @classmethod
    def of(cls, draws: Array, of_all: Spread) -> "Noise":
        """Of draws (n, size)."""
        mean, (count, size) = draws.mean(axis=0), draws.shape
        white = jax.vmap(of_all.whiten)(draws - mean[None])
        _, scales, rows = jnp.linalg.svd(white, full_matrices=False)
        variances = scales**2 / (count - 1)
        total, squares = variances.sum(), (variances**2).sum()
        apart = count * (squares - total**2 / size)  # from a multiple of the identity
        share = ((1 - 2 / size) * squares + total**2) / jnp.maximum(apart, 1e-30)
        share = jnp.minimum(share, 1) if size > 1 else jnp.ones_like(share)
        level = jnp.maximum(total / size, _LEAST)
        along = jnp.maximum((1 - share) * variances + share * level, _LEAST * level)
        rest = jnp.sqrt(jnp.maximum(share, _LEAST) * level)
        nothing = jnp.zeros_like(mean)
        own = Spread(nothing, rows.T, jnp.sqrt(along), rest, jnp.full_like(rest, jnp.inf))
        return cls(mean, of_all, own)

    @classmethod
    def alike(cls, of_all: Spread, draws: int) -> "Noise":
        """That of all paths, in the shapes of ``draws`` own ones."""
        nothing, one = jnp.zeros_like(of_all.mean), jnp.ones_like(of_all.rest)
        kept = min(draws, len(nothing))
        rows = jnp.eye(len(nothing), kept, dtype=nothing.dtype)
        own = Spread(nothing, rows, jnp.ones_like(rows[0]), one, jnp.full_like(one, jnp.inf))
        return cls(of_all.mean, of_all, own)

    def whiten(self, x: Array) -> Array:
        """Divide by the root of the covariance."""
        return self.own.whiten(self.of_all.whiten(x))

    def colour(self, white: Array) -> Array:
        """Undo ``whiten``."""
        return self.of_all.colour(self.own.colour(white))


class Problem(NamedTuple):
    """What is minimised, in coordinates z of the starts: ``x + components @ (deviations * z)``."""

    end: Any
    """From a start and conditions to its end, flat arrays."""
    prior: Spread
    noise: Spread | Noise

    def start(self, x: Array, z: Array) -> Array:
        """Start that lies z from a sample."""
        return x + self.prior.components @ (self.prior.deviations * z)

    def miss(self, x: Array, y: Array, args: Any) -> Array:
        """How far an end is missed, in standard deviations of the noise."""
        return self.noise.whiten(y - self.noise.mean - self.end(x, args))


def drawn_to(
    problem: Problem, x: Array, y: Array, args: Any, key: PRNGKeyArray, step: Any, iterations: int
) -> Array:
    """Move one sample, by Levenberg-Marquardt iterations."""
    k_end, k_prior, k_near, k_anew = jax.random.split(key, 4)
    prior, near = problem.prior, 1 / step - 1
    x = prior.possible(k_anew, x)
    white = partial(jax.random.normal, dtype=x.dtype)
    own = prior.along(x)
    shape = own.shape
    # Of both quadratic terms: their sum's centre and precision, z counted from the sample.
    pulled = white(k_prior, shape) - own + jnp.sqrt(2 * near) * white(k_near, shape)
    centre, precision = pulled / (1 + near), 1 + near
    seen = y + problem.noise.colour(white(k_end, y.shape))

    def look(z: Array) -> tuple[Array, Array, Array]:
        miss = lambda z: problem.miss(problem.start(x, z), seen, args)
        along = lambda v: jax.jvp(miss, (z,), (v,))
        value, slopes = jax.vmap(along, out_axes=(None, 1))(jnp.eye(len(z), dtype=z.dtype))
        loss = jnp.sum(value**2) + precision * jnp.sum((z - centre) ** 2)
        return value, slopes, loss

    def iterate(state: tuple, _: None) -> tuple[tuple, None]:
        z, (value, slopes, loss), damping = state
        curvature = slopes.T @ slopes + precision * jnp.eye(len(z), dtype=z.dtype)
        downhill = precision * (centre - z) - slopes.T @ value
        damped = curvature + damping * jnp.diag(jnp.diag(curvature))
        leap = jnp.linalg.solve(damped, downhill)
        tried = z + leap / jnp.maximum(jnp.max(jnp.abs(leap)), 1)  # no further than it is linear
        found = look(tried)
        lower = found[2] <= loss * (1 + 4 * jnp.finfo(x.dtype).eps)  # to rounding
        kept = jax.tree.map(
            lambda a, b: jnp.where(lower, a, b), (tried, found), (z, (value, slopes, loss))
        )
        return (*kept, jnp.where(lower, damping / 4, damping * 6)), None

    # A sample whose simulation fails, or is far off, may start where the other terms pull it,
    # or at the mean.
    guesses = jnp.stack([jnp.zeros(shape, x.dtype), centre, -own])
    looks = jax.lax.map(look, guesses)
    best = jnp.argmin(jnp.where(jnp.isfinite(looks[2]), looks[2], jnp.inf))
    first = (*jax.tree.map(lambda v: v[best], (guesses, looks)), jnp.asarray(1e-2, x.dtype))
    (z, _, _), _ = jax.lax.scan(iterate, first, length=iterations)
    return problem.start(x, z)

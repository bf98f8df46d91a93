r"""Particles of ``p(x) L(x)^beta``, beta from 0 to 1: only draws and the score of p are known.

``log L(x) = -|y - B x|^2 / 2 + rest(x)``, B and y whitened. Between temperatures the particles are
resampled and moved by Metropolis-adjusted Langevin steps in the metric of
``M = (C^-1 + beta B^T B)^-1``, C the covariance of the draws::

    x' = x + h M grad + sqrt(2 h - h^2) M^(1/2) z,   0 < h <= 1

With 2 h - h^2 in place of 2 h a Gaussian p with covariance C is kept exactly by every h, up to
independent draws at h = 1. ``log p(x') / p(x)`` is the line integral of the score.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_choice, check_positive, check_within
from smdp_jax.solve.particles import doubts, log_mean_exp, next_temperature, systematic

_STAGES = 256
_STUCK, _MORE = 0.3, 16  # acceptance below which moves go on, and for how many


@dataclass(frozen=True)
class Tempering:
    """How the end state is tempered.

    Parameters
    ----------
    ess : float
        Share of the particles that the effective size keeps from one temperature to the next.
    moves, final_moves : int
        Langevin moves at each temperature (more where steps have yet to find their size), and
        further ones at the last.
    nodes : int
        Lobatto nodes of the line integral of the score in each acceptance, 2 to 5; 2 is exact for
        a Gaussian, each more costs an evaluation.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    ess: float = 0.5
    moves: int = 2
    final_moves: int = 4
    nodes: int = 3

    def __post_init__(self) -> None:
        check_within("(0, 1)", owner=self, ess=self.ess)
        check_choice("Tempering.nodes", self.nodes, *_LOBATTO)
        check_positive(owner=self, moves=self.moves, final_moves=self.final_moves)


# Gauss-Lobatto on [0, 1]: nodes between the ends, and weights (ends first and last).
_LOBATTO = {
    2: ((), (0.5, 0.5)),
    3: ((0.5,), (1 / 6, 2 / 3, 1 / 6)),
    4: (((1 - math.sqrt(1 / 5)) / 2, (1 + math.sqrt(1 / 5)) / 2), (1 / 12, 5 / 12, 5 / 12, 1 / 12)),
    5: (
        ((1 - math.sqrt(3 / 7)) / 2, 0.5, (1 + math.sqrt(3 / 7)) / 2),
        (1 / 20, 49 / 180, 16 / 45, 49 / 180, 1 / 20),
    ),
}


class Target(NamedTuple):
    """What is tempered, of flat particles (count, entries): ``rest`` gives values and gradients."""

    score: Callable[[Array], Array]
    gain: Array
    seen: Array
    rest: Callable[[Array], tuple[Array, Array]]

    def log_likelihood(self, x: Array) -> tuple[Array, Array]:
        """Values (count,), and the gradients of both parts."""
        miss = self.seen[None] - x @ self.gain.T
        value, slope = self.rest(x)
        return value - 0.5 * jnp.sum(miss**2, axis=1), miss @ self.gain + slope


class Metric(NamedTuple):
    """Covariance C of draws: its powers applied to flat vectors (entries,)."""

    power: Callable[[float, Array], Array]

    def each(self, exponent: float, x: Array) -> Array:
        """Apply to every row."""
        return jax.vmap(lambda v: self.power(exponent, v))(x)


class Tempered(NamedTuple):
    """Particles at beta = 1 and the draws that they descend from; records are padded with NaN.

    ``foreign``: the share of coordinates whose score is not that of the draws.
    """

    x: Array
    families: Array
    log_evidence: Array
    doubt: Array
    temperatures: Array
    acceptance: Array
    step_sizes: Array
    foreign: Array | float = 0.0


class _Particles(NamedTuple):
    """States with what is known of them: score of p, log L and its gradient."""

    x: Array
    score: Array
    value: Array
    slope: Array


class _State(NamedTuple):
    particles: _Particles
    families: Array
    step: Array
    beta: Array
    log_evidence: Array
    doubt: Array
    stage: Array
    temperatures: Array
    acceptance: Array
    step_sizes: Array


def temper(
    key: PRNGKeyArray,
    x: Array,
    families: Array,
    target: Target,
    metric: Metric,
    settings: Tempering,
) -> Tempered:
    """Carry draws of p, of these families, to p L, with the log of E_p[L]."""
    images = metric.each(1.0, target.gain)  # rows C B^T
    gram = target.gain @ images.T

    def not_done(state: _State) -> Array:
        return (state.beta < 1) & (state.stage < _STAGES)

    def stage(state: _State) -> _State:
        beta = next_temperature(state.particles.value, state.beta, settings.ess)
        log_weights = (beta - state.beta) * state.particles.value
        k_resample, k_move = jax.random.split(jax.random.fold_in(key, state.stage))
        ancestors = systematic(k_resample, log_weights)
        particles = _Particles(*(part[ancestors] for part in state.particles))
        mover = _Mover(target, metric, images, gram, beta, settings.nodes)
        count = jnp.where(beta < 1, settings.moves, settings.moves + settings.final_moves)

        def stuck(carry: tuple) -> Array:
            return carry[0] < jnp.where(carry[3] < _STUCK, count + _MORE, count)

        def move(carry: tuple) -> tuple:
            i, particles, step, _, accepted = carry
            particles, rate = mover(jax.random.fold_in(k_move, i), particles, step)
            step = jnp.clip(step * jnp.exp(rate - 0.65), 1e-4, 1.0)
            return i + 1, particles, step, rate, accepted + rate

        none = jnp.zeros_like(beta)
        start = (jnp.zeros((), int), particles, state.step, none, none)
        moves, particles, step, _, rate = jax.lax.while_loop(stuck, move, start)
        rate = rate / moves.astype(rate.dtype)
        record = lambda values, value: values.at[state.stage].set(value)
        return _State(
            *(particles, state.families[ancestors], step, beta),
            state.log_evidence + log_mean_exp(log_weights),
            state.doubt + doubts(log_weights),
            state.stage + 1,
            *map(record, state[-3:], (beta, rate, step)),
        )

    zero, empty = jnp.zeros((), x.dtype), jnp.full(_STAGES, jnp.nan, x.dtype)
    value, slope = target.log_likelihood(x)
    first = _Particles(x, target.score(x), value, slope)
    none = jnp.zeros(2, x.dtype), jnp.zeros((), int)
    start = _State(first, families, zero + 1, zero, zero, *none, empty, empty, empty)
    end = jax.lax.while_loop(not_done, stage, start)
    finished = jnp.where(end.beta >= 1, end.log_evidence, jnp.nan)
    records = (end.temperatures, end.acceptance, end.step_sizes)
    return Tempered(end.particles.x, end.families, finished, end.doubt, *records)


class _Mover(NamedTuple):
    """One Langevin move of all particles at one temperature."""

    target: Target
    metric: Metric
    images: Array
    gram: Array
    beta: Array
    nodes: int

    def __call__(
        self, key: PRNGKeyArray, particles: _Particles, step: Array
    ) -> tuple[_Particles, Array]:
        x, score, value, slope = particles
        k_draw, k_accept = jax.random.split(key)
        width = 2 * step - step**2
        there = step * self._smooth(score + self.beta * slope)
        kick = there + jnp.sqrt(width) * self._draw(k_draw, x)
        y = x + kick
        new_score = self.target.score(y)
        new_value, new_slope = self.target.log_likelihood(y)
        back = step * self._smooth(new_score + self.beta * new_slope)
        ratio = self._line(x, kick, score, new_score) + self.beta * (new_value - value)
        ratio += (self._size(kick - there) - self._size(kick + back)) / (2 * width)
        chance = jnp.log(jax.random.uniform(k_accept, ratio.shape, ratio.dtype))
        accept = chance < ratio

        def pick(new: Array, old: Array) -> Array:
            return jnp.where(accept.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        moved = _Particles(y, new_score, new_value, new_slope)
        rate = jnp.mean(jnp.exp(jnp.minimum(jnp.nan_to_num(ratio, nan=-jnp.inf), 0)))
        return _Particles(*map(pick, moved, particles)), rate

    def _line(self, x: Array, kick: Array, first: Array, last: Array) -> Array:
        """``log p(x + kick) - log p(x)``."""
        between, weights = _LOBATTO[self.nodes]
        inner = [self.target.score(x + node * kick) for node in between]
        mean = sum(w * s for w, s in zip(weights, [first, *inner, last], strict=True))
        return jnp.sum(mean * kick, axis=1)

    def _correct(self, missing: Array) -> Array:
        """``C B^T (B C B^T + I / beta)^-1`` applied to rows of sensors."""
        matrix = self.gram + jnp.eye(len(self.gram), dtype=missing.dtype) / self.beta
        factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
        return jax.scipy.linalg.cho_solve(factor, missing.T).T @ self.images

    def _smooth(self, slope: Array) -> Array:
        """``M`` applied to rows."""
        wide = self.metric.each(1.0, slope)
        return wide - self._correct(wide @ self.target.gain.T)

    def _draw(self, key: PRNGKeyArray, like: Array) -> Array:
        """Rows of N(0, M): a draw of N(0, C) corrected by what it would have shown."""
        k_state, k_sensor = jax.random.split(key)
        wide = self.metric.each(0.5, jax.random.normal(k_state, like.shape, like.dtype))
        noise = jax.random.normal(k_sensor, (len(like), len(self.gram)), like.dtype)
        return wide - self._correct(wide @ self.target.gain.T + noise / jnp.sqrt(self.beta))

    def _size(self, x: Array) -> Array:
        """``x^T M^-1 x`` per row."""
        shown = jnp.sum((x @ self.target.gain.T) ** 2, axis=1)
        return jnp.sum(self.metric.each(-0.5, x) ** 2, axis=1) + self.beta * shown

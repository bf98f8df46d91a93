"""Affine drift from two starting points: ``dx = -lambda x dt + g dW``, ``x(0) = +-1``.

A mixture of two Ornstein-Uhlenbeck processes, so that the density, the score, the posterior of the
starting point and the whole bridge back to it are known in closed form: the first test of any
solver or objective.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smdp_jax.checks import check_within
from smdp_jax.physics.conditions import check_coefficients
from smdp_jax.physics.exact.law import ScalarState, TwoStarts, decay, noise_variance
from smdp_jax.physics.spectral.periodic import check_grid
from smdp_jax.physics.system import SignedSystem
from smdp_jax.sde import Args, Scalar


@dataclass(frozen=True)
class Affine(TwoStarts, SignedSystem):
    r"""The process ``dx = -lambda x dt + g dW`` started at +1 or -1 with probability 1/2 each.

    With ``m = exp(-lambda t)`` and ``v = g^2 (1 - exp(-2 lambda t)) / (2 lambda)``::

        p_t(x)            = N(x; m, v) / 2 + N(x; -m, v) / 2
        grad log p_t(x)   = -(x - m tanh(x m / v)) / v
        P(x_0 = +1 | x_t) = 1 / (1 + exp(-2 x m / v))

    At t = 0 the law is two point masses: the log density is +inf on them and -inf elsewhere, and
    no score exists; ``score`` returns 0 there, so that a solver whose last stage looks at t = 0
    stays finite. End backward time grids at a small positive time where accuracy matters.

    States have shape (1,) and are unbatched: use ``jax.vmap`` for many.

    Parameters
    ----------
    rate, noise : float
        lambda >= 0, in 1 / time, 0 for Brownian motion; g > 0, in units of state per square root of
        time.

    References
    ----------
    Holzschuh, Vegetti, Thuerey (2023), "Solving Inverse Physics Problems with Score Matching",
    appendix on 1-step and multi-step losses; good values there: lambda = 0.5, g = 0.04,
    t in [0, 10].
    """

    rate: float | int = 0.5
    noise: float | int = 0.04

    def __post_init__(self) -> None:
        check_within("[0, inf)", owner=self, rate=self.rate)
        check_coefficients(self, "noise")

    def drift(self, t: Scalar, x: ScalarState, args: Args = None) -> Float[Array, "1"]:
        """Velocity ``dx/dt = -lambda x``; ``t`` and ``args`` are ignored."""
        check_grid(x, (1,), "Affine")
        return -self.rate * jnp.asarray(x)

    def transition_mean(self, t: Scalar, x0: ScalarState) -> Float[Array, "1"]:
        """Mean of x_t given ``x0``.

        Parameters
        ----------
        t, x0 : scalar, array, shape (1,)
            Time, t >= 0, and state at time 0.

        Returns
        -------
        array, shape (1,)
            ``exp(-lambda t) x0``.
        """
        x0 = jnp.asarray(x0)
        return x0 * decay(float(self.rate), jnp.asarray(t, x0.dtype))

    def transition_variance(self, t: Scalar) -> Float[Array, ""]:
        """Variance of x_t given x_0.

        Parameters
        ----------
        t : scalar
            Time, t >= 0.

        Returns
        -------
        scalar
            v, in units of state squared.
        """
        return noise_variance(float(self.rate), self.noise, t)

    def log_density(self, t: Scalar, x: ScalarState) -> Float[Array, ""]:
        """Log density of x_t at ``x``, in nats."""
        x, mean, variance, spread = self._mixture(t, x)
        plus, minus = (-((x + m) ** 2) / (2 * variance) for m in (-mean, mean))
        norm = math.log(2) + jnp.log(2 * math.pi * variance) / 2
        mixture = jnp.logaddexp(plus, minus) - norm
        return jnp.where(spread, mixture, jnp.where(jnp.abs(x) == mean, jnp.inf, -jnp.inf))

    def score(self, t: Scalar, x: ScalarState, args: Args = None) -> Float[Array, "1"]:
        """Gradient of the log density at ``x``; 0 at t = 0."""
        x, mean, variance, spread = self._mixture(t, x)
        score = -(x - mean * jnp.tanh(x * mean / variance)) / variance
        return jnp.where(spread, score, 0)[None]

    def posterior_plus(self, t: Scalar, x: ScalarState) -> Float[Array, ""]:
        """Probability that the path through ``x`` at ``t`` started at +1."""
        x, mean, variance, spread = self._mixture(t, x)
        return jnp.where(spread, jax.nn.sigmoid(2 * x * mean / variance), (1 + jnp.sign(x)) / 2)

    def bridge_mixture(
        self, t: Scalar, t_end: Scalar, x_end: ScalarState
    ) -> tuple[Float[Array, "2"], Float[Array, "2"], Float[Array, ""]]:
        """Law of x_t given the end state, ``sum_k w_k N(m_k, v)`` over the starts +1 and -1.

        Given both ends the path is an Ornstein-Uhlenbeck bridge. With v(t) the transition
        variance and ``d = exp(-lambda (t_end - t))``::

            m_k = (+-exp(-lambda t) v(t_end - t) + d x_end v(t)) / v(t_end)
            v   = v(t) v(t_end - t) / v(t_end)

        Parameters
        ----------
        t, t_end : scalar
            Time asked for, 0 <= t <= t_end; time of the end state, positive.
        x_end : array, shape (1,)
            End state.

        Returns
        -------
        weights, means : array, shape (2,)
            Posterior probabilities of the starts +1 and -1; m_k, one per start.
        variance : scalar
            v, the same for both.
        """
        x_end = jnp.asarray(x_end)
        t, t_end = jnp.asarray(t, x_end.dtype), jnp.asarray(t_end, x_end.dtype)
        plus = self.posterior_plus(t_end, x_end)
        before, after, total = map(self.transition_variance, (t, t_end - t, t_end))
        starts = jnp.asarray([1, -1], x_end.dtype) * decay(float(self.rate), t)
        means = (starts * after + decay(float(self.rate), t_end - t) * x_end[0] * before) / total
        return jnp.stack([plus, 1 - plus]), means, before * after / total

    def bridge_moments(
        self, t: Scalar, t_end: Scalar, x_end: ScalarState
    ) -> tuple[Float[Array, "1"], Float[Array, "1"]]:
        """Mean and variance of x_t given the end state: what reverse-time samples must show.

        Parameters
        ----------
        t, t_end, x_end
            As for ``bridge_mixture``.

        Returns
        -------
        mean, variance : arrays, shape (1,)
            Moments of the mixture of ``bridge_mixture``.
        """
        (plus, minus), means, variance = self.bridge_mixture(t, t_end, x_end)
        mean = plus * means[0] + minus * means[1]
        total = variance + plus * minus * (means[0] - means[1]) ** 2
        return mean[None], total[None]

    def _mixture(
        self, t: Scalar, x: ScalarState
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""], Array]:
        """Return x as a scalar, |mean|, the variance (1 where it is 0), and where it is not 0."""
        check_grid(x, (1,), "Affine")
        x = jnp.asarray(x)[0]
        t = jnp.asarray(t, x.dtype)
        spread = (variance := self.transition_variance(t)) > 0
        return x, decay(float(self.rate), t), jnp.where(spread, variance, 1), spread

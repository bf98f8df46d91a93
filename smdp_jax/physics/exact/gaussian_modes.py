"""Closed forms of ``dx_k = -kappa_k x_k dt + g dW_k`` with Gaussian initial modes.

Any linear process on a periodic square that is diagonal in Fourier space, started from a Gaussian
random field: score, posterior of the initial field and evidence are exact, mode by mode.
"""

import abc
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.physics.exact.law import decay, noise_variance
from smdp_jax.physics.spectral.gaussian_field import filter_modes, spectral_modes
from smdp_jax.physics.spectral.periodic import check_grid
from smdp_jax.sde import Args, Scalar

Field = Float[Array, "size size"]
Modes = Float[Array, "size size"]


class LinearRates(NamedTuple):
    """How fast each mode moves: all that an exact analysis of a time step needs.

    Parameters
    ----------
    physics, score : array, shape (size, size)
        -kappa, in 1 / time: the forward drift is ``physics * x_k``; -1 / C(t), in 1 / variance: the
        score is ``score * x_k``.
    backward : array, shape (size, size)
        ``kappa - (1 + alpha^2) / 2 g^2 / C(t)``, in 1 / time: the reversed process with noise
        level alpha is ``dx_k = backward x_k dtau + alpha g dW``.
    """

    physics: Modes
    score: Modes
    backward: Modes


class GaussianModes(abc.ABC):
    r"""Closed forms, given the decay rate kappa and the prior variance S of each unitary mode.

    With ``d = exp(-kappa T)``, T the end time::

        V(t)               = g^2 (1 - exp(-2 kappa t)) / (2 kappa)      (g^2 t for kappa = 0)
        C(t)               = S exp(-2 kappa t) + V(t)
        grad log p_t       = -x_k / C(t)
        E[x_k(0) | x_k(T)] = S d x_k(T) / C(T)
        Var                = S V(T) / C(T)

    States are unbatched arrays of shape (size, size); arrays over modes have the layout of
    ``numpy.fft.fft2``. A subclass has the attributes ``size``, ``noise`` (g per grid point) and
    ``end_time``, and the two methods ``decay_rates`` and ``prior_variance``.
    """

    size: int
    noise: float | int
    end_time: float | int

    @abc.abstractmethod
    def decay_rates(self) -> Modes:
        """Rate at which each mode decays."""

    @abc.abstractmethod
    def prior_variance(self) -> Modes:
        """Variance of each unitary mode at t = 0."""

    def noise_variance(self, t: Scalar) -> Modes:
        """Variance that the noise of a time span has left in each unitary mode."""
        return noise_variance(self.decay_rates(), self.noise, jnp.asarray(t, float))

    def marginal_variance(self, t: Scalar) -> Modes:
        """Variance of each unitary mode under p_t."""
        damping = decay(2 * self.decay_rates(), jnp.asarray(t, float))
        return self.prior_variance() * damping + self.noise_variance(t)

    def score(self, t: Scalar, x: Field, args: Args = None) -> Field:
        """Gradient of log p_t at ``x``."""
        return filter_modes(self._score_rates(t), x)

    def linear_rates(self, t: Scalar, noise_level: float | int = 1.0) -> LinearRates:
        """Rates of physics, score and reversed process at one time.

        One Euler step of length dt of the reversed process multiplies mode k by
        ``1 + dt backward``: unstable where that is below -1.
        """
        kappa, score = self.decay_rates(), self._score_rates(t)
        weight = (1 + noise_level**2) / 2
        return LinearRates(-kappa, score, kappa + weight * self.noise**2 * score)

    def posterior_mean(self, x_end: Field) -> Field:
        """Mean of the initial field given the end state."""
        gain = decay(self.decay_rates(), self.end_time) / self.marginal_variance(self.end_time)
        return filter_modes(self.prior_variance() * gain, x_end)

    def posterior_variance(self) -> Modes:
        """Variance of each unitary mode of the initial field given the end state (any of them)."""
        share = self.noise_variance(self.end_time) / self.marginal_variance(self.end_time)
        return self.prior_variance() * share

    def posterior_point_variance(self) -> Float[Array, ""]:
        """Posterior variance of the initial field at any one grid point."""
        return jnp.mean(self.posterior_variance())

    def posterior_sample(
        self, key: PRNGKeyArray, x_end: Field, n: int
    ) -> Float[Array, "n size size"]:
        """Draw initial fields given the end state, exactly."""
        white = jax.random.normal(key, (n, *x_end.shape), x_end.dtype)
        spread = jnp.sqrt(self.posterior_variance())
        return self.posterior_mean(x_end)[None] + jax.vmap(filter_modes, (None, 0))(spread, white)

    def log_density(self, t: Scalar, x: Field) -> Float[Array, ""]:
        """Log of p_t at ``x``."""
        check_grid(x, (self.size, self.size), type(self).__name__)
        modes = spectral_modes(x)
        power = jnp.real(modes) ** 2 + jnp.imag(modes) ** 2
        variance = self.marginal_variance(t).astype(power.dtype)
        return -0.5 * jnp.sum(power / variance + jnp.log(2 * math.pi * variance))

    def log_evidence(self, x_end: Field) -> Float[Array, ""]:
        """Log of p_T at an observed end state."""
        return self.log_density(self.end_time, x_end)

    def _score_rates(self, t: Scalar) -> Modes:
        """-1 / C(t) per mode, 0 where C is 0."""
        variance = self.marginal_variance(t)
        return jnp.where(variance > 0, -1 / jnp.where(variance > 0, variance, 1), 0)

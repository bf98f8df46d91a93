"""The law p_t of scalar processes: what is asked of it, and what linear decay makes of it."""

import abc

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from smdp_jax.sde import Args, Scalar

ScalarState = Float[ArrayLike, "1"]


class ScalarLaw(abc.ABC):
    """Density and score of a scalar process that starts at points."""

    @abc.abstractmethod
    def log_density(self, t: Scalar, x: ScalarState) -> Float[Array, ""]:
        """Log density of x_t at ``x``, in nats; at t = 0 +inf on the starts and -inf elsewhere."""

    def density(self, t: Scalar, x: ScalarState) -> Float[Array, ""]:
        """Density of x_t, as ``log_density``: per unit of state; +inf or 0 at t = 0."""
        return jnp.exp(self.log_density(t, x))

    @abc.abstractmethod
    def score(self, t: Scalar, x: ScalarState, args: Args = None) -> Float[Array, "1"]:
        """Gradient of the log density at ``x``; 0 at t = 0, where there is none."""


class TwoStarts(ScalarLaw):
    """The law of a process started at +1 or -1 with probability 1/2 each."""

    @abc.abstractmethod
    def posterior_plus(self, t: Scalar, x: ScalarState) -> Float[Array, ""]:
        """Probability that the path through ``x`` started at +1; at t = 0 the side of ``x``."""


def decay(rates: Float[ArrayLike, "*modes"], t: Float[ArrayLike, ""]) -> Float[Array, "*modes"]:
    """Factor ``exp(-r t)`` by which the mean of ``dx = -r x dt + g dW`` has shrunk."""
    return jnp.exp(-jnp.asarray(rates) * t)


def noise_variance(
    rates: Float[ArrayLike, "*modes"], noise: float | int, t: Float[ArrayLike, ""]
) -> Float[Array, "*modes"]:
    """Variance that it has gathered from the noise, ``g^2 (1 - exp(-2 r t)) / (2 r)``."""
    damped = jnp.asarray(rates) > 0
    doubled = 2 * jnp.where(damped, rates, 1)  # keeps the quotient and its gradient finite at 0
    return noise**2 * jnp.where(damped, -jnp.expm1(-doubled * t) / doubled, t)

"""The linear process ``dx = -r x dt + g dW``: what its mean and its noise have become at time t."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

__all__ = ["decay", "noise_variance"]


def decay(rates: Float[ArrayLike, "*modes"], t: Float[ArrayLike, ""]) -> Float[Array, "*modes"]:
    """Factor ``exp(-r t)`` by which the mean has shrunk.

    Parameters
    ----------
    rates : array, any shape
        Decay rates r, in 1 / time.
    t : scalar
        Elapsed time; negative values grow.

    Returns
    -------
    array, shape of ``rates``
        Dimensionless.
    """
    return jnp.exp(-jnp.asarray(rates) * t)


def noise_variance(
    rates: Float[ArrayLike, "*modes"], noise: float | int, t: Float[ArrayLike, ""]
) -> Float[Array, "*modes"]:
    """Variance gathered from the noise, ``g^2 (1 - exp(-2 r t)) / (2 r)``.

    Parameters
    ----------
    rates : array, any shape
        Decay rates r >= 0, in 1 / time; the limit ``g^2 t`` is taken where r = 0.
    noise : float
        g, in units of state per square root of time.
    t : scalar
        Elapsed time, not negative.

    Returns
    -------
    array, shape of ``rates``
        In units of state squared.

    References
    ----------
    Uhlenbeck, Ornstein (1930), "On the Theory of the Brownian Motion", Phys. Rev. 36.
    """
    damped = jnp.asarray(rates) > 0
    doubled = 2 * jnp.where(damped, rates, 1)  # keeps the quotient and its gradient finite at 0
    return noise**2 * jnp.where(damped, -jnp.expm1(-doubled * t) / doubled, t)

"""The linear process ``dx = -r x dt + g dW``: what its mean and its noise have become at time t."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

__all__ = ["decay", "noise_variance"]


def decay(rates: Float[ArrayLike, "*modes"], t: Float[ArrayLike, ""]) -> Float[Array, "*modes"]:
    """Factor ``exp(-r t)`` by which the mean has shrunk."""
    return jnp.exp(-jnp.asarray(rates) * t)


def noise_variance(
    rates: Float[ArrayLike, "*modes"], noise: float | int, t: Float[ArrayLike, ""]
) -> Float[Array, "*modes"]:
    """Variance gathered from the noise, ``g^2 (1 - exp(-2 r t)) / (2 r)``."""
    damped = jnp.asarray(rates) > 0
    doubled = 2 * jnp.where(damped, rates, 1)  # keeps the quotient and its gradient finite at 0
    return noise**2 * jnp.where(damped, -jnp.expm1(-doubled * t) / doubled, t)

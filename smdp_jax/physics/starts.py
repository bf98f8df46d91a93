"""Initial states: how many, and for the scalar processes which, +1 and -1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.physics.system import DriftSystem

__all__ = ["SignedSystem", "balanced_signs", "check_draws"]


def check_draws(n: int, what: str) -> None:
    """Check that at least one draw is asked for."""
    if n < 1:
        raise ValueError(f"the number of {what} must be at least 1, got {n}")


def balanced_signs(key: PRNGKeyArray, n: int) -> Float[Array, "n 1"]:
    """Draw ``n`` starting points +1 and -1, half of each, in random order.

    A fair coin per point would leave a chance imbalance of order ``sqrt(n)``, which a learned
    score picks up as a shifted separatrix. For odd ``n`` a coin decides the last one.

    Parameters
    ----------
    key : PRNG key
        Consumed.
    n : int
        Number of points, at least 1.

    Returns
    -------
    array, shape (n, 1)
        States, unit 1.
    """
    check_draws(n, "starting points")
    k_odd, k_order = jax.random.split(key)
    half = jnp.ones((n // 2,))
    odd = jnp.where(jax.random.bernoulli(k_odd, shape=(n % 2,)), jnp.ones(()), -jnp.ones(()))
    signs = jnp.concatenate([half, -half, odd])
    return jax.random.permutation(k_order, signs)[:, None]


class SignedSystem(DriftSystem):
    """A scalar process that starts at +1 or -1, with probability 1/2 each."""

    def prior(self, key: PRNGKeyArray, n: int) -> Float[Array, "n 1"]:
        """Draw starting points, half +1 and half -1; see ``balanced_signs``."""
        return balanced_signs(key, n)

"""What is asked of the law p_t of a scalar process: density, score, and where paths started."""

import abc

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from smdp_jax.sde import Args, Scalar

__all__ = ["ScalarLaw", "TwoStarts"]

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

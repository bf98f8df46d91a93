"""A covariance that is diagonal in a unitary transform of the state."""

import math
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from smdp_jax.sde import State
from smdp_jax.solve.linear import Transform, multiplicity, times, to_modes, to_state
from smdp_jax.solve.terms import white_noise

_LOG_2PI = math.log(2 * math.pi)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Spread:
    """A covariance, diagonal in a unitary transform of the state.

    ``variance`` has a number per leaf, or per coordinate: as many as the state has entries, unless
    ``counts`` tells how many entries each stands for.
    ``transform.apply(factors, x)`` multiplies the coordinates of a state; None is the identity.
    """

    variance: State
    transform: Any = None
    counts: State = None

    def power(self, exponent: float, x: State) -> State:
        """Apply a power of the covariance: 1/2 colours white noise, -1 solves."""
        root = exponent == 0.5
        factors = jax.tree.map(lambda v: jnp.sqrt(v) if root else v**exponent, self.variance)
        if self.transform is not None:
            return self.transform.apply(factors, x)
        return jax.tree.map(
            lambda f, x: jnp.broadcast_to(f, x.shape).astype(x.dtype) * x, factors, x
        )

    def products(self, a: State, b: State) -> State:
        """Of the coordinates of two states, real; their mean over b = a is ``variance``."""
        if self.transform is not None:
            return self.transform.products(a, b)
        return jax.tree.map(jnp.multiply, a, b)

    def log_density(self, offset: State) -> Array:
        """``log N(offset; 0, covariance)`` in nats."""
        white = ravel_pytree(self.power(-0.5, offset))[0]
        return -0.5 * (jnp.sum(white**2) + self._logdet(offset) + white.size * _LOG_2PI)

    def _logdet(self, like: State) -> Array:
        leaves = jax.tree.leaves(self.variance)
        if self.counts is not None:
            pairs = zip(jax.tree.leaves(self.counts), leaves, strict=True)
            return sum((jnp.sum(n * jnp.log(v)) for n, v in pairs), jnp.zeros((), leaves[0].dtype))
        sizes = [v.size for v in leaves]
        if self.transform is None:
            sizes = [x.size for x in jax.tree.leaves(like)]
        logs = [n * jnp.mean(jnp.log(v)) for n, v in zip(sizes, leaves, strict=True)]
        return sum(logs, jnp.zeros((), leaves[0].dtype))


class Modes(eqx.Module):
    """Coordinates in a unitary transform."""

    transform: Transform | None = eqx.field(static=True)

    def apply(self, factors: State, x: State) -> State:
        """Multiply the modes of a state."""
        scaled = jax.tree.map(times, factors, to_modes(self.transform, x))
        return to_state(self.transform, scaled)


def counts_of(transform: Transform | None, like: State) -> State:
    """How many entries of a state each mode stands for, in whole numbers."""
    probe = white_noise(jax.random.key(1), like)
    return jax.tree.map(jnp.round, multiplicity(transform, probe))

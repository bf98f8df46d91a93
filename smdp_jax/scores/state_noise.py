"""How the noise of a backward step depends on the state: entry by entry, and along directions.

``S = e^h (1 + w_1 w_1^T) ... (1 + w_r w_r^T)``: paths that left few modes, such as a front that
may have moved, are uncertain along those and nowhere else, and which they are is told by the state.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from smdp_jax.sde import Scalar, State

# The noise of a state may be less by a factor of up to e^4 (near a bound paths hardly differ), but
# larger by e^2 at most: the chain can't run off.
_LEAST, _LARGEST = 4.0, 2.0
# Directions of no length have no gradient.
_SEED = 0.1


class StateNoise(NamedTuple):
    """S of one state."""

    logs: State
    """h, like the state."""
    directions: tuple[State, ...] = ()
    """w_k, each like the state."""

    def times(self, x: State) -> State:
        """S x."""
        for w in reversed(self.directions):
            x = _moved(x, w, _inner(w, x))
        return jax.tree.map(lambda v, h: v * jnp.exp(h), x, self.logs)

    def over(self, x: State) -> State:
        """S^{-1} x."""
        x = jax.tree.map(lambda v, h: v * jnp.exp(-h), x, self.logs)
        for w in self.directions:  # Sherman, Morrison (1950)
            x = _moved(x, w, -_inner(w, x) / (1 + _inner(w, w)))
        return x

    def log_determinant(self) -> Scalar:
        """log |S|."""
        leaves = jax.tree.leaves(self.logs)
        total: Any = sum(h.sum().astype(leaves[0].dtype) for h in leaves)
        return total + sum(jnp.log1p(_inner(w, w)) for w in self.directions)

    def shared(self, share: Array) -> "StateNoise":
        """A share of it: S at 1, the identity at 0."""
        return jax.tree.map(lambda v: share.astype(v.dtype) * v, self)


def bounded_noise(logs: State, directions: tuple[State, ...]) -> StateNoise:
    """S of what a network says, within bounds."""
    logs = jax.tree.map(lambda h: jnp.where(h < 0, bounded(h, _LEAST), bounded(h, _LARGEST)), logs)
    mean = ravel_pytree(logs)[0].mean()
    most = jnp.expm1(jnp.maximum(_LARGEST - mean, 0))
    return StateNoise(logs, tuple(_limited(w, k, most) for k, w in enumerate(directions)))


def bounded(values: Array, largest: Any) -> Array:
    """Keep values within a bound, smoothly."""
    largest = jnp.asarray(largest, values.dtype)
    return largest * jnp.tanh(values / largest)


def _limited(w: State, index: int, most: Array) -> State:
    """A direction of squared length below ``most``, of some length where the network gives none."""
    flat, restore = ravel_pytree(w)
    place = (jnp.arange(flat.size, dtype=flat.dtype) + 0.5) / flat.size
    seed = _SEED * jnp.cos(jnp.pi * (index + 1) * place) * (2 / flat.size) ** 0.5
    flat = flat + seed
    most = most.astype(flat.dtype)
    return restore(flat * jnp.sqrt(most / (most + flat @ flat + 1e-12)))


def _inner(a: State, b: State) -> Array:
    products = jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), a, b))
    total: Any = sum(p.astype(products[0].dtype) for p in products)
    return total


def _moved(x: State, w: State, by: Array) -> State:
    return jax.tree.map(lambda v, w: v + by.astype(v.dtype) * w, x, w)

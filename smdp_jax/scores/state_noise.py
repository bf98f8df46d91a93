"""How the noise of a backward step depends on the state: entry by entry, and along directions.

``S = e^h (1 + w_1 w_1^T) ... (1 + w_r w_r^T)``: paths that left few modes, such as a front that
may have moved, are uncertain along those and nowhere else, and which they are is told by the state.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from smdp_jax.sde import Scalar, State

# The noise of a state may be less by a factor of up to e^4 (near a bound paths hardly differ), but
# larger by e^2 at most, and as much again along directions: the chain can't run off.
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

    def shared(self, share: Array, along: Array) -> "StateNoise":
        """Shares of h and of w: S at 1, the identity at 0."""
        part = lambda share, tree: jax.tree.map(lambda v: share.astype(v.dtype) * v, tree)
        return StateNoise(part(share, self.logs), part(along, self.directions))


def bounded_noise(logs: State, directions: tuple[State, ...]) -> StateNoise:
    """S of what a network says, ``|S| <= 2 e^2``: half by entries, half by directions."""
    logs = jax.tree.map(lambda h: jnp.where(h < 0, bounded(h, _LEAST), bounded(h, _LARGEST)), logs)
    noise, most = StateNoise(logs), math.exp(_LARGEST) / max(len(directions), 1)
    for k, told in enumerate(directions):
        w = _seeded(told, k)
        # The next factor adds (S w) w^T to S: at most |S w| |w|.
        moved = noise.times(w)
        share = (1 + _inner(moved, moved) * _inner(w, w) / most**2) ** -0.25
        kept = jax.tree.map(lambda v, share=share: share.astype(v.dtype) * v, w)
        noise = StateNoise(logs, (*noise.directions, kept))
    return noise


def bounded(values: Array, largest: Any) -> Array:
    """Keep values within a bound, smoothly."""
    largest = jnp.asarray(largest, values.dtype)
    return largest * jnp.tanh(values / largest)


def _seeded(w: State, index: int) -> State:
    """A direction of some length where the network gives none."""
    flat, restore = ravel_pytree(w)
    place = (jnp.arange(flat.size, dtype=flat.dtype) + 0.5) / flat.size
    return restore(flat + _SEED * jnp.cos(jnp.pi * (index + 1) * place) * (2 / flat.size) ** 0.5)


def _inner(a: State, b: State) -> Array:
    products = jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), a, b))
    total: Any = sum(p.astype(products[0].dtype) for p in products)
    return total


def _moved(x: State, w: State, by: Array) -> State:
    return jax.tree.map(lambda v, w: v + by.astype(v.dtype) * w, x, w)

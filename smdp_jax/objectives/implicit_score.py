r"""Implicit score matching: the score from states alone, without targets, steps or simulator.

``E [|s(t, x)|^2 / 2 + div s(t, x)]`` differs from ``E |s - grad log p_t|^2 / 2`` by a constant
(Hyvarinen 2005, theorem 1). The divergence is exact, or estimated along random directions v,
``v . (ds/dx) v`` (Song et al. 2019, eq. 8, the variance-reduced form).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_positive
from smdp_jax.objectives.base import Objective
from smdp_jax.scores.preconditioner import Preconditioner
from smdp_jax.sde import SDE, Scalar, ScoreFn
from smdp_jax.solve.process import noise_table
from smdp_jax.trajectories import Trajectories


@dataclass(frozen=True)
class ImplicitScore(Objective):
    """Implicit score matching with the exact divergence.

    One Jacobian-vector product per entry of the state: for states of up to some hundred entries;
    more want ``SlicedScore``. Each time counts with ``w = C n / (C + n)`` per leaf, C the variance
    of the paths' states and n that of the noise so far, so that the loss is about -1/2 at the
    optimum of every time. A prior of points has no score at ``ts[0]``, which is left out.
    """

    windows = (0,)
    first_time = 1

    def check(self, sde: SDE, data: Trajectories) -> None:
        """Noise reaches every leaf."""
        if not all(g.any() for g in noise_table(sde, data.ts, data.at(0, 0))):
            said = "SDE.diffusion must be positive on all leaves, got 0 on one"
            raise ValueError(f"{said}: without noise there is no score")

    def prepare(self, sde: SDE, data: Trajectories) -> Any:
        """Times and weights, leaves (nodes,)."""
        moments = Preconditioner.of(sde, data)

        def weight(variance: Array, noise: Array) -> Array:
            own = jnp.maximum(variance - noise, 0)
            total = jnp.where(variance > 0, variance, 1)
            return jnp.where(own > 0, own * noise / total, noise)

        return moments.ts, jax.tree.map(weight, moments.variance, moments.noise)

    def loss(
        self, learned: ScoreFn, sde: SDE, window: Trajectories, constants: Any, key: PRNGKeyArray
    ) -> Scalar:
        """Mean over entries of ``w (|s|^2 / 2 + div s)``, of one state."""
        t, (nodes, weights) = window.ts[0], constants
        x = jax.tree.map(lambda v: v[0], window.xs)
        flat, unravel = ravel_pytree(x)

        def spread(x: Any, w: Any) -> Any:
            return jnp.full(x.shape, jnp.interp(t, nodes, w).astype(x.dtype))

        weight = ravel_pytree(jax.tree.map(spread, x, weights))[0]
        score = lambda y: ravel_pytree(learned(t, unravel(y), window.args))[0]
        s, push = jax.linearize(score, flat)
        directions = self._directions(key, flat)
        forms = jax.vmap(lambda v: jnp.sum(weight * v * push(v)))(directions)
        return (jnp.sum(weight * s**2) / 2 + self._total(forms)) / flat.size

    def _directions(self, key: PRNGKeyArray, flat: Array) -> Array:
        """Every entry, (entries, entries)."""
        return jnp.eye(flat.size, dtype=flat.dtype)

    def _total(self, forms: Array) -> Array:
        return jnp.sum(forms)


@dataclass(frozen=True)
class SlicedScore(ImplicitScore):
    """Sliced score matching with variance reduction: ``|s|^2 / 2 + v (ds/dx) v``.

    As ``ImplicitScore``, the divergence estimated along random directions with entries +-1, which
    makes it exact in one dimension.

    Parameters
    ----------
    probes : int
        Directions per state.
    """

    probes: int = 1

    def __post_init__(self) -> None:
        check_positive(probes=self.probes)

    def _directions(self, key: PRNGKeyArray, flat: Array) -> Array:
        return jax.random.rademacher(key, (self.probes, flat.size), flat.dtype)

    def _total(self, forms: Array) -> Array:
        return jnp.mean(forms)

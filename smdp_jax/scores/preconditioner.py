"""The Gaussian that a learned score starts from: the moments of the training paths."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.compiled import once
from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State
from smdp_jax.solve.time_grids import between
from smdp_jax.trajectories import Trajectories


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Preconditioner:
    """Score of a Gaussian with the data's mean and variance, plus a scaled network.

    ``s(t, x) = -(x - m) / C + N(t, (x - m) / c) / sigma`` with the mean m(t) of the data, C(t)
    their variance plus ``sigma^2 = int_0^t g^2`` (one number per leaf of the state), and c^2 the
    mean of C over the nodes. Without sigma^2 the sampling error of the variance, a share
    sqrt(2 / n) of n paths, would be that of the Gaussian's score; the network adds what is missing
    more easily than it mends what is noise. The network's output need not span the decades of the
    score, and far outside the data the score still grows linearly (Karras et al. 2022, section 5,
    do this for white noise on images). c does not depend on time: dividing by sqrt(C(t)) lets the
    network resolve, and so fit, the noise of late times.

    Parameters
    ----------
    ts : array (nodes,)
        Increasing times.
    mean, variance, noise : pytree
        m in units of the state, C and sigma^2 in squared units; leaves (nodes,).
    """

    ts: Any
    mean: Any
    variance: Any
    noise: Any

    @classmethod
    def of(cls, sde: SDE, data: Trajectories) -> "Preconditioner":
        """Take the moments of trajectories at up to 97 of their times, dense near the first.

        Parameters
        ----------
        sde, data
            Forward process and training paths.

        Returns
        -------
        Preconditioner
            Its tables.
        """
        last = data.num_times - 1
        geometric = np.geomspace(1, last + 1, 64) - 1
        nodes = np.concatenate([geometric, np.linspace(0, last, 32), [min(1, last)]])
        nodes = np.unique(np.round(nodes).astype(int))
        return cls(*_tables(sde, data, nodes))

    def moments(self, t: Scalar) -> tuple[State, State]:
        """Mean and variance of the data at one time: what a Gaussian step refers to.

        Parameters
        ----------
        t : scalar
            Time.

        Returns
        -------
        mean, variance : pytree
            One number for each leaf of the state, in its units and in squared units.
        """
        mean, variance, noise = self._at(t)
        return mean, jax.tree.map(jnp.subtract, variance, noise)

    def __call__(self, network: ScoreFn, t: Scalar, x: State, args: Args) -> State:
        """Evaluate the preconditioned score."""
        mean, variance, noise = self._at(t)
        centred = jax.tree.map(jnp.subtract, x, mean)
        sizes = jax.tree.map(jnp.mean, self.variance)
        y = jax.tree.map(lambda z, c: z / jnp.sqrt(c), centred, _or_one(sizes))
        out = network(t, y, args)
        # Leaves without noise have no use for a score, and those that rest no variance.
        noise, variance = (_or_one(tree) for tree in (noise, variance))
        return jax.tree.map(
            lambda z, c, o, n: o / jnp.sqrt(n) - z / c, centred, variance, out, noise
        )

    def _at(self, t: Scalar) -> tuple[State, State, State]:
        """The tables between their times."""
        i, share = between(self.ts, t)

        def at(table: Array) -> Array:
            return table[i - 1] + share.astype(table.dtype) * (table[i] - table[i - 1])

        return jax.tree.map(at, (self.mean, self.variance, self.noise))


def _or_one(tree: Any) -> Any:
    return jax.tree.map(lambda v: jnp.where(v > 0, v, jnp.ones_like(v)), tree)


@once
def _tables(sde: SDE, data: Trajectories, nodes: Any) -> tuple[Any, State, State, State]:
    """Times, mean, variance and noise at some times, leaves (nodes,); copies one time at once."""
    g = jax.vmap(lambda t: sde.g(t, data.at(0, 0)))(data.ts)

    def integral(g: Array) -> Array:
        pieces = 0.5 * (g[1:] ** 2 + g[:-1] ** 2) * jnp.diff(data.ts).astype(g.dtype)
        return jnp.concatenate([pieces[:1], jnp.cumsum(pieces)])[nodes]

    def moments(x: Array) -> tuple[Array, Array]:
        def at(node: Array) -> tuple[Array, Array]:
            now = x[:, node]
            return now.mean(), now.var()

        return jax.lax.map(at, nodes)

    noise = jax.tree.map(integral, g)
    found = jax.tree.map(moments, data.xs)
    mean, variance = (jax.tree.map(lambda x, m, i=i: m[i], data.xs, found) for i in range(2))
    return data.ts[nodes], mean, jax.tree.map(jnp.add, variance, noise), noise

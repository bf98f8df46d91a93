"""The range of the training paths over time: beyond it a network extrapolates."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.compiled import once
from smdp_jax.sde import Scalar, State
from smdp_jax.solve.time_grids import between
from smdp_jax.trajectories import Trajectories

_NODES = 65


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SeenRange:
    """Least and largest entries of the training paths around some times, leaves (nodes,)."""

    ts: Any
    low: Any
    high: Any

    @classmethod
    def of(cls, data: Trajectories) -> "SeenRange":
        """Look at paths, and widen their range by half of its largest width."""
        last = data.num_times - 1
        nodes = np.unique(np.round(np.linspace(0, last, min(_NODES, last + 1))).astype(int))
        return cls(*_limits(data.ts, data.xs, nodes))

    def outside(self, t: Scalar, x: State) -> Array:
        """Tell whether an entry of a state is beyond what was seen about then, or not finite."""
        i, _ = between(self.ts, t)

        def inside(v: Array, low: Array, high: Array) -> Array:
            least, most = jnp.minimum(low[i - 1], low[i]), jnp.maximum(high[i - 1], high[i])
            return ((v >= least) & (v <= most)).all()

        within = jax.tree.leaves(jax.tree.map(inside, x, self.low, self.high))
        return ~jnp.stack(within).all()


@once
def _limits(ts: Array, xs: State, nodes: Any) -> tuple[Array, State, State]:
    def of(x: Array) -> tuple[Array, Array]:
        low, high = jax.lax.map(lambda i: (x[:, i].min(), x[:, i].max()), nodes)
        slack = 0.5 * (high - low).max()
        return low - slack, high + slack

    found = jax.tree.map(of, xs)
    low, high = (jax.tree.map(lambda x, f, i=i: f[i], xs, found) for i in range(2))
    return ts[nodes], low, high

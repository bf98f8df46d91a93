"""A score as a table: values on a (t, x) grid, bilinear in between.

s(t, x) = Σ_ij w_i(t) w_j(x) S_ij, with w the hat functions of two uniform grids.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from smdp_jax.checks import check_counts
from smdp_jax.models.layout import as_time, from_vector, working_dtype
from smdp_jax.sde import State


def _locate(
    value: Float[Array, ""], bounds: tuple[float, float], size: int
) -> tuple[Array, Float[Array, ""]]:
    """Left node of the cell that holds `value` (clamped to the grid), and the place in the cell."""
    low, high = bounds
    place = jnp.clip((value - low) * ((size - 1) / (high - low)), 0, size - 1)
    left = jnp.clip(jnp.floor(place), 0, size - 2)
    return left.astype(int), place - left


class GridScore(nn.Module):
    """Table of scores for a scalar state, interpolated bilinearly; the table is the parameter.

    No smoothness is assumed beyond the cell, so it shows what an objective alone asks for, without
    a network's own bias (the paper's grid parametrisation of the scalar experiment). Starts at 0.
    Outside the grid the nearest value on its edge is returned. It sees no conditions: one table
    belongs to one fixed `args`.

    Parameters
    ----------
    shape, t_range, x_range : (int, int), (float, float), (float, float)
        Number of nodes in t and in x, at least 2 each; first and last of them, in the units of t
        and x.
    """

    shape: tuple[int, int] = (500, 250)
    t_range: tuple[float, float] = (0.0, 10.0)
    x_range: tuple[float, float] = (-1.25, 1.25)

    @nn.compact
    def __call__(self, t: ArrayLike, x: State, args: Any) -> State:
        """Score at one time and state."""
        leaves = jax.tree.leaves(x)
        if len(leaves) != 1 or jnp.size(leaves[0]) != 1:
            got = f"leaves of shapes {[*map(jnp.shape, leaves)]}"
            said = f"the state of GridScore must be one number, got {got}"
            raise ValueError(f"{said}: use MLP, or jax.vmap for batches")
        check_counts(least=2, shape=self.shape)
        for name, (low, high) in (("t_range", self.t_range), ("x_range", self.x_range)):
            if not low < high:
                raise ValueError(f"{name} must be increasing, got {(low, high)}")
        dtype = working_dtype(x)
        table = self.param("table", nn.initializers.zeros, self.shape, dtype).astype(dtype)
        leaf = jnp.reshape(leaves[0], ()).astype(dtype)
        i, u = _locate(as_time(t, dtype), self.t_range, self.shape[0])
        j, v = _locate(leaf, self.x_range, self.shape[1])
        # The gradient at a node is that of the cell to its right.
        before = (1 - v) * table[i, j] + v * table[i, j + 1]
        after = (1 - v) * table[i + 1, j] + v * table[i + 1, j + 1]
        value = (1 - u) * before + u * after
        return from_vector(value[None], x)

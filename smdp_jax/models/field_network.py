"""What all networks for fields share: the state becomes one field of cells, and comes back."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from smdp_jax.models.layout import (
    Conditions,
    cell_centres,
    cell_grid,
    everything,
    from_channels,
    split_conditions,
    to_channels,
    working_dtype,
)
from smdp_jax.models.time_features import TimeFeatures, time_vector
from smdp_jax.sde import State


def as_channels(
    vector: Float[Array, " n"], h: Float[Array, "*grid c"]
) -> Float[Array, "*grid channels"]:
    """Append numbers to a field as constant channels."""
    row = vector.reshape((1,) * (h.ndim - 1) + (-1,))
    return jnp.concatenate([h, jnp.broadcast_to(row, (*h.shape[:-1], vector.size))], axis=-1)


class FieldNetwork(nn.Module, kw_only=True):
    """A network over a state of fields on one regular grid; subclasses say how it transforms them.

    Leaves of the state are (*grid,) or (*grid, channels) arrays at the centres of the cells or
    staggered (see `layout`); all become channels of one field, beside the fields among the
    conditions and, where asked for, the coordinates.

    With ``dtype``, such as ``jnp.bfloat16``, fields are transformed in it; parameters, the result
    and what is seen of time keep the dtype of the state, at least float32.
    """

    takes_trees: ClassVar[bool] = True

    dims: int = 2
    coordinates: bool = False
    time_features: TimeFeatures = "log_fourier"
    conditions: Conditions = everything
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, t: ArrayLike, x: State, args: Any) -> State:
        """Score at one time and state."""
        dtype = working_dtype(x)
        if self.dtype is not None and not jnp.issubdtype(self.dtype, jnp.floating):
            raise ValueError(f"dtype must be floating, such as jnp.bfloat16, got {self.dtype!r}")
        grid = cell_grid(x, self.dims)
        self.check(grid)
        fields, numbers = split_conditions(self.conditions(args), grid, dtype)
        state = to_channels(x, grid, dtype)
        seen = [state, fields, *([cell_centres(grid, dtype)] if self.coordinates else [])]
        vector = jnp.concatenate([time_vector(self.time_features, t, dtype), numbers])
        out = self.transform(jnp.concatenate(seen, axis=-1), vector, state.shape[-1])
        return from_channels(out.astype(dtype), x)

    def narrow(self, h: Float[Array, "*grid c"]) -> Float[Array, "*grid c"]:
        """Cast a field to the dtype that it is transformed in."""
        return h if self.dtype is None else h.astype(self.dtype)

    def check(self, grid: tuple[int, ...]) -> None:
        """Check the options of the network, and that the grid suits it."""
        raise NotImplementedError

    def transform(
        self, h: Float[Array, "*grid c"], vector: Float[Array, " n"], features: int
    ) -> Float[Array, "*grid features"]:
        """Transform the field of cells; where the parameters are."""
        raise NotImplementedError

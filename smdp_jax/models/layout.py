"""How a network sees a state: its dtype, its leaves as one vector, and the time as one scalar.

Networks here are unbatched and take any state, so each of them begins by laying the leaves out
in one array and ends by cutting that array back into leaves. Everything is computed in the
state's own floating dtype, at least float32: in bfloat16 the times 0.5 and 0.5015 are one, and an
average of parameters stands still. Conditions and times are cast to it, parameters kept in it.

Fields are the channels of one field of cells, without loss. Leaves live at the centres of the cells
of one grid, or are staggered: along any axis a leaf may have one entry more (all faces, those on
the walls included) or one less (inner faces only). A cell then carries, in the first case, two
channels, the values on its low and on its high face; in the second, one, the value on its low face,
0 on the wall.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from smdp_jax.checks import check_holds, check_shape
from smdp_jax.sde import State

Conditions = Callable[[Any], Any]
"""Picks, from `args`, the pytree of conditions that a network sees."""


def everything(args: Any) -> Any:
    """All of `args`: the default choice of conditions."""
    return args


def working_dtype(x: State) -> jnp.dtype:
    """Widest floating dtype among the leaves of a state, at least float32."""
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(x)]
    check_holds("the state", len(dtypes), 1, "array leaf")
    if wrong := [dtype for dtype in dtypes if not jnp.issubdtype(dtype, jnp.floating)]:
        said = f"state leaves must be floating point, got {wrong[0]}"
        raise TypeError(f"{said}: cast the state, or pass labels and masks in `args`")
    return max(map(at_least_float32, dtypes), key=lambda dtype: jnp.finfo(dtype).bits)


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Widen the dtypes in which neither times nor averages can be told apart."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def as_time(t: ArrayLike, dtype: DTypeLike) -> Float[Array, ""]:
    """One time as a scalar of the given dtype."""
    t = jnp.asarray(t, dtype)
    check_shape("t", t, (), ", a scalar (use jax.vmap for batches)")
    return t


def as_number(leaf: Any, dtype: DTypeLike) -> Array:
    """Real numbers or masks as an array of a floating dtype."""
    leaf = jnp.asarray(leaf)
    if not any(jnp.issubdtype(leaf.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        said = f"conditions must be real numbers or masks, got an array of {leaf.dtype}"
        raise TypeError(f"{said}: choose what the network sees of `args` with `conditions=`")
    return leaf.astype(dtype)


def to_vector(tree: Any, dtype: DTypeLike) -> Float[Array, " n"]:
    """All leaves of a pytree, ravelled and concatenated."""
    leaves = [as_number(leaf, dtype).ravel() for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros((0,), dtype), *leaves])


def from_vector(vector: Float[Array, " n"], like: State) -> State:
    """Cut a vector into leaves: the inverse of `to_vector`."""
    ends = np.cumsum([jnp.size(leaf) for leaf in jax.tree.leaves(like)])
    pieces = jax.tree.unflatten(jax.tree.structure(like), jnp.split(vector, ends[:-1]))
    return jax.tree.map(_as_leaf, pieces, like)


def _as_leaf(part: Array, like: Any) -> Array:
    return part.reshape(jnp.shape(like)).astype(jnp.result_type(like))


def cell_grid(x: State, dims: int) -> tuple[int, ...]:
    """Find the grid of cells on which the leaves of a state live.

    Leaves at the centres have its shape. Among the grids that leave every leaf at most one entry
    off per axis, it is the one with the fewest such differences, and then the smallest.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    for shape in shapes:
        if len(shape) not in (dims, dims + 1):
            said = f"a state leaf must have dims={dims} grid axes and at most one of channels"
            raise ValueError(f"{said}, got shape {shape}: use jax.vmap for batches")
    own = sorted({shape[:dims] for shape in shapes})
    # Faces of both kinds without a centred leaf: their cells are the smallest along each axis.
    smallest = tuple(min(sides) for sides in zip(*own, strict=True))
    fitting = [grid for grid in {*own, smallest} if all(_offsets(g, grid) for g in own)]
    if not fitting:
        said = "state leaves must share one grid (staggered: one entry more or less along an axis)"
        raise ValueError(f"{said}, got {own}")
    return min(fitting, key=lambda grid: (sum(_distance(g, grid) for g in own), grid))


def _distance(shape: tuple[int, ...], grid: tuple[int, ...]) -> int:
    return sum(abs(a - b) for a, b in zip(shape, grid, strict=True))


def _offsets(shape: tuple[int, ...], grid: tuple[int, ...]) -> bool:
    return all(abs(a - b) <= 1 for a, b in zip(shape, grid, strict=True))


def _slice(field: Array, axis: int, start: int | None, stop: int | None) -> Array:
    return field[(slice(None),) * axis + (slice(start, stop),)]


def _to_cells(field: Float[Array, "*own c"], grid: tuple[int, ...]) -> Float[Array, "*grid k"]:
    for axis, side in enumerate(grid):
        if field.shape[axis] == side + 1:
            faces = _slice(field, axis, None, -1), _slice(field, axis, 1, None)
            field = jnp.concatenate(faces, axis=-1)
        elif field.shape[axis] == side - 1:
            wall = [(int(i == axis), 0) for i in range(field.ndim)]
            field = jnp.pad(field, wall)
    return field


def _from_cells(cells: Float[Array, "*grid k"], own: tuple[int, ...]) -> Float[Array, "*own c"]:
    for axis in reversed(range(len(own))):
        if own[axis] == cells.shape[axis] + 1:
            low, high = jnp.split(cells, 2, axis=-1)
            inner = (_slice(low, axis, 1, None) + _slice(high, axis, None, -1)) / 2
            ends = _slice(low, axis, None, 1), _slice(high, axis, -1, None)
            cells = jnp.concatenate([ends[0], inner, ends[1]], axis=axis)
        elif own[axis] == cells.shape[axis] - 1:
            cells = _slice(cells, axis, 1, None)
    return cells


def _channels_of(shape: tuple[int, ...], grid: tuple[int, ...]) -> int:
    doubled = sum(side == cells + 1 for side, cells in zip(shape, grid, strict=False))
    return (shape[-1] if len(shape) > len(grid) else 1) * 2**doubled


def to_channels(
    tree: Any, grid: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "*grid channels"]:
    """Stack the leaves of a pytree of fields along a last channel axis."""
    fields = [jnp.zeros((*grid, 0), dtype)]
    for leaf in jax.tree.leaves(tree):
        own = as_number(leaf, dtype)
        fields.append(_to_cells(own.reshape(*own.shape[: len(grid)], -1), grid))
    return jnp.concatenate(fields, axis=-1)


def from_channels(fields: Float[Array, "*grid channels"], like: State) -> State:
    """Cut the channel axis into leaves: the inverse of `to_channels`.

    A face between two cells gets the mean of what the two say.
    """
    grid, shapes = fields.shape[:-1], [jnp.shape(leaf) for leaf in jax.tree.leaves(like)]
    ends = np.cumsum([_channels_of(shape, grid) for shape in shapes])
    pieces = jnp.split(fields, ends[:-1], axis=-1)
    parts = [_from_cells(p, shape[: len(grid)]) for p, shape in zip(pieces, shapes, strict=True)]
    return jax.tree.map(_as_leaf, jax.tree.unflatten(jax.tree.structure(like), parts), like)


def split_conditions(
    conditions: Any, grid: tuple[int, ...], dtype: DTypeLike
) -> tuple[Float[Array, "*grid channels"], Float[Array, " n"]]:
    """Sort conditions into fields on the state's grid and global numbers."""
    dims = len(grid)
    fields, numbers = [], []
    for leaf in jax.tree.leaves(conditions):
        shape = jnp.shape(leaf)
        # A vector one off a grid of one axis is taken for what it more often is, numbers.
        staggered = dims > 1 and len(shape) >= dims and _offsets(shape[:dims], grid)
        if len(shape) <= dims + 1 and (shape[:dims] == grid or staggered):
            fields.append(leaf)
        elif len(shape) <= 1:
            numbers.append(leaf)
        else:
            said = f"conditions must be fields on the grid {grid}, scalars or vectors"
            raise ValueError(f"{said}, got shape {shape}: choose with `conditions=` what is seen")
    return to_channels(fields, grid, dtype), to_vector(numbers, dtype)


def cell_centres(grid: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "*grid dims"]:
    """Coordinates of the cell centres, from -1 to 1 along each axis."""
    axes = [(2 * np.arange(side) + 1) / side - 1 for side in grid]
    return jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1), dtype)

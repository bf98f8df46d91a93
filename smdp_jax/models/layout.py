"""How a network sees a state: a pytree of arrays as one vector, or as the channels of one field.

Networks here are unbatched and take any state, so each of them begins by laying the leaves out
in one array and ends by cutting that array back into leaves. Everything is computed in the
state's own floating dtype; conditions and times are cast to it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PyTree

Conditions = Callable[[Any], Any]
"""Picks, from `args`, the pytree of conditions that a network sees."""


def everything(args: Any) -> Any:
    """All of `args`: the default choice of conditions.

    Parameters
    ----------
    args : pytree
        Conditions of the process.

    Returns
    -------
    pytree
        The same.
    """
    return args


def state_dtype(x: PyTree) -> jnp.dtype:
    """Widest floating dtype among the leaves of a state.

    Parameters
    ----------
    x : pytree
        The state.

    Returns
    -------
    dtype
        What the network computes in.

    Raises
    ------
    TypeError
        If a leaf is not a real floating-point array.
    ValueError
        If the state has no leaves.
    """
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(x)]
    if not dtypes:
        raise ValueError("the state has no array leaves; a network needs at least one")
    for dtype in dtypes:
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"state leaves must be floating point, got {dtype}; cast the state, or pass "
                "labels and masks as conditions in `args`"
            )
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def as_time(t: ArrayLike, dtype: DTypeLike) -> Float[Array, ""]:
    """One time as a scalar of the given dtype.

    Parameters
    ----------
    t : float or scalar array
        Time.
    dtype : dtype
        Floating dtype.

    Returns
    -------
    scalar array
        The time.

    Raises
    ------
    ValueError
        If `t` is not a scalar: networks are unbatched.
    """
    t = jnp.asarray(t, dtype)
    if t.ndim != 0:
        raise ValueError(f"t must be a scalar, got shape {t.shape}; use jax.vmap for batches")
    return t


def _as_number(leaf: Any, dtype: DTypeLike) -> Array:
    leaf = jnp.asarray(leaf)
    if not (
        jnp.issubdtype(leaf.dtype, jnp.bool_)
        or jnp.issubdtype(leaf.dtype, jnp.integer)
        or jnp.issubdtype(leaf.dtype, jnp.floating)
    ):
        raise TypeError(
            f"conditions must be real numbers or masks, got an array of {leaf.dtype}; choose what "
            "the network sees of `args` with `conditions=`"
        )
    return leaf.astype(dtype)


def to_vector(tree: Any, dtype: DTypeLike) -> Float[Array, " n"]:
    """All leaves of a pytree, ravelled and concatenated.

    Parameters
    ----------
    tree : pytree
        Numbers and masks.
    dtype : dtype
        Floating dtype to cast to.

    Returns
    -------
    array (n,)
        The entries; n = 0 if there are no leaves.
    """
    leaves = [_as_number(leaf, dtype).ravel() for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros((0,), dtype), *leaves])


def from_vector(vector: Float[Array, " n"], like: PyTree) -> PyTree:
    """Cut a vector into leaves: the inverse of `to_vector`.

    Parameters
    ----------
    vector : array (n,)
        The entries.
    like : pytree
        Gives structure, shapes and dtypes.

    Returns
    -------
    pytree
        A tree like `like`.
    """
    leaves, treedef = jax.tree.flatten(like)
    parts, start = [], 0
    for leaf in leaves:
        size = jnp.size(leaf)
        part = vector[start : start + size].reshape(jnp.shape(leaf))
        parts.append(part.astype(jnp.result_type(leaf)))
        start += size
    return jax.tree.unflatten(treedef, parts)


def common_grid(x: PyTree, dims: int) -> tuple[int, ...]:
    """Grid shape shared by the leaves of a state of fields.

    Parameters
    ----------
    x : pytree
        State with leaves (*grid,) or (*grid, channels).
    dims : int
        Number of grid axes.

    Returns
    -------
    tuple of int
        The grid.

    Raises
    ------
    ValueError
        If a leaf has another rank, or leaves live on different grids.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    for shape in shapes:
        if len(shape) not in (dims, dims + 1):
            raise ValueError(
                f"with dims={dims} a state leaf has {dims} grid axes and at most one channel axis, "
                f"got shape {shape}; use jax.vmap for batches"
            )
    grids = {shape[:dims] for shape in shapes}
    if len(grids) != 1:
        raise ValueError(f"state leaves must share one grid, got {sorted(grids)}")
    return grids.pop()


def to_channels(
    tree: Any, grid: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "*grid channels"]:
    """Stack the leaves of a pytree of fields along a last channel axis.

    Parameters
    ----------
    tree : pytree
        Leaves (*grid,) or (*grid, channels).
    grid : tuple of int
        Their common grid.
    dtype : dtype
        Floating dtype to cast to.

    Returns
    -------
    array (*grid, channels)
        One field; it has no channels if there are no leaves.
    """
    leaves = [_as_number(leaf, dtype).reshape(*grid, -1) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros((*grid, 0), dtype), *leaves], axis=-1)


def from_channels(fields: Float[Array, "*grid channels"], like: PyTree) -> PyTree:
    """Cut the channel axis into leaves: the inverse of `to_channels`.

    Parameters
    ----------
    fields : array (*grid, channels)
        One field.
    like : pytree
        Gives structure, shapes and dtypes.

    Returns
    -------
    pytree
        A tree like `like`.
    """
    leaves, treedef = jax.tree.flatten(like)
    grid, parts, start = fields.shape[:-1], [], 0
    for leaf in leaves:
        shape = jnp.shape(leaf)
        count = shape[-1] if len(shape) > len(grid) else 1
        part = fields[..., start : start + count].reshape(shape)
        parts.append(part.astype(jnp.result_type(leaf)))
        start += count
    return jax.tree.unflatten(treedef, parts)


def split_conditions(
    conditions: Any, grid: tuple[int, ...], dtype: DTypeLike
) -> tuple[Float[Array, "*grid channels"], Float[Array, " n"]]:
    """Sort conditions into fields on the state's grid and global numbers.

    Parameters
    ----------
    conditions : pytree
        Leaves (*grid,) or (*grid, channels), which become channels, and scalars or vectors.
    grid : tuple of int
        Grid of the state.
    dtype : dtype
        Floating dtype to cast to.

    Returns
    -------
    (array (*grid, channels), array (n,))
        The fields stacked, and the numbers concatenated.

    Raises
    ------
    ValueError
        If a leaf is neither.
    """
    fields, numbers = [], []
    for leaf in jax.tree.leaves(conditions):
        shape = jnp.shape(leaf)
        if shape[: len(grid)] == grid and len(shape) <= len(grid) + 1:
            fields.append(leaf)
        elif len(shape) <= 1:
            numbers.append(leaf)
        else:
            raise ValueError(
                f"a condition of shape {shape} is neither a field on the grid {grid} nor a scalar "
                "or vector; choose what the network sees of `args` with `conditions=`"
            )
    return to_channels(fields, grid, dtype), to_vector(numbers, dtype)

"""How a network sees a state: its dtype, its leaves as one vector, and the time as one scalar.

Networks here are unbatched and take any state, so each of them begins by laying the leaves out
in one array and ends by cutting that array back into leaves. Everything is computed in the
state's own floating dtype, at least float32: in bfloat16 the times 0.5 and 0.5015 are one, and an
average of parameters stands still. Conditions and times are cast to it, parameters kept in it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from smdp_jax.sde import State

Conditions = Callable[[Any], Any]
"""Picks, from `args`, the pytree of conditions that a network sees."""


def everything(args: Any) -> Any:
    """All of `args`: the default choice of conditions."""
    return args


def working_dtype(x: State) -> jnp.dtype:
    """Widest floating dtype among the leaves of a state, at least float32."""
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(x)]
    if not dtypes:
        raise ValueError("the state must have at least one array leaf, got none")
    for dtype in dtypes:
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"state leaves must be floating point, got {dtype}; cast the state, or pass "
                "labels and masks as conditions in `args`"
            )
    return max(map(at_least_float32, dtypes), key=lambda dtype: jnp.finfo(dtype).bits)


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Widen the dtypes in which neither times nor averages can be told apart."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def as_time(t: ArrayLike, dtype: DTypeLike) -> Float[Array, ""]:
    """One time as a scalar of the given dtype."""
    t = jnp.asarray(t, dtype)
    if t.ndim != 0:
        raise ValueError(f"t must be a scalar, got shape {t.shape}; use jax.vmap for batches")
    return t


def as_number(leaf: Any, dtype: DTypeLike) -> Array:
    """Real numbers or masks as an array of a floating dtype."""
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
    """All leaves of a pytree, ravelled and concatenated."""
    leaves = [as_number(leaf, dtype).ravel() for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros((0,), dtype), *leaves])


def from_vector(vector: Float[Array, " n"], like: State) -> State:
    """Cut a vector into leaves: the inverse of `to_vector`."""
    leaves, treedef = jax.tree.flatten(like)
    parts, start = [], 0
    for leaf in leaves:
        size = jnp.size(leaf)
        part = vector[start : start + size].reshape(jnp.shape(leaf))
        parts.append(part.astype(jnp.result_type(leaf)))
        start += size
    return jax.tree.unflatten(treedef, parts)

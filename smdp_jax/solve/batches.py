"""Many solves: all at once, or a chunk at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding

from smdp_jax.checks import concrete

__all__ = ["in_chunks", "on_auto_mesh"]


def in_chunks(function: Callable, inputs: Any, size: int | None) -> Any:
    """Map over the leading axis of ``inputs``, ``size`` entries at a time (None: all).

    The last chunk is filled up with copies of the last entry: one of another length would be
    compiled on its own.
    """
    count = jax.tree.leaves(inputs)[0].shape[0]
    if size is None or size >= count:
        return jax.vmap(function)(inputs)
    chunks = -(-count // size)
    rows = jnp.minimum(jnp.arange(chunks * size), count - 1).reshape(chunks, size)
    results = jax.lax.map(
        lambda row: jax.vmap(function)(jax.tree.map(lambda x: x[row], inputs)), rows
    )
    return jax.tree.map(lambda x: x.reshape(chunks * size, *x.shape[2:])[:count], results)


def on_auto_mesh(tree: Any) -> Any:
    """Let the compiler place what comes in on an explicit mesh, whose types a gather has not."""

    def auto(x: Any) -> Any:
        sharding = x.sharding if isinstance(x, jax.Array) and concrete(x) else None
        if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
            return x
        if AxisType.Explicit not in sharding.mesh.axis_types:
            return x
        mesh = Mesh(sharding.mesh.devices, sharding.mesh.axis_names)
        return jax.device_put(x, NamedSharding(mesh, sharding.spec))

    return jax.tree.map(auto, tree)

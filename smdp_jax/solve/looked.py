"""Which states are looked at before a solve, and what tells one look from another."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.compiled import once, parts_of
from smdp_jax.sde import Args, State


class Ends(NamedTuple):
    """States of one batch axis, with their conditions, of which some are looked at."""

    x: State
    args: Args
    mapped: bool

    def chosen(self) -> list[tuple[State, Args]]:
        """The largest state; four more where conditions differ."""
        count = jax.tree.leaves(self.x)[0].shape[0]
        places = {int(_largest(self.x))} if count > 1 else {0}
        if self.mapped:
            places |= set(np.linspace(0, count - 1, 4).astype(int).tolist())
        return [self.at(i) for i in sorted(places)]

    def at(self, i: int) -> tuple[State, Args]:
        """One of them."""
        own = self.args if self.mapped else None
        x, own = jax.tree.map(lambda v: jnp.asarray(v)[i], (self.x, own))
        return x, own if self.mapped else self.args


@once
def _largest(x: State) -> Any:
    def size(v: Array) -> Array:
        return jnp.square(v.reshape(v.shape[0], -1).astype(jnp.float32)).sum(axis=1)

    return jnp.argmax(jnp.stack([size(v) for v in jax.tree.leaves(x)]).sum(axis=0))


def told(tree: Any) -> Hashable:
    """What tells a tree from others: small arrays by their values, large ones by themselves."""
    leaves, structure = jax.tree.flatten(tree)

    def leaf(v: Any) -> Hashable:
        if isinstance(v, (jax.Array, np.ndarray, np.generic)) and np.size(v) <= 4096:
            if jnp.issubdtype(v.dtype, jax.dtypes.prng_key):
                return ("key", v.dtype)
            values = np.asarray(v)
            return (values.shape, values.dtype.str, values.tobytes())
        return parts_of(v)

    return structure, tuple(leaf(v) for v in leaves)

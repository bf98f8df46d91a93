"""How far a flow map's inverse is from one, in units of the noise that hides it."""

from typing import Any

import jax
import jax.numpy as jnp

from smdp_jax.compiled import compiled
from smdp_jax.sde import SDE, Args, Scalar, State

__all__ = ["miss_of_inverse"]


def miss_of_inverse(sde: SDE, x: State, t0: Scalar, t1: Scalar, args: Args) -> float:
    """``|inverse(step(x)) - x|`` over the size of the noise that the step adds."""
    return float(_miss(sde, x, t0, t1, args))


@compiled
def _miss(sde: SDE, x: State, t0: Scalar, t1: Scalar, args: Args) -> Any:
    assert sde.step is not None
    assert sde.inverse is not None
    back = sde.inverse(t1, t0, sde.step(t0, t1, x, args), args)
    wide = lambda tree: jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), tree)
    back, x, g = wide(back), wide(x), wide(sde.g_of_step(t0, t1, x))
    dt = jnp.asarray(t1 - t0, jnp.float32)
    missed = sum(jnp.sum(jnp.square(b - v)) for b, v in _pairs(back, x))
    noise = sum(jnp.square(g) * dt * v.size for g, v in _pairs(g, x))
    return jnp.sqrt(missed / noise)


def _pairs(a: State, b: State) -> Any:
    return zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)

"""How far a flow map's inverse is from one: its miss beside the noise, and what it amplifies."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.compiled import once
from smdp_jax.sde import SDE, Args, Scalar, State, integrated_backward, negated
from smdp_jax.solve.terms import white_noise

_ITERATIONS = 8


def walked(sde: SDE, learned: Any) -> SDE:
    """Walk back as a correction was trained to, where the process names no way."""
    if getattr(learned, "inverse", None) is None or sde.step is None:
        return sde
    unnamed = sde.inverse == negated(sde.step)
    return replace(sde, inverse=integrated_backward(sde.step)) if unnamed else sde


def miss_of_inverse(sde: SDE, x: State, t0: Scalar, t1: Scalar, args: Args) -> float:
    """``|inverse(step(x)) - x|`` over the size of the noise that the step adds."""
    return float(_miss(sde, x, t0, t1, args))


def growth_of_inverse(sde: SDE, x: State, t0: Scalar, t1: Scalar, args: Args) -> float:
    """Largest factor by which a step back from ``step(x)`` grows a small change; NaN: not known."""
    try:
        with jax.numpy_dtype_promotion("standard"):
            return float(_growth(sde, x, t0, t1, args))
    except Exception:  # whatever a simulator says of derivatives
        return np.nan


@once
def _growth(sde: SDE, x: State, t0: Scalar, t1: Scalar, args: Args) -> Any:
    """Power iterations with the derivative and its transpose: the largest singular value."""
    assert sde.step is not None
    assert sde.inverse is not None
    inverse, end = sde.inverse, sde.step(t0, t1, x, args)
    back, moved = jax.linearize(lambda y: inverse(t1, t0, y, args), end)
    transposed = jax.linear_transpose(moved, end)

    def again(v: State, _: None) -> tuple[State, None]:
        size = _norm(v)
        unit = jax.tree.map(lambda v: v / size.astype(v.dtype), v)
        return transposed(moved(unit))[0], None

    first = white_noise(jax.random.key(0), back)
    return jnp.sqrt(_norm(jax.lax.scan(again, first, None, length=_ITERATIONS)[0]))


def _norm(tree: State) -> Any:
    return jnp.sqrt(sum(jnp.sum(jnp.square(v.astype(jnp.float32))) for v in jax.tree.leaves(tree)))


@once
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

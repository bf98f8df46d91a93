"""Paths of a flow map without noise, forward and back: the physics alone."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax.evaluate import ensemble_mse
from smdp_jax.sde import SDE, Args, FlowMap, Scalar, State
from smdp_jax.solve.integrate import advance


def walk(
    step: FlowMap,
    x: State,
    ts: Float[Array, "times"],
    args: Args = None,
    *,
    save: Literal["last", "all"] = "last",
) -> State:
    """Follow a flow map over a grid, without noise."""

    def still(t0: Scalar, t1: Scalar, x: State, args: Args) -> State:
        # A learned step holds arrays, which a term of the solver may not.
        return step(t0, t1, x, args)

    return advance(SDE(step=still, diffusion=None), x, ts, args=args, save=save)[0]


def negated_walk(step: FlowMap, x: State, ts: Float[Array, "times"], *, stride: int) -> State:
    """Walk the physics back by negated increments, each over several steps of a grid."""
    steps = ts.shape[0] - 1
    if steps % stride:
        raise ValueError(f"stride={stride} must divide the {steps} steps of the grid")
    legs = ts[np.arange(0, steps, stride)[:, None] + np.arange(stride + 1)[None]]

    def body(x: State, leg: Array) -> tuple[State, State]:
        x = jax.tree.map(lambda x, later: 2 * x - later, x, walk(step, x, leg))
        return x, x

    path = jax.lax.scan(body, x, legs[::-1])[1]
    return jax.tree.map(lambda x, back: jnp.concatenate([x[None], back])[::-1], x, path)


def best_negated_starts(
    step: FlowMap, x_end: Float[Array, "cases *state"], ts: Float[Array, "times"]
) -> tuple[Float[Array, "cases *state"], int]:
    """Walk the physics back by negated increments, over as many steps of the grid as do best.

    Best is what, simulated forward, ends nearest to where it came from.
    """
    steps = ts.shape[0] - 1
    forward = jax.jit(jax.vmap(lambda x: walk(step, x, ts)))
    starts, misses = {}, {}
    for stride in (n for n in range(1, steps + 1) if steps % n == 0):
        back = jax.vmap(lambda x, n=stride: negated_walk(step, x, ts, stride=n)[0])
        starts[stride] = jax.jit(back)(x_end)
        misses[stride] = ensemble_mse(forward(starts[stride]), x_end)
    best = min(misses, key=lambda n: misses[n])
    return starts[best], best

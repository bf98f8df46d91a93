"""Paths of a flow map without noise, forward and back: the physics alone."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from smdp_jax._types import Args, FlowMap, State
from smdp_jax.evaluate import ensemble_mse

__all__ = ["best_negated_starts", "negated_walk", "walk"]


def walk(
    step: FlowMap,
    x: State,
    ts: Float[Array, "times"],
    args: Args = None,
    *,
    save: Literal["last", "all"] = "last",
) -> State:
    """Follow a flow map over a grid, without noise.

    Parameters
    ----------
    step : callable
        ``step(t0, t1, x, args)``.
    x : pytree
        State at ``ts[0]``.
    ts : array (times,)
        Times, increasing, or decreasing to walk back.
    args : pytree, optional
        Conditions.
    save : str
        What is returned: the state at the last time, or "all".

    Returns
    -------
    pytree
        Like ``x``; with "all", leaves (times, *state), the first of them ``x``.
    """

    def body(x: State, t: tuple[Array, Array]) -> tuple[State, State | None]:
        x = step(t[0], t[1], x, args)
        return x, x if save == "all" else None

    last, path = jax.lax.scan(body, x, (ts[:-1], ts[1:]))
    return last if save == "last" else _with_first(x, path)


def negated_walk(
    step: FlowMap, x: State, ts: Float[Array, "times"], args: Args = None, *, stride: int
) -> State:
    """Walk the physics back by negated increments, each over several steps of a grid.

    Parameters
    ----------
    step : callable
        ``step(t0, t1, x, args)`` for one step of the grid.
    x : pytree
        State at ``ts[-1]``.
    ts : array (times,)
        Increasing times.
    args : pytree, optional
        Conditions.
    stride : int
        Steps of the grid in one increment; divides their number.

    Returns
    -------
    pytree
        States at ``ts[::stride]``, leaves (legs + 1, *state).

    Raises
    ------
    ValueError
        If ``stride`` does not divide the number of steps.
    """
    steps = ts.shape[0] - 1
    if steps % stride:
        raise ValueError(f"stride={stride} must divide the {steps} steps of the grid")
    legs = ts[np.arange(0, steps, stride)[:, None] + np.arange(stride + 1)[None]]

    def body(x: State, leg: Array) -> tuple[State, State]:
        x = jax.tree.map(lambda x, later: 2 * x - later, x, walk(step, x, leg, args))
        return x, x

    path = _with_first(x, jax.lax.scan(body, x, legs[::-1])[1])
    return jax.tree.map(lambda x: x[::-1], path)


def best_negated_starts(
    step: FlowMap, x_end: Float[Array, "cases *state"], ts: Float[Array, "times"]
) -> tuple[Float[Array, "cases *state"], int]:
    """Walk the physics back by negated increments of the length that does best.

    All numbers of steps that divide the grid are tried; the one whose forward simulations end
    nearest to where they came from is kept.

    Parameters
    ----------
    step : callable
        ``step(t0, t1, x, args)`` for one step of the grid.
    x_end : array (cases, *state)
        States at ``ts[-1]``.
    ts : array (times,)
        Increasing times.

    Returns
    -------
    tuple (array (cases, *state), int)
        States at ``ts[0]``, and the steps of the grid in one increment.
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


def _with_first(x: State, later: PyTree) -> PyTree:
    return jax.tree.map(lambda x, later: jnp.concatenate([x[None], later]), x, later)

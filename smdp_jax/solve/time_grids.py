"""Time grids: uniform, or dense near the start."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax.checks import check_positive, check_that, check_within, concrete


def linear_grid(start: float, end: float, steps: int) -> Float[Array, "times"]:
    """Uniform time grid.

    Parameters
    ----------
    start, end : float
        First and last time, ``start < end``.
    steps : int
        Number of steps, at least 1.

    Returns
    -------
    array (steps + 1,)
        Increasing times.

    Raises
    ------
    ValueError
        If the grid would be empty or not increasing.
    """
    _check_grid_request(start, end, steps)
    return jnp.linspace(start, end, steps + 1)


def log_grid(start: float, end: float, steps: int, *, offset: float = 0.1) -> Float[Array, "times"]:
    """Time grid that is dense near ``start``: uniform in ``log(t - start + offset)``.

    Parameters
    ----------
    start, end, steps
        As for `linear_grid`.
    offset : float
        Time scale below which the steps become uniform; the smaller, the denser near ``start``.

    Returns
    -------
    array (steps + 1,)
        Increasing times.

    Raises
    ------
    ValueError
        If the grid would be empty or not increasing, or if ``offset`` is not positive.
    """
    _check_grid_request(start, end, steps)
    check_within("(0, inf)", offset=offset)
    fractions = jnp.linspace(0.0, 1.0, steps + 1)
    span = end - start
    ts = start + offset * jnp.expm1(fractions * jnp.log1p(span / offset))
    return ts.at[0].set(start).at[-1].set(end)


def between(ts: Array, t: Any) -> tuple[Array, Array]:
    """Index of the next of increasing times, and the share of the way to it; the ends outside."""
    # searchsorted is refused where devices share the work, and compiles no faster.
    i = jnp.clip(jnp.sum(ts < t), 1, ts.shape[0] - 1)
    return i, jnp.clip((t - ts[i - 1]) / (ts[i] - ts[i - 1]), 0, 1)


def variance_between(left: Array, right: Array, share: Array) -> Array:
    """Between two times: noise adds at a constant rate, decay takes a constant share."""
    falling = left * (right / jnp.where(left > 0, left, 1)) ** share
    return jnp.where(right > left, left + share * (right - left), falling)


def even(ts: Any) -> bool:
    """Tell whether all steps are the same up to rounding; traced ones are believed to be."""
    if not concrete(ts):
        return True
    times = np.asarray(ts, np.float64)
    steps, rounding = np.diff(times), 4 * float(jnp.finfo(ts.dtype).eps) * np.abs(times).max()
    return bool(steps.max() - steps.min() <= 1e-3 * steps.min() + rounding)


def _check_grid_request(start: float, end: float, steps: int) -> None:
    check_positive(steps=steps)
    check_within("(-inf, inf)", start=start)
    check_within(f"({start}, inf)", end=end)


def time_index(ts: Any, time: float, where: str, name: str = "an observation's time") -> int:
    """Index of a time in a grid; refuses what lies between or outside."""
    grid = np.asarray(ts, np.float64)
    nearest = int(np.abs(grid - time).argmin())
    hint = f"the grid goes from {grid[0]:g} to {grid[-1]:g}"
    if grid[0] <= time <= grid[-1]:
        hint = f"the nearest is {grid[nearest]:g}; add the time to the grid"
    near = abs(grid[nearest] - time) <= 1e-4 * np.diff(grid).min()
    check_that(near, f"{name} must be one of {where}, got {time:g}: {hint}")
    return nearest

"""Time grids: uniform, or dense near the start."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax.checks import check_number, check_positive, concrete

__all__ = ["even", "linear_grid", "log_grid"]


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
    if not 0 < check_number("offset", offset) < math.inf:
        raise ValueError(f"offset must be positive and finite, got {offset}")
    fractions = jnp.linspace(0.0, 1.0, steps + 1)
    span = end - start
    ts = start + offset * jnp.expm1(fractions * jnp.log1p(span / offset))
    return ts.at[0].set(start).at[-1].set(end)


def even(ts: Any) -> bool:
    """Tell whether all steps are the same up to rounding; traced ones are believed to be."""
    if not concrete(ts):
        return True
    times = np.asarray(ts, np.float64)
    steps, rounding = np.diff(times), 4 * float(jnp.finfo(ts.dtype).eps) * np.abs(times).max()
    return bool(steps.max() - steps.min() <= 1e-3 * steps.min() + rounding)


def _check_grid_request(start: float, end: float, steps: int) -> None:
    check_positive(steps=steps)
    start, end = check_number("start", start), check_number("end", end)
    if not -math.inf < start < end < math.inf:
        raise ValueError(
            f"a time grid must increase between finite times, got start={start}, end={end}"
        )

"""How far back a path gets before it leaves the range of the data."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from smdp_jax.evaluate.arrays import AnyArray, as_float

__all__ = ["reached_times"]


def reached_times(
    ts: Real[AnyArray, "_times"],
    paths: Real[AnyArray, "*_batch _times points"],
    limits: Real[AnyArray, "_times"],
) -> Float[Array, "*_batch"]:
    """Earliest time that backward paths reach with all entries, from the end on, within limits.

    Parameters
    ----------
    ts : array (times,)
        Increasing times.
    paths : array (..., times, points)
        States of paths that started at ``ts[-1]``, ordered like ``ts``.
    limits : array (times,)
        Largest absolute entry at each time that still counts as within the range of the data, in
        units of the state.

    Returns
    -------
    array (...)
        ``ts[0]`` for a path that stays within all along; ``ts[-1]`` for one that was outside (or
        not finite) one step after its start.

    Raises
    ------
    ValueError
        If the times of the arguments differ in number.
    """
    ts, paths, limits = (
        as_float(name, x) for name, x in (("ts", ts), ("paths", paths), ("limits", limits))
    )
    if not ts.shape == limits.shape == paths.shape[-2:-1]:
        raise ValueError(
            "ts, limits and the second last axis of paths must have the same length, got "
            f"{ts.shape}, {limits.shape} and {paths.shape}"
        )
    # NaN compares false: outside.
    limits = limits.reshape((1,) * (paths.ndim - 2) + limits.shape)
    inside = jnp.max(jnp.abs(paths), axis=-1) <= limits
    outside = ~inside[..., :-1]
    indices = jnp.arange(ts.shape[0] - 1)
    last = jnp.max(jnp.where(outside, indices.reshape((1,) * (outside.ndim - 1) + (-1,)), -1), -1)
    return ts[last + 1]

r"""Ramps of path score matching: how much of a path's past enters the score target.

A translation of the state at time t by eps moves every earlier state by ``phi(t') / phi(t) eps``,
phi = 0 at the start of the path. Any phi gives an unbiased target; the best has the least mean
square. A ramp is a linear operator ``rho(t0, t1, m)`` that multiplies a tree by
``phi(t0) / phi(t1)``; ``t0 < t1`` count from the start of the path.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from smdp_jax._types import Scalar, State
from smdp_jax.checks import concrete

__all__ = ["PowerRamp", "Ramp", "SinhRamp", "TableRamp", "Transform"]

Ramp = Callable[[Any, Any, Any], Any]
Transform = tuple[Callable[[Any], Any], Callable[[Any], Any]]


class PowerRamp(eqx.Module):
    """Ramp ``phi = t^power`` over the whole history.

    Parameters
    ----------
    power : float
        Positive; 2 or 3 suit scalar problems. The larger, the less of the past is used.

    Raises
    ------
    ValueError
        If ``power`` is not positive.
    """

    power: float = eqx.field(static=True, default=2.0)

    def __check_init__(self) -> None:
        if not self.power > 0:
            raise ValueError(f"PowerRamp needs a positive power, got {self.power}")

    def __call__(self, t0: Scalar, t1: Scalar, m: State) -> State:
        """Multiply ``m`` by phi(t0) / phi(t1)."""
        ratio = (t0 / t1) ** self.power
        return jax.tree.map(lambda m: jnp.asarray(ratio, m.dtype) * m, m)


class SinhRamp(eqx.Module):
    """Ramp ``phi = sinh(rate t)``: the exact transition kernel of linear decay with that rate.

    Parameters
    ----------
    rate : pytree
        Decay rates in 1 / time, at least 0: scalars, or arrays of the (transformed) state's shape,
        in a tree like the state.
    transform : tuple of callables, optional
        ``(forward, backward)`` of a linear transform of the state in which ``rate`` is diagonal,
        for example ``(jnp.fft.rfft2, jnp.fft.irfft2)``.

    Raises
    ------
    ValueError
        If a rate is negative.
    """

    rate: Any
    transform: Transform | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for leaf in jax.tree.leaves(self.rate):
            if concrete(leaf) and jnp.any(jnp.asarray(leaf) < 0):
                raise ValueError(f"SinhRamp needs rates of at least 0, got {jnp.min(leaf)}")

    def __call__(self, t0: Scalar, t1: Scalar, m: State) -> State:
        """Multiply ``m`` by phi(t0) / phi(t1)."""

        def scale(rate: Any, y: Any) -> Any:
            # sinh(rate t0) / sinh(rate t1) without overflow; t0 / t1 where the rate vanishes.
            rate = jnp.asarray(rate, jnp.result_type(t1))
            safe = jnp.maximum(rate, 1e-3 / t1)
            exact = jnp.expm1(-2 * safe * t0) / jnp.expm1(-2 * safe * t1)
            ratio = jnp.where(rate * t1 > 1e-3, jnp.exp(-safe * (t1 - t0)) * exact, t0 / t1)
            return ratio.astype(y.dtype) * y

        return _in_transform(self.transform, lambda y: jax.tree.map(scale, self.rate, y), m)


class TableRamp(eqx.Module):
    """Ramp from values of ``log phi`` on a grid, interpolated linearly in ``log t``.

    Before the first time phi is the power of t that joins the first two values.

    Parameters
    ----------
    ts : array (times,)
        Positive, increasing times, counted from the start of the path; at least 2.
    log_phi : pytree
        Leaves (times,) or (times, *transformed state), in a tree like the state.
    transform : tuple of callables, optional
        ``(forward, backward)`` of the linear transform in which phi is diagonal.
    """

    ts: Any
    log_phi: State
    transform: Transform | None = eqx.field(static=True, default=None)

    def __call__(self, t0: Scalar, t1: Scalar, m: State) -> State:
        """Multiply ``m`` by phi(t0) / phi(t1)."""
        log_ts = jnp.log(self.ts)

        def log_phi_at(table: Any, t: Scalar) -> Any:
            log_t = jnp.log(t)
            i = jnp.clip(jnp.searchsorted(log_ts, log_t) - 1, 0, log_ts.shape[0] - 2)
            slope = (table[i + 1] - table[i]) / (log_ts[i + 1] - log_ts[i]).astype(table.dtype)
            return table[i] + slope * (log_t - log_ts[i]).astype(table.dtype)

        def scale(table: Any, y: Any) -> Any:
            ratio = jnp.exp(log_phi_at(table, t0) - log_phi_at(table, t1))
            return jnp.where(t0 > 0, ratio, 0.0).astype(y.dtype) * y

        return _in_transform(self.transform, lambda y: jax.tree.map(scale, self.log_phi, y), m)


def _in_transform(transform: Transform | None, operator: Callable, m: State) -> State:
    if transform is None:
        return operator(m)
    forward, backward = transform
    return backward(operator(forward(m)))

"""Errors of point estimates, of learned scores, and the two-sided hit share of the scalar systems.

    Q = 2 min(share of paths ending at +1, share ending at -1)
    score error = sqrt(E_p |s - s*|^2 / E_p |s*|^2)

All functions are pure and act on one array at a time; use ``jax.vmap`` for batches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from smdp_jax.checks import check_holds, check_shape, check_within, concrete
from smdp_jax.evaluate.arrays import (
    AnyArray,
    AnyState,
    Number,
    as_float,
    as_pair,
    check_entries,
    check_same_shape,
)


class HitShares(NamedTuple):
    """Shares of the backward paths that end within the tolerance of each starting point.

    Parameters
    ----------
    plus, minus : array
        Of |x0 - 1| < tolerance, and of |x0 + 1| < tolerance, in [0, 1].
    """

    plus: Number
    minus: Number


def hit_shares(x0: Real[AnyArray, "*_paths"], tolerance: float = 0.1) -> HitShares:
    """Shares of paths that end at +1 and at -1.

    Parameters
    ----------
    x0 : array
        End points of backward paths at t = 0, any shape (all entries are paths), in units of the
        state.
    tolerance : float
        A path hits +-1 if it ends strictly closer than this, in units of the state; in (0, 1], as
        beyond 1 a path could hit both.

    Returns
    -------
    HitShares
        What is missing to 1 ended elsewhere. A path that is not finite hits nothing, so that a
        diverging sampler cannot look good.

    Raises
    ------
    ValueError
        If the tolerance is outside (0, 1] (beyond 1 a path could hit both), or there is no path.
    """
    check_within("(0, 1]", tolerance=tolerance)
    x0 = as_float("x0", x0)
    check_holds("x0", x0.size, 1, "path")
    share = lambda start: jnp.mean(jnp.abs(x0 - start) < tolerance, dtype=x0.dtype)
    return HitShares(plus=share(1), minus=share(-1))


def posterior_hit_metric(x0: Real[AnyArray, "*_paths"], tolerance: float = 0.1) -> Number:
    """Q = 2 min(share hitting +1, share hitting -1) (Holzschuh et al. 2023).

    1 means that every path reaches a possible starting point and both are found equally often;
    0 that one of them is never found. Q does not see a wrong scale of the score: report
    `weighted_score_error` beside it.

    Parameters
    ----------
    x0, tolerance
        As for `hit_shares`; starting points at the final time spread symmetrically about 0.

    Returns
    -------
    Float[Array, ""]
        Q in [0, 1].
    """
    shares = hit_shares(x0, tolerance)
    return 2 * jnp.minimum(shares.plus, shares.minus)


def weighted_score_error(
    score: Real[AnyArray, "_points *_state"],
    reference_score: Real[AnyArray, "_points *_state"],
    weights: Real[AnyArray, " _points"] | None = None,
) -> Number:
    """Relative L2 error of a score under a density: sqrt(E_p |s - s*|^2 / E_p |s*|^2).

    This is the square root of the Fisher divergence between the two densities, relative to the
    Fisher information of the reference (Hyvarinen 2005, eq. 2). A score of twice the right size
    has error 1, as has the score 0.

    Parameters
    ----------
    score, reference_score : array
        Learned and exact score at the same points, (points, *state), in 1 / units of the state.
    weights : array or None
        Shape (points,), non-negative, of any normalisation: density times quadrature weight where
        the points are a grid; None where the points are samples of the density itself.

    Returns
    -------
    Float[Array, ""]
        The error, dimensionless.

    Raises
    ------
    ValueError
        If the shapes do not belong together; outside jit also if a weight is negative or not
        finite, or the reference is 0 wherever there is weight (under jit the result is nan).
    """
    check_same_shape(reference_score=reference_score, score=score)
    score, reference_score = as_float("score", score), as_float("reference_score", reference_score)
    check_holds("score", score.ndim, 1, "axis, (points, *state)")
    if weights is None:
        return relative_error(score, reference_score)
    check_shape("weights", weights, score.shape[:1], ", one per point")
    weights = as_float("weights", weights)
    check_entries("[0, inf)", weights=weights)
    root = jnp.sqrt(weights).reshape(-1, *(1,) * (score.ndim - 1))
    # A grid reaches where the density is 0 and the reference overflows: such points do not count.
    pair = (jnp.where(root != 0, root * s, 0) for s in (score, reference_score))
    return relative_error(*pair)


def mse(estimate: AnyState, truth: AnyState) -> Number:
    """Mean squared difference over all entries.

    Parameters
    ----------
    estimate, truth : array
        Of one shape and unit.

    Returns
    -------
    Float[Array, ""]
        The mean of (estimate - truth)^2, in units of the state squared.

    Raises
    ------
    ValueError
        If the shapes differ, or an entry is not finite (`ensemble_mse` takes such ones; under jit
        the result is nan).
    """
    estimate, truth = as_pair(estimate, truth)
    return jnp.mean(jnp.square(estimate - truth))


def reconstruction_mse(simulated_end: AnyState, true_end: AnyState) -> Number:
    """Mean squared error of the end state that an estimate of the start leads to.

    mean (F(x0_hat) - F(x0))^2, with F the deterministic forward simulation to the final time
    (Holzschuh et al. 2023). It asks whether the estimate explains what was observed, not whether
    it is the right one of the many that do.

    Parameters
    ----------
    simulated_end, true_end : array
        F(x0_hat) and F(x0): ends of the same simulation started at the estimate and at the truth.

    Returns
    -------
    Float[Array, ""]
        In units of the state squared.

    Raises
    ------
    ValueError
        As for `mse`.
    """
    check_same_shape(true_end=true_end, simulated_end=simulated_end)
    return mse(simulated_end, true_end)


def ensemble_mse(
    estimates: Real[AnyArray, "*_estimates"], truth: Real[AnyArray, "cases *_state"]
) -> float:
    """Mean squared error of one estimate per case, or of several.

    Parameters
    ----------
    estimates, truth : array
        Of one unit, shapes (cases, *state) or (cases, samples, *state), and (cases, *state).

    Returns
    -------
    float
        In squared units; infinite if an entry is not finite, so that a simulation that blew up is
        infinitely far from the truth.

    Raises
    ------
    ValueError
        If the shapes do not fit, or there is nothing to average.
    """
    found, true = np.asarray(estimates, np.float64), np.asarray(truth, np.float64)
    check_holds("estimates", found.size, 1, "number")
    one_each = found if found.ndim == true.ndim else found[:, 0]
    check_same_shape(estimates=one_each, truth=true)
    square = np.square(found - (true if true.ndim == found.ndim else true[:, None]))
    return float(np.mean(np.where(np.isfinite(square), square, np.inf)))


def rmse(estimate: AnyState, truth: AnyState) -> Number:
    """Root of the mean squared difference over all entries.

    Parameters
    ----------
    estimate, truth
        As for `mse`.

    Returns
    -------
    Float[Array, ""]
        In units of the state.

    Raises
    ------
    ValueError
        As for `mse`.
    """
    return jnp.sqrt(mse(estimate, truth))


def relative_error(estimate: AnyState, truth: AnyState) -> Number:
    """|estimate - truth| / |truth|, in the Euclidean norm over all entries.

    Parameters
    ----------
    estimate, truth
        As for `mse`.

    Returns
    -------
    Float[Array, ""]
        The error, dimensionless.

    Raises
    ------
    ValueError
        If the shapes differ, an entry is not finite, or ``truth`` is 0 everywhere (seen outside
        jit only; under jit the result is nan).
    """
    estimate, truth = as_pair(estimate, truth)
    if concrete(truth) and not np.any(np.asarray(truth)):
        raise ValueError("truth must not be 0 everywhere, to be relative to, got only zeros")
    # Scaled by the largest entry, so that the squares of large scores do not overflow float32.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(truth)))
    error = jnp.sum(jnp.square((estimate - truth) / scale))
    return jnp.sqrt(error / jnp.sum(jnp.square(truth / scale)))


def reached_times(
    ts: Real[AnyArray, "_times"],
    paths: Real[AnyArray, "*_batch _times points"],
    limits: Real[AnyArray, "_times"],
) -> Float[Array, "*_batch"]:
    """Earliest time that backward paths reach with all entries, from the end on, within limits.

    Parameters
    ----------
    ts, paths : array (times,), array (..., times, points)
        Increasing times, and states of paths that started at ``ts[-1]``, ordered like ``ts``.
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
    ts, paths, limits = as_float("ts", ts), as_float("paths", paths), as_float("limits", limits)
    check_same_shape(ts=ts, limits=limits)
    want = (*paths.shape[:-2], *ts.shape)
    check_shape("paths without points", paths[..., 0], want, ", one entry per time of ts")
    # Entry by entry: a maximum of many numbers forgets NaN where XLA splits it between CPU cores.
    limits = limits.reshape((1,) * (paths.ndim - 2) + (-1, 1))
    outside = ~(jnp.abs(paths) <= limits).all(axis=-1)[..., :-1]
    indices = jnp.arange(ts.shape[0] - 1).reshape((1,) * (outside.ndim - 1) + (-1,))
    return ts[jnp.max(jnp.where(outside, indices, -1), -1) + 1]

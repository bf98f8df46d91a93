"""Scores of ensembles: continuous ranked probability score, energy score, spread and skill.

    CRPS = E|X - y| - 1/2 E|X - X'|,      ES = E|X - y|_2 - 1/2 E|X - X'|_2

X, X' independent draws of the forecast, y the truth (Gneiting & Raftery 2007, eqs. 21 and 22).
Both are proper scores: on average over truths, the true posterior has the smallest value.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Real

from smdp_jax.checks import check_choice, check_holds
from smdp_jax.evaluate.arrays import (
    AnyArray,
    AnyState,
    Truths,
    as_cases,
    as_ensemble,
    as_float,
    check_entries,
)

Estimator = Literal["fair", "standard"]
"""How E|X - X'| is estimated: over the pairs of different members, or over all pairs."""


def _pair_factor(members: int, estimator: Estimator) -> float:
    """1 / number of ordered pairs that the estimator averages over."""
    check_choice("estimator", estimator, "fair", "standard")
    if estimator == "standard":
        return 1.0 / members**2
    check_holds("samples", members, 2, 'members (estimator="standard" takes one)')
    return 1.0 / (members * (members - 1))


def crps_ensemble(
    samples: Real[AnyArray, "_members *_state"], truth: AnyState, estimator: Estimator = "fair"
) -> Float[Array, "*_state"]:
    """Continuous ranked probability score of an ensemble, for every entry of the state.

    Costs O(members log members): for sorted members x_(1) <= ... <= x_(M),
    sum_ij |x_i - x_j| = 2 sum_i (2 i - M - 1) x_(i).

    Parameters
    ----------
    samples, truth : array
        Ensemble (members, *state) and true state (*state), in units of the state.
    estimator : "fair" or "standard"
        "fair" is unbiased for the score of the distribution that the members are drawn from,
        whatever their number (Ferro et al. 2008), and may be slightly negative; "standard" is the
        score of the ensemble's own empirical distribution, and favours narrow ensembles.

    Returns
    -------
    Float[Array, "*_state"]
        Score of each entry, in units of the state; smaller is better. One member and "standard":
        the absolute error.

    Raises
    ------
    ValueError
        If the shapes do not belong together, there are too few members for the estimator, or a
        member is not finite (seen outside jit only; under jit the entry's score is nan).
    """
    samples, truth = as_ensemble(samples, truth)
    members = samples.shape[0]
    factor = _pair_factor(members, estimator)
    # Relative to the truth, so that a large common offset does not cost digits.
    ordered = jnp.sort(samples - truth[None], axis=0)
    ranks = jnp.arange(1, members + 1, dtype=ordered.dtype)
    ranks = ranks.reshape(members, *(1,) * truth.ndim)
    spread = factor * jnp.sum((2 * ranks - (members + 1)) * ordered, axis=0)
    return jnp.mean(jnp.abs(ordered), axis=0) - spread


def crps_gaussian(mean: AnyState, std: AnyState, truth: AnyState) -> Float[Array, "*_state"]:
    """Continuous ranked probability score of a normal distribution, in closed form.

    std (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)), z = (truth - mean) / std (Gneiting & Raftery
    2007, section 4.2); its mean over truths drawn from the same normal is std / sqrt(pi): the best
    value that an ensemble can reach where the posterior is Gaussian.

    Parameters
    ----------
    mean, std, truth : array
        Arrays that broadcast together, in units of the state; ``std`` > 0.

    Returns
    -------
    Float[Array, "*_state"]
        In units of the state; smaller is better.

    Raises
    ------
    ValueError
        If a standard deviation is not positive (seen outside jit only; under jit the result is
        nan there).
    """
    mean, truth, std = as_float("mean", mean), as_float("truth", truth), as_float("std", std)
    check_entries("(0, inf]", std=std)
    std = jnp.where(std > 0, std, jnp.nan)
    z = (truth - mean) / std
    return std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - jnp.pi**-0.5)


def _norm(x: Float[Array, "points entries"]) -> Float[Array, " points"]:
    """Euclidean norm of each row, with gradient 0 (not nan) at 0; nan stays nan."""
    squared = jnp.sum(jnp.square(x), axis=-1)
    zero = squared == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squared)))


def energy_score(
    samples: Real[AnyArray, "_members *_state"], truth: AnyState, estimator: Estimator = "fair"
) -> Float[Array, ""]:
    """Energy score of an ensemble of whole states, in the Euclidean norm over all entries.

    Unlike the mean CRPS of the entries it also sees how they vary together. For a state of one
    entry it is the CRPS. Costs members^2 times entries; memory stays at one ensemble.

    Parameters
    ----------
    samples, truth, estimator
        As for `crps_ensemble`.

    Returns
    -------
    Float[Array, ""]
        In units of the state; smaller is better.

    Raises
    ------
    ValueError
        As for `crps_ensemble`.
    """
    samples, truth = as_ensemble(samples, truth)
    members = samples.shape[0]
    factor = _pair_factor(members, estimator)
    errors = (samples - truth[None]).reshape(members, -1)
    pairs = jax.lax.map(lambda member: jnp.sum(_norm(errors - member[None])), errors)
    return jnp.mean(_norm(errors)) - 0.5 * factor * jnp.sum(pairs)


class SpreadSkill(NamedTuple):
    """Spread of ensembles against the error of their means, over many cases.

    Parameters
    ----------
    spread, skill, ratio : array
        Root of the mean ensemble variance (unbiased), and root mean squared error of the ensemble
        mean, in units of the state; spread / skill, corrected for the number of members: 1 if
        calibrated, below if too sure.
    """

    spread: Float[Array, ""]
    skill: Float[Array, ""]
    ratio: Float[Array, ""]


def spread_skill(truths: Truths, samples: Real[AnyArray, "_cases _members *_state"]) -> SpreadSkill:
    """Spread and skill of ensembles, pooled over cases and entries.

    A calibrated ensemble of M members has E skill^2 = (1 + 1/M) E spread^2 (Fortin et al. 2014),
    so ratio = sqrt(1 + 1/M) spread / skill tends to 1.

    Parameters
    ----------
    truths, samples : array
        True states (cases, *state), and the ensemble of each, (cases, members, *state), at least 2
        members; in units of the state.

    Returns
    -------
    SpreadSkill
        Three numbers.

    Raises
    ------
    ValueError
        If the shapes do not belong together, there is one member only, or a truth or a member is
        not finite (which cases).
    """
    truths, samples = as_cases(truths, samples)
    check_holds("samples", members := samples.shape[1], 2, "members for a spread")
    spread = jnp.sqrt(jnp.mean(jnp.var(samples, axis=1, ddof=1)))
    skill = jnp.sqrt(jnp.mean(jnp.square(jnp.mean(samples, axis=1) - truths)))
    return SpreadSkill(spread, skill, (1 + 1 / members) ** 0.5 * spread / skill)

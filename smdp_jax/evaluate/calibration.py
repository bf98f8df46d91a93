"""Does a posterior mean what it says? Ranks over simulated pairs (x0, observation).

For every case draw x0 from the prior, simulate an observation, and draw L posterior samples. If the
posterior is right, truth and samples are exchangeable, so the rank of the truth among them, in any
order, is uniform on 0 ... L. Two orders are offered:

    SBC     the entry itself (Talts et al. 2018): one test for every entry of the state
    TARP    distance to a random reference point (Lemos et al. 2023): one test of the joint law

and four readings of the ranks: a chi-squared test, a band for their cumulative shares, coverage of
central intervals, and the expected coverage curve. A rank that is uniform does not prove the
posterior right: the prior itself passes. Under ``jit`` a case with a lost (NaN) draw has the rank
-1, which every reading turns into NaN.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaincc
from jaxtyping import Array, Float, Int, Key, Real

from smdp_jax.checks import check_holds, check_positive, check_within, concrete, finite_rows
from smdp_jax.evaluate.arrays import (
    AnyArray,
    Draws,
    Truths,
    as_cases,
    as_float,
    as_levels,
    check_none_lost,
    check_same_shape,
)
from smdp_jax.scores.verdict import within


def sbc_ranks(
    truths: Truths, samples: Draws, *, key: Key[Array, ""] | None = None
) -> Int[Array, "_cases *_state"]:
    """Rank of each true entry among its posterior draws (Talts et al. 2018, algorithm 1).

    Parameters
    ----------
    truths, samples : array
        States drawn from the prior, (cases, *state), and independent posterior draws for the
        observation made from each, (cases, draws, *state). Thin correlated chains first.
    key : key or None
        Breaks ties at random: needed where the state is discrete, or ranks are not uniform.
        Without it a draw equal to the truth counts as not below it.

    Returns
    -------
    Int[Array, "_cases *_state"]
        Number of draws below the truth, from 0 to draws; lost draws are refused. Low ranks:
        posterior too high. Peaked in the middle: too wide; at both ends: too narrow.
    """
    truths, samples = as_cases(truths, samples)
    return _ranks(truths, samples, key, finite_rows((truths, samples)))


def _ranks(truths: Array, samples: Array, key: Key[Array, ""] | None, finite: Array) -> Array:
    """Draws below the truth, plus a random share of those equal to it; -1 where one is lost."""
    below = jnp.sum(samples < truths[:, None], axis=1)
    if key is not None:
        equal = jnp.sum(samples == truths[:, None], axis=1)
        below += jax.random.randint(key, below.shape, 0, equal + 1, dtype=below.dtype)
    return jnp.where(finite.reshape(-1, *(1,) * (below.ndim - 1)), below, -1)


def tarp_ranks(
    truths: Truths, samples: Draws, *, key: Key[Array, ""], references: Truths | None = None
) -> Int[Array, " _cases"]:
    """Rank of each truth by distance to a random reference point (Lemos et al. 2023).

    Distances are Euclidean over all entries, each divided by its standard deviation over the
    truths. The result is a test of the joint posterior; with references that ignore the
    observation, a posterior equal to the prior still passes. To catch that too, give references
    that depend on the observation.

    Parameters
    ----------
    truths, samples
        As for `sbc_ranks`.
    key, references : key, array or None
        Draws the references and breaks ties; reference points, shape (cases, *state), chosen
        without looking at truth or samples, by default uniform in the box that holds all truths.

    Returns
    -------
    Int[Array, " _cases"]
        Number of draws closer to the reference than the truth is, from 0 to draws.

    Raises
    ------
    ValueError
        If a truth or a draw is not finite (which cases), or all truths are the same.
    """
    truths, samples = as_cases(truths, samples)
    key_reference, key_ties = jax.random.split(key)
    if references is None:
        low, high = jnp.min(truths, axis=0), jnp.max(truths, axis=0)
        unit = jax.random.uniform(key_reference, truths.shape, truths.dtype)
        references = low[None] + (high - low)[None] * unit
    check_same_shape(truths=truths, references=references)
    references = as_float("references", references)
    check_none_lost(references=references)
    if len(truths) > 1 and concrete(truths) and np.all(np.ptp(np.asarray(truths), axis=0) == 0):
        raise ValueError("truths must differ, got the same state in all cases")
    scale = jnp.std(truths, axis=0)
    scale = jnp.where(scale > 0, scale, 1)

    def squared_distances(case, reference):
        # case: (points, *state). Squares order points as distances do.
        entries = ((case - reference[None]) / scale[None]).reshape(case.shape[0], -1)
        return jnp.sum(jnp.square(entries), axis=-1)

    of_samples = jax.vmap(squared_distances)(samples, references)
    of_truths = jax.vmap(squared_distances)(truths[:, None], references)[:, 0]
    return _ranks(of_truths, of_samples, key_ties, finite_rows((truths, samples)))


class UniformityTest(NamedTuple):
    """Chi-squared test that ranks are uniform.

    Parameters
    ----------
    statistic, p_value : array
        Sum over bins of (count - expected)^2 / expected, and the chance of one at least as large if
        the ranks are uniform.
    """

    statistic: Float[Array, "*entries"]
    p_value: Float[Array, "*entries"]


def uniformity_test(
    ranks: Int[AnyArray, "_cases *entries"], num_draws: int, *, bins: int | None = None
) -> UniformityTest:
    """Chi-squared test of uniform ranks, for every entry on its own.

    With many entries some p-values are small by chance: compare the smallest with
    (accepted false-alarm rate) / entries.

    Parameters
    ----------
    ranks, num_draws : array, int
        From `sbc_ranks` or `tarp_ranks`, shape (cases, *entries); posterior draws per case, L.
    bins : int or None
        Number of bins, from 2 to L + 1; by default as many as leave 10 cases per bin, at most 20.
        They need not divide L + 1: the expected counts are those of the ranks in each bin.

    Returns
    -------
    UniformityTest
        ``statistic`` and ``p_value``, shape (*entries); chi-squared with bins - 1 degrees of
        freedom, good once every bin expects 5 cases or more.

    Raises
    ------
    ValueError
        If ranks are not whole numbers in 0 ... num_draws, ``bins`` is out of range, or a bin
        expects fewer than 5 cases.
    """
    ranks = _as_ranks(ranks, num_draws)
    cases = ranks.shape[0]
    if bins is None:
        bins = min(num_draws + 1, 20, max(2, cases // 10))
    check_within(f"[2, {num_draws + 1}]", bins=bins)
    bin_of_rank = np.arange(num_draws + 1) * bins // (num_draws + 1)
    share = np.bincount(bin_of_rank, minlength=bins) / (num_draws + 1)
    fewest = int(np.ceil(5 / share.min()))
    check_holds("ranks", cases, fewest, f"cases, so that each of {bins} bins expects 5")
    binned = jnp.asarray(bin_of_rank)[ranks]
    counts = jnp.sum(binned[None] == jnp.arange(bins).reshape(-1, *(1,) * ranks.ndim), axis=1)
    dtype = jnp.result_type(float)
    expected = jnp.asarray(cases * share, dtype).reshape(-1, *(1,) * (ranks.ndim - 1))
    statistic = jnp.sum(jnp.square(counts.astype(dtype) - expected) / expected, axis=0)
    statistic = jnp.where(jnp.all(_in_range(ranks, num_draws), axis=0), statistic, jnp.nan)
    return UniformityTest(statistic, gammaincc(0.5 * (bins - 1), 0.5 * statistic))


def _in_range(ranks: Any, num_draws: int) -> Any:
    return (ranks >= 0) & (ranks <= num_draws)


def _as_ranks(ranks: Any, num_draws: int) -> Array:
    """Ranks (cases, *entries), each one of 0 ... num_draws."""
    if not jnp.issubdtype(jnp.result_type(ranks), jnp.integer):
        raise ValueError(f"ranks must be whole numbers, got {jnp.result_type(ranks)}")
    check_positive(num_draws=num_draws)
    check_holds("ranks", ranks.shape[0] if ranks.ndim else 0, 1, "case")
    seen = np.asarray(ranks if concrete(ranks) else 0)
    if (wrong := seen[~_in_range(seen, num_draws)]).size:
        lost = ": a case with a lost draw" if wrong[0] == -1 else ""
        raise ValueError(f"ranks must be in [0, num_draws={num_draws}], got {wrong[0]}{lost}")
    return jnp.asarray(ranks)


def expected_coverage(
    ranks: Int[AnyArray, " _cases"], num_draws: int, levels: Real[AnyArray, " _levels"]
) -> Float[Array, " _levels"]:
    """Expected coverage curve of TARP: share of cases whose truth lies in the region of each level.

    The region of level a is the ball around the reference that holds a share a of the posterior.
    Calibrated: coverage = level. Above the diagonal at high levels and below at low ones: too
    wide; the other way round: too narrow, or biased (with references on all sides a bias counts
    for and against equally often, so that `sbc_ranks` sees it sooner).

    Parameters
    ----------
    ranks, num_draws, levels
        From `tarp_ranks`, shape (cases,); posterior draws per case, L; credibility levels in
        [0, 1], shape (levels,).

    Returns
    -------
    Float[Array, " _levels"]
        Coverage in [0, 1], granular to 1 / (L + 1), with standard error
        sqrt(level (1 - level) / cases) if calibrated.
    """
    ranks, levels = _as_ranks(ranks, num_draws), as_levels(levels)
    # Centres of L + 1 equal cells of (0, 1).
    positions = (ranks.astype(jnp.result_type(float)) + 0.5) / (num_draws + 1)
    shares = jnp.mean(positions[None, :] <= levels[:, None], axis=1, dtype=levels.dtype)
    return jnp.where(jnp.all(_in_range(ranks, num_draws)), shares, jnp.nan)


def marginal_coverage(
    truths: Truths,
    samples: Draws,
    levels: Real[AnyArray, " _levels"],
    *,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "_levels *_state"]:
    """Share of cases whose true entry lies in the central interval of each level.

    Intervals are bounded by ranks rather than by estimated quantiles, which would make them too
    short for few draws.

    Parameters
    ----------
    truths, samples
        As for `sbc_ranks`.
    levels, key : array, key or None
        Nominal probabilities in [0, 1], shape (levels,); breaks ties, as in `sbc_ranks`.

    Returns
    -------
    Float[Array, "_levels *_state"]
        Coverage in [0, 1], granular to 1 / (draws + 1); above the level: intervals too wide, below:
        too narrow or misplaced.
    """
    levels, ranks = as_levels(levels), sbc_ranks(truths, samples, key=key)
    inside = jnp.asarray(within(samples.shape[1], levels))[:, ranks]
    shares = jnp.mean(inside, axis=1, dtype=levels.dtype)
    return jnp.where(jnp.all(ranks >= 0, axis=0)[None], shares, jnp.nan)

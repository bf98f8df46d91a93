"""Calibration tools on a Gaussian posterior in closed form, and on deliberately broken ones.

Prior x0 ~ N(0, 1) per entry, observation y = x0 + noise of variance v. Exact posterior:
N(y / (1 + v), v / (1 + v)).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from smdp_jax import evaluate

CASES, DRAWS, ENTRIES = 1000, 39, 2
tarp_ranks = jax.jit(evaluate.tarp_ranks)
sbc_ranks = jax.jit(evaluate.sbc_ranks)
uniformity_test = jax.jit(evaluate.uniformity_test, static_argnames=("num_draws", "bins"))
LEVELS = jnp.linspace(0.1, 0.9, 9)


def simulated_pairs(
    seed: int, bias: float = 0.0, width: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Truths (cases, entries), and draws (cases, draws, entries) of a distorted posterior."""
    rng = np.random.default_rng(seed)
    variance = 0.5
    truths = rng.standard_normal((CASES, ENTRIES), np.float32)
    observed = truths + variance**0.5 * rng.standard_normal(truths.shape, np.float32)
    std = (variance / (1 + variance)) ** 0.5
    noise = rng.standard_normal((CASES, DRAWS, ENTRIES), np.float32)
    return truths, observed[:, None] / (1 + variance) + std * (bias + width * noise)


BROKEN = {
    "biased": {"bias": 0.4},
    "too wide": {"width": 1.6},
    "too narrow": {"width": 0.6},
}


@pytest.mark.slow
def test_exact_posterior_passes_everything() -> None:
    truths, samples = simulated_pairs(0)
    ranks = sbc_ranks(truths, samples)
    assert ranks.shape == (CASES, ENTRIES)
    # Two entries and TARP: three p-values above 1e-4, false-alarm rate 3e-4.
    assert jnp.all(uniformity_test(ranks, DRAWS).p_value > 1e-4)
    tarp = tarp_ranks(truths, samples, key=jax.random.key(9))
    assert uniformity_test(tarp, DRAWS).p_value > 1e-4
    coverage = evaluate.marginal_coverage(truths, samples, LEVELS)
    assert coverage.shape == (9, ENTRIES)
    # Binomial standard error below 0.016, granularity 1/40; 4 standard errors each, 27 figures:
    # false-alarm rate below 2e-3.
    np.testing.assert_allclose(coverage, np.tile(LEVELS[:, None], (1, 2)), atol=0.09)
    np.testing.assert_allclose(evaluate.expected_coverage(tarp, DRAWS, LEVELS), LEVELS, atol=0.09)


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_posteriors_are_caught(fault: str) -> None:
    truths, samples = simulated_pairs(1, **BROKEN[fault])
    ranks = sbc_ranks(truths, samples)
    # A right posterior is called broken at a rate of 1e-6 here.
    assert jnp.all(uniformity_test(ranks, DRAWS).p_value < 1e-6)
    # With references on all sides TARP is slower to see a bias: a larger one.
    truths, samples = simulated_pairs(1, **{**BROKEN, "biased": {"bias": 1.0}}[fault])
    tarp = tarp_ranks(truths, samples, key=jax.random.key(9))
    assert uniformity_test(tarp, DRAWS).p_value < 1e-6


def test_direction_of_the_fault_is_readable() -> None:
    def readings(**fault: float) -> tuple[jax.Array, jax.Array, jax.Array]:
        truths, samples = simulated_pairs(2, **fault)
        tarp = tarp_ranks(truths, samples, key=jax.random.key(3))
        return (
            jnp.mean(sbc_ranks(truths, samples).astype(jnp.float32)) / DRAWS,
            evaluate.marginal_coverage(truths, samples, LEVELS)[4, 0],
            evaluate.expected_coverage(tarp, DRAWS, LEVELS),
        )

    # Standard errors of a calibrated posterior: 0.0065 for the mean rank of 2000 entries, 0.016 and
    # 0.0095 for coverage at the levels 0.5 and 0.1. Each reading has to lie 3 of them on its side,
    # which a calibrated posterior does at a rate of 1e-3. Mean ranks stay centred to 4 times 0.011,
    # the standard error of ranks all at the ends, the worst case (false-alarm rate below 6e-5).
    rank, _, _ = readings(bias=0.4)
    assert rank < 0.5 - 3 * 0.0065
    rank, half, curve = readings(width=1.6)
    assert abs(rank - 0.5) < 4 * 0.011
    assert half > 0.5 + 3 * 0.016
    assert curve[0] < 0.1 - 3 * 0.0095
    assert curve[-1] > 0.9 + 3 * 0.0095
    rank, half, curve = readings(width=0.6)
    assert abs(rank - 0.5) < 4 * 0.011
    assert half < 0.5 - 3 * 0.016
    assert curve[0] > 0.1 + 3 * 0.0095
    assert curve[-1] < 0.9 - 3 * 0.0095


def test_closed_form_coverage_of_a_narrow_posterior() -> None:
    # Without an observation: draws N(0, w^2) against truths N(0, 1); the central interval at
    # level a holds the truth with probability 2 Phi(w z) - 1, z the normal quantile of (1 + a) / 2.
    width, cases, draws = 0.5, 4000, 199
    rng = np.random.default_rng(4)
    truths = rng.standard_normal((cases,), np.float32)
    samples = width * rng.standard_normal((cases, draws), np.float32)
    coverage = evaluate.marginal_coverage(truths, samples, LEVELS)
    exact = 2 * stats.norm.cdf(width * stats.norm.ppf((1 + np.asarray(LEVELS)) / 2)) - 1
    # Standard error below 0.008, granularity 1/200: 0.04 is 4.4 of them, false-alarm rate 1e-4.
    np.testing.assert_allclose(coverage, exact, atol=0.04)


def test_ties_are_broken_by_the_key() -> None:
    # Discrete prior and posterior, both fair coins: only randomised ranks are uniform.
    rng = np.random.default_rng(5)
    truths = np.sign(rng.standard_normal((CASES,), np.float32))
    samples = np.sign(rng.standard_normal((CASES, DRAWS), np.float32))
    plain = sbc_ranks(truths, samples)
    broken = sbc_ranks(truths, samples, key=jax.random.key(2))
    assert uniformity_test(plain, DRAWS).p_value < 1e-6
    assert uniformity_test(broken, DRAWS).p_value > 1e-4  # false-alarm rate 1e-4
    assert broken.min() >= 0
    assert broken.max() <= DRAWS


def test_tarp_sees_a_wrong_dependence_that_marginals_miss() -> None:
    # Truths correlated 0.9; draws with the right marginals, correlated -0.9.
    rng = np.random.default_rng(6)
    first, second = rng.standard_normal((2, CASES), np.float32)
    truths = np.stack([first, 0.9 * first + 0.19**0.5 * second], axis=1)
    first, second = rng.standard_normal((2, CASES, DRAWS), np.float32)
    samples = np.stack([first, 0.19**0.5 * second - 0.9 * first], axis=2)
    ranks = sbc_ranks(truths, samples)
    assert jnp.all(uniformity_test(ranks, DRAWS).p_value > 1e-4)  # false-alarm rate 2e-4
    tarp = tarp_ranks(truths, samples, key=jax.random.key(2))
    assert uniformity_test(tarp, DRAWS).p_value < 1e-6


def test_references_that_see_the_observation_catch_the_prior() -> None:
    # Draws from the prior ignore the observation: calibrated, useless, and seen only this way.
    rng = np.random.default_rng(7)
    truths = rng.standard_normal((CASES, 1), np.float32)
    observed = truths + 0.1 * rng.standard_normal(truths.shape, np.float32)
    samples = rng.standard_normal((CASES, DRAWS, 1), np.float32)
    key = jax.random.key(8)
    blind = tarp_ranks(truths, samples, key=key)
    assert uniformity_test(blind, DRAWS).p_value > 1e-4  # false-alarm rate 1e-4
    seeing = tarp_ranks(truths, samples, key=key, references=observed)
    assert uniformity_test(seeing, DRAWS).p_value < 1e-6


def test_uniformity_test_is_scipys_chi_square() -> None:
    ranks = np.random.default_rng(0).integers(0, 31, size=500)
    result = uniformity_test(ranks, 30, bins=7)
    bins = np.arange(31) * 7 // 31
    counts = np.bincount(bins[ranks], minlength=7)
    expected = 500 * np.bincount(bins) / 31
    reference = stats.chisquare(counts, expected)
    np.testing.assert_allclose(result.statistic, reference.statistic, rtol=1e-4)
    np.testing.assert_allclose(result.p_value, reference.pvalue, rtol=1e-4)


def test_uniformity_test_has_its_stated_false_alarm_rate() -> None:
    ranks = np.random.default_rng(1).integers(0, DRAWS + 1, (400, 2000))
    p_values = uniformity_test(ranks, DRAWS).p_value
    assert p_values.shape == (2000,)
    # 2000 independent tests at 5 %: standard error 0.0049; 4 of them, false-alarm rate 6e-5,
    # and 0.005 for the chi-squared approximation.
    assert abs(jnp.mean(p_values < 0.05) - 0.05) < 0.025


def test_tarp_depends_on_its_key_only_through_references() -> None:
    truths, samples = simulated_pairs(3)
    ranks = [tarp_ranks(truths, samples, key=jax.random.key(k)) for k in (0, 0, 1)]
    np.testing.assert_array_equal(ranks[0], ranks[1])
    assert jnp.any(ranks[0] != ranks[2])
    # Units do not matter: each entry is scaled by its spread over the truths.
    scale = np.array([[4.0, 0.25]], np.float32)
    scaled = tarp_ranks(truths * scale, samples * scale[None], key=jax.random.key(0))
    assert np.mean(scaled == ranks[0]) > 0.99


def test_bad_inputs() -> None:
    truths, samples = jnp.ones((4, 2)), jnp.ones((4, 5, 2))
    with pytest.raises(ValueError, match=r"samples must have shape \(4, 5, 2\)"):
        evaluate.sbc_ranks(truths, samples[:3])
    with pytest.raises(ValueError, match="beside those of truths"):
        evaluate.sbc_ranks(truths, samples[:, 0])
    with pytest.raises(ValueError, match="1 case and 1 draw"):
        evaluate.sbc_ranks(truths, samples[:, :0])
    with pytest.raises(ValueError, match=r"references must have .*, the shape of truths"):
        evaluate.tarp_ranks(truths, samples, key=jax.random.key(0), references=jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"bins must be in \[2, 6\], got 7"):
        evaluate.uniformity_test(jnp.zeros(4, jnp.int32), 5, bins=7)
    with pytest.raises(ValueError, match="at least 1 case"):
        evaluate.uniformity_test(jnp.zeros(0, jnp.int32), 5)
    same = np.ones((40, 3), np.float32)
    with pytest.raises(ValueError, match="truths must differ"):
        evaluate.tarp_ranks(same, same[:, None], key=jax.random.key(0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_lost_draws_are_refused_with_their_cases(value: float) -> None:
    truths, samples = simulated_pairs(11)
    samples[[4, 17, 17, 31], [0, 3, 3, 38], [1, 0, 1, 0]] = value
    wrong_truths = np.where(np.arange(CASES)[:, None] == 7, value, truths).astype(np.float32)
    key = jax.random.key(0)
    for tool in (
        evaluate.sbc_ranks,
        lambda t, s: evaluate.tarp_ranks(t, s, key=key),
        lambda t, s: evaluate.marginal_coverage(t, s, LEVELS),
        evaluate.spread_skill,
    ):
        with pytest.raises(
            ValueError, match=r"got 3 lost of 39000 in 3 of 1000 cases \(4, 17, 31\)"
        ):
            tool(truths, samples)
        with pytest.raises(ValueError, match=r"truths must be finite, .* 1 of 1000 cases \(7\)"):
            tool(wrong_truths, np.zeros_like(samples))


def test_lost_draws_under_jit_give_no_figure() -> None:
    truths, samples = simulated_pairs(12)
    samples[3, 2] = np.nan
    ranks = sbc_ranks(truths, samples)
    tarp = tarp_ranks(truths, samples, key=jax.random.key(0))
    assert jnp.all(ranks[3] == -1)
    assert tarp[3] == -1
    assert ranks.min(axis=0).tolist() == [-1, -1]
    assert jnp.sum(ranks < 0) == 2
    assert jnp.isnan(uniformity_test(ranks, DRAWS).p_value).all()
    for reading in (
        jax.jit(evaluate.marginal_coverage)(truths, samples, LEVELS),
        jax.jit(evaluate.expected_coverage, static_argnums=1)(tarp, DRAWS, LEVELS),
    ):
        assert jnp.isnan(reading).all()
    with pytest.raises(ValueError, match="got -1: a case with a lost draw"):
        evaluate.uniformity_test(ranks, DRAWS)


def test_ranks_and_levels_out_of_range_are_refused() -> None:
    good = np.arange(40) % 11
    for bad in (11, 250, -2):
        ranks = np.where(np.arange(40) == 9, bad, good)
        with pytest.raises(ValueError, match=rf"ranks must be in .0, num_draws=10., got {bad}"):
            evaluate.uniformity_test(ranks, 10)
        with pytest.raises(ValueError, match=rf"got {bad}"):
            evaluate.expected_coverage(ranks, 10, LEVELS)
    with pytest.raises(ValueError, match=r"levels must be in \[0, 1\]"):
        evaluate.expected_coverage(good, 10, jnp.array([0.5, 50.0]))
    truths, samples = simulated_pairs(0)
    with pytest.raises(ValueError, match=r"levels must be in \[0, 1\]"):
        evaluate.marginal_coverage(truths, samples, jnp.array([-0.1]))
    with pytest.raises(ValueError, match="at least 50 cases, so that each of 10 bins expects 5"):
        evaluate.uniformity_test(np.arange(40) % 10, 9, bins=10)


@pytest.mark.slow
def test_whole_numbered_levels_and_states_are_not_rounded() -> None:
    rng = np.random.default_rng(13)
    truths, samples = rng.integers(0, 9, (60,)), rng.integers(0, 9, (60, 19))
    key = jax.random.key(1)
    for tool in (
        lambda t, s: evaluate.sbc_ranks(t, s, key=key),
        lambda t, s: evaluate.tarp_ranks(t, s, key=key),
        lambda t, s: evaluate.marginal_coverage(t, s, LEVELS, key=key),
    ):
        as_floats = tool(truths.astype(np.float32), samples.astype(np.float32))
        np.testing.assert_allclose(tool(truths, samples), as_floats)
    coverage = evaluate.marginal_coverage(truths, samples, np.array([0, 1]), key=key)
    assert coverage.dtype == jnp.float32
    np.testing.assert_allclose(coverage, [0, 1])


@pytest.mark.parametrize(("cases", "draws"), [(60, 19), (300, 39)])
def test_rank_band_holds_uniform_ranks_at_its_level(cases: int, draws: int) -> None:
    band = evaluate.rank_band(cases, draws, level=0.9)
    counts = np.random.default_rng(14).multinomial(cases, [1 / (draws + 1)] * (draws + 1), 4000)
    shares = counts.cumsum(axis=1)[:, :-1] / cases
    inside = np.all((shares >= band.low - 1e-9) & (shares <= band.high + 1e-9), axis=1).mean()
    # Two sets of 4000 at 90 %: standard error 0.0067; 4 of them, false-alarm rate 6e-5, and what
    # whole numbers leave on the safe side.
    assert 0.9 - 0.027 < inside < 0.9 + 0.04
    middle = draws // 2
    tight = stats.binom(cases, band.expected[middle])
    assert band.low[middle] * cases <= tight.ppf(0.05)
    assert band.high[middle] * cases >= tight.ppf(0.95)
    narrow = np.round(draws * (0.5 + 0.25 * (np.arange(cases) / cases - 0.5))).astype(int)
    found = np.bincount(narrow, minlength=draws + 1).cumsum()[:-1] / cases
    assert np.any((found < band.low) | (found > band.high))
    with pytest.raises(ValueError, match="level must be in"):
        evaluate.rank_band(cases, draws, level=1.0)


def broken(seed: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Truths (cases, 2) with correlated entries; draws of the posterior, right or made wrong."""
    rng = np.random.default_rng(seed)
    cases, draws, mix = 400, 39, np.array([[1.0, 0.0], [0.95, 0.0975**0.5]])
    centres = 0.3 * rng.standard_normal((cases, 2))
    truths = centres + rng.standard_normal((cases, 2)) @ mix.T
    noise = rng.standard_normal((cases, draws, 2)) @ mix.T
    if kind == "right marginals":
        noise[..., 1] *= -1
    shift, width = {"shifted": (1.0, 1), "wide": (0, 1.7), "narrow": (0, 0.6)}.get(kind, (0, 1))
    samples = centres[:, None] + shift + width * noise
    return truths.astype(np.float32), samples.astype(np.float32)


SEEN_BY = {
    "shifted": {"sbc", "band", "coverage"},  # TARP is slower to
    "wide": {"sbc", "band", "coverage", "tarp"},
    "narrow": {"sbc", "band", "coverage", "tarp"},
    "right marginals": {"tarp"},
}


def alarms(seed: int, kind: str) -> set[str]:
    """Which diagnostics call a posterior wrong, each at a false-alarm rate of 1 %."""
    truths, samples = broken(seed, kind)
    draws, cases = samples.shape[1], len(truths)
    ranks = sbc_ranks(truths, samples)
    key = jax.random.key(seed)
    tarp = tarp_ranks(truths, samples, key=key)
    band = evaluate.rank_band(cases, draws, level=0.995)
    counts = [np.bincount(column, minlength=draws + 1) for column in np.asarray(ranks).T]
    shares = np.cumsum(counts, axis=1)[:, :-1] / cases
    half = evaluate.marginal_coverage(truths, samples, jnp.array([0.5]))[0]
    found = {
        "sbc": (uniformity_test(ranks, draws).p_value < 0.005).any(),
        "tarp": uniformity_test(tarp, draws).p_value < 0.01,
        "band": ((shares < band.low - 1e-9) | (shares > band.high + 1e-9)).any(),
        "coverage": (abs(half - 0.5) > 2.81 * 0.5 / cases**0.5).any(),
    }
    return {name for name, alarm in found.items() if alarm}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEEN_BY)
def test_each_diagnostic_sees_what_it_is_for(kind: str) -> None:
    found = alarms(20, kind)
    assert SEEN_BY[kind] <= found
    if kind == "right marginals":
        assert found == {"tarp"}  # three diagnostics at 1 %: false-alarm rate 3 %, seed fixed


def test_diagnostics_keep_their_false_alarm_rate() -> None:
    counted = [alarms(seed, "right") for seed in range(100, 180)]
    for name in ("sbc", "tarp", "band", "coverage"):
        # 80 posteriors at 1 %: five alarms or more at a rate of 1.4e-3.
        assert sum(name in found for found in counted) < 5

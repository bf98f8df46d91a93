"""Ensemble scores against Gaussian closed forms and sums over all pairs."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from smdp_jax import evaluate

ESTIMATORS = ["fair", "standard"]


def pairwise_crps(samples: np.ndarray, truth: np.ndarray, estimator: str) -> np.ndarray:
    """The definition, written out over all pairs."""
    members = len(samples)
    pairs = members * (members - 1) if estimator == "fair" else members**2
    between = np.abs(samples[:, None] - samples[None]).sum(axis=(0, 1)) / pairs
    return np.abs(samples - truth).mean(axis=0) - between / 2


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("members", [2, 7])
def test_crps_is_the_sum_over_pairs(estimator: str, members: int) -> None:
    rng = np.random.default_rng(members)
    samples = rng.normal(size=(members, 4, 3)).astype(np.float32)
    truth = rng.normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_allclose(
        evaluate.crps_ensemble(samples, truth, estimator),
        pairwise_crps(samples, truth, estimator),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("mean", "std", "truth"), [(0.0, 1.0, 0.0), (0.3, 0.2, 0.9), (-2.0, 3.0, 1.0)]
)
def test_crps_gaussian_is_its_integral(mean: float, std: float, truth: float) -> None:
    # CRPS = integral of (F(x) - 1{x >= truth})^2 dx.
    below = quad(lambda x: norm.cdf(x, mean, std) ** 2, mean - 12 * std, truth)[0]
    above = quad(lambda x: norm.sf(x, mean, std) ** 2, truth, mean + 12 * std)[0]
    closed = evaluate.crps_gaussian(jnp.array(mean), jnp.array(std), jnp.array(truth))
    np.testing.assert_allclose(closed, below + above, rtol=1e-5)


@pytest.mark.parametrize("members", [2, 5, 50])
def test_fair_crps_of_gaussian_ensembles_is_unbiased(members: int) -> None:
    mean, std, truth, repeats = 0.3, 0.7, 1.1, 4000
    rng = np.random.default_rng(members)
    samples = mean + std * rng.standard_normal((members, repeats), np.float32)
    scores = evaluate.crps_ensemble(samples, jnp.full(repeats, truth))
    closed = evaluate.crps_gaussian(jnp.array(mean), jnp.array(std), jnp.array(truth))
    # Mean of 4000 independent scores: false-alarm rate 6e-5 (4 standard errors).
    assert abs(jnp.mean(scores) - closed) < 4 * jnp.std(scores) / repeats**0.5


def test_standard_crps_exceeds_fair_by_the_missing_pairs() -> None:
    # E standard = E fair + E|X - X'| / (2 M), and E|X - X'| = 2 std / sqrt(pi).
    members, repeats = 4, 4000
    samples = np.random.default_rng(0).standard_normal((members, repeats), np.float32)
    truth = jnp.zeros(repeats)
    gap = evaluate.crps_ensemble(samples, truth, "standard") - evaluate.crps_ensemble(
        samples, truth
    )
    # False-alarm rate 6e-5 (4 standard errors of the mean of 4000 independent gaps).
    expected = 1 / (members * math.pi**0.5)
    assert abs(jnp.mean(gap) - expected) < 4 * jnp.std(gap) / repeats**0.5


@pytest.mark.parametrize(("bias", "scale"), [(0.7, 1.0), (0.0, 2.0), (0.0, 0.4)])
def test_scores_are_proper(bias: float, scale: float) -> None:
    # Truths from N(0, 1): the right ensemble beats one that is biased, too wide or too narrow.
    repeats, members = 2000, 20
    rng = np.random.default_rng(1)
    truths = rng.standard_normal((repeats, 3), np.float32)
    right = rng.standard_normal((members, repeats, 3), np.float32)
    wrong = bias + scale * right
    # Paired differences; a proper score errs with a rate below 3e-5 (4 standard errors below 0).
    gaps = jnp.mean(
        evaluate.crps_ensemble(wrong, truths) - evaluate.crps_ensemble(right, truths), 1
    )
    assert jnp.mean(gaps) > 4 * jnp.std(gaps) / repeats**0.5
    energy = jax.jit(jax.vmap(evaluate.energy_score, in_axes=(1, 0)))
    gaps = energy(wrong, truths) - energy(right, truths)
    assert jnp.mean(gaps) > 4 * jnp.std(gaps) / repeats**0.5


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_energy_score_of_one_entry_is_the_crps(estimator: str) -> None:
    samples = np.random.default_rng(2).standard_normal((30, 1), np.float32)
    truth = jnp.array([0.4])
    np.testing.assert_allclose(
        evaluate.energy_score(samples, truth, estimator),
        evaluate.crps_ensemble(samples, truth, estimator)[0],
        rtol=1e-5,
    )


def test_energy_score_of_a_gaussian_in_eight_dimensions() -> None:
    # At y = mean: E|X - y| = r sqrt(2), E|X - X'| = 2 r, r = Gamma((d + 1) / 2) / Gamma(d / 2).
    dimensions, members, repeats = 8, 20, 1000
    samples = np.random.default_rng(3).standard_normal(
        (repeats, members, 2, dimensions // 2), np.float32
    )
    scores = jax.vmap(evaluate.energy_score, in_axes=(0, None))(samples, jnp.zeros((2, 4)))
    radius = math.gamma((dimensions + 1) / 2) / math.gamma(dimensions / 2)
    # False-alarm rate 6e-5 (4 standard errors of the mean of 1000 independent scores).
    expected = radius * (2**0.5 - 1)
    assert abs(jnp.mean(scores) - expected) < 4 * jnp.std(scores) / repeats**0.5


def test_scores_have_finite_gradients_at_ties() -> None:
    samples = jnp.ones((3, 2))
    for score in (evaluate.energy_score, lambda s, t: jnp.sum(evaluate.crps_ensemble(s, t))):
        assert jnp.all(jnp.isfinite(jax.grad(score)(samples, jnp.ones(2))))


@pytest.mark.parametrize("members", [2, 10])
def test_spread_skill_of_a_calibrated_ensemble_is_one(members: int) -> None:
    cases = 20_000
    rng = np.random.default_rng(members)
    means = 3 * rng.standard_normal((cases, 1), np.float32)
    truths = means + rng.standard_normal((cases, 1), np.float32)
    samples = means[:, None] + rng.standard_normal((cases, members, 1), np.float32)
    result = evaluate.spread_skill(truths, samples)
    # Relative standard errors: spread sqrt(1 / (2 cases (M - 1))), skill sqrt(1 / (2 cases)).
    error = ((1 + 1 / (members - 1)) / (2 * cases)) ** 0.5
    assert abs(result.ratio - 1) < 4 * error  # false-alarm rate 6e-5
    np.testing.assert_allclose(result.spread, 1, atol=4 * error)
    narrow = means[:, None] + 0.5 * (samples - means[:, None])
    assert evaluate.spread_skill(truths, narrow).ratio < 0.7


def test_bad_inputs() -> None:
    samples, truth = jnp.ones((5, 3)), jnp.ones(3)
    for score in (evaluate.crps_ensemble, evaluate.energy_score):
        with pytest.raises(ValueError, match=r"samples must have shape"):
            score(samples, jnp.ones(4))
        with pytest.raises(ValueError, match="samples must hold at least 1 draw"):
            score(samples[:0], truth)
        with pytest.raises(ValueError, match="at least 2 members"):
            score(samples[:1], truth)
        np.testing.assert_allclose(
            score(samples[:1], truth + 1, "standard"), score(samples, truth + 1)
        )
    with pytest.raises(ValueError, match="at least 2 members"):
        evaluate.spread_skill(jnp.ones((4, 3)), jnp.ones((4, 1, 3)))
    with pytest.raises(ValueError, match="truths"):
        evaluate.spread_skill(jnp.ones((4, 3)), jnp.ones((4, 5, 2)))


def test_a_lost_member_leaves_no_score() -> None:
    samples, truth = np.random.default_rng(5).standard_normal((6, 4), np.float32), jnp.zeros(4)
    samples[2, 1] = np.nan
    lost = jnp.isnan(jax.jit(evaluate.crps_ensemble)(samples, truth))
    assert lost.tolist() == [False, True, False, False]
    for estimator in ("fair", "standard"):
        score = partial(evaluate.energy_score, estimator=estimator)
        assert jnp.isnan(jax.jit(score)(samples, truth))
    for score in (evaluate.crps_ensemble, evaluate.energy_score):
        with pytest.raises(ValueError, match=r"samples must be finite, got 1 lost of 24"):
            score(samples, truth)
        with pytest.raises(ValueError, match=r"truth must be finite, got 4 lost of 4"):
            score(jnp.ones((6, 4)), truth + jnp.inf)


def test_integers_are_numbers() -> None:
    rng = np.random.default_rng(6)
    for dtype in (np.uint8, np.int32, np.int16):
        samples, truth = rng.integers(0, 200, (7, 3)).astype(dtype), np.array([5, 190, 0], dtype)
        for score in (evaluate.crps_ensemble, evaluate.energy_score):
            floats = score(samples.astype(np.float32), truth.astype(np.float32))
            np.testing.assert_allclose(score(samples, truth), floats, rtol=1e-6)


@pytest.mark.parametrize("std", [-0.3, 0.0, np.nan])
def test_crps_of_no_normal_distribution_is_refused(std: float) -> None:
    ones = jnp.ones(3)
    with pytest.raises(ValueError, match=r"std must be in \(0, inf\], got"):
        evaluate.crps_gaussian(0 * ones, ones.at[1].set(std), ones)
    under_jit = jax.jit(evaluate.crps_gaussian)(0 * ones, ones.at[1].set(std), ones)
    assert np.isnan(under_jit).tolist() == [False, True, False]

"""Point metrics against hand-made arrays and Gaussian closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import evaluate


def test_hit_metric_counts_shares() -> None:
    # 3 of 10 hit +1, 2 of 10 hit -1; -0.9 is outside a tolerance of 0.05.
    x0 = jnp.array([1.0, 1.02, 0.98, -1.0, -1.04, 0.0, 0.5, -0.9, jnp.nan, jnp.inf])
    shares = evaluate.hit_shares(x0, tolerance=0.05)
    np.testing.assert_allclose([shares.plus, shares.minus], [0.3, 0.2], rtol=1e-6)
    np.testing.assert_allclose(evaluate.posterior_hit_metric(x0, tolerance=0.05), 0.4, rtol=1e-6)


@pytest.mark.parametrize(("plus", "expected"), [(500, 1.0), (425, 0.85), (1000, 0.0), (0, 0.0)])
def test_hit_metric_of_two_points(plus: int, expected: float) -> None:
    x0 = np.where(np.arange(1000) < plus, 1.0, -1.0).astype(np.float32)[:, None]
    np.testing.assert_allclose(evaluate.posterior_hit_metric(x0), expected, rtol=1e-6)


@pytest.mark.parametrize("tolerance", [0.0, -0.1, 1.5])
def test_hit_metric_rejects_tolerance(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        evaluate.posterior_hit_metric(jnp.ones(3), tolerance)


def test_hit_metric_rejects_no_paths() -> None:
    with pytest.raises(ValueError, match="at least 1 path"):
        evaluate.hit_shares(jnp.ones((0, 1)))


def test_weighted_score_error_of_a_shifted_gaussian() -> None:
    # s* = -x / v and s = -(x - m) / v: the error is (m / v) / sqrt(E x^2 / v^2) = m / sqrt(v).
    mean, variance = 0.03, 0.25
    xs = jnp.linspace(-5, 5, 4001)
    density = jnp.exp(-(xs**2) / (2 * variance))
    error = evaluate.weighted_score_error(-(xs - mean) / variance, -xs / variance, density)
    np.testing.assert_allclose(error, mean / variance**0.5, rtol=1e-4)


def test_weighted_score_error_on_samples_of_vectors() -> None:
    # Scaled scores: |c - 1| exactly, in any number of entries.
    score = jax.random.normal(jax.random.key(0), (50, 3, 2))
    np.testing.assert_allclose(evaluate.weighted_score_error(2.5 * score, score), 1.5, rtol=1e-5)
    uniform = jnp.full(50, 7.0)
    np.testing.assert_allclose(
        evaluate.weighted_score_error(2.5 * score, score, uniform), 1.5, rtol=1e-5
    )


def test_weighted_score_error_ignores_points_without_density() -> None:
    score = jnp.array([1.0, jnp.nan, 2.0])
    reference = jnp.array([1.0, jnp.inf, 2.0])
    error = evaluate.weighted_score_error(score, reference, jnp.array([1.0, 0.0, 1.0]))
    assert error == 0


def test_weighted_score_error_of_large_scores_does_not_overflow() -> None:
    score = jnp.array([1e25, -3e25])
    np.testing.assert_allclose(evaluate.weighted_score_error(2 * score, score), 1.0, rtol=1e-5)


def test_weighted_score_error_bad_inputs() -> None:
    ones = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=r"score must have .*, the shape of reference_score"):
        evaluate.weighted_score_error(jnp.ones((3, 2)), ones)
    with pytest.raises(ValueError, match="one per point"):
        evaluate.weighted_score_error(ones, ones, jnp.ones(2))
    with pytest.raises(ValueError, match="weights must be finite and not negative"):
        evaluate.weighted_score_error(ones, ones, jnp.array([1.0, -1.0, 1.0, 1.0]))
    negative = jnp.array([1.0, -1.0, 1.0, 1.0])
    assert jnp.isnan(jax.jit(evaluate.weighted_score_error)(ones, ones, negative))


def test_errors_by_hand() -> None:
    estimate, truth = jnp.array([[1.0, 2.0], [3.0, 8.0]]), jnp.array([[1.0, 2.0], [0.0, 4.0]])
    np.testing.assert_allclose(evaluate.mse(estimate, truth), 25 / 4)
    np.testing.assert_allclose(evaluate.reconstruction_mse(estimate, truth), 25 / 4)
    np.testing.assert_allclose(evaluate.rmse(estimate, truth), 2.5)
    np.testing.assert_allclose(evaluate.relative_error(estimate, truth), 5 / 21**0.5, rtol=1e-6)


def test_error_of_several_estimates_of_each_case():
    truth = np.array([[1.0, 0.0], [0.0, 2.0]])
    samples = np.array([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]])
    assert evaluate.ensemble_mse(samples, truth) == (4 + 4) / 8
    assert evaluate.ensemble_mse(samples[:, 1], truth) == (4 + 4) / 4
    # A sample that blew up is infinitely far.
    assert evaluate.ensemble_mse(np.where(samples == 3, np.nan, samples), truth) == np.inf
    with pytest.raises(ValueError, match="shape of estimates"):
        evaluate.ensemble_mse(samples[:, :, :1], truth)


@pytest.mark.parametrize(
    "metric",
    [evaluate.mse, evaluate.reconstruction_mse, evaluate.rmse, evaluate.relative_error],
)
def test_errors_share_their_manners(metric) -> None:
    estimate = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    truth = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    direct = metric(jnp.asarray(estimate), jnp.asarray(truth))
    assert direct.shape == ()
    assert direct.dtype == jnp.float32
    np.testing.assert_allclose(metric(estimate, truth), direct, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(metric)(estimate, truth), direct, rtol=1e-6)
    for at, lost in ((4, np.nan), (0, -np.inf)):
        blown_up = estimate.copy()
        blown_up[at, 1] = lost
        with pytest.raises(ValueError, match=r"must be finite, got 1 lost of 15 entries: mend"):
            metric(blown_up, truth)
        assert not jnp.isfinite(jax.jit(metric)(blown_up, truth))
    batched = jax.vmap(metric)(estimate, truth)
    np.testing.assert_allclose(batched[2], metric(estimate[2], truth[2]), rtol=1e-6)
    gradient = jax.grad(metric)(jnp.asarray(estimate), jnp.asarray(truth))
    shift = jnp.zeros_like(gradient).at[1, 2].set(1e-2)
    difference = metric(estimate + shift, truth) - metric(estimate - shift, truth)
    np.testing.assert_allclose(gradient[1, 2], difference / 2e-2, rtol=2e-2, atol=1e-4)
    with pytest.raises(ValueError, match=r"\(5, 3\), .* got \(5, 2\)"):
        metric(jnp.asarray(estimate)[:, :2], jnp.asarray(truth))


def test_double_precision_is_kept() -> None:
    with jax.enable_x64(True):
        truth = jnp.array([1.0, 2.0], jnp.float64)
        error = evaluate.rmse(truth + 1e-12, truth)
        assert error.dtype == jnp.float64
        np.testing.assert_allclose(error, 1e-12, rtol=1e-3)


def test_whole_numbers_give_shares_and_errors(untyped: None) -> None:
    shares = evaluate.hit_shares(np.array([1, -1, 1, 0, 1]))
    np.testing.assert_allclose([shares.plus, shares.minus], [0.6, 0.2], rtol=1e-6)
    estimate, truth = np.array([3, 250, 7], np.uint8), np.array([5, 20, 7], np.uint8)
    np.testing.assert_allclose(evaluate.mse(estimate, truth), (4 + 230**2) / 3, rtol=1e-6)
    large = np.array([60_000, 1]), np.array([-60_000, 1])
    np.testing.assert_allclose(evaluate.mse(*large), 120_000**2 / 2, rtol=1e-6)
    np.testing.assert_allclose(
        evaluate.relative_error(estimate, truth), (4 + 230**2) ** 0.5 / 474**0.5, rtol=1e-5
    )
    np.testing.assert_allclose(
        evaluate.weighted_score_error(estimate, truth, np.array([1, 0, 2])),
        (4 / 123) ** 0.5,
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match="estimate must be real, got complex64"):
        evaluate.mse(jnp.ones(3, jnp.complex64), jnp.ones(3))


def test_nothing_to_be_relative_to() -> None:
    zeros = jnp.zeros((4, 2))
    for call in (
        lambda: evaluate.relative_error(zeros + 1, zeros),
        lambda: evaluate.weighted_score_error(zeros + 1, zeros),
        lambda: evaluate.weighted_score_error(zeros + 1, zeros + 1, jnp.zeros(4)),
    ):
        with pytest.raises(ValueError, match="truth must not be 0 everywhere"):
            call()
    for weight in (np.nan, np.inf):
        with pytest.raises(ValueError, match="weights must be finite and not negative"):
            evaluate.weighted_score_error(zeros + 1, zeros + 1, jnp.array([1.0, weight, 1.0, 1.0]))
    with pytest.raises(ValueError, match="estimates must hold at least 1"):
        evaluate.ensemble_mse(np.ones((3, 0, 2)), np.ones((3, 2)))

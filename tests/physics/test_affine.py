"""The affine process against its own Fokker-Planck equation, Bayes' rule and quadrature."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import physics
from smdp_jax.physics.exact.law import noise_variance

TIMES = (0.01, 0.5, 2.0, 10.0)


def over(function):
    """Evaluate ``function(t, x)`` at one time and many states."""
    return jax.jit(jax.vmap(function, (None, 0)))


def line(problem: physics.Affine, t: float, points: int = 4001) -> jax.Array:
    """States (points, 1) that cover p_t to ten standard deviations."""
    reach = math.exp(-problem.rate * t) + 10 * float(problem.transition_variance(t)) ** 0.5
    return jnp.linspace(-reach, reach, points)[:, None]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("problem", [physics.Affine(), physics.Affine(rate=0, noise=1.0)])
def test_density_integrates_to_one(problem, t):
    xs = line(problem, t)
    total = jnp.trapezoid(over(problem.density)(t, xs), xs[:, 0])
    assert abs(total - 1) < 1e-9


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("t", TIMES)
def test_density_solves_the_fokker_planck_equation(t):
    problem = physics.Affine(rate=0.7, noise=0.3)

    def density(t, x):
        return problem.density(t, x[None])

    def drift_flux(t, x):
        return problem.drift(t, x[None])[0] * density(t, x)

    def spreading_flux(t, x):
        return -(problem.noise**2) / 2 * jax.grad(density, 1)(t, x)

    terms = [jax.grad(density), jax.grad(drift_flux, 1), jax.grad(spreading_flux, 1)]
    xs = line(problem, t, 401)[:, 0]
    change, drifting, spreading = (over(term)(t, xs) for term in terms)
    assert jnp.max(jnp.abs(change + drifting + spreading)) < 1e-11 * jnp.max(jnp.abs(drifting))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("t", TIMES)
def test_score_is_the_gradient_of_the_log_density(t):
    problem = physics.Affine()
    xs = line(problem, t, 401)
    scores = over(problem.score)(t, xs)
    gradients = over(jax.grad(problem.log_density, 1))(t, xs)
    np.testing.assert_allclose(scores, gradients, rtol=1e-10, atol=1e-10 * jnp.max(jnp.abs(scores)))
    h = 1e-6
    above, below = (over(problem.log_density)(t, xs + d) for d in (h, -h))
    slopes = (above - below) / (2 * h)
    # Rounding of the log densities, and the cubic term of the difference quotient.
    np.testing.assert_allclose(scores[:, 0], slopes, rtol=1e-5, atol=1e-3)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("t", TIMES)
def test_posterior_follows_bayes(t):
    problem = physics.Affine(noise=0.4)
    xs = line(problem, t, 101)
    mean, variance = problem.transition_mean(t, jnp.ones(1)), problem.transition_variance(t)
    plus, minus = (jnp.exp(-((xs[:, 0] - sign * mean) ** 2) / (2 * variance)) for sign in (1, -1))
    found = over(problem.posterior_plus)(t, xs)
    np.testing.assert_allclose(found, plus / (plus + minus), atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("t", [0.1, 2.0, 7.0, 9.9])
def test_bridge_moments_against_quadrature(t):
    problem, t_end, x_end = physics.Affine(), 10.0, jnp.array([0.003])
    xs = line(problem, t, 200_001)
    length = t_end - t
    misses = x_end - over(problem.transition_mean)(length, xs)[:, 0]
    kernel = -(misses**2) / (2 * problem.transition_variance(length))
    logs = over(problem.log_density)(t, xs) + kernel
    weights = jax.nn.softmax(logs)
    mean = weights @ xs[:, 0]
    variance = weights @ (xs[:, 0] - mean) ** 2
    found_mean, found_variance = problem.bridge_moments(t, t_end, x_end)
    np.testing.assert_allclose(found_mean[0], mean, rtol=1e-7)
    np.testing.assert_allclose(found_variance[0], variance, rtol=1e-7)


@pytest.mark.usefixtures("x64")
def test_bridge_ends():
    problem, t_end, x_end = physics.Affine(), 10.0, jnp.array([0.003])
    plus = problem.posterior_plus(t_end, x_end)
    mean, variance = problem.bridge_moments(0.0, t_end, x_end)
    np.testing.assert_allclose([mean[0], variance[0]], [2 * plus - 1, 4 * plus * (1 - plus)])
    mean, variance = problem.bridge_moments(t_end, t_end, x_end)
    np.testing.assert_allclose(mean, x_end, rtol=1e-14)
    np.testing.assert_allclose(variance, 0, atol=1e-30)
    weights, means, _ = problem.bridge_mixture(0.0, t_end, x_end)
    np.testing.assert_allclose([weights.sum(), *means], [1, 1, -1], rtol=1e-14)


@pytest.mark.usefixtures("x64")
def test_no_rate_is_brownian_motion_and_the_limit_of_small_rates():
    brownian, almost = physics.Affine(rate=0), physics.Affine(rate=1e-9)
    x = jnp.array([0.9])
    assert brownian.transition_variance(3.0) == pytest.approx(3 * 0.04**2, rel=1e-14)
    np.testing.assert_allclose(brownian.score(3.0, x), almost.score(3.0, x), rtol=1e-7)
    slope = jax.grad(lambda t: noise_variance(jnp.zeros(()), 0.04, t))(2.0)
    assert slope == pytest.approx(0.04**2)


def test_start_time():
    problem = physics.Affine()
    on, off = jnp.array([1.0]), jnp.array([0.5])
    assert problem.log_density(0.0, on) == jnp.inf
    assert problem.log_density(0.0, off) == -jnp.inf
    assert problem.density(0.0, off) == 0
    np.testing.assert_array_equal(problem.score(0.0, off), 0)
    np.testing.assert_array_equal(problem.posterior_plus(0.0, off), 1)
    np.testing.assert_array_equal(problem.posterior_plus(0.0, -off), 0)


@pytest.mark.parametrize("t", [1e-6, 1e-2, 1.0, 10.0])
def test_far_tails_stay_finite(t):
    problem, xs = physics.Affine(), jnp.array([-50.0, -1.0, 0.0, 1.0, 50.0])[:, None]
    scores = over(problem.score)(t, xs)
    assert scores.dtype == jnp.float32
    assert scores.shape == (5, 1)
    assert jnp.all(jnp.isfinite(scores))
    assert jnp.all(jnp.isfinite(over(problem.log_density)(t, xs)))


@pytest.mark.parametrize("n", [1, 10, 101])
def test_prior_is_balanced(n):
    x0 = physics.Affine().prior(jax.random.key(0), n)
    assert x0.shape == (n, 1)
    assert set(np.unique(x0)) <= {-1.0, 1.0}
    assert abs(float(x0.sum())) == n % 2


def test_odd_start_is_a_fair_coin():
    keys = jax.random.split(jax.random.key(2), 1000)
    heads = jnp.sum(jax.jit(jax.vmap(lambda key: physics.balanced_signs(key, 1)))(keys) > 0)
    # 5 standard deviations of a fair coin: false alarm 6e-7.
    assert abs(int(heads) - 500) < 5 * math.sqrt(250)

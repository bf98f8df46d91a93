"""The heat equation's closed forms against dense linear algebra, autodiff and samples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import physics

pytestmark = pytest.mark.usefixtures("compiles_quickly")

SMALL = physics.Heat(size=4, diffusivity=0.7, noise=0.3, end_time=0.4)


def white(size, seed=0):
    return jax.random.normal(jax.random.key(seed), (size, size), float)


def dense(function, size):
    """Matrix of a linear map of fields."""
    matrix = jax.jacobian(function)(jnp.zeros((size, size)))
    return np.asarray(matrix).reshape(size**2, size**2)


def dense_model(heat):
    """Prior covariance, propagator and noise covariance at T, from matrices alone.

    The Laplacian comes from the drift by autodiff, its exponential from an eigendecomposition,
    and the noise covariance from Gauss-Legendre quadrature of the definition.
    """
    size = heat.size
    laplacian = dense(lambda x: heat.drift(0.0, x), size)
    np.testing.assert_allclose(laplacian, laplacian.T, atol=1e-12)
    values, vectors = np.linalg.eigh(laplacian)

    def propagator(t):
        return vectors @ np.diag(np.exp(values * t)) @ vectors.T

    nodes, weights = np.polynomial.legendre.leggauss(40)
    times = (nodes + 1) / 2 * heat.end_time
    noise = sum(
        w * heat.end_time / 2 * heat.noise**2 * propagator(t) @ propagator(t).T
        for w, t in zip(weights, times, strict=True)
    )
    points = 2 * np.pi * np.arange(size) / size
    k = np.fft.fftfreq(size, 1 / size)
    k2 = k[:, None] ** 2 + k[None, :] ** 2
    power = np.divide(1.0, k2**2, out=np.zeros_like(k2), where=k2 > 0)
    waves = np.exp(1j * np.multiply.outer(points, k))  # (point, wavenumber) along one side
    lags = np.einsum("ai,bj,ij->ab", waves, waves, power).real
    lags = lags / lags[0, 0]  # covariance by displacement, unit variance
    i = np.arange(size)
    shift = (i[:, None] - i[None, :]) % size
    prior = lags[shift[:, None, :, None], shift[None, :, None, :]].reshape(size**2, size**2)
    return prior, propagator(heat.end_time), noise


def normal_log_density(x, covariance):
    sign, log_det = np.linalg.slogdet(covariance)
    assert sign > 0
    return -(x @ np.linalg.solve(covariance, x) + log_det + len(x) * math.log(2 * math.pi)) / 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("heat", [SMALL, physics.Heat(size=8)])
def test_posterior_and_evidence_against_dense_algebra(heat):
    prior, propagator, noise = dense_model(heat)
    evidence = propagator @ prior @ propagator.T + noise
    gain = prior @ propagator.T @ np.linalg.inv(evidence)
    posterior = prior - gain @ propagator @ prior
    x_end = white(heat.size)
    flat = np.asarray(x_end).ravel()
    np.testing.assert_allclose(heat.posterior_mean(x_end).ravel(), gain @ flat, rtol=1e-9)
    np.testing.assert_allclose(heat.posterior_point_variance(), np.diag(posterior), rtol=1e-9)
    fourier = np.kron(*[np.fft.fft(np.eye(heat.size), norm="ortho")] * 2)
    modes = np.diag(fourier @ posterior @ fourier.conj().T).real
    np.testing.assert_allclose(heat.posterior_variance().ravel(), modes, rtol=1e-8, atol=1e-14)
    log_evidence = normal_log_density(flat, evidence)
    np.testing.assert_allclose(heat.log_evidence(x_end), log_evidence, rtol=1e-11)
    score = -np.linalg.solve(evidence, flat)
    np.testing.assert_allclose(heat.score(heat.end_time, x_end).ravel(), score, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("t", [1e-6, 0.01, 0.2, 3.0])
def test_score_is_the_gradient_of_the_log_density(t):
    heat, x = physics.Heat(size=16), white(16)
    gradient = jax.grad(heat.log_density, 1)(t, x)
    np.testing.assert_allclose(heat.score(t, x), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_density_solves_the_fokker_planck_equation():
    """Divided by the density: d log p / dt + div P + P . s - g^2 / 2 (div s + s . s) = 0."""
    heat, x, t = SMALL, white(4), 0.3
    drift, score = heat.drift(t, x), heat.score(t, x)
    div_drift = np.trace(dense(lambda x: heat.drift(t, x), 4))
    div_score = np.trace(dense(lambda x: heat.score(t, x), 4))
    change = jax.grad(heat.log_density)(t, x)
    flux = div_drift + jnp.sum(drift * score)
    spread = heat.noise**2 / 2 * (div_score + jnp.sum(score**2))
    assert change + flux == pytest.approx(float(spread), rel=1e-10)


def test_zero_mode_and_start():
    heat = physics.Heat()
    constant = jnp.full((32, 32), 0.3)
    np.testing.assert_allclose(heat.score(0.1, constant), -0.3 / (0.1**2 * 0.1), rtol=1e-5)
    np.testing.assert_allclose(heat.score(0.0, constant), 0, atol=1e-3)
    x = heat.prior(jax.random.key(0), 1)[0]
    assert jnp.all(jnp.isfinite(heat.score(0.0, x)))
    precision = jnp.where(heat.prior_variance() > 0, 1 / heat.prior_variance(), 0)
    np.testing.assert_allclose(-heat.linear_rates(0.0).score, precision, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_step_of_a_plane_wave():
    heat = physics.Heat(size=16, diffusivity=0.5)
    points = 2 * np.pi * np.arange(16) / 16
    wave = jnp.asarray(np.cos(2 * points[:, None] - 3 * points[None, :] + 0.4) + 5)
    damped = 5 + (wave - 5) * math.exp(-0.5 * 13 * 0.3)
    np.testing.assert_allclose(heat.step(0.1, 0.4, wave), damped, rtol=1e-12)
    np.testing.assert_allclose(heat.step(0.4, 0.1, damped), wave, rtol=1e-8)
    np.testing.assert_allclose(heat.drift(0.0, wave), -0.5 * 13 * (wave - 5), atol=1e-11)


@pytest.mark.usefixtures("x64")
def test_step_is_a_semigroup_generated_by_the_drift():
    heat, x = physics.Heat(), white(32)
    halves = heat.step(0.03, 0.05, heat.step(0.0, 0.03, x))
    np.testing.assert_allclose(halves, heat.step(0.0, 0.05, x), atol=1e-13)
    velocity = jax.jvp(lambda t: heat.step(0.0, t, x), (0.01,), (1.0,))[1]
    np.testing.assert_allclose(velocity, heat.drift(0.01, heat.step(0.0, 0.01, x)), atol=1e-10)
    np.testing.assert_allclose(jnp.mean(halves), jnp.mean(x), atol=1e-15)


def test_processes():
    heat, x = physics.Heat(), white(32)
    flow, continuous = heat.sde(), heat.continuous_sde()
    stepped = flow.step(0.1, 0.11, x, None)
    np.testing.assert_allclose(stepped, heat.step(0.1, 0.11, x))
    np.testing.assert_allclose(flow.inverse(0.11, 0.1, x, None), 2 * x - stepped, atol=1e-6)
    np.testing.assert_allclose(continuous.drift(0.1, x, None), heat.drift(0.1, x))
    assert flow.g(0.1, x) == continuous.g(0.1, x) == jnp.float32(0.1)


def check_spectrum(fields, variance):
    """Mean square per mode over its variance, in all and in four groups of modes.

    A real field has as many degrees of freedom as modes, so the mean of n squares per mode over M
    modes has the relative std sqrt(2 / (n M)). 5 of them, 5 checks: false alarm 3e-6.
    """
    modes = np.asarray(jax.vmap(physics.spectral_modes)(fields))
    some = np.asarray(variance) > 0
    found = np.mean(np.abs(modes) ** 2, axis=0)
    half = physics.mode_variance(fields)
    np.testing.assert_allclose(half, found[:, : half.shape[1]], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[~some], 0, atol=1e-5)
    ratios, order = found[some] / np.asarray(variance)[some], np.argsort(variance[some])
    for group in (order, *np.array_split(order, 4)):
        # Modes come in pairs k, -k with equal squares; a group may split one pair.
        allowed = 5 * math.sqrt(2 / (len(fields) * (len(group) - 1)))
        assert abs(ratios[group].mean() - 1) < allowed


def test_prior_statistics():
    heat = physics.Heat()
    fields = heat.prior(jax.random.key(0), 200)
    assert fields.shape == (200, 32, 32)
    variance = heat.prior_variance()
    check_spectrum(fields, variance)
    assert jnp.mean(variance) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(variance[0, 2] / variance[3, 4], (25 / 4) ** 2, rtol=1e-5)
    np.testing.assert_allclose(jnp.mean(fields, axis=(1, 2)), 0, atol=1e-5)
    # Mean square per point: its variance is 2 sum(S^2) / size^4 a field. 5 std: 6e-7.
    spread = math.sqrt(2 * float(jnp.sum(variance**2)) / 32**4 / 200)
    assert abs(float(jnp.mean(fields**2)) - 1) < 5 * spread


def test_transition_statistics():
    heat = physics.Heat(end_time=0.05)
    x = heat.prior(jax.random.key(0), 1)[0]
    keys = jax.random.split(jax.random.key(1), 200)
    ends = jax.vmap(lambda key: heat.transition(key, 0.1, 0.15, x))(keys)
    check_spectrum(ends - heat.step(0.1, 0.15, x)[None], heat.noise_variance(0.05))


def test_posterior_statistics():
    heat = physics.Heat()
    x_end = heat.prior(jax.random.key(0), 1)[0]
    samples = heat.posterior_sample(jax.random.key(1), x_end, 200)
    check_spectrum(samples - heat.posterior_mean(x_end)[None], heat.posterior_variance())


@pytest.mark.slow
def test_posterior_mean_misses_by_the_posterior_variance():
    heat = physics.Heat()
    k_prior, k_noise = jax.random.split(jax.random.key(2))
    fields = heat.prior(k_prior, 300)

    @jax.jit
    @jax.vmap
    def miss(key, x0):
        return heat.posterior_mean(heat.transition(key, 0.0, heat.end_time, x0)) - x0

    misses = miss(jax.random.split(k_noise, 300), fields)
    check_spectrum(misses, heat.posterior_variance())
    assert heat.posterior_point_variance() == pytest.approx(0.0275, abs=5e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("steps", "mean_error", "std_ratio"),
    [(64, 1.1e-2, 0.82), (128, 5.6e-3, 0.89), (256, 2.8e-3, 0.94), (512, 1.4e-3, 0.97)],
)
def test_linear_rates_explain_euler_steps(steps, mean_error, std_ratio):
    """Euler-Maruyama backward with the exact score: error of the mean, and spread."""
    heat = physics.Heat()
    dt = heat.end_time / steps
    times = jnp.linspace(heat.end_time, dt, steps)
    factors = 1 + dt * jax.vmap(lambda t: heat.linear_rates(t).backward)(times)

    def step(moments, factor):
        gain, variance = moments
        return (factor * gain, factor**2 * variance + heat.noise**2 * dt), None

    ones = jnp.ones((32, 32))
    (gain, variance), _ = jax.lax.scan(step, (ones, 0 * ones), factors)
    end_variance = heat.marginal_variance(heat.end_time)
    damping = jnp.exp(-heat.decay_rates() * heat.end_time)
    exact = heat.prior_variance() * damping / end_variance
    error = jnp.sum(end_variance * (gain - exact) ** 2) / jnp.sum(end_variance * exact**2)
    ratio = jnp.sum(variance) / jnp.sum(heat.posterior_variance())
    assert math.sqrt(error) == pytest.approx(mean_error, rel=0.05)
    assert math.sqrt(ratio) == pytest.approx(std_ratio, abs=0.006)


@pytest.mark.usefixtures("x64")
def test_rates_of_the_probability_flow():
    heat, t = physics.Heat(size=8), 0.1
    sde, ode = heat.linear_rates(t), heat.linear_rates(t, noise_level=0.0)
    variance = jax.jvp(heat.marginal_variance, (t,), (1.0,))
    np.testing.assert_allclose(2 * ode.backward, -variance[1] / variance[0], rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(sde.score, -1 / heat.marginal_variance(t), rtol=1e-12)
    np.testing.assert_allclose(sde.backward + sde.physics, heat.noise**2 * sde.score, atol=1e-9)


def test_modes_are_unitary():
    x = white(16)
    assert jnp.sum(jnp.abs(physics.spectral_modes(x)) ** 2) == pytest.approx(
        float(jnp.sum(x**2)), rel=1e-5
    )
    assert physics.spectral_modes(jnp.ones((16, 16)))[0, 0] == pytest.approx(16)


def test_single_precision_is_kept_under_jit_and_vmap():
    heat, xs = physics.Heat(), physics.Heat().prior(jax.random.key(0), 3)
    with jax.enable_x64(True):
        double = jax.vmap(heat.score, (None, 0))(0.1, jnp.asarray(xs, float))
        assert heat.score(0.1, xs[0]).dtype == jnp.float32
    scores = jax.jit(jax.vmap(heat.score, (None, 0)))(0.1, xs)
    assert scores.dtype == xs.dtype == jnp.float32
    np.testing.assert_allclose(scores, double, rtol=1e-3, atol=0.05)

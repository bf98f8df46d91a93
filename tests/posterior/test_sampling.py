"""From an end state back: posterior samples and the probability flow, against closed forms."""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.physics import Heat
from tests.linear_decay import (
    AFFINE,
    END,
    KEY,
    LINEAR,
    SHORT,
    linear,
    linear_score,
    sample,
    variance,
)

pytestmark = pytest.mark.usefixtures("compiles_quickly")


@pytest.mark.slow
def test_probability_of_the_start_for_many_end_states():
    """P(x_0 = +1 | x_T) of the affine process at five end states, 3000 samples each.

    Bounds at 4.5 standard errors and 0.01 for 150 Euler steps: false-alarm rate below 4e-5.
    """
    ends = jnp.linspace(-0.1, 0.1, 5)[:, None]
    ts = smdp.log_grid(0.0, 10.0, 150)
    past = sample(ends, ts, num_samples=3000, batch_axes=1)
    assert past.samples.shape == (5, 3000, 1)
    assert past.info.finite.all()
    exact = np.array([AFFINE.posterior_plus(10.0, x) for x in ends])
    share = np.mean(np.asarray(past.samples[..., 0]) > 0, axis=1)
    error = np.sqrt(exact * (1 - exact) / 3000)
    assert (np.abs(share - exact) < 4.5 * error + 0.01).all()
    np.testing.assert_allclose(np.abs(past.samples), 1, atol=0.2)


@pytest.mark.slow
def test_moments_of_the_bridge():
    """Mean and variance at t = 1 of 10 000 samples: 4.5 standard errors and 2 % for the steps."""
    count = 10_000
    x = np.asarray(sample(num_samples=count, solver=diffrax.ShARK()).samples, np.float64)[:, 0]
    mean, var = (float(v[0]) for v in AFFINE.bridge_moments(1.0, 10.0, END))
    fourth = np.mean((x - x.mean()) ** 4)
    assert abs(x.mean() - mean) < 4.5 * math.sqrt(var / count) + 0.02 * math.sqrt(var)
    assert abs(x.var() - var) < 4.5 * math.sqrt((fourth - var**2) / count) + 0.02 * var


@pytest.mark.slow
def test_fields_with_an_exact_score():
    """Heat on 8 x 8 points, Heun in 64 steps: mean and spread of 400 samples in all 64 modes.

    Squared errors over their variance average to 1 within 4.5 sqrt(2 / 64), the spread to 1 within
    4.5 sqrt(2 / (400 * 64)) and 1 %: false-alarm rate below 2e-5.
    """
    heat = Heat(size=8)
    k_start, k_end = jax.random.split(jax.random.key(2))
    x_end = heat.transition(k_end, 0.0, 0.2, heat.prior(k_start, 1)[0])
    past = smdp.sample_posterior(
        heat.continuous_sde(),
        heat.score,
        x_end,
        smdp.linear_grid(0.0, 0.2, 64),
        num_samples=400,
        key=KEY,
        solver=diffrax.Heun(),
    )
    exact = np.fft.fft2(np.asarray(heat.posterior_mean(x_end))) / 8
    modes = np.fft.fft2(np.asarray(past.samples)) / 8
    spread = np.asarray(heat.posterior_variance())
    known = spread > 0  # the prior leaves the mean of the field no freedom
    miss = np.abs(modes.mean(axis=0) - exact)[known] ** 2 / (spread[known] / 400)
    assert abs(miss.mean() - 1) < 4.5 * math.sqrt(2 / 64)
    ratio = (np.abs(modes - modes.mean(axis=0)) ** 2).mean(axis=0)[known] / spread[known]
    assert abs(ratio.mean() - 1) < 4.5 * math.sqrt(2 / (400 * 64)) + 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "stages", "tolerance"),
    [(None, 1, 2e-2), (diffrax.Heun(), 2, 1e-3), (diffrax.Tsit5(), 6, 1e-8)],
)
def test_probability_flow_of_a_gaussian(solver, stages, tolerance, x64):
    """x(t) = x_T sqrt(C(t) / C(T)); a pytree; ordered like ts."""
    ts = jnp.linspace(0.0, 1.0, 41)
    x_end = {"a": jnp.array([0.4, -1.0]), "b": jnp.array(2.0)}
    path = smdp.probability_flow(
        LINEAR, linear_score, x_end, ts, args=jnp.array(0.7), solver=solver
    )
    factor = np.sqrt(variance(0.7, np.asarray(ts)) / variance(0.7, 1.0))
    np.testing.assert_array_equal(path.ts, ts)
    np.testing.assert_array_equal(path.xs["a"][-1], x_end["a"])
    expected = factor[:, None] * np.asarray(x_end["a"])[None]
    np.testing.assert_allclose(path.xs["a"], expected, rtol=tolerance)
    np.testing.assert_allclose(path.xs["b"], factor * 2.0, rtol=tolerance)
    assert path.info.finite
    assert path.info.evaluations == 40 * stages


@pytest.mark.parametrize("settings", [{}, {"solver": diffrax.Tsit5()}])
def test_adaptive_probability_flow(settings, x64):
    ts = jnp.linspace(0.0, 1.0, 5)
    path = smdp.probability_flow(
        LINEAR,
        linear_score,
        jnp.array([2.0]),
        ts,
        args=jnp.array(0.7),
        controller=diffrax.PIDController(rtol=1e-8, atol=1e-8),
        **settings,
    )
    factor = np.sqrt(variance(0.7, np.asarray(ts)) / variance(0.7, 1.0))
    np.testing.assert_allclose(path.xs[:, 0], 2 * factor, rtol=1e-6)


@pytest.mark.slow
def test_noise_level_zero_is_the_flow_for_every_end_state_and_condition():
    """Two batch axes, conditions batched alike: each entry is the flow of its own end and rate."""
    ends = {"a": jnp.arange(1.0, 13.0).reshape(2, 3, 2), "b": jnp.linspace(-1, 1, 6).reshape(2, 3)}
    rates = jnp.linspace(0.2, 1.2, 6).reshape(2, 3)
    past = linear(ends, args=rates, args_axes=0, noise_level=0.0, num_samples=2, batch_axes=2)
    assert past.samples["a"].shape == (2, 3, 2, 2)
    assert past.info.finite.shape == past.info.evaluations.shape == (2, 3, 2)

    def flow(x_end, rate):
        return smdp.probability_flow(LINEAR, linear_score, x_end, SHORT, args=rate).xs

    paths = jax.vmap(jax.vmap(flow))(ends, rates)
    for name, path in paths.items():
        for j in range(2):
            np.testing.assert_allclose(past.samples[name][:, :, j], path[:, :, 0], rtol=1e-5)


def test_every_noise_level_has_the_same_marginals():
    """From x_T ~ p_T, x_0 ~ p_0 = N(0, 1): variance of 20 000, one each, 4.5 errors and 2 %."""
    count, ts = 20_000, smdp.linear_grid(0.0, 1.0, 40)
    ends = math.sqrt(variance(0.7, 1.0)) * jax.random.normal(jax.random.key(1), (count,))
    x = linear(
        ends,
        ts,
        args=0.7,
        batch_axes=1,
        num_samples=1,
        noise_level=0.5,
        solver=diffrax.Heun(),
    ).samples
    assert abs(float(np.var(x)) - 1) < 4.5 * math.sqrt(2 / count) + 0.02


def test_corrector_forgets_the_end_and_keeps_the_marginal():
    """Langevin moves of size 0.1 on a score of N(0, 1), with next to no dynamics besides.

    x -> 0.9 x + sqrt(0.2) z has the stationary variance 2 / (2 - 0.1). 5000 samples, mean and
    variance at 4.5 standard errors: false-alarm rate below 2e-5.
    """
    still = smdp.SDE(lambda t, x, args: jnp.zeros_like(x), diffusion=1e-4)
    past = sample(
        jnp.array(30.0),
        SHORT,
        sde=still,
        score=lambda t, x, args: -x,
        num_samples=5000,
        corrector=smdp.Langevin(0.1, 15),
    )
    x, stationary = np.asarray(past.samples), 2 / 1.9
    assert abs(x.mean()) < 4.5 * math.sqrt(stationary / 5000) + 30 * 0.9**105
    assert abs(x.var() / stationary - 1) < 4.5 * math.sqrt(2 / 5000)
    assert (past.info.evaluations == 8 + 7 * 15).all()


def test_gradient_through_the_flow(x64):
    """d x(0) / d x_T = sqrt(C(0) / C(T)), through 40 steps of Heun."""

    def start(x_end):
        ts = jnp.linspace(0.0, 1.0, 41)
        return smdp.probability_flow(
            LINEAR, linear_score, x_end, ts, args=jnp.array(0.7), solver=diffrax.Heun()
        ).xs[0]

    slope = jax.grad(start)(jnp.array(0.4))
    np.testing.assert_allclose(slope, math.sqrt(1 / variance(0.7, 1.0)), rtol=1e-3)

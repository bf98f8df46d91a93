"""The Fokker-Planck reference against closed forms, simulated paths and itself refined."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import physics
from smdp_jax.sde import SDE

pytestmark = pytest.mark.usefixtures("compiles_quickly")

BENES = SDE(lambda t, x, args: jnp.tanh(x), diffusion=1.0)
TIMES = (0.5, 1.0, 2.0, 5.0, 10.0)


def benes_log_density(t, x, start):
    """Exact transition density of dx = tanh(x) dt + dW (Benes 1981): it becomes bimodal."""
    tilt = jnp.log(jnp.cosh(x)) - jnp.log(jnp.cosh(start)) - t / 2
    return tilt - (x - start) ** 2 / (2 * t) - jnp.log(2 * math.pi * t) / 2


@partial(jax.jit, static_argnames="name")
def curve(solution, name, t, xs):
    """Evaluate a method of a tabulated solution at one time and many scalar states."""
    values = jax.vmap(lambda x: getattr(solution, name)(t, x[None]))(xs)
    return values[:, 0] if name == "score" else values


def relative_error(truth, found, log_densities):
    """RMS error of score values relative to their RMS, both weighted by p_t."""
    weights = jax.nn.softmax(log_densities)
    return float(jnp.sqrt(weights @ (truth - found) ** 2 / (weights @ truth**2)))


def score_errors(truth, found, xs):
    """Relative error of one tabulated score against another, at each of TIMES."""
    errors = []
    for t in TIMES:
        scores = (curve(solution, "score", t, xs) for solution in (truth, found))
        errors.append(relative_error(*scores, curve(truth, "log_density", t, xs)))
    return errors


@pytest.fixture(scope="module")
def exact():
    """The reference at its default resolution, in float64."""
    with jax.enable_x64(True):
        return physics.reference(physics.Quadratic())


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_second_order_against_a_nonlinear_closed_form():
    start, xs = 0.3, jnp.linspace(-15, 15, 2001)
    truths = {}
    for t in (0.1, 1.0, 5.0):
        logs = benes_log_density(t, xs, start)
        scores = jnp.tanh(xs) - (xs - start) / t
        truths[t] = scores, logs
    errors = []
    for n in (125, 250):
        found = physics.transition_density(BENES, start, end_time=5.0, cells=n, steps=n, stride=1)
        errors.append(
            [relative_error(s, curve(found, "score", t, xs), p) for t, (s, p) in truths.items()]
        )
    np.testing.assert_allclose(np.log2(np.divide(*errors)), 2, atol=0.2)
    assert max(errors[1]) < 6e-3


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_affine_drift_gives_the_gaussian_mixture():
    problem = physics.Affine()
    found = physics.reference(problem)
    exact = {
        name: jax.jit(jax.vmap(getattr(problem, name), (None, 0)))
        for name in ("score", "log_density", "density", "posterior_plus")
    }
    xs = jnp.linspace(-1.3, 1.3, 10_001)
    for t in (1e-6, 1e-3, 0.1, *TIMES):
        truth, logs = exact["score"](t, xs[:, None])[:, 0], exact["log_density"](t, xs[:, None])
        assert relative_error(truth, curve(found, "score", t, xs), logs) < 5e-6
    xs = jnp.linspace(-0.3, 0.3, 61)
    for name in ("density", "posterior_plus"):
        truth = exact[name](8.0, xs[:, None])
        np.testing.assert_allclose(curve(found, name, 8.0, xs), truth, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_published_figures(exact):
    """Std of p_T and RMS of the score, from an independent solver on a fixed grid."""
    xs = jnp.linspace(-1.2, 1.2, 10_001)
    rms = []
    for t in TIMES:
        weights = jax.nn.softmax(curve(exact, "log_density", t, xs))
        rms.append(float(jnp.sqrt(weights @ curve(exact, "score", t, xs) ** 2)))
    np.testing.assert_allclose(rms[:4], [93, 70, 50, 30], rtol=0.02)
    assert math.sqrt(weights @ xs**2) == pytest.approx(0.0353, abs=5e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_refinement(exact):
    """Second order here too; the default is 0.02 % from its limit."""
    problem, xs = physics.Quadratic(), jnp.linspace(-1.2, 1.2, 10_001)
    coarse = physics.reference(problem, cells=125)
    fine = physics.reference(problem, cells=1000, steps=2000)
    errors = [score_errors(fine, solution, xs) for solution in (coarse, exact)]
    assert max(errors[1]) < 2e-4
    # Against the limit the ratio is 16; against a solution with a quarter of the error, 21.
    assert 10 < errors[0][-1] / errors[1][-1] < 30


@pytest.mark.usefixtures("x64")
def test_solution_does_not_depend_on_the_frame(exact):
    found = physics.transition_density(physics.Quadratic().sde(), 1.0, frame_scale=1.3)
    errors = score_errors(exact.plus, found, jnp.linspace(-1.2, 1.2, 10_001))
    assert max(errors) < 3e-4


@pytest.mark.usefixtures("x64")
def test_mass_is_conserved(exact):
    xs, densities = exact.plus.tables()
    masses = densities.sum(axis=1) * (xs[:, 1] - xs[:, 0])
    np.testing.assert_allclose(masses, 1, atol=1e-10)
    assert jnp.all(densities > 0)


@pytest.mark.usefixtures("x64")
def test_symmetry(exact):
    xs = jnp.linspace(0, 1.2, 200)
    for t in (0.01, 0.5, 10.0):
        for name, sign in (("log_density", 1), ("score", -1)):
            a, b = (curve(exact, name, t, x) for x in (xs, -xs))
            np.testing.assert_allclose(a, sign * b, rtol=1e-9, atol=1e-9)
        a, b = (curve(exact, "posterior_plus", t, x) for x in (xs, -xs))
        np.testing.assert_allclose(a + b, 1, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_score_is_the_gradient_of_the_log_density(exact):
    xs = jnp.linspace(-1.5, 1.5, 301)
    gradient = jax.jit(jax.vmap(jax.grad(lambda t, x: exact.log_density(t, x[None]), 1), (None, 0)))
    for t in (1e-6, 0.003, 0.5, 10.0):
        scores = curve(exact, "score", t, xs)
        np.testing.assert_allclose(scores, gradient(t, xs), rtol=1e-8, atol=1e-6)


@pytest.mark.slow
def test_moments_of_simulated_paths(exact):
    """Paths by Heun's drift with additive noise (weak order 2), from +1 to t = 1."""
    problem, paths, steps, t = physics.Quadratic(), 20_000, 1000, 1.0
    dt = t / steps

    def step(x, key):
        noise = problem.noise * math.sqrt(dt) * jax.random.normal(key, x.shape)
        first = problem.drift(0.0, x)
        return x + dt / 2 * (first + problem.drift(0.0, x + dt * first + noise)) + noise, None

    def path(key):
        return jax.lax.scan(step, jnp.ones(1), jax.random.split(key, steps))[0][0]

    ends = np.asarray(jax.jit(jax.vmap(path))(jax.random.split(jax.random.key(0), paths)), float)
    with jax.enable_x64(True):
        xs = jnp.linspace(-0.1, 0.4, 5001)
        weights = jax.nn.softmax(curve(exact.plus, "log_density", t, xs))
        mean = float(weights @ xs)
        moments = [float(weights @ (xs - mean) ** k) for k in (2, 4)]
    # 5 standard errors each: false alarm 1.2e-6 for the two together.
    assert abs(ends.mean() - mean) < 5 * math.sqrt(moments[0] / paths)
    spread = math.sqrt((moments[1] - moments[0] ** 2) / paths)
    assert abs(((ends - mean) ** 2).mean() - moments[0]) < 5 * spread


@pytest.mark.slow
def test_single_precision(exact):
    """What a float32 session gets: the same figures, finite everywhere, under jit and vmap."""
    found = physics.reference(physics.Quadratic())
    middle = jnp.linspace(-0.1, 0.1, 41)
    xs = jnp.concatenate([middle, jnp.array([-50.0, -1.0, -0.3, 0.3, 1.0, 50.0])])
    for t in (1e-9, 1e-5, 1e-3, 0.5, 10.0, 11.0):
        scores, plus = (curve(found, name, t, xs) for name in ("score", "posterior_plus"))
        assert scores.dtype == jnp.float32
        assert jnp.all(jnp.isfinite(scores))
        assert jnp.all((plus >= 0) & (plus <= 1))
    with jax.enable_x64(True):
        truth = curve(exact, "score", 10.0, middle)
    np.testing.assert_allclose(
        curve(found, "score", 10.0, xs)[: len(middle)], truth, rtol=1e-3, atol=0.02
    )


def test_start_time(exact):
    xs = jnp.array([-0.5, 0.5, 1.0])
    logs, scores, plus = (
        curve(exact, name, 0.0, xs) for name in ("log_density", "score", "posterior_plus")
    )
    np.testing.assert_array_equal(logs, [-jnp.inf, -jnp.inf, jnp.inf])
    np.testing.assert_array_equal(scores, 0)
    np.testing.assert_array_equal(plus, [0, 1, 1])


def test_noise_free_path():
    """x(t) = 1 / (1 + lambda t) solves the drift."""
    problem, ts = physics.Quadratic(), jnp.linspace(0, 10, 11)
    for sign in (1, -1):
        slopes = jax.vmap(jax.grad(lambda t, sign=sign: sign / (1 + 7 * t)))(ts)
        drifts = jax.vmap(problem.drift)(ts, (sign / (1 + 7 * ts))[:, None])
        np.testing.assert_allclose(drifts[:, 0], slopes, rtol=1e-5)


def test_prior():
    x0 = physics.Quadratic().prior(jax.random.key(0), 250)
    assert x0.shape == (250, 1)
    assert x0.sum() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"end_time": 1e-6}, r"start_time must be in \(0, 1e-06\)"),
        ({"start_time": 0.0}, "start_time must be finite and positive"),
        ({"cells": 8}, "cells must be at least 16, got 8"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"steps": 10}, "steps must be at least 16, got 10"),
        ({"width": -1.0}, "width must be .*, got -1.0"),
        ({"width": 1.0}, "width must be .*, got 1.0"),
        ({"frame_scale": 0.0}, "frame_scale must be finite and positive, got 0.0"),
        ({"cells": 2000, "steps": 16}, "take more steps"),
    ],
)
def test_bad_resolution(arguments, message):
    with pytest.raises(ValueError, match=message):
        physics.transition_density(physics.Quadratic().sde(), 1.0, **arguments)


def test_process_without_drift_or_noise():
    with pytest.raises(ValueError, match="sde must have a continuous drift and noise"):
        physics.transition_density(SDE(step=lambda t0, t1, x, args: x, diffusion=1.0), 1.0)
    with pytest.raises(ValueError, match="sde must have a continuous drift and noise"):
        physics.transition_density(SDE(lambda t, x, args: -x, diffusion=None), 1.0)

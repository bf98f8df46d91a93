"""Window losses: what they minimise, exactly for linear physics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp

RATE, NOISE, PRIOR = 0.7, 0.8, 1.5
FORMS = ("backward", "bidirectional", "penalised")
SDE = smdp.SDE(lambda t, x, args: -RATE * x, diffusion=NOISE)


# Expectations over the Euler chain of SDE from N(0, PRIOR), without sampling ---------------------


def chain_variance(dt, steps):
    values = [PRIOR]
    for _ in range(steps):
        values.append((1 - RATE * dt) ** 2 * values[-1] + NOISE**2 * dt)
    return np.array(values)


def windows_of(dt, steps):
    """Windows of the Euler chain."""
    return cubature(chain_variance(dt, steps), 1 - RATE * dt)


def cubature(v, decay):
    """2 d windows whose mean is the expectation of any quadratic, d = steps + 1."""
    steps = len(v) - 1
    i = np.arange(steps + 1)
    covariance = decay ** np.abs(i[:, None] - i) * v[np.minimum(i[:, None], i)]
    points = math.sqrt(steps + 1) * np.linalg.cholesky(covariance).T
    return jnp.asarray(np.concatenate([points, -points]))[..., None]


def expected_loss(objective, ts, xs):
    """E loss as a function of the coefficients a_i of the score ``a_i x`` at ``ts``."""

    def loss(coefficients):
        def score(t, x, args):
            return jnp.interp(t, ts, coefficients) * x

        def one(x):
            piece = smdp.Trajectories(ts, x)
            return objective.loss(score, SDE, piece, None, jax.random.key(0))

        return jax.vmap(one)(xs).mean()

    return loss


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_backward_windows_of_any_length_have_one_minimiser(steps, x64):
    """c = 1, linear P, Gaussian data: the a_i of the conditional mean, for every window length.

    E[x_{i-1} | x_i] = (1 - rate dt) V_{i-1} / V_i x_i must be (1 + rate dt + dt g^2 a_i) x_i.
    """
    dt = 0.1
    ts, v = dt * jnp.arange(steps + 1.0), chain_variance(dt, steps)
    mean = (1 - RATE * dt) * v[:-1] / v[1:]
    exact = jnp.asarray(np.append(0, (mean - 1 - RATE * dt) / (dt * NOISE**2)))
    loss = expected_loss(smdp.MultiStep((steps,)), ts, windows_of(dt, steps))
    evaluate = jax.jit(jax.value_and_grad(loss))
    least, gradient = evaluate(exact)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    for i in range(1, steps + 1):
        for shift in (-0.1, 0.1):
            other, slope = evaluate(exact.at[i].add(shift))
            assert other > least
            assert slope[i] * shift > 0
    if steps == 1:
        np.testing.assert_allclose(least, v[0] / v[1], rtol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("off", [0.8, 1.0])
def test_gaussian_steps_learn_the_score_at_coarse_steps(steps, off, x64):
    """Paths of the continuous process, steps of a third of a decay time, another reference.

    While the bound on what they carry back does not bind the steps are exact in the mean, so
    a_i = -1 / V(t_i); where Euler's are least is elsewhere.
    """
    dt, spread = 0.5, NOISE**2 / (2 * RATE)
    ts = dt * jnp.arange(steps + 1.0)
    variance = lambda t: spread + (PRIOR - spread) * jnp.exp(-2 * RATE * t)
    v, xs = np.asarray(variance(ts)), cubature(np.asarray(variance(ts)), math.exp(-RATE * dt))
    step = smdp.GaussianStep(1, smdp.LinearPart(RATE), lambda t: off * variance(t))
    exact = jnp.asarray(-1 / v)
    gradient = jax.jit(jax.grad(expected_loss(smdp.MultiStep((steps,), solver=step), ts, xs)))
    np.testing.assert_allclose(gradient(exact), 0, atol=1e-10)
    for i in range(1, steps + 1):
        for shift in (-0.1, 0.1):
            assert gradient(exact.at[i].add(shift))[i] * shift > 0
    euler = jax.grad(expected_loss(smdp.MultiStep((steps,)), ts, xs))(exact)
    assert jnp.abs(euler).max() > 1e-3


def test_that_minimiser_is_the_score_for_short_steps():
    """a_i -> -1 / V(t_i) with an error of first order, V the variance of the continuous process."""
    end, errors = 0.8, []
    for steps in (80, 160):
        dt, v = end / steps, chain_variance(end / steps, steps)
        a = ((1 - RATE * dt) * v[-2] / v[-1] - 1 - RATE * dt) / (dt * NOISE**2)
        decay = math.exp(-2 * RATE * end)
        exact = PRIOR * decay + NOISE**2 * (1 - decay) / (2 * RATE)
        errors.append(abs(a * exact + 1))
    assert errors[0] < 0.02
    assert 1.9 < errors[0] / errors[1] < 2.1


def stationary_multiples(form, without_penalty=False):
    """Multiples a of the exact score at which the expected 1-step loss is least, dt = .02, .01."""

    @jax.jit
    def stationary(dt, xs, v):
        def loss(a):
            ts = 0.4 + dt * jnp.arange(2.0)
            total = expected_loss(smdp.OneStep(form=form), ts, xs)(-a / v)
            if without_penalty:  # E g^2 dt |s|^2 / 4
                total -= NOISE**2 * dt * a**2 / (4 * v[1])
            return total

        slope = jax.grad(loss)
        return 1 - slope(1.0) / (slope(1.0) - slope(0.0))  # the loss is quadratic in a

    return [
        float(stationary(dt, windows_of(dt, 1), jnp.asarray(chain_variance(dt, 1))))
        for dt in (0.02, 0.01)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_learn_the_score_once(form, x64):
    errors = [abs(a - 1) for a in stationary_multiples(form)]
    assert errors[0] < 0.05
    assert 1.7 < errors[0] / errors[1] < 2.5


def test_half_weight_without_its_penalty_learns_twice_the_score(x64):
    """c = 1/2 backward-only; what the penalty (or the forward windows) is there for."""
    errors = [abs(a - 2) for a in stationary_multiples("penalised", without_penalty=True)]
    assert errors[0] < 0.1
    assert 1.8 < errors[0] / errors[1] < 2.2


@pytest.mark.parametrize("form", ["bidirectional", "penalised"])
@pytest.mark.parametrize("steps", [2, 5, 10])
def test_half_weight_windows_learn_the_score_once(form, steps, x64):
    """Windows of any length: the multiple of the exact score tends to 1 with the window's time.

    Without the weights of the penalty it would be 1.4 to 1.9 for these lengths.
    """
    errors = []
    for dt in (0.01, 0.005):
        v = jnp.asarray(chain_variance(dt, steps))
        ts = dt * jnp.arange(steps + 1.0)
        loss = expected_loss(smdp.MultiStep((steps,), form=form), ts, windows_of(dt, steps))
        slope = jax.jit(jax.grad(lambda a, loss=loss, v=v: loss(-a / v)))
        a = 1.0
        for _ in range(8):  # a polynomial: secant steps
            a -= float(slope(a)) * 1e-4 / float(slope(a + 1e-4) - slope(a))
        errors.append(abs(a - 1))
    assert errors[0] < 0.05
    assert 1.7 < errors[0] / errors[1] < 2.5


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_least_loss_of_one_step(form, x64):
    """1 for the backward form; 1 for each direction of the other; as dt -> 0."""
    dt = 1e-4
    ts, v = dt * jnp.arange(2.0), jnp.asarray(chain_variance(dt, 1))
    loss = expected_loss(smdp.OneStep(form=form), ts, windows_of(dt, 1))(-1 / v)
    np.testing.assert_allclose(loss, 2 if form == "bidirectional" else 1, rtol=1e-3)

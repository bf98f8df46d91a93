"""Adaptive steps, against closed forms."""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp

GRID = smdp.linear_grid(0.0, 0.6, 6)
KEY = jax.random.key(11)


def test_adaptive_ode_against_the_closed_form(x64):
    sde = smdp.SDE(lambda t, x, args: args * jnp.cos(t) * x, diffusion=None)
    ts = jnp.linspace(0.0, 5.0, 11)

    @jax.jit
    def run(tolerance):
        controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
        return smdp.solve_adaptive(sde, jnp.ones(2), ts, controller=controller, args=2.0)

    exact = np.exp(2 * np.sin(ts))[:, None] * np.ones((1, 2))
    xs, steps = run(1e-9)
    np.testing.assert_allclose(xs, exact, rtol=1e-6)
    coarse, fewer = run(1e-3)
    np.testing.assert_allclose(coarse, exact, rtol=3e-2)
    assert 5 < fewer < steps / 3


@pytest.mark.slow
def test_adaptive_sde_against_the_closed_form():
    """dx = -x dt + 0.5 dW from 1: mean and variance of 4000 entries at a time inside and the end.

    Bounds at 4.5 standard errors for four numbers: false-alarm rate below 3e-5. A state inside
    that is interpolated between the steps would have too small a variance.
    """
    count = 4000
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.5)
    controller = diffrax.PIDController(rtol=1e-2, atol=1e-2, dtmin=0.02)
    ts = jnp.array([0.0, 0.45, 1.0])
    xs, steps = jax.jit(
        lambda x0: smdp.solve_adaptive(
            sde, x0, ts, controller=controller, key=jax.random.key(0), solver=diffrax.Heun()
        )
    )(jnp.ones(count))
    t = np.asarray(ts[1:])
    variance = 0.25 * (1 - np.exp(-2 * t)) / 2
    errors = 4.5 * np.sqrt(variance / count)
    assert steps > 2
    assert (np.abs(np.mean(xs[1:], axis=1) - np.exp(-t)) < errors).all()
    np.testing.assert_allclose(np.var(xs[1:], axis=1), variance, rtol=4.5 * math.sqrt(2 / count))


def test_adaptive_solve_that_runs_out_of_steps_is_nan():
    sde = smdp.SDE(lambda t, x, args: jnp.cos(50 * t) * x, diffusion=None)
    controller = diffrax.PIDController(rtol=1e-6, atol=1e-6)
    xs, _ = smdp.solve_adaptive(
        sde, jnp.ones(1), jnp.array([0.0, 10.0]), controller=controller, max_steps=10
    )
    assert np.isnan(xs).all()


DRIFT = smdp.SDE(lambda t, x, args: -x, diffusion=0.1)
ODE = smdp.SDE(lambda t, x, args: -x, diffusion=None)
FLOW = smdp.SDE(step=lambda t0, t1, x, args: x, diffusion=0.1)
CONTROLLER = diffrax.PIDController(rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("sde", "changed", "error", "message"),
    [
        (DRIFT, {}, ValueError, "solve_adaptive needs a key"),
        (FLOW, {}, ValueError, "solve_adaptive needs a drift"),
        (ODE, {"ts": jnp.array([0.0, 2.0, 1.0])}, ValueError, r"ts must increase, got ts\[1\]=2"),
        (ODE, {"x0": jnp.array([np.nan])}, ValueError, r"x0 must be finite, got x0\[0\]=nan"),
        (ODE, {"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        (DRIFT, {"key": KEY, "solver": diffrax.SemiImplicitEuler()}, ValueError, "solver must be"),
        (DRIFT, {"key": KEY, "solver": diffrax.LeapfrogMidpoint()}, ValueError, "solver must be"),
    ],
)
def test_adaptive_errors(sde, changed, error, message):
    asked = {"x0": jnp.ones(1), "ts": GRID, "controller": CONTROLLER} | changed
    with pytest.raises(error, match=message):
        smdp.solve_adaptive(sde, asked.pop("x0"), asked.pop("ts"), **asked)

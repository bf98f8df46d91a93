"""Guided scores of a linear process against their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp

TS = jnp.linspace(0.0, 1.0, 3)
SEEN = [smdp.LinearObservation(0.5, 0, jnp.asarray(0.7), 0.2)]


def score(t, x, args):
    return -x / (1 + t)


def test_moment_matched_guidance_adds_the_gradient_of_the_regression():
    twist = smdp.LinearTwist(
        TS, jnp.full((3, 1, 1), 0.4), jnp.full((3, 1), 0.1), jnp.full((3, 1, 1), 0.3)
    )
    guided = smdp.moment_matched_guidance(score, SEEN, twist)
    x = jnp.array([0.5])
    push = 0.4 * (0.7 - 0.1 - 0.4 * 0.5) / (0.2 + 0.3)
    np.testing.assert_allclose(
        guided(jnp.asarray(1.0), x, None), score(1.0, x, None) + push, rtol=1e-5
    )
    # Sensors at t or later are left to the weights, or to the start.
    np.testing.assert_allclose(guided(jnp.asarray(0.5), x, None), score(0.5, x, None), rtol=1e-5)


@pytest.mark.parametrize("as_flow_map", [False, True])
def test_dps_guidance_differentiates_through_guess_and_simulator(as_flow_map):
    """Decay at the rate 1: a guess linear in x, carried to the sensor."""
    if as_flow_map:
        sde = smdp.SDE(step=lambda t0, t1, x, args: x * jnp.exp(t0 - t1), diffusion=0.5)
        back, onward = 2 - np.exp(-1.0), np.exp(-0.5)
    else:
        sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.5)
        back, onward = 2.0, (1 - 0.5 / 32) ** 32
    slope = (back - 0.25 / 2) * onward
    x = jnp.array([0.5])
    guided = smdp.dps_guidance(sde, score, SEEN, scale=0.5)(jnp.asarray(1.0), x, None)
    push = 0.5 * slope * (0.7 - slope * 0.5) / 0.2
    np.testing.assert_allclose(guided, score(1.0, x, None) + push, rtol=1e-4)

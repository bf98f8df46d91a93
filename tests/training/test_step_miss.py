"""How far a step back misses the data after training, in closed form, and what is said of it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import smdp_jax as smdp
from tests.linear_fit import DATA, K_PATH, K_START, KEY, RATE, SDE, TS, Linear, fit


def euler_chain(count, steps, dt):
    """Paths of the Euler chain of SDE from N(0, 1), and its variance at every time."""
    ts = smdp.linear_grid(0.0, dt * steps, steps)
    flow = smdp.flow_map_of(SDE)
    data = smdp.simulate(flow, jax.random.normal(K_START, (count, 1)), ts, key=K_PATH)
    v = [1.0]
    for _ in range(steps):
        v.append((1 - RATE * dt) ** 2 * v[-1] + 0.25 * dt)
    return data, np.array(v)


@pytest.mark.parametrize("multiple", [1.0, 3.0])
def test_step_miss(multiple):
    """V_{i-1} / V_i for the conditional mean; m times its score adds g^2 dt (m - 1)^2 a^2 V.

    5000 paths, squares of normal numbers: relative error 2 %, 5 numbers at 4.5 of these.
    """
    dt = 0.1
    data, v = euler_chain(5000, 5, dt)
    a = ((1 - RATE * dt) * v[:-1] / v[1:] - 1 - RATE * dt) / (dt * 0.25)

    def score(t, x, args):
        return multiple * jnp.interp(t, data.ts[1:], jnp.asarray(a, jnp.float32)) * x

    miss = smdp.step_miss(SDE, score, data, key=KEY, samples=5000)
    expected = v[:-1] / v[1:] + 0.25 * dt * (multiple - 1) ** 2 * a**2 * v[1:]
    np.testing.assert_allclose(miss, expected, rtol=4.5 * math.sqrt(2 / 5000))


@pytest.mark.slow
def test_a_step_that_misses_says_what_mends_it(subtests):
    """Wrong parameters need training; steps that even the Gaussian misses with need to be small.

    Brownian motion of g = 0.5 walks back by a score of -3 x: dt g^2 3 x = 0.075 x is little beside
    the noise of 0.16, and for x = 30 more than 3 times it squared.
    """
    wide = smdp.Trajectories(TS, DATA.xs - DATA.xs[:, :1] + 30 * DATA.xs[:, :1])
    loud = smdp.Trajectories(TS, DATA.xs * 30)
    start = smdp.LearnedScore(Linear(), {"params": {"a": jnp.array([-3.0]), "b": jnp.array(0.0)}})
    still = smdp.SDE(lambda t, x, args: jnp.zeros_like(x), diffusion=0.5)
    cases = {
        "astray": (wide, {"initial": start}, r"train longer, or with a smaller learning rate\)"),
        "loud": (loud, {}, r"misses by .* too: a step is too large for what it amplifies"),
    }
    for name, (data, settings, remedy) in cases.items():
        message = "misses the data by more than 3 times its noise variance at .*; 1 is the optimum"
        with subtests.test(name), pytest.warns(UserWarning, match=message + ".*" + remedy):
            fit(smdp.OneStep(), optax.sgd(0.0), sde=still, data=data, steps=1, **settings)


class PerLeaf(nn.Module):
    @nn.compact
    def __call__(self, t, x, args):
        return {k: Linear()(t, v, args) for k, v in x.items()}


@pytest.mark.slow
@pytest.mark.parametrize("precondition", [True, False])
def test_leaves_without_noise(precondition):
    """A passive leaf, dy = x dt, does not count: the loss is that of x alone."""
    sde = smdp.SDE(
        lambda t, x, args: {"x": -x["x"], "y": jnp.repeat(x["x"], 2)},
        diffusion={"x": 0.5, "y": 0.0},
    )
    start = {"x": jax.random.normal(K_START, (64, 1)), "y": jnp.zeros((64, 2))}
    data = smdp.simulate(sde, start, TS, key=K_PATH)
    settings = {"sde": sde, "data": data, "model": PerLeaf(), "precondition": precondition}
    result = fit(smdp.MultiStep((1, 2)), **settings)
    assert np.isfinite(result.history["loss"]).all()
    assert np.isfinite(result.step_miss).all()
    assert result.history["loss"][-1] < 3

"""Training learns known scores: of a Gaussian, per condition, and of two starts by path targets."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import smdp_jax as smdp
from smdp_jax.physics import Affine

pytestmark = pytest.mark.usefixtures("compiles_quickly")

KEY = jax.random.key(31)
TS = smdp.linear_grid(0.0, 1.0, 20)
K_START, K_PATH = jax.random.split(jax.random.key(1))


class Linear(nn.Module):
    """A score that is linear in x, its slope quadratic in time, one for slow and one for fast."""

    @nn.compact
    def __call__(self, t, x, args):
        slow, fast = self.param("slopes", nn.initializers.zeros, (2, 3))
        slopes = jnp.where(args["rate"] < 0.5, slow, fast)
        return {"u": (slopes[0] + slopes[1] * t + slopes[2] * t**2) * x["u"]}


@pytest.mark.slow
def test_windows_learn_the_score_of_every_condition():
    """-x / C(t, rate) for dx = -rate x dt + dW / 2 from N(0, 1), rates 0.2 and 0.8 per path.

    Euler steps of 0.05 and 600 updates: within 15 %.
    """
    rates = jnp.where(jnp.arange(4000) % 2 == 0, 0.2, 0.8)
    sde = smdp.SDE(lambda t, x, args: {"u": -args["rate"] * x["u"]}, diffusion={"u": 0.5})
    paths = smdp.simulate(
        sde,
        {"u": jax.random.normal(K_START, (4000, 1))},
        TS,
        key=K_PATH,
        args={"rate": rates},
        args_axes=0,
    )
    result = smdp.fit(
        sde,
        Linear(),
        paths,
        smdp.MultiStep((1, 4)),
        optax.adam(0.02),
        steps=600,
        key=KEY,
        batch_size=512,
        precondition=False,
        ema=0.99,
        progress=False,
    )
    for rate in (0.2, 0.8):
        for t in (0.3, 0.9):
            decay = math.exp(-2 * rate * t)
            exact = -1 / (decay + 0.25 * (1 - decay) / (2 * rate))
            x, args = {"u": jnp.array([0.8])}, {"rate": jnp.array(rate)}
            score = result.score(jnp.array(t), x, args)["u"]
            np.testing.assert_allclose(score, exact * x["u"], rtol=0.15, err_msg=f"{rate} {t}")


@pytest.mark.slow
def test_path_targets_teach_the_affine_score():
    """MLP on 1000 paths: p_t-weighted relative error below 15 % at t = 1, 2, 5 and 10."""
    affine = Affine()
    ts = smdp.log_grid(0.0, 10.0, 40)
    paths = smdp.simulate(
        affine.sde(),
        affine.prior(K_START, 1000),
        ts,
        key=K_PATH,
        substeps=8,
        score_targets=smdp.PowerRamp(2.0),
    )
    result = smdp.fit(
        affine.sde(),
        smdp.models.MLP(),
        paths,
        smdp.PathScore(),
        optax.adam(optax.cosine_decay_schedule(1e-2, 3000)),
        steps=3000,
        batch_size=128,
        key=KEY,
        ema=0.99,
        progress=False,
    )

    @jax.jit
    def error(t, key):
        z = jnp.sqrt(affine.transition_variance(t)) * jax.random.normal(key, (2000, 1))
        x = jnp.where(jnp.arange(2000)[:, None] % 2 == 0, 1.0, -1.0) * jnp.exp(-0.5 * t) + z
        exact = jax.vmap(lambda x: affine.score(t, x))(x)
        miss = jax.vmap(lambda x: result.score(t, x, None))(x) - exact
        return jnp.sqrt(jnp.mean(miss**2) / jnp.mean(exact**2))

    for t in (1.0, 2.0, 5.0, 10.0):
        assert error(jnp.array(t), KEY) < 0.15, t

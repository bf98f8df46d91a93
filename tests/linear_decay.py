"""Backward solves of the affine process, and of a decay whose rate is the condition."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import smdp_jax as smdp
from smdp_jax.physics import Affine

AFFINE = Affine()
SDE = AFFINE.sde()
KEY = jax.random.key(21)
END = jnp.array([0.05])
TS = smdp.linear_grid(1.0, 10.0, 60)


def sample(x_end=END, ts=TS, *, sde=SDE, score=AFFINE.score, key=KEY, num_samples=3, **settings):
    return smdp.sample_posterior(
        sde, score, x_end, ts, num_samples=num_samples, key=key, **settings
    )


def decay(t, x, args):
    return jax.tree.map(lambda x: -args * x, x)


def variance(rate, t):
    return np.exp(-2 * rate * t) + 0.25 * (1 - np.exp(-2 * rate * t)) / (2 * rate)


def linear_score(t, x, args):
    c = jnp.exp(-2 * args * t)
    c = c + 0.25 * (1 - c) / (2 * args)
    return jax.tree.map(lambda x: -x / c, x)


LINEAR = smdp.SDE(decay, diffusion=0.5)
SHORT = smdp.linear_grid(0.0, 1.0, 8)
RATE = jnp.array(0.7)


def linear(x_end, ts=SHORT, **settings):
    settings = {"args": RATE, "num_samples": 3, "key": KEY} | settings
    return smdp.sample_posterior(LINEAR, linear_score, x_end, ts, **settings)


CONTROLLER = diffrax.PIDController(rtol=1e-3, atol=1e-3)

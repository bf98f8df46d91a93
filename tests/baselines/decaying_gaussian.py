"""dx = -k x dt + g dW from N(m0, c0), a tree of two leaves, and its diffused prior."""

import math

import jax
import jax.numpy as jnp

import smdp_jax as smdp
from smdp_jax import baselines

K, M0, C0 = 0.6, 0.3, 0.8
G = {"a": 0.5, "b": 0.9}
TS = smdp.linear_grid(0.0, 1.0, 16)


def drift(t, x, args):
    return jax.tree.map(lambda x: -K * x, x)


SDE = smdp.SDE(drift, diffusion=G)
X_END = {"a": jnp.array([0.9, -0.4]), "b": jnp.array(0.5)}
DECAY = math.exp(-K)
SPREAD = {name: g * math.sqrt((1 - DECAY**2) / (2 * K)) for name, g in G.items()}


def prior(key, count):
    z = jax.random.normal(key, (count, 3))
    x = M0 + math.sqrt(C0) * z
    return {"a": x[:, :2], "b": x[:, 2]}


def diffused_score(prior_of):
    """Exact score of the diffused prior."""

    def score(t, x, args):
        left = jnp.exp(-t / 2)

        def one(x, m, c):
            variance = left**2 * C0 + c**2 * (1 - left**2)
            return -(x - m - left * (M0 - m)) / variance.astype(x.dtype)

        return jax.tree.map(one, x, prior_of.mean, prior_of.std)

    return score


def diffusion_prior():
    ts = smdp.log_grid(0.0, 8.0, 300, offset=1e-2)
    sized = lambda value: {"a": jnp.array(value), "b": jnp.array(value)}
    blank = baselines.DiffusionPrior(lambda t, x, args: x, ts, sized(0.0), sized(1.1))
    return baselines.DiffusionPrior(diffused_score(blank), ts, blank.mean, blank.std)

"""The verbs on a small decay, as a caller asks for them: what is returned, and nothing else."""

import jax
import jax.numpy as jnp
import optax

import smdp_jax as smdp
from smdp_jax.solve.integrate import integrate
from tests.linear_fit import Linear

TS = jnp.linspace(0.0, 0.6, 4)
KEY = jax.random.key(7)
ENDS = jnp.linspace(-1.0, 1.0, 3)[:, None]


def decay(t, x, args):
    return jax.tree.map(lambda x: -0.7 * x, x)


def score(t, x, args):
    return jax.tree.map(lambda x: -x, x)


SDE = smdp.SDE(decay, diffusion=0.5)


def simulate(x0=ENDS, ts=TS, *, sde=SDE, **settings):
    return smdp.simulate(sde, x0, ts, **{"key": KEY} | settings).xs


def sample(x_end=ENDS[0], ts=TS, *, sde=SDE, score=score, **settings):
    settings = {"num_samples": 2, "key": KEY} | settings
    return smdp.sample_posterior(sde, score, x_end, ts, **settings).samples


def flow(x_end=ENDS[0], ts=TS, *, sde=SDE, score=score, **settings):
    return smdp.probability_flow(sde, score, x_end, ts, **settings).xs


def solve(x0=ENDS[0], ts=TS, *, sde=SDE, **settings):
    return integrate(sde, x0, ts, **{"key": KEY} | settings)[0]


def fit(data=None, *, sde=SDE, **settings):
    data = smdp.simulate(sde, ENDS, TS, key=KEY) if data is None else data
    settings = {"steps": 2, "batch_size": 2, "key": KEY, "progress": False} | settings
    model, objective = settings.pop("model", Linear()), settings.pop("objective", smdp.OneStep())
    return smdp.fit(sde, model, data, objective, optax.adam(1e-2), **settings)

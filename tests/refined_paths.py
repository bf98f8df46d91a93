"""A linear process of known paths, for the tests of ``refine_posterior``, and one that is cubic."""

import jax
import jax.numpy as jnp
import numpy as np

import smdp_jax as smdp

TS = jnp.array([0.0, 0.5, 1.3])
RATES = np.array([3.0, 0.4, 0.0], np.float32)
GAIN = np.exp(-RATES * 1.3)
SDE = smdp.SDE(
    step=lambda t0, t1, x, args: x * jnp.exp(-RATES * (t1 - t0)),
    inverse=lambda t1, t0, x, args: x * jnp.exp(-RATES * (t0 - t1)),
    diffusion=0.1,
)
KEY = jax.random.key(0)
NOISE = np.array([0.02, 0.3, 0.05])
rng = np.random.default_rng(1)
STARTS = np.array([1.0, 2.0, -0.5]) + rng.normal(size=(900, 3)) * np.array([1.0, 0.7, 0.4])
ENDS = GAIN * STARTS + 0.01 + NOISE * rng.normal(size=STARTS.shape)
DATA = smdp.Trajectories(TS[jnp.array([0, 2])], jnp.asarray(np.stack([STARTS, ENDS], 1), "float32"))
SEEN = np.array([0.1, 1.4, -0.9])
CUBIC = smdp.SDE(lambda t, x, args: -args * x**3, diffusion=0.02)
GRID = jnp.linspace(0.0, 1.0, 21)


def refine(samples, x_end=SEEN, sde=SDE, ts=TS, data=DATA, key=KEY, **how):
    how = {"noise_paths": 0} | how  # the closed forms are of one noise for all
    samples, x_end = (
        jax.tree.map(lambda v: jnp.asarray(v, "float32"), v) for v in (samples, x_end)
    )
    return smdp.refine_posterior(sde, samples, x_end, ts, data, key=key, **how)

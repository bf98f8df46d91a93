"""Smoke as a process: noise, and what the next step makes of it."""

import math

import jax
import jax.numpy as jnp
import pytest

from smdp_jax import simulate
from smdp_jax.physics import Smoke

SMALL = Smoke(size=32)
NAMES = ("marker", "velocity_x", "velocity_y")


def closeness(x, y):
    return max(float(jnp.max(jnp.abs(x[name] - y[name]))) for name in NAMES)


@pytest.mark.slow
def test_noisy_paths():
    """As an SDE: noise of 0.1 on every entry; the next step removes what walls do not allow.

    Solid cells hold the noise of one substep, std 0.1 sqrt(0.01 / 2); 2600 draws: the std
    of their std is 1.4 %, 6 of them give a false alarm of 2e-9.
    """
    sde, step = SMALL.sde(), jax.jit(SMALL.step)
    mask = SMALL.box((20, 50), (60, 60)) | SMALL.disc((70, 75), 9)
    ts = jnp.linspace(0.0, 0.1, 11)
    data = simulate(
        sde,
        SMALL.prior(jax.random.key(0), 4),
        ts,
        key=jax.random.key(1),
        args={"obstacles": mask},
        substeps=2,
    )
    assert data.xs["velocity_x"].shape == (4, 11, 31, 32)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(data.xs))
    noise = data.xs["marker"][:, 1:, mask]
    assert noise.size == 4 * 10 * int(jnp.sum(mask))
    assert float(jnp.std(noise)) == pytest.approx(0.1 * math.sqrt(0.005), rel=0.084)
    x = jax.tree.map(lambda a: a[0, -1], data.xs)
    args = {"obstacles": mask}
    assert SMALL.obstacle_flow(x, args) > 0
    y = step(0.1, 0.11, x, args)
    assert SMALL.obstacle_flow(y, args) == 0
    assert jnp.max(jnp.abs(SMALL.divergence(y, args))) < 1e-5
    assert not y["marker"][mask].any()
    assert jnp.min(y["marker"]) >= jnp.min(x["marker"])
    assert set(sde.g(0.0, x)) == set(NAMES)
    back = jax.jit(sde.inverse)(0.11, 0.1, y, args)
    assert closeness(back, step(0.11, 0.1, y, args)) == 0

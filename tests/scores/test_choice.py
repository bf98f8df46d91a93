"""What a kernel's regression starts from: chosen by chains, and kept to what the paths did."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.scores.blocks import Joint
from smdp_jax.scores.choice import best_base

TS = jnp.linspace(0.0, 1.0, 9)


def paths_of(sde, number=400, substeps=1, ts=TS):
    x0 = jax.random.normal(jax.random.key(0), (number, 3))
    return smdp.simulate(sde, x0, ts, key=jax.random.key(1), substeps=substeps)


def inwards(t, x, args):
    """A step back grows without bound off the paths."""
    return -2 * x**3 - jnp.roll(x, 1)


CUBIC = smdp.SDE(drift=inwards, diffusion=0.02)


def swirl(t, x, args):
    """Circles, quicker the wider they are: all of the past can be told, and none of it linearly."""
    return jnp.sum(x[:2] ** 2) * jnp.stack([-x[1], x[0], jnp.zeros_like(x[0])]) - x / 4


def rotating_well(t, x, args):
    """A limit cycle: a step back drives away from it what is not on it."""
    size = jnp.sum(x[:2] ** 2)
    turned = jnp.stack([-x[1], x[0], jnp.zeros_like(x[0])])
    return 6 * turned + 8 * x * (1 - size)


def test_physics_are_taken_where_they_explain_more():
    sde, ts = smdp.SDE(drift=swirl, diffusion=0.02), jnp.linspace(0.0, 1.0, 41)
    paths = paths_of(sde, ts=ts)
    assert best_base(sde, paths, Joint()) == "inverse"
    found = {
        base: smdp.sample_posterior(
            sde,
            smdp.estimate_kernel(sde, paths, base=base),
            paths.xs[:50, -1],
            ts,
            num_samples=20,
            key=jax.random.key(2),
            batch_axes=1,
        ).samples
        for base in ("auto", "state")
    }
    off = {k: float(jnp.abs(v.mean(axis=1) - paths.xs[:50, 0]).mean()) for k, v in found.items()}
    assert off["auto"] < 0.6 * off["state"]


def test_physics_are_left_where_chains_run_from_the_paths():
    sde = smdp.SDE(drift=rotating_well, diffusion=0.1)
    assert best_base(sde, paths_of(sde, substeps=8), Joint()) == "state"


def test_linear_steps_need_no_physics():
    sde = smdp.SDE(drift=lambda t, x, args: -x, diffusion=0.3)
    assert best_base(sde, paths_of(sde), Joint()) == "state"


def test_few_paths_tell_nothing():
    assert best_base(CUBIC, paths_of(CUBIC)[:60], Joint()) == "state"


@pytest.mark.parametrize("far", [30.0, -1e4, np.inf])
def test_physics_move_no_state_further_than_they_did_on_the_paths(far):
    paths = paths_of(CUBIC)
    kernel = smdp.estimate_kernel(CUBIC, paths, base="inverse")
    moved = jax.vmap(jax.vmap(lambda x: TS[1] * inwards(0.0, x, None)))(paths.xs[:, 1:])
    np.testing.assert_allclose(kernel.tables.moved, jnp.abs(moved).max(axis=(0, 2)), rtol=1e-5)
    x = jnp.full(3, far)
    gains = kernel.tables.groups[0].gain[4, 0, 0]
    got = kernel.mean(4, x)
    # b is at most the largest move away from x.
    free = gains @ (x - paths.xs[:, 5].mean(axis=0))
    if np.isfinite(far):
        assert jnp.abs(got - free).max() < 5 + 2 * kernel.tables.moved[4] * jnp.abs(gains).sum()
    else:
        assert not jnp.isfinite(got).any()


def test_an_unknown_base_is_refused(untyped):
    options: dict[str, Any] = {"base": "invers"}
    with pytest.raises(ValueError, match=r"base must be one of .*'inverse'.*, got 'invers'"):
        smdp.estimate_kernel(CUBIC, paths_of(CUBIC), **options)


def test_physics_that_bring_a_path_nowhere_are_named():
    """In one entry, on one path of 300, at one time; the later states need no inverse."""
    paths = paths_of(CUBIC, 300)
    stray = 1.01 * jnp.abs(paths.xs).max()
    xs = paths.xs.at[123, 3, 1].set(stray)

    def inverse(t1, t0, x, args):
        return jnp.where(x == stray, jnp.nan, x)

    sde = smdp.SDE(step=lambda t0, t1, x, args: x, inverse=inverse, diffusion=0.3)
    data = smdp.Trajectories(paths.ts, xs)
    where = f"first in sample 123, t={float(paths.ts[3]):g}: mend the simulator there"
    with pytest.raises(ValueError, match=f"SDE.inverse is not finite on the paths, {where}"):
        smdp.estimate_kernel(sde, data, base="inverse")
    assert smdp.estimate_kernel(sde, data).tables.physics is None

    falls = smdp.SDE(lambda t, x, args: jnp.where(x == stray, jnp.inf, -x), diffusion=0.3)
    with pytest.raises(ValueError, match=f"SDE.drift is not finite on the paths, {where}"):
        smdp.estimate_kernel(falls, data, base="inverse")


@pytest.mark.parametrize("scale", [1e20, 1e25])
def test_states_too_large_to_square_are_told(scale):
    """Their covariance is infinite in float32."""
    paths = paths_of(CUBIC)
    data = smdp.Trajectories(paths.ts, scale * paths.xs)
    with pytest.raises(ValueError, match="covariances of the paths must be finite: scale the"):
        smdp.estimate_kernel(CUBIC, data)

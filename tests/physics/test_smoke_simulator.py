"""The smoke simulator: promises of every step, balances, symmetry, backward steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import physics
from smdp_jax.physics import Smoke

SMALL = Smoke(size=32)
step = jax.jit(Smoke.step, static_argnums=0)
NAMES = ("marker", "velocity_x", "velocity_y")


def rest(smoke):
    return jax.tree.map(lambda a: a[0], smoke.prior(jax.random.key(0), 1))


@jax.jit
def run(mask):
    """All states of the published run of 65 steps, from rest."""

    def advance(x, i):
        x = SMALL.step(i * 0.01, (i + 1) * 0.01, x, {"obstacles": mask})
        return x, x

    x = rest(SMALL)
    return jax.lax.scan(advance, x, jnp.arange(65, dtype=x["marker"].dtype))[1]


def after(steps, mask):
    return jax.tree.map(lambda a: a[steps - 1], run(mask))


def two_obstacles(smoke):
    return smoke.box((20, 50), (60, 60)) | smoke.disc((70, 75), 9)


def nothing(smoke):
    return jnp.zeros((smoke.size, smoke.size), bool)


def rms(field):
    return float(jnp.sqrt(jnp.mean(field**2)))


def closeness(x, y):
    """Largest difference of marker and of velocities."""
    miss = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), x, y)
    return miss["marker"], max(miss["velocity_x"], miss["velocity_y"])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_every_step_keeps_its_promises(precision):
    """To the end of the published run: divergence, obstacles, sign of the marker, precision."""
    with jax.enable_x64(precision == "float64"):
        mask = two_obstacles(SMALL)
        path = run(mask)
        args = {"obstacles": mask}
        divergence = jax.vmap(lambda x: SMALL.divergence(x, args))(path)
        assert jnp.max(jnp.abs(divergence)) <= (1e-5 if precision == "float32" else 1e-10)
        assert not jax.vmap(lambda x: SMALL.obstacle_flow(x, args))(path).any()
        assert jnp.min(path["marker"]) == 0
        assert not path["marker"][:, mask].any()
        assert {leaf.dtype.name for leaf in jax.tree.leaves(path)} == {precision}
        assert path["velocity_x"].shape == (65, 31, 32)
        assert path["velocity_y"].shape == (65, 32, 31)
        height = jnp.sum(path["marker"] * (jnp.arange(32, dtype=float) + 0.5)[None, None], (1, 2))
        height = height / jnp.sum(path["marker"], (1, 2)) * SMALL.spacing
        assert jnp.all(jnp.diff(height[:40]) > -0.01)  # smoke rises
        assert height[-1] > 40


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_first_step_from_rest():
    """Inflow, then the force of the new marker, without its gradient part."""
    smoke = SMALL
    y = step(smoke, 0.0, 0.01, rest(smoke), None)
    np.testing.assert_allclose(y["marker"], smoke.inflow(), atol=1e-12)
    force = 0.1 * (y["marker"][:, 1:] + y["marker"][:, :-1]) / 2
    pushed = {"marker": y["marker"], "velocity_x": y["velocity_x"] * 0, "velocity_y": force}
    assert closeness(y, jax.jit(smoke.project)(pushed)) < (1e-12, 1e-9)
    # Twice the step: twice the inflow, four times the velocity.
    z = step(smoke, 0.0, 0.02, rest(smoke), None)
    np.testing.assert_allclose(z["marker"], 2 * y["marker"], atol=1e-12)
    np.testing.assert_allclose(z["velocity_y"], 4 * y["velocity_y"], atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_inflow_ends():
    """A step over the end gets its share; rounding of the times makes no difference."""
    smoke = SMALL
    for t0, share in ((0.19, 1.0), (0.195, 0.5), (0.2, 0.0), (0.3, 0.0)):
        y = step(smoke, t0, t0 + 0.01, rest(smoke), None)
        np.testing.assert_allclose(y["marker"], share * smoke.inflow(), atol=1e-12)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), rest(smoke))
    for t0, share in ((jnp.float32(0.19), 1.0), (jnp.float32(0.2), 0.0)):
        y = step(smoke, t0, t0 + jnp.float32(0.01), single, None)
        np.testing.assert_allclose(y["marker"], share * smoke.inflow(), atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_layers_rest():
    """Hydrostatic balance: a marker that depends on the height only drives no flow."""
    layers = jnp.broadcast_to(jnp.linspace(0.0, 3.0, 32) ** 2, (32, 32))
    mask = two_obstacles(SMALL)
    x = {**rest(SMALL), "marker": jnp.where(mask, 0, layers)}
    y = x
    for _ in range(3):
        y = step(SMALL, 0.3, 0.31, y, {"obstacles": mask})
    assert closeness(y, x) < (1e-9, 1e-9)


@pytest.mark.usefixtures("x64")
def test_plume_is_symmetric():
    """Mirrored at x = 50, without obstacles and with one in the middle, up to rounding errors."""
    for mask in (nothing(SMALL), SMALL.box((40, 50), (60, 60))):
        x = after(40, mask)
        mirrored = {
            "marker": x["marker"][::-1],
            "velocity_x": -x["velocity_x"][::-1],
            "velocity_y": x["velocity_y"][::-1],
        }
        assert jnp.max(x["velocity_y"]) > 2
        assert max(closeness(x, mirrored)) < 1e-7


@pytest.mark.usefixtures("x64")
def test_obstacles_turn_with_the_box():
    """A mirrored geometry gives the mirrored flow: no direction is special."""
    mask = two_obstacles(SMALL)
    x, y = after(40, mask), after(40, mask[::-1])
    np.testing.assert_allclose(y["marker"], x["marker"][::-1], atol=1e-7)
    np.testing.assert_allclose(y["velocity_x"], -x["velocity_x"][::-1], atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_backward_after_forward():
    """What a step and a step back miss is of order 1 in the step, at a fixed grid.

    Interpolation smooths the velocity both ways; so does the limiter at summits of the marker.
    Over a whole step of 0.01 it is up to a quarter of the marker's RMS, and a seventh of the
    velocity's.
    """
    args = {"obstacles": two_obstacles(SMALL)}
    x = after(15, args["obstacles"])

    def misses(dt):
        y = step(SMALL, 0.15, 0.15 + dt, x, args)
        return closeness(step(SMALL, 0.15 + dt, 0.15, y, args), x)

    coarse, fine = np.array(misses(1e-3)), np.array(misses(1.25e-4))
    np.testing.assert_allclose(np.log2(coarse / fine) / 3, 1, atol=0.2)
    y = step(SMALL, 0.15, 0.16, x, args)
    z = step(SMALL, 0.16, 0.15, y, args)
    whole = {name: rms(z[name] - x[name]) / rms(x[name]) for name in NAMES}
    assert whole["marker"] < 0.25
    assert max(whole["velocity_x"], whole["velocity_y"]) < 0.15


def test_backward_steps_take_force_and_inflow_away():
    """From rest and without smoke, a step back is minus a step forward."""
    forward = step(SMALL, 0.1, 0.11, rest(SMALL), None)
    backward = step(SMALL, 0.11, 0.1, rest(SMALL), None)
    np.testing.assert_allclose(backward["marker"], -forward["marker"], atol=1e-5)
    np.testing.assert_allclose(backward["velocity_y"], forward["velocity_y"], atol=1e-5)


def test_too_long_steps_are_named():
    x = after(20, nothing(SMALL))
    fastest = float(jnp.max(jnp.abs(x["velocity_y"])))
    stable = 4 * SMALL.spacing * 0.01 / fastest
    assert SMALL.stable_step(x) == pytest.approx(stable, rel=1e-6)
    SMALL.check_step(0.99 * stable, x)
    SMALL.check_step(0.01, rest(SMALL))
    for dt in (1.01 * stable, -1.01 * stable):
        with pytest.warns(physics.CourantWarning, match=f"at most {stable:.3g} would do"):
            SMALL.check_step(dt, x)
    for bad in (jnp.nan, jnp.inf):
        lost = x | {"velocity_x": x["velocity_x"].at[0, 0].set(bad)}
        with pytest.raises(ValueError, match="states of Smoke must be finite"):
            SMALL.check_step(0.01, lost)

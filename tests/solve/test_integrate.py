"""Fixed steps on a time grid, against recursions by hand."""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.solve.solvers import default_solver
from smdp_jax.solve.terms import GridNoise


def solve(sde, x0, ts, **settings):
    """States of one jitted call."""
    return jax.jit(lambda x0, ts: smdp.integrate(sde, x0, ts, **settings)[0])(x0, ts)


# Noise on the grid -----------------------------------------------------------------------------


def test_grid_noise_law():
    """Variances dt, dt/12, dt/720 and no correlation, also between leaves and between keys.

    Nine series of 40 000 draws: a variance has relative error sqrt(2/n) = 0.7 %, a correlation
    0.5 %. Bounds at 4.5 standard errors: false-alarm rate below (9 + 36) * 7e-6 = 4e-4.
    """
    count, dt = 40_000, 0.25
    shape = {"a": jnp.zeros(count), "b": jnp.zeros(count)}
    area = diffrax.SpaceTimeTimeLevyArea
    first, second = (
        GridNoise.like(shape, jax.random.key(i), area).evaluate(1.0, 1.0 + dt, use_levy=True)
        for i in (1, 2)
    )
    series = [first.W["a"], first.W["b"], first.H["a"], first.H["b"], first.K["a"], first.K["b"]]
    series += [second.W["a"], second.H["a"], second.K["a"]]
    divisors = [1, 1, 12, 12, 720, 720, 1, 12, 720]
    normal = np.stack(
        [np.asarray(s) * math.sqrt(d / dt) for s, d in zip(series, divisors, strict=True)]
    )
    np.testing.assert_allclose(normal.var(axis=1), 1, atol=4.5 * math.sqrt(2 / count))
    np.testing.assert_allclose(normal.mean(axis=1), 0, atol=4.5 / math.sqrt(count))
    off_diagonal = np.corrcoef(normal) - np.eye(9)
    np.testing.assert_allclose(off_diagonal, 0, atol=4.5 / math.sqrt(count))


STATE = {"a": jnp.array([0.3, -1.2]), "b": jnp.array(0.7)}
ARGS = {"rate": jnp.array(0.4)}


def tree_drift(t, x, args):
    return jax.tree.map(lambda x: -args["rate"] * x + t, x)


TREE_SDE = smdp.SDE(tree_drift, diffusion={"a": 0.5, "b": lambda t: 0.1 * (1 + t)})


def tree_noise(key, i, dt):
    """The draws of step i, as documented: one key per step, split over the leaves."""
    noise = GridNoise.like(STATE, jax.random.fold_in(key, i), diffrax.BrownianIncrement)
    return noise.evaluate(0.0, dt)


def test_euler_is_the_recursion_by_hand():
    ts, key = jnp.array([0.0, 0.1, 0.4, 0.5]), jax.random.key(5)
    xs = solve(TREE_SDE, STATE, ts, key=key, args=ARGS)
    x = STATE
    for i in range(3):
        t, dt = ts[i], ts[i + 1] - ts[i]
        g, w, p = TREE_SDE.g(t, x), tree_noise(key, i, dt), tree_drift(t, x, ARGS)
        x = jax.tree.map(lambda x, p, g, w, dt=dt: x + dt * p + g * w, x, p, g, w)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i + 1], b, rtol=1e-5), xs, x)


def test_splitting_is_the_recursion_by_hand():
    """Simulator's step, then g(t0) sqrt(dt) z; backward: inverse, score at t1, then that noise."""

    def step(t0, t1, x, args):
        return jax.tree.map(lambda x: x * jnp.exp(-args["rate"] * (t1 - t0)) + t0, x)

    def score(t, x, args):
        return jax.tree.map(lambda x: -x * t, x)

    sde = smdp.SDE(step=step, diffusion=TREE_SDE.diffusion)
    ts, key = jnp.array([0.1, 0.2, 0.5]), jax.random.key(6)
    xs = solve(sde, STATE, ts, key=key, args=ARGS)
    x = STATE
    for i in range(2):
        g, w = sde.g(ts[i], x), tree_noise(key, i, ts[i + 1] - ts[i])
        x = jax.tree.map(lambda y, g, w: y + g * w, step(ts[i], ts[i + 1], x, ARGS), g, w)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i + 1], b, rtol=1e-5), xs, x)
    back = smdp.reverse_sde(sde, score)
    xs = solve(back, STATE, -ts[::-1], key=key, args=ARGS, solver=smdp.Splitting())
    x = STATE
    for i in range(2):
        t1, t0 = ts[2 - i], ts[1 - i]
        g, w, s = sde.g(t0, x), tree_noise(key, i, t1 - t0), score(t1, x, ARGS)
        forth = step(t0, t1, x, ARGS)
        x = jax.tree.map(
            lambda x, y, g, w, s, dt=t1 - t0: 2 * x - y + dt * g**2 * s + g * w, x, forth, g, w, s
        )
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i + 1], b, rtol=1e-5), xs, x)


# Options ---------------------------------------------------------------------------------------

GRID = smdp.linear_grid(0.0, 0.6, 6)
KEY = jax.random.key(11)


@pytest.mark.parametrize("substeps", [1, 3])
def test_saved_states_are_those_of_all(substeps):
    choices = [(0, 2, 6), (6,), (-1, 1, 1)]

    @jax.jit
    def run(x0):
        return [
            smdp.integrate(TREE_SDE, x0, GRID, key=KEY, args=ARGS, substeps=substeps, save=save)[0]
            for save in ("all", "last", *choices)
        ]

    everything, last, *some = run(STATE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[-1], b, rtol=1e-6), everything, last)
    for wanted, saved in zip(choices, some, strict=True):
        order = jnp.array(sorted({range(7)[i] for i in wanted}))
        jax.tree.map(
            lambda a, b, order=order: np.testing.assert_allclose(a[order], b, rtol=1e-6),
            everything,
            saved,
        )


def test_saving_a_time_that_does_not_exist():
    with pytest.raises(ValueError, match=r"save must be .* between -7 and 6, got"):
        smdp.integrate(TREE_SDE, STATE, GRID, key=KEY, args=ARGS, save=(0, 7))


@pytest.mark.parametrize("solver", [diffrax.Euler(), diffrax.SRA1()])
def test_substeps_are_a_finer_grid(solver):
    fine = jnp.linspace(0.0, 0.6, 19)
    coarse = solve(TREE_SDE, STATE, GRID, key=KEY, args=ARGS, substeps=3, solver=solver)
    refined = solve(TREE_SDE, STATE, fine, key=KEY, args=ARGS, solver=solver)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[::3], rtol=1e-5, atol=1e-6), coarse, refined
    )


@pytest.mark.parametrize(
    ("solver", "substeps"), [(diffrax.Euler(), 1), (diffrax.ShARK(), 1), (diffrax.Euler(), 2)]
)
def test_denoise_last_leaves_out_the_noise_of_the_very_last_step(solver, substeps):
    still = smdp.SDE(lambda t, x, args: jax.tree.map(jnp.zeros_like, x), diffusion=0.3)
    settings = {"key": KEY, "solver": solver, "substeps": substeps}
    noisy = solve(still, STATE, GRID, **settings)
    clean = solve(still, STATE, GRID, denoise_last=True, **settings)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:-1], b[:-1]), noisy, clean)
    if substeps == 1:
        jax.tree.map(lambda a: np.testing.assert_array_equal(a[-1], a[-2]), clean)
    differ = jax.tree.map(lambda a, b: bool((a[-1] != b[-1]).all()), noisy, clean)
    assert all(jax.tree.leaves(differ))


def test_corrector_sees_the_end_of_every_step_but_the_last_and_its_own_key():
    still = smdp.SDE(lambda t, x, args: jnp.zeros_like(x), diffusion=1.0)
    noise = solve(still, jnp.zeros(1), GRID, key=KEY, save="last")
    times = solve(
        still,
        jnp.zeros(1),
        GRID,
        key=KEY,
        save="last",
        substeps=1,
        after_step=lambda key, t, x: x + t,
    )
    np.testing.assert_allclose(times - noise, [0.1 + 0.2 + 0.3 + 0.4 + 0.5], rtol=1e-5)
    drawn = solve(
        still,
        jnp.zeros(1),
        GRID,
        key=KEY,
        after_step=lambda key, t, x: jax.random.normal(key, x.shape, x.dtype),
    )
    steps = np.diff(solve(still, jnp.zeros(1), GRID, key=KEY), axis=0) / math.sqrt(0.1)
    values = np.concatenate([drawn[1:-1, 0], steps[:, 0]])
    assert len(np.unique(values.round(4))) == 11  # no draw twice, none shared with the noise


@pytest.mark.parametrize(("steps", "largest"), [(16, 15.0), (4, 3.0), (33, 32.0)])
def test_monitor_reports_the_largest_value(steps, largest):
    """The clock where the last step starts."""
    clock = smdp.SDE(lambda t, x, args: jnp.ones_like(x), diffusion=None)
    ts = jnp.arange(steps + 1.0)
    for direction in (1.0, -1.0):
        seen = smdp.integrate(
            clock, jnp.zeros(1), ts, monitor=lambda t, x, d=direction: d * x[0], save="last"
        )[1]
        assert seen == (largest if direction > 0 else 0.0)


def test_same_step_same_noise_whatever_is_saved_after():
    """A longer grid begins with the path of the shorter one: step i draws from fold_in(key, i)."""
    long = solve(TREE_SDE, STATE, GRID, key=KEY, args=ARGS)
    short = solve(TREE_SDE, STATE, GRID[:4], key=KEY, args=ARGS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:4], b, rtol=1e-6), long, short)
    other = solve(TREE_SDE, STATE, GRID, key=jax.random.key(12), args=ARGS)
    assert not np.any(np.asarray(other["a"][1:]) == np.asarray(long["a"][1:]))


# Gradients -------------------------------------------------------------------------------------


def loss_of(solver, substeps=1, rematerialise=False, step=False):
    ts = jnp.linspace(0.0, 0.8, 5)

    def drift(t, x, args):
        return -args * x**3 + t

    sde = smdp.SDE(drift, diffusion=0.2)
    if step:
        sde = smdp.flow_map_of(sde, diffrax.Heun())

    def loss(inputs):
        rate, x0 = inputs
        xs = smdp.integrate(
            sde,
            x0,
            ts,
            key=jax.random.key(2),
            args=rate,
            solver=solver,
            substeps=substeps,
            rematerialise=rematerialise,
        )[0]
        return jnp.sum(jnp.sin(xs))

    return loss


@pytest.mark.parametrize("solver", [diffrax.ShARK(), smdp.Splitting()])
def test_gradient_against_finite_differences(solver, x64):
    loss = loss_of(solver, substeps=2, step=isinstance(solver, smdp.Splitting))

    def of(point):
        return loss((point[0], point[1:]))

    point, h = jnp.array([0.7, 1.1]), 1e-5
    gradient = jax.jit(jax.grad(of))(point)
    plus, minus = (jax.jit(jax.vmap(of))(point[None] + sign * h * jnp.eye(2)) for sign in (1, -1))
    np.testing.assert_allclose(gradient, (plus - minus) / (2 * h), rtol=1e-7)


def test_rematerialise_changes_no_gradient(x64):
    inputs = (jnp.array(0.7), jnp.array([1.1]))
    plain, cheap = (
        jax.jit(jax.grad(loss_of(diffrax.Euler(), 2, rematerialise)))(inputs)
        for rematerialise in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), plain, cheap)


# Defaults and bad input ------------------------------------------------------------------------

DRIFT = smdp.SDE(lambda t, x, args: -x, diffusion=0.1)
ODE = smdp.SDE(lambda t, x, args: -x, diffusion=None)
FLOW = smdp.SDE(step=lambda t0, t1, x, args: x, diffusion=0.1)


def test_default_solvers():
    assert isinstance(default_solver(DRIFT), diffrax.Euler)
    assert isinstance(default_solver(FLOW), smdp.Splitting)


@pytest.mark.parametrize(
    ("sde", "settings", "message"),
    [
        (DRIFT, {}, "integrate needs a key for a process with noise, got key=None"),
        (
            DRIFT,
            {"key": KEY, "solver": smdp.Splitting()},
            "Splitting.. solves flow maps, got a dri",
        ),
        (FLOW, {"key": KEY, "solver": diffrax.Euler()}, "solved by Splitting.., got Euler"),
        (ODE, {"solver": diffrax.ShARK()}, "ShARK needs noise, got an ODE"),
        (ODE, {"solver": diffrax.HalfSolver(diffrax.Euler())}, "see solve_adaptive"),
    ],
)
def test_errors(sde, settings, message):
    with pytest.raises(ValueError, match=message):
        smdp.integrate(sde, jnp.ones(1), GRID, **settings)

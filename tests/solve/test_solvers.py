"""Every solver offered: orders from theory, moments backward in time, and what a step costs."""

import math
import re
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import smdp_jax as smdp
from smdp_jax.physics import Affine
from smdp_jax.solve.solvers import check_is_solver, evaluations_per_step
from smdp_jax.solve.terms import levy_area_of, terms_of


class Offered(NamedTuple):
    """A solver, its order on an ODE (0: none offered) and its weak order for additive noise."""

    solver: diffrax.AbstractSolver
    ode: int
    weak: int


NEWTON = optx.Newton(rtol=1e-8, atol=1e-8)
SOLVERS = {
    "Euler": Offered(diffrax.Euler(), 1, 1),
    "Heun": Offered(diffrax.Heun(), 2, 2),
    "Midpoint": Offered(diffrax.Midpoint(), 2, 2),
    "Ralston": Offered(diffrax.Ralston(), 2, 2),
    "Bosh3": Offered(diffrax.Bosh3(), 3, 2),
    "Tsit5": Offered(diffrax.Tsit5(), 5, 2),
    "Dopri5": Offered(diffrax.Dopri5(), 5, 2),
    "SEA": Offered(diffrax.SEA(), 0, 1),
    "ShARK": Offered(diffrax.ShARK(), 0, 2),
    "SRA1": Offered(diffrax.SRA1(), 0, 2),
    "SlowRK": Offered(diffrax.SlowRK(), 0, 2),
    "GeneralShARK": Offered(diffrax.GeneralShARK(), 0, 2),
    "SPaRK": Offered(diffrax.SPaRK(), 0, 2),
    "ImplicitEuler": Offered(diffrax.ImplicitEuler(root_finder=NEWTON), 1, 0),
    "Kvaerno3": Offered(diffrax.Kvaerno3(root_finder=NEWTON), 3, 0),
}
ODE_SOLVERS = [name for name, offered in SOLVERS.items() if offered.ode]
SDE_SOLVERS = [name for name, offered in SOLVERS.items() if offered.weak]


@pytest.mark.parametrize("name", ODE_SOLVERS)
def test_order_on_an_ode(name, x64):
    """A rotation that speeds up: eight steps over [0, T], then T/2; error / 2^(order + 1)."""

    def drift(t, x, args):
        return (1 + t) * jnp.stack([-x[1], x[0]])

    sde = smdp.SDE(drift, diffusion=None)

    @jax.jit
    def error(end):
        ts = jnp.linspace(0.0, end, 9)
        x0 = jnp.array([1.0, 0.0])
        x = smdp.integrate(sde, x0, ts, solver=SOLVERS[name].solver, save="last")[0]
        angle = end + end**2 / 2
        return jnp.linalg.norm(x - jnp.stack([jnp.cos(angle), jnp.sin(angle)]))

    order = math.log2(error(0.8) / error(0.4)) - 1
    assert order > SOLVERS[name].ode - 0.3
    if SOLVERS[name].ode < 5:  # the pairs of order 5 converge faster than that here
        assert order < SOLVERS[name].ode + 0.9


class Impulse(diffrax.AbstractBrownianPath):
    """A prescribed increment with Lévy areas, to read off how a step responds to each."""

    parts: tuple
    levy_area: type = eqx.field(static=True)
    t0 = -jnp.inf
    t1 = jnp.inf

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        named = dict(zip("WHK", self.parts, strict=True))
        if not use_levy:
            return named["W"]
        fields = self.levy_area.__dataclass_fields__
        return self.levy_area(dt=t1 - t0, **{k: v for k, v in named.items() if k in fields})


def growing(t):
    return 1 + 0.5 * t


def linear_problem():
    """dx = -x dt + (1 + t/2) dW from N(0, 1) at t = 0: marginal variance and reversed process."""
    nodes, weights = np.polynomial.legendre.leggauss(12)

    def noise(t):
        s = 0.5 * t * (jnp.asarray(nodes, t.dtype) + 1)
        integrand = jnp.exp(-2 * (t - s)) * growing(s) ** 2
        return 0.5 * t * jnp.sum(jnp.asarray(weights, t.dtype) * integrand)

    def variance(t):
        return jnp.exp(-2 * t) + noise(t)

    def score(t, x, args):
        return -x / variance(t)

    sde = smdp.SDE(lambda t, x, args: -x, diffusion=growing)
    end = jnp.ones(())
    mean = jnp.exp(-end) / variance(end)
    return smdp.reverse_sde(sde, score), float(mean), float(noise(end) / variance(end))


@pytest.mark.parametrize("name", SDE_SOLVERS)
def test_weak_order_backward(name, x64):
    """Mean and variance of the scheme itself, exactly: every step is linear in x, W, H and K."""
    back, mean, variance = linear_problem()
    solver = SOLVERS[name].solver

    def step(t0, t1):
        def respond(unit):
            terms = terms_of(back, Impulse(tuple(unit[1:]), levy_area_of(solver)))
            state = solver.init(terms, t0, t1, unit[0], None)
            return solver.step(terms, t0, t1, unit[0], None, state, made_jump=False)[0]

        gain, w, h, k = jax.vmap(respond)(jnp.eye(4))
        return gain, (t1 - t0) * (w**2 + h**2 / 12 + k**2 / 720)

    grids = [-jnp.linspace(0.0, 1.0, n + 1)[::-1] for n in (16, 32)]
    gains, kicks = jax.jit(jax.vmap(step))(
        jnp.concatenate([ts[:-1] for ts in grids]), jnp.concatenate([ts[1:] for ts in grids])
    )
    errors = []
    for part in (slice(0, 16), slice(16, 48)):
        m, v = 1.0, 0.0
        for gain, kick in zip(gains[part].tolist(), kicks[part].tolist(), strict=True):
            m, v = gain * m, gain**2 * v + kick
        errors.append(math.hypot(m - mean, v - variance))
    order = math.log2(errors[0] / errors[1])
    assert SOLVERS[name].weak - 0.25 < order < SOLVERS[name].weak + 0.6


@pytest.mark.parametrize("name", SDE_SOLVERS)
def test_backward_on_the_affine_process(name):
    """Mean and variance of 20 000 paths from t = 10 back to t = 1, against the closed form.

    Allowed: 4.5 standard errors, and 1 % for the bias of 180 steps. The two checks of 13 solvers
    raise a false alarm with probability below 2e-4.
    """
    affine = Affine()
    count = 20_000
    score = jax.vmap(lambda t, x: affine.score(t, x[None])[0], in_axes=(None, 0))
    sde = smdp.SDE(lambda t, x, args: -affine.rate * x, diffusion=affine.noise)
    back = smdp.reverse_sde(sde, lambda t, x, args: score(t, x))
    ts = -smdp.linear_grid(1.0, 10.0, 180)[::-1]
    ends = jnp.full(count, 0.05)

    @jax.jit
    def run(ends):
        return smdp.integrate(
            back, ends, ts, key=jax.random.key(3), solver=SOLVERS[name].solver, save="last"
        )[0]

    mean, variance = (float(v[0]) for v in affine.bridge_moments(1.0, 10.0, jnp.array([0.05])))
    x = np.asarray(run(ends), np.float64)
    fourth = np.mean((x - x.mean()) ** 4)
    error_of_mean = math.sqrt(variance / count)
    error_of_variance = math.sqrt((fourth - variance**2) / count)
    assert abs(x.mean() - mean) < 4.5 * error_of_mean + 0.01 * math.sqrt(variance)
    assert abs(x.var() - variance) < 4.5 * error_of_variance + 0.01 * variance


@pytest.mark.parametrize(("name", "count"), [("Euler", 1), ("Tsit5", 6), ("ShARK", 2)])
def test_evaluations_per_step_are_those_of_a_run(name, count):
    """Drift calls of ten steps more against ten steps, counted on the host."""
    calls = []

    def drift(t, x, args):
        jax.debug.callback(lambda: calls.append(1))
        return -x

    solver = SOLVERS[name].solver
    counts = []
    for steps in (10, 20):
        calls.clear()
        smdp.integrate(
            smdp.SDE(drift, diffusion=0.1),
            jnp.ones(1),
            smdp.linear_grid(0.0, 1.0, steps),
            key=jax.random.key(0),
            solver=solver,
            save="last",
        )
        jax.effects_barrier()
        counts.append(len(calls))
    assert counts[1] - counts[0] == 10 * count == 10 * evaluations_per_step(solver)


@pytest.mark.parametrize("name", SDE_SOLVERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_state_dtype_is_kept(name, dtype, x64):
    """Under x64 a float32 state stays float32, and a float64 one float64."""
    sde = smdp.SDE(lambda t, x, args: jax.tree.map(lambda x: -x * t, x), diffusion=0.3)
    x0 = {"a": jnp.ones(2, dtype), "b": jnp.ones((), dtype)}
    settings = {"key": jax.random.key(0), "solver": SOLVERS[name].solver}
    ts = jnp.linspace(0, 1, 3, dtype=dtype)
    xs, _ = jax.eval_shape(lambda x0: smdp.integrate(sde, x0, ts, **settings), x0)
    assert {leaf.dtype for leaf in jax.tree.leaves(xs)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("solver", [diffrax.ImplicitEuler(), diffrax.Kvaerno3()])
def test_implicit_solver_as_diffrax_builds_it(solver):
    """Without tolerances of its own an implicit solver takes sensible ones.

    x' = -100 x in 10 steps of 0.1: 11^-10 by implicit Euler, and explicit steps blow up.
    """
    stiff = smdp.SDE(lambda t, x, args: -100.0 * x, diffusion=None)
    x = smdp.integrate(stiff, jnp.ones(1), smdp.linear_grid(0.0, 1.0, 10), solver=solver)[0][-1]
    assert abs(float(x[0])) < 1e-3


@pytest.mark.parametrize(
    ("solver", "message"),
    [(diffrax.Heun, "got the class Heun: call it"), ("heun", "diffrax.Heun(), got 'heun'")],
)
def test_what_is_no_solver(solver, message):
    check_is_solver(diffrax.Heun())
    with pytest.raises(TypeError, match=re.escape(message)):
        check_is_solver(solver)


# Every solver that diffrax has, also those it will have ------------------------------------------

ALL = [
    kind
    for kind in vars(diffrax).values()
    if isinstance(kind, type)
    and issubclass(kind, diffrax.AbstractSolver)
    and not kind.__name__.startswith("Abstract")
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_solver_of_diffrax_is_right_with_noise_or_refused(kind):
    """dx = -x dt + (1 + t/2) dW from N(0, 4), 12 steps to t = 1: the variance of 20 000 paths.

    Refused solvers say why. Allowed: 4.5 standard errors, and 6 % for the steps.
    """
    solver = kind(diffrax.Euler()) if kind is diffrax.HalfSolver else kind()
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=growing)
    starts = 2 * jax.random.normal(jax.random.key(1), (20_000,))
    ts = smdp.linear_grid(0.0, 1.0, 12)
    settings = {"key": jax.random.key(2), "solver": solver}
    if kind.__name__ in REFUSED:
        with pytest.raises(ValueError, match=kind.__name__):
            smdp.simulate(sde, starts, ts, **settings)
        return
    x = smdp.simulate(sde, starts, ts, **settings).xs[:, -1]
    nodes = np.linspace(0, 1, 2001)
    noise = np.trapezoid(np.exp(-2 * (1 - nodes)) * (1 + 0.5 * nodes) ** 2, nodes)
    exact = 4 * math.exp(-2) + noise
    assert abs(np.var(x) / exact - 1) < 4.5 * math.sqrt(2 / 20_000) + 0.06


REFUSED = {
    "LeapfrogMidpoint",  # spreads by the square root of the number of steps
    "HalfSolver",  # for adaptive steps
    "ItoMilstein",  # as Euler, with a Jacobian of noise that has none
    "StratonovichMilstein",
    "SemiImplicitEuler",  # of two drifts
    "ALIGN",  # of underdamped Langevin dynamics
    "QUICSORT",
    "ShOULD",
}

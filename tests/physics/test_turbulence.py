"""Two-dimensional turbulence: budgets, exact decay, orders of convergence, prior, stationarity."""

import math
import warnings
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import physics
from smdp_jax.evaluate.spectra import power_spectrum
from smdp_jax.physics.spectral import vorticity
from smdp_jax.physics.spectral.periodic import angular_wavenumbers, coarsen, dealiased, refine
from smdp_jax.physics.system import CourantWarning, spin_up
from smdp_jax.physics.turbulence import Turbulence

DECAYING = Turbulence(size=32, viscosity=1e-3, forcing="none", inner_steps=8)
KOLMOGOROV = Turbulence.stationary(size=32, viscosity=1e-3, inner_steps=8)


@partial(jax.jit, static_argnums=0)
def run(system, t0, t1, x, args=None):
    return system.step(t0, t1, x, args)


def march(system, time, calls, x, args=None):
    """Many calls of one compiled step."""
    for _ in range(calls):
        x = run(system, 0.0, time / calls, x, args)
    return x


def smooth(size, seed=0, scale=20.0):
    """A field of order one with energy in wavenumbers up to 7, as Turbulence's prior has it."""
    few = Turbulence(size=16).prior(jax.random.key(seed), 1)[0]
    return refine(scale * few, size)


def rate(function, system, x, args=None):
    """Time derivative of a function of the state along the noise-free flow."""
    return float(jax.jvp(lambda t: function(run(system, 0.0, t, x, args)), (0.0,), (1.0,))[1])


def taylor_green(size, k=2):
    x = 2 * np.pi * k * np.arange(size) / size
    return jnp.asarray(np.sin(x)[:, None] * np.sin(x)[None, :], float)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_velocity_and_quadratic_means():
    """Against derivatives of the stream function, finite differences, and Parseval."""
    w = smooth(32)
    u, v = jax.jit(vorticity.velocity)(w)
    kx, ky = (jnp.asarray(1j * k) for k in angular_wavenumbers((32, 32)))
    derive = lambda k, f: jnp.fft.irfft2(k * jnp.fft.rfft2(f))
    np.testing.assert_allclose(derive(kx, v) - derive(ky, u), w, atol=1e-12)
    np.testing.assert_allclose(derive(kx, u) + derive(ky, v), 0, atol=1e-12)
    psi = refine(vorticity.stream_function(w), 512)
    np.testing.assert_allclose(jnp.gradient(psi, 1 / 512, axis=1)[::16, 16:-16:16], u[:, 1:-1],
                               atol=2e-3 * float(jnp.abs(u).max()))  # fmt: skip
    assert vorticity.energy(w) == pytest.approx(float(jnp.mean(u**2 + v**2)) / 2)
    assert vorticity.enstrophy(w) == pytest.approx(float(jnp.sum(power_spectrum(w, 22))) / 2)
    steepness = derive(kx, w) ** 2 + derive(ky, w) ** 2
    assert vorticity.palinstrophy(w) == pytest.approx(float(jnp.mean(steepness)) / 2)
    assert vorticity.energy(w + 3.0) == pytest.approx(float(vorticity.energy(w)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x", [smooth(32), jax.random.normal(jax.random.key(1), (32, 32))])
def test_budgets_of_decay(x):
    """dE/dt = -2 nu Z - 2 mu E and dZ/dt = -2 nu P - 2 mu Z, even of white noise."""
    x = jnp.asarray(x, float) - jnp.mean(jnp.asarray(x, float))
    args = {"viscosity": 2e-3, "drag": 0.3}
    e, z, p = (f(x) for f in (vorticity.energy, vorticity.enstrophy, vorticity.palinstrophy))
    assert rate(vorticity.energy, DECAYING, x, args) == pytest.approx(
        float(-2 * 2e-3 * z - 2 * 0.3 * e), rel=1e-11
    )
    assert rate(vorticity.enstrophy, DECAYING, x, args) == pytest.approx(
        float(-2 * 2e-3 * p - 2 * 0.3 * z), rel=1e-11
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("forcing", ["diagonal", "kolmogorov"])
def test_budget_of_forced_flow(forcing):
    """Input = dissipation + dE/dt, at one time; and over a span of time by Simpson's rule."""
    system = Turbulence(size=32, viscosity=1e-3, drag=0.1, forcing=forcing, inner_steps=2)
    x = smooth(32)

    def balance(x):
        lost = 2e-3 * vorticity.enstrophy(x) + 0.2 * vorticity.energy(x)
        return system.energy_input(x) - lost

    assert rate(vorticity.energy, system, x) == pytest.approx(float(balance(x)), rel=1e-11)

    def body(x, _):
        return run(system, 0.0, 0.02, x), (vorticity.energy(x), balance(x))

    _, (energy, gained) = jax.lax.scan(body, x, length=101)
    weights = np.r_[1, np.tile([4, 2], 49), 4, 1] / 3 * 0.02
    assert energy[-1] - energy[0] == pytest.approx(float(weights @ gained), rel=1e-4)
    assert abs(float(energy[-1] - energy[0])) > 0.1 * energy[0]


@pytest.mark.usefixtures("x64")
def test_sources():
    """The diagonal source as written; Kolmogorov's is the curl of its force."""
    points = np.arange(32) / 32
    x, y = np.meshgrid(points, points, indexing="ij")
    diagonal = Turbulence(size=32, forcing_amplitude=0.1).source()
    phase = 2 * np.pi * (x + y)
    np.testing.assert_allclose(diagonal, 0.1 * (np.sin(phase) + np.cos(phase)), atol=1e-15)
    system = Turbulence(size=32, forcing="kolmogorov", forcing_amplitude=0.7, forcing_wavenumber=3)
    u, v = vorticity.velocity(system.source())
    np.testing.assert_allclose(u, 0.7 * np.sin(2 * np.pi * 3 * y), atol=1e-13)
    np.testing.assert_allclose(v, 0, atol=1e-13)
    assert not jnp.any(DECAYING.source())


@pytest.mark.usefixtures("x64")
def test_taylor_green_decays_exactly():
    w = taylor_green(32)
    exact = w * math.exp(-0.01 * 2 * (4 * math.pi) ** 2 * 0.5)
    end = march(DECAYING, 0.5, 8, w, {"viscosity": 0.01})
    np.testing.assert_allclose(end, exact, atol=2e-6)


@pytest.mark.usefixtures("x64")
def test_laminar_kolmogorov_flow_stays():
    """w = F / (nu q^2 + mu) is a steady state."""
    system = KOLMOGOROV
    w = system.source() / (1e-3 * (8 * math.pi) ** 2 + 0.2)
    np.testing.assert_allclose(run(system, 0.0, 0.5, w), w, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("viscosity", "order"), [(1e-9, 4), (0.02, 2)])
def test_order_in_time(viscosity, order):
    """Fourth order for advection, second for viscosity: Crank-Nicolson in a Runge-Kutta scheme."""
    x = smooth(32, scale=60.0)
    ends = [march(DECAYING, 0.3, n, x, {"viscosity": viscosity}) for n in (2, 4, 8)]
    errors = [float(jnp.max(jnp.abs(a - b))) for a, b in pairwise(ends)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_spectral_convergence_in_space():
    x = smooth(16, scale=40.0)
    systems = {n: Turbulence(size=n, viscosity=2e-3, inner_steps=64) for n in (16, 32, 64)}
    ends = {n: run(system, 0.0, 1.0, refine(x, n)) for n, system in systems.items()}
    errors = [float(jnp.max(jnp.abs(coarsen(ends[64], n) - ends[n]))) for n in (16, 32)]
    assert errors[0] < 1
    assert errors[1] < errors[0] / 20


@pytest.mark.usefixtures("x64")
def test_backward_step_returns():
    x, args = smooth(32, scale=60.0), {"viscosity": 1e-4}
    there = march(DECAYING, 0.3, 4, x, args)
    assert float(jnp.max(jnp.abs(there - x))) > 0.1
    np.testing.assert_allclose(march(DECAYING, -0.3, 4, there, args), x, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_gradient_through_twenty_steps():
    weights = jax.random.normal(jax.random.key(3), (32, 32), float)

    def outcome(x, viscosity):
        body = lambda x, _: (KOLMOGOROV.step(0.0, 0.05, x, {"viscosity": viscosity}), None)
        return jnp.vdot(weights, jax.lax.scan(body, x, length=20)[0])

    x, nu = smooth(32, scale=60.0), jnp.asarray(1e-3)
    by_state, by_viscosity = jax.jit(jax.grad(outcome, (0, 1)))(x, nu)
    direction, ends = smooth(32, seed=4), jax.jit(outcome)
    slope = (ends(x + 1e-5 * direction, nu) - ends(x - 1e-5 * direction, nu)) / 2e-5
    assert jnp.vdot(by_state, direction) == pytest.approx(float(slope), rel=1e-6)
    slope = (ends(x, nu + 1e-7) - ends(x, nu - 1e-7)) / 2e-7
    assert by_viscosity == pytest.approx(float(slope), rel=1e-5)


def test_prior():
    """Mean square per unitary mode over the formula's variance, in all and in four groups.

    n fields and M modes: relative std sqrt(2 / (n M)). 5 of them, 5 checks: false alarm 3e-6.
    """
    system, n = Turbulence(size=32), 300
    fields = system.prior(jax.random.key(0), n)
    modes = np.asarray(jax.vmap(physics.spectral_modes)(fields))
    found = np.mean(np.abs(modes) ** 2, axis=0).ravel()
    k = 2 * np.pi * np.fft.fftfreq(32, 1 / 32)
    laplace = (k[:, None] ** 2 + k[None, :] ** 2).ravel()
    formula = 32**2 * 7**1.5 * (laplace + 49) ** -2.5
    assert found[0] < 1e-9 * formula[0]
    ratios, order = found[1:] / formula[1:], np.argsort(laplace[1:])
    for group in (order, *np.array_split(order, 4)):
        allowed = 5 * math.sqrt(2 / (n * (len(group) - 1)))  # a group may split one pair k, -k
        assert abs(ratios[group].mean() - 1) < allowed
    assert jnp.mean(system.prior_variance()) == pytest.approx(1.85e-3, rel=2e-3)


@pytest.mark.usefixtures("x64")
def test_coarse_and_fine_grids():
    x = smooth(32)
    np.testing.assert_allclose(coarsen(refine(x, 96), 32), x, atol=1e-13)
    points = np.arange(96) / 96
    wave = lambda p: np.cos(2 * np.pi * (5 * p[:, None] - 3 * p[None, :]) + 0.3)
    np.testing.assert_allclose(refine(jnp.asarray(wave(points[::3])), 96), wave(points), atol=1e-13)
    mixed = jnp.asarray(wave(points) + np.cos(2 * np.pi * 20 * points)[:, None])
    np.testing.assert_allclose(coarsen(mixed, 32), wave(points[::3]), atol=1e-13)
    kept = dealiased((64, 64))
    assert kept[21, 21]
    assert kept[-21, 0]
    assert not kept[22, 0]
    assert not kept[0, 22]


def test_white_noise_coarsens_as_documented():
    """Relative std of a mean square over M values sqrt(2 / M), 5 of them: false alarm 6e-7.

    The Nyquist modes, 31 of 1024 or so, are lost.
    """
    white = jax.random.normal(jax.random.key(0), (20, 64, 64))
    coarse = jax.vmap(lambda x: coarsen(x, 32))(white)
    share = (31 / 32) ** 2 / 4
    assert jnp.mean(coarse**2) == pytest.approx(share, rel=5 * math.sqrt(2 / (20 * 31**2)))


@pytest.mark.slow
def test_stationary_flow_is_stationary():
    """A coarse cousin of ``stationary``; benchmarks/turbulence_spectra.py measures that itself.

    Chaotic: the bounds are three times the spread seen over seeds.
    """
    xs = jax.vmap(lambda x: coarsen(x, 32))(Turbulence().prior(jax.random.key(0), 8))
    advance = jax.jit(lambda xs: spin_up(KOLMOGOROV.step, xs, time=10.0, calls=25))
    energies = []
    for _ in range(4):
        xs = advance(xs)
        energies.append(float(jnp.mean(jax.vmap(vorticity.energy)(xs))))
    assert energies[-1] == pytest.approx(energies[-2], rel=0.5)
    laminar = KOLMOGOROV.source() / (1e-3 * (8 * math.pi) ** 2 + 0.2)
    assert energies[-1] < 2 * vorticity.energy(laminar)


def test_processes():
    x = smooth(32)
    flow = KOLMOGOROV.sde()
    stepped = run(KOLMOGOROV, 0.0, 0.1, x)
    np.testing.assert_allclose(flow.inverse(0.1, 0.0, x, None), 2 * x - stepped, atol=1e-5)
    surrogate = lambda t1, t0, x, args: 0.5 * x
    assert KOLMOGOROV.sde(surrogate).inverse is surrogate
    assert flow.g(0.1, x) == jnp.float32(KOLMOGOROV.noise)


def test_cfl_warning_names_the_step_that_would_do():
    system, x = KOLMOGOROV, smooth(32)
    stable = system.inner_steps * float(system.stable_step(x))
    with pytest.warns(CourantWarning, match=rf"at most {stable:.3g} would do, or inner_steps=\d+"):
        system.check_step(2 * stable, x)
    with warnings.catch_warnings():
        system.check_step(0.99 * stable, jnp.stack([x, 0.5 * x]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, x: s.check_step(0.1, x.at[0, 0].set(jnp.inf)), "must be finite, got NaN"),
        (
            lambda s, x: spin_up(s.step, x[None], time=-1.0, calls=1),
            "not negative, got -1",
        ),
        (
            lambda s, x: spin_up(s.step, x[None], time=math.nan, calls=1),
            "not negative, got nan",
        ),
        (lambda s, x: coarsen(x, 64), "size must be even and from 2 to 32, got 64"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(DECAYING, jnp.zeros((32, 32)))

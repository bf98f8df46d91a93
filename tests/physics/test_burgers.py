"""Burgers' equation against Cole and Hopf, its budgets, orders of convergence, and jax-cfd."""

import math
import warnings
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.physics.burgers import Burgers
from smdp_jax.physics.exact.cole_hopf import cole_hopf
from smdp_jax.physics.jax_cfd import lenient, library
from smdp_jax.physics.spectral.periodic import coarsen, refine
from smdp_jax.physics.system import CourantWarning

SHOCKS = Burgers(size=256, amplitude=0.7, inner_steps=30)


@partial(jax.jit, static_argnums=0)
def run(system, t0, t1, x, args=None):
    return system.step(t0, t1, x, args)


def spectral_burgers(u, dt, *, steps, viscosity):
    """jax-cfd's: the product ``u u_x`` on a padded grid, ``crank_nicolson_rk4`` in time."""
    with lenient():
        torus = library("base.grids.Grid")((u.shape[0],), domain=((0.0, 1.0),))
        equation = library("spectral.equations.BurgersEquation")(viscosity, torus)
        advance = library("spectral.time_stepping.crank_nicolson_rk4")(equation, dt)
        # Its state carries a time for forcings, which there are none of here.
        body = lambda v, _: (advance((v, 0.0))[0].astype(v.dtype), None)
        return jnp.fft.irfft(jax.lax.scan(body, jnp.fft.rfft(u), length=steps)[0])


exact_solution = jax.jit(cole_hopf, static_argnames=("viscosity", "points"))


def start(system, seed=0):
    return system.prior(jax.random.key(seed), 1)[0]


def march(system, time, calls, x):
    """Many calls of one compiled step."""
    for _ in range(calls):
        x = run(system, 0.0, time / calls, x)
    return x


def rough(size, seed=0):
    return jax.random.normal(jax.random.key(seed), (size,), float)


def worst(a, b):
    return float(jnp.max(jnp.abs(a - b)))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_closed_form_solves_the_equation():
    """u_t + u u_x - nu u_xx = 0, by autodiff in t and spectral derivatives in x."""
    x0 = start(SHOCKS) + 0.3
    field = lambda t: exact_solution(x0, t, viscosity=0.02)
    u, u_t = jax.jvp(field, (0.4,), (1.0,))
    np.testing.assert_allclose(-u_t, -Burgers(size=256, viscosity=0.02).drift(0.4, u), atol=1e-6)
    np.testing.assert_allclose(field(1e-5), x0, atol=1e-2)
    finer = exact_solution(x0, 0.4, viscosity=0.02, points=8192)
    np.testing.assert_allclose(field(0.4), finer, atol=1e-13)
    assert jax.eval_shape(cole_hopf, x0.astype(jnp.float32), 0.1).dtype == jnp.float32


@pytest.mark.usefixtures("x64")
def test_step_against_the_closed_form():
    """Before, while and after shocks form, with a mean velocity."""
    x0 = start(SHOCKS, seed=1) + 0.2
    for t in (0.05, 0.3, 1.0):
        end = march(SHOCKS, t, 8, x0)
        np.testing.assert_allclose(end, exact_solution(x0, t), atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_order_in_time():
    x0, exact = start(SHOCKS), exact_solution(start(SHOCKS), 0.3)
    errors = [worst(march(SHOCKS, 0.3, calls, x0), exact) for calls in (2, 4)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_spectral_convergence_in_space():
    """Doubling the points squares the error, nearly or more: faster than any power."""
    x0 = start(SHOCKS)
    exact = exact_solution(x0, 0.3)
    errors = []
    for size in (32, 64, 128):
        got = run(Burgers(size=size, inner_steps=256), 0.0, 0.3, coarsen(x0, size))
        errors.append(worst(refine(got, 256), exact))
    assert errors[0] < 0.01
    assert all(b < a**1.6 for a, b in pairwise(errors)), errors


@pytest.mark.usefixtures("x64")
def test_budgets():
    system, x = Burgers(), rough(128)
    assert jnp.mean(run(system, 0.0, 0.01, x)) == pytest.approx(float(jnp.mean(x)), abs=1e-16)
    # Dealiased advection neither makes nor loses energy, even on white noise.
    rate = jax.jvp(system.energy, (x,), (system.drift(0.0, x),))[1]
    assert rate == pytest.approx(-float(system.dissipation(x)), rel=1e-12)
    slope = jnp.gradient(refine(start(system), 2**14), 2**-14)[1:-1]
    by_slope = system.viscosity * jnp.mean(slope**2)
    assert system.dissipation(start(system)) == pytest.approx(float(by_slope), rel=1e-3)


@pytest.mark.usefixtures("x64")
def test_energy_falls_by_the_dissipation():
    """E(0) - E(T) is the time integral of nu <u_x^2>, by Simpson's rule."""
    system = Burgers()

    def body(x, _):
        return run(system, 0.0, 1 / 128, x), (system.energy(x), system.dissipation(x))

    _, (energy, lost) = jax.lax.scan(body, start(system), length=129)
    weights = np.r_[1, np.tile([4, 2], 63), 4, 1] / 3 / 128
    assert energy[0] - energy[-1] == pytest.approx(float(weights @ lost), rel=1e-4)
    assert energy[-1] < 0.2 * energy[0]


@pytest.mark.usefixtures("x64")
def test_step_is_generated_by_the_drift():
    system, x = Burgers(), start(Burgers())
    velocity = jax.jvp(lambda t: run(system, 0.2, t, x), (0.2,), (1.0,))[1]
    np.testing.assert_allclose(velocity, jax.jit(system.drift)(0.2, x), atol=1e-10)
    halves = run(system, 0.001, 0.002, run(system, 0.0, 0.001, x))
    np.testing.assert_allclose(halves, run(system, 0.0, 0.002, x), atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_backward_step_returns_to_smooth_fields():
    system = Burgers(amplitude=0.3, viscosity=0.0005)
    x = start(system)
    there = march(system, 0.05, 16, x)
    assert worst(there, x) > 0.1
    np.testing.assert_allclose(march(system, -0.05, 16, there), x, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_linear_modes_decay_exactly():
    """Without advection in reach, in one stiff step; above the 2/3 rule always."""
    system = Burgers(viscosity=0.3, inner_steps=1)
    points = np.arange(128) / 128
    wave = jnp.asarray(1e-6 * np.cos(2 * np.pi * 5 * points))
    high = jnp.asarray(np.cos(2 * np.pi * 50 * points))
    for field, k, t in ((wave, 5, 0.01), (high, 50, 1e-4)):
        decayed = field * math.exp(-0.3 * (2 * math.pi * k) ** 2 * t)
        np.testing.assert_allclose(run(system, 0.0, t, field), decayed, rtol=1e-6, atol=1e-13)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_gradient_through_twenty_steps():
    """Against central differences, for the state and the viscosity."""
    system, weights = Burgers(), rough(128, seed=1)

    def outcome(x, viscosity):
        body = lambda x, _: (system.step(0.0, 1 / 64, x, {"viscosity": viscosity}), None)
        return jnp.dot(weights, jax.lax.scan(body, x, length=20)[0])

    x, nu = start(system), jnp.asarray(0.01)
    by_state, by_viscosity = jax.jit(jax.grad(outcome, (0, 1)))(x, nu)
    direction, ends = rough(128, seed=2), jax.jit(outcome)
    eps = 1e-5
    slope = (ends(x + eps * direction, nu) - ends(x - eps * direction, nu)) / (2 * eps)
    assert jnp.dot(by_state, direction) == pytest.approx(float(slope), rel=1e-6)
    slope = (ends(x, nu + 1e-7) - ends(x, nu - 1e-7)) / 2e-7
    assert by_viscosity == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.usefixtures("x64")
def test_another_solver_agrees():
    """jax-cfd advects in another form, on another grid, with another scheme."""
    x0 = start(Burgers())
    other = spectral_burgers(x0, 1e-3, steps=300, viscosity=0.01)
    np.testing.assert_allclose(march(Burgers(), 0.3, 60, x0), other, atol=2e-4)
    mild = 0.2 * x0
    other = spectral_burgers(mild, 1e-3, steps=300, viscosity=0.01)
    np.testing.assert_allclose(march(Burgers(), 0.3, 60, mild), other, atol=1e-7)


def test_prior():
    """Ten normal coefficients a field and nothing else.

    The sum of 10 n squares over their variance is chi-squared, of relative std sqrt(2 / (10 n));
    so is each coefficient's with 10 n replaced by n. 5 std each, 11 checks: false alarm 1e-5.
    """
    system, n = Burgers(amplitude=0.5), 2000
    fields = system.prior(jax.random.key(0), n)
    found = np.asarray(jax.vmap(system.leading_modes)(fields))
    squares = found**2 / (0.5**2 / 5)
    assert abs(squares.mean() - 1) < 5 * math.sqrt(2 / found.size)
    np.testing.assert_allclose(squares.mean(0), 1, atol=5 * math.sqrt(2 / n))
    spectrum = np.abs(np.fft.rfft(fields))
    np.testing.assert_allclose(spectrum[:, [0, *range(6, 65)]], 0, atol=1e-4)
    np.testing.assert_allclose(found[:, 1], 2 / 128 * np.fft.rfft(fields)[:, 2].real, atol=1e-5)


@pytest.mark.slow
def test_score_targets_of_the_linear_regime():
    """Where advection is negligible every target is the exact score of its path's end.

    The sinh ramp is the transition kernel of the linear part, so the targets' spread vanishes with
    the simulator's step; what is left at kappa dt = 0.02 is a few per cent.
    """
    system = Burgers(size=32, noise=1e-4, amplitude=1e-9, viscosity=0.01, inner_steps=1)
    ramp = smdp.SinhRamp(system.decay_rates(), system.transform)
    data = smdp.simulate(
        system.sde(), system.prior(jax.random.key(0), 4), smdp.linear_grid(0.0, 0.5, 16),
        key=jax.random.key(1), substeps=32, score_targets=ramp,
    )  # fmt: skip
    assert data.score_targets is not None
    end, target = (np.fft.rfft(v[:, -1]) for v in (data.xs, data.score_targets))
    kappa = np.asarray(system.decay_rates())[:6]
    with np.errstate(invalid="ignore"):
        variance = np.where(kappa > 0, -np.expm1(-2 * kappa * 0.5) / (2 * kappa), 0.5) * 1e-8
    np.testing.assert_allclose(target[:, :6] * variance, -end[:, :6], atol=0.05 * np.abs(end).max())


def test_processes():
    system, x = Burgers(), start(Burgers())
    flow, continuous = system.sde(), system.continuous_sde()
    back = jax.jit(flow.inverse)(0.11, 0.1, x, None)
    np.testing.assert_allclose(back, 2 * x - run(system, 0.1, 0.11, x), atol=1e-6)
    assert continuous.drift == system.drift
    assert flow.g(0.1, x) == continuous.g(0.1, x) == jnp.float32(0.05)


def test_cfl_warning_names_the_step_that_would_do():
    system, x = Burgers(), start(Burgers())
    stable = system.inner_steps * float(system.stable_step(x))
    with pytest.warns(CourantWarning, match=rf"at most {stable:.3g} would do, or inner_steps=\d+"):
        system.check_step(3 * stable, x)
    with warnings.catch_warnings():
        system.check_step(0.99 * stable, jnp.stack([x, 0.5 * x]))
        system.check_step(-0.99 * stable, x)
    # The bound means something: below it white noise survives, far above it does not.
    calm = Burgers(size=32, viscosity=1e-6, inner_steps=500)
    shaken = rough(32)
    reach = 500 * float(calm.stable_step(shaken))
    assert worst(run(calm, 0.0, 0.9 * reach, shaken), 0) < 10
    assert not worst(run(calm, 0.0, 10 * reach, shaken), 0) < 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.check_step(0.1, jnp.full(128, jnp.nan)), "states of Burgers must be finite"),
        (lambda b: cole_hopf(jnp.zeros(128), 0.1, points=100), "multiple of the size 128"),
        (lambda b: cole_hopf(jnp.zeros(128), 0.0), "t must be finite and positive, got 0.0"),
        (lambda b: cole_hopf(jnp.zeros(128), 1e-8), "points must be at least 141422, got 4096"),
        (lambda b: cole_hopf(jnp.full((128,), 9.0), 1.0), "reach must be at least 11, got 4"),
        (lambda b: coarsen(jnp.zeros(128), 31), "size must be even and from 2 to 128, got 31"),
        (lambda b: refine(jnp.zeros(128), 64), "size must be even and at least 128, got 64"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(Burgers())


@pytest.mark.slow
def test_noise_gain_is_what_the_simulated_modes_have():
    """At rest, where each mode is an Ornstein-Uhlenbeck process: variance g^2 r / (2 kappa)."""
    system, n, steps = Burgers(size=32, amplitude=1e-4, noise=1e-4), 4000, 8
    ts = smdp.linear_grid(0.0, 0.5, steps)
    k_prior, k_noise = jax.random.split(jax.random.key(0))
    x0 = system.prior(k_prior, n)
    ends = smdp.simulate(system.sde(), x0, ts, key=k_noise).xs[:, -1]
    modes = np.fft.rfft(np.float64(ends), norm="ortho")[:, 8:16]
    rates = np.asarray(system.decay_rates())[8:16]
    gain = np.asarray(system.noise_gain(0.5 / steps))[8:16]
    assert np.all(rates * 0.5 > 10)  # stationary
    assert gain.min() > 3
    variance = np.mean(np.abs(modes) ** 2, axis=0) * 2 * rates / system.noise**2
    # Relative standard error 1 / sqrt(n); 8 modes: false alarm 8 x 6e-7.
    np.testing.assert_allclose(variance, gain, rtol=5 / math.sqrt(n))


def test_noise_gain_of_short_and_exact_steps():
    system = Burgers(size=32)
    np.testing.assert_allclose(system.noise_gain(1e-9), 1, rtol=1e-5)
    rates = np.float64(system.decay_rates({"viscosity": 0.02}))
    expected = 2 * rates[1:] * 0.1 / -np.expm1(-2 * rates[1:] * 0.1)
    gain = system.noise_gain(0.1, {"viscosity": 0.02})
    np.testing.assert_allclose(gain[1:], expected, rtol=1e-5)
    assert gain[0] == 1

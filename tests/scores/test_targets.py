"""Score targets along paths: unbiased for every ramp, exact for linear physics, least variance.

The truth is that of the simulated chain itself, so no test allows for the size of its steps.
"""

import math
import re
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.physics import Heat

pytestmark = pytest.mark.usefixtures("compiles_quickly")

KEY = jax.random.key(8)
RATE, NOISE = 0.8, 1.0
TS = smdp.linear_grid(0.0, 2.0, 10)


def no_past(t0, t1, m):
    """rho = 0: one-step denoising."""
    return jax.tree.map(jnp.zeros_like, m)


def exact_step(t0, t1, x, args):
    return jax.tree.map(lambda x: x * jnp.exp(-RATE * (t1 - t0)), x)


DECAY = smdp.SDE(step=exact_step, diffusion=NOISE)


def signs(count):
    return jnp.where(jnp.arange(count) % 2 == 0, 1.0, -1.0)


def chain_variance(ts):
    """Variance of the chain from a point: sum_j g^2 dt exp(-2 rate dt j)."""
    dt = float(ts[1] - ts[0])
    steps = np.arange(len(ts))
    return NOISE**2 * dt * (1 - np.exp(-2 * RATE * dt * steps)) / (1 - math.exp(-2 * RATE * dt))


def assert_zero_mean(values, bound=4.5):
    """Mean over the first axis within ``bound`` standard errors of 0."""
    values = np.asarray(values, np.float64)
    error = values.std(axis=0) / math.sqrt(len(values))
    np.testing.assert_array_less(np.abs(values.mean(axis=0)), bound * error)


def assert_regression(target, score, x, *, precision):
    """E[(T - s) h(x)] = 0 for h = 1, x, x^3 and s, and the slope of T on s is known well."""
    for h in (np.ones_like(x), x, x**3, score):
        assert_zero_mean((target - score) * h)
    slope_error = np.sqrt(np.sum((score * (target - score)) ** 2)) / np.sum(score**2)
    assert slope_error < precision


RAMPS = {
    "none": no_past,
    "power 1": smdp.PowerRamp(1.0),
    "power 3": smdp.PowerRamp(3.0),
    "sinh": smdp.SinhRamp(RATE),
    "sinh of another rate": smdp.SinhRamp(4.0),
    "least variance": True,
}


class Targets(NamedTuple):
    """Simulated targets of the affine chain, and its exact score there."""

    x: np.ndarray
    target: np.ndarray
    score: np.ndarray


@pytest.fixture(scope="module")
def affine():
    """20 000 paths from +-1 per ramp, computed once per ramp."""
    known = {}

    def of(name):
        if name not in known:
            data = smdp.simulate(DECAY, signs(20_000), TS, key=KEY, score_targets=RAMPS[name])
            x, target = (np.asarray(v, np.float64) for v in (data.xs, data.score_targets))
            m, v = np.exp(-RATE * np.asarray(TS)), chain_variance(TS)
            with np.errstate(divide="ignore", invalid="ignore"):
                score = -(x - m * np.tanh(x * m / v)) / v
            known[name] = Targets(x, target, score)
        return known[name]

    return of


@pytest.mark.parametrize("name", RAMPS)
def test_targets_are_unbiased_on_the_affine_chain(name, affine):
    """At t = 0.2, 1 and 2; 6 ramps and 72 means at 4.5 standard errors: false alarms below 5e-4.

    The slope of one-step denoising is known to 6 %, that of whole histories to 3 %.
    """
    x, target, score = affine(name)
    np.testing.assert_array_equal(target[:, 0], 0)
    for i in (1, 5, 10):
        assert_regression(target[:, i], score[:, i], x[:, i], precision=0.06)


def test_least_variance_has_the_least_mean_square(affine):
    """Its E T^2 is that of the transition kernel, 1 / v, the least of all.

    The mean of 20 000 squares of a normal number has relative error 1 %; a ramp found from 256
    pilot paths costs a few per cent more. Allowed: 4.5 % below, 8 % above.
    """
    least = (affine("least variance").target[:, 1:] ** 2).mean(axis=0)
    excess = least * chain_variance(TS)[1:] - 1
    assert (excess > -0.045).all()
    assert (excess < 0.08).all()
    for name in RAMPS:
        other = (affine(name).target[:, 1:] ** 2).mean(axis=0)
        assert (least < 1.08 * other).all()
    assert (affine("none").target[:, -1] ** 2).mean() > 3 * least[-1]


@pytest.mark.slow
def test_targets_on_a_nonlinear_chain():
    """A double well in 8 coarse steps, where the Jacobian depends on the path.

    The density of the chain, and its slope, by quadrature on a grid of 1200 points. 3 ramps, 12
    means at 4.5 standard errors: false alarms below 1e-4.
    """
    dt, noise, steps = 0.15, 0.6, 8
    y = np.linspace(-5, 5, 1200)

    def drift(x):
        return x - x**3

    def move(x):
        return x + dt / 2 * (drift(x) + drift(x + dt * drift(x)))

    variance = noise**2 * dt / 2  # of a half kick, before and after each of Heun's steps

    def bell(distance):
        return np.exp(-(distance**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    away = y[:, None] - move(y)[None]
    after, before = ((y[1] - y[0]) * bell(d) for d in (away, y[:, None] - y[None]))
    density, slope = sum(bell(y - s) for s in (-0.5, 1.5)), None
    for step in range(steps):
        kicked = before @ density if step else density
        slope = (after * -away / variance) @ kicked
        density = after @ kicked

    sde = smdp.SDE(lambda t, x, args: x - x**3, diffusion=noise)
    x0 = jnp.where(jnp.arange(20_000) % 2 == 0, -0.5, 1.5)
    ts = smdp.linear_grid(0.0, dt * steps, steps)
    for ramp in (no_past, smdp.PowerRamp(2.0), True):
        data = smdp.simulate(sde, x0, ts, key=KEY, score_targets=ramp, solver=diffrax.Heun())
        x, target = (np.asarray(v[:, -1], np.float64) for v in (data.xs, data.score_targets))
        assert_regression(target, np.interp(x, y, slope / density), x, precision=0.03)


def rotate(t, x, args):
    """A shear with time- and sample-dependent strength that couples the leaves."""
    return {
        "a": -x["a"] + args * jnp.sum(x["b"]) + jnp.sin(x["a"]),
        "b": jnp.stack([x["b"][1] * t, -x["b"][0] + x["a"]]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("ramp", [smdp.PowerRamp(2.0), True], ids=["power", "least variance"])
def test_stein_identity_for_trees(ramp):
    """E[T] = 0 and E[T x^T] = -1, for leaves of several sizes, g per leaf, and args per sample.

    12 numbers at 2 times per ramp at 4.5 standard errors: false alarms below 2e-4.
    """
    count = 20_000
    sde = smdp.SDE(rotate, diffusion={"a": 0.7, "b": lambda t: 0.4 + 0.2 * t})
    k_a, k_b = jax.random.split(jax.random.key(1))
    x0 = {"a": jax.random.normal(k_a, (count,)), "b": jax.random.normal(k_b, (count, 2))}
    args = jnp.where(jnp.arange(count) % 2 == 0, 0.3, -1.0)
    ts = jnp.array([0.5, 0.7, 0.8, 1.1, 1.3])
    data = smdp.simulate(
        sde, x0, ts, key=KEY, args=args, args_axes=0, substeps=2, score_targets=ramp
    )
    for i in (2, 4):
        x, target = (
            np.concatenate([np.asarray(v["a"][:, i, None]), np.asarray(v["b"][:, i])], axis=1)
            for v in (data.xs, data.score_targets)
        )
        assert_zero_mean(target)
        assert_zero_mean(target[:, :, None] * x[:, None, :] + np.eye(3))


@pytest.mark.slow
def test_sinh_ramp_gives_the_kernel_of_linear_physics(x64):
    """Heat on 8 x 8 points, per mode: T = -(x_k - d x_k(0)) / v_k, path by path.

    The grid starts at t = 3: ramps count from the start of the path.
    """
    heat = Heat(size=8)
    rates = heat.decay_rates()
    ts = 3.0 + smdp.linear_grid(0.0, 0.2, 12)
    transform = (jnp.fft.fft2, lambda y: jnp.fft.ifft2(y).real)
    data = smdp.simulate(
        heat.sde(),
        heat.prior(jax.random.key(2), 3),
        ts,
        key=KEY,
        substeps=2,
        score_targets=smdp.SinhRamp(rates, transform),
    )
    dt = 0.2 / 24
    elapsed = (np.asarray(ts) - 3.0)[:, None, None]
    kappa = np.asarray(rates)[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = 0.01 * dt * np.expm1(-2 * kappa * elapsed) / np.expm1(-2 * kappa * dt)
    variance = np.where(kappa > 0, variance, 0.01 * elapsed)
    modes = np.fft.fft2(np.asarray(data.xs))
    noise = modes - np.exp(-kappa * elapsed)[None] * modes[:, :1]
    expected = np.fft.ifft2(-noise[:, 1:] / variance[None, 1:]).real
    np.testing.assert_allclose(data.score_targets[:, 1:], expected, rtol=1e-4, atol=1e-5)
    assert not data.score_targets[:, 0].any()


@pytest.mark.slow
def test_least_variance_per_mode_on_the_heat_chain():
    """Slope of T on the chain's exact score 1, and E|T_k|^2 that of the kernel, 1 / v_k, per shell.

    White initial fields on 8 x 8 points, a ramp per mode, the last time.
    9 shells, two bounds at 4.5 standard errors (and 3 % for the ramp's own search): false alarms
    below 2e-4.
    """
    heat, count, dt, prior = Heat(size=8), 400, 0.1 / 8, 1e-3
    ts = smdp.linear_grid(0.0, 0.1, 8)
    transform = (jnp.fft.rfft2, jnp.fft.irfft2)
    k_pilot, k_start, k_path = jax.random.split(jax.random.key(6), 3)
    x0 = math.sqrt(prior) * jax.random.normal(k_start, (count, 8, 8))
    ramp = smdp.least_variance_ramp(heat.sde(), x0[:128], ts, key=k_pilot, transform=transform)
    data = smdp.simulate(heat.sde(), x0, ts, key=k_path, score_targets=ramp)
    kappa = np.asarray(heat.decay_rates())
    noise = np.full((8, 8), 0.01 * 0.1)
    damped = kappa[kappa > 0]
    noise[kappa > 0] = 0.01 * dt * np.expm1(-0.2 * damped) / np.expm1(-2 * dt * damped)
    x, target = (np.fft.fft2(np.asarray(v[:, -1])) / 8 for v in (data.xs, data.score_targets))
    score = -x / (prior * np.exp(-0.2 * kappa) + noise)
    for shell in np.unique(kappa):
        members = kappa == shell
        s, t = score[:, members], target[:, members]
        overlap = (np.conj(s) * (t - s)).real.sum(axis=1)
        assert_zero_mean(overlap)
        assert overlap.std() * math.sqrt(count) / (np.abs(s) ** 2).sum() < 0.1
        excess = (np.abs(t) ** 2).mean() * noise[members][0] - 1
        assert abs(excess) < 0.03 + 4.5 * math.sqrt(2 / (count * members.sum()))


# Ramps -----------------------------------------------------------------------------------------


def test_power_ramp():
    ramp, m = smdp.PowerRamp(3.0), {"a": jnp.ones(2), "b": jnp.array(-4.0)}
    out = ramp(jnp.array(1.0), jnp.array(2.0), m)
    np.testing.assert_allclose(out["a"], [0.125, 0.125])
    np.testing.assert_allclose(out["b"], -0.5)
    assert smdp.PowerRamp(3.0)(jnp.array(0.0), jnp.array(2.0), jnp.array(1.0)) == 0


@pytest.mark.parametrize("rate", [0.0, 1e-6, 0.3, 5.0, 40.0])
def test_sinh_ramp(rate, x64):
    t0, t1 = 0.7, 1.0
    expected = math.sinh(rate * t0) / math.sinh(rate * t1) if rate else t0 / t1
    out = smdp.SinhRamp(rate)(jnp.array(t0), jnp.array(t1), jnp.array(2.0))
    np.testing.assert_allclose(out, 2 * expected, rtol=1e-6)
    assert smdp.SinhRamp(rate)(jnp.array(0.0), jnp.array(t1), jnp.array(2.0)) == 0


def test_sinh_ramp_does_not_overflow():
    out = smdp.SinhRamp(1e4)(jnp.array(0.5), jnp.array(0.5001), jnp.array(1.0))
    np.testing.assert_allclose(out, math.exp(-1), rtol=1e-3)


def test_table_ramp_interpolates_in_log_time(x64):
    """The table of a power is that power, on, between and before its times."""
    ts = jnp.array([0.1, 0.4, 1.0, 2.0])
    ramp = smdp.TableRamp(ts, {"a": 3 * jnp.log(ts), "b": 0.5 * jnp.log(ts)})
    m = {"a": jnp.ones(2), "b": jnp.array(1.0)}
    for t0, t1 in ((0.1, 0.4), (0.2, 0.9), (0.01, 0.05), (1.5, 2.0), (0.0, 0.1)):
        out = ramp(jnp.array(t0), jnp.array(t1), m)
        np.testing.assert_allclose(out["a"], (t0 / t1) ** 3, rtol=1e-9)
        np.testing.assert_allclose(out["b"], (t0 / t1) ** 0.5, rtol=1e-9)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: smdp.PowerRamp(0.0), "PowerRamp.power must be finite and positive, got 0.0"),
        (lambda: smdp.PowerRamp(-1.0), "PowerRamp.power must be finite and positive, got -1.0"),
        (lambda: smdp.SinhRamp(-0.5), "SinhRamp.rate must be numbers of at least 0, got -0.5"),
        (lambda: smdp.SinhRamp({"a": jnp.array([1.0, -2.0])}), "at least 0, got -2.0"),
        (
            lambda: smdp.least_variance_ramp(DECAY, signs(4), TS[:2], key=KEY),
            "ts of a least_variance_ramp must hold at least 3 times, got 2",
        ),
        (
            lambda: smdp.simulate(DECAY, signs(4), TS[:2], key=KEY, score_targets=True),
            "must hold at least 3 times, got 2",
        ),
    ],
)
def test_ramp_errors(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()

"""The default solver on processes that nothing was tuned to, against posteriors in closed form.

Samples of a linear process are compared with its exact posterior: 1500 per case, the root mean
square over entries of (mean - exact) / std must be below 0.08 (its expectation is 0.026, so that
it takes a bias of 0.07), and the pooled std must be right to 4 %: at least 8 effective entries
have a standard error of 0.65 %, so a false alarm is beyond six of them.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from flax import linen as nn

import smdp_jax as smdp
from smdp_jax.scores.seen import SeenRange

KEY = jax.random.key(23)


def wavenumbers(shape, length=1.0):
    """Angular wavenumbers of rfftn, one array per axis."""
    axes = [np.fft.fftfreq(n, length / n) for n in shape[:-1]]
    axes.append(np.fft.rfftfreq(shape[-1], length / shape[-1]))
    return [2 * np.pi * k for k in np.meshgrid(*axes, indexing="ij")]


class Waves:
    """``dv = rate v dt + g dW`` per Fourier mode, from a smooth Gaussian."""

    def __init__(self, shape, rate, g, end, steps, smooth=3.0):
        nyquist = np.zeros(rate.shape, bool)
        for axis, n in enumerate(shape):
            if n % 2 == 0:
                index = [slice(None)] * len(shape)
                index[axis] = n // 2
                nyquist[tuple(index)] = True
        self.rate = np.where(nyquist, rate.real, rate)
        self.shape, self.g, self.end = shape, g, end
        self.ts = jnp.linspace(0.0, end, steps + 1)
        k2 = sum(k**2 for k in wavenumbers(shape))
        self.prior = 1 / (1 + k2 / (2 * np.pi * smooth) ** 2) ** 2

    def modes(self, x):
        return jnp.fft.rfftn(x, norm="ortho")

    def field(self, w):
        return jnp.fft.irfftn(w, s=self.shape, norm="ortho")

    def drift(self, t, x, args):
        return self.field(jnp.asarray(self.rate, jnp.complex64) * self.modes(x))

    def step(self, t0, t1, x, args):
        rate = jnp.asarray(self.rate, jnp.complex64)
        return self.field(jnp.exp(rate * (t1 - t0).astype(jnp.complex64)) * self.modes(x))

    def noise(self, t, xp=jnp):
        d = xp.asarray(-self.rate.real, xp.float32)
        grown = -xp.expm1(-2 * d * t) / xp.where(d > 0, 2 * d, 1)
        return self.g**2 * xp.where(d > 0, grown, t)

    def variance(self, t, xp=jnp):
        d = xp.asarray(-self.rate.real, xp.float32)
        return xp.asarray(self.prior, xp.float32) * xp.exp(-2 * d * t) + self.noise(t, xp)

    def score(self, t, x, args):
        w, c = self.modes(x), self.variance(t)
        return -self.field(jax.lax.complex(w.real / c, w.imag / c))

    def start(self, key, n):
        white = jax.random.normal(key, (n, *self.shape))
        root = jnp.asarray(np.sqrt(self.prior), jnp.complex64)
        return jax.vmap(lambda x: self.field(root * self.modes(x)))(white)

    def exact(self, x):
        a = np.exp(self.rate * self.end)
        gain = self.prior * a.conj() / (self.prior * abs(a) ** 2 + self.noise(self.end, np))
        left = self.prior - (gain * a).real * self.prior
        n = self.shape[-1]
        column = np.arange(n // 2 + 1)
        weight = np.where((column == 0) | (2 * column == n), 1, 2)
        std = np.sqrt((left * weight).sum() / np.prod(self.shape))
        modes = np.fft.rfftn(np.asarray(x, float), norm="ortho")
        axes = tuple(range(len(self.shape)))
        return np.fft.irfftn(gain * modes, s=self.shape, axes=axes, norm="ortho"), std


def advection(n, speed, viscosity, g, end, steps):
    (k,) = wavenumbers((n,))
    return Waves((n,), -viscosity * k**2 - 1j * speed * k, g, end, steps)


def dispersive():
    """Waves of the linear Korteweg-de Vries equation, hardly damped."""
    (k,) = wavenumbers((48,))
    return Waves((48,), -0.3 - 1e-4 * k**2 + 2e-5j * k**3, 0.4, 0.5, 20)


def plane():
    kx, ky = wavenumbers((12, 16))
    return Waves((12, 16), -0.01 * (kx**2 + ky**2) - 1j * (0.8 * kx - 0.5 * ky), 0.25, 0.5, 12)


class Matrix:
    """``dx = A x dt + g dW`` from N(0, I)."""

    def __init__(self, a, g, end, steps):
        self.a, self.g, self.end = a, g, end
        self.ts = jnp.linspace(0.0, end, steps + 1)
        values, vectors = np.linalg.eig(a)
        self.values, vectors = values.astype(complex), vectors.astype(complex)
        self.vectors, self.back = vectors, np.linalg.inv(vectors)
        self.noise = self.back @ self.back.conj().T * g**2
        self.prior = self.back @ self.back.conj().T

    def covariance(self, t, xp=jnp):
        pairs = xp.asarray(self.values[:, None] + self.values.conj()[None])
        grown = xp.expm1(pairs * t) / pairs
        inner = xp.asarray(self.prior) * xp.exp(pairs * t) + xp.asarray(self.noise) * grown
        vectors = xp.asarray(self.vectors)
        return (vectors @ inner @ vectors.conj().T).real

    def step(self, t0, t1, x, args):
        return jax.scipy.linalg.expm(jnp.asarray(self.a, jnp.float32) * (t1 - t0)) @ x

    def drift(self, t, x, args):
        return jnp.asarray(self.a, jnp.float32) @ x

    def score(self, t, x, args):
        covariance = self.covariance(t.astype(jnp.complex64)).astype(jnp.float32)
        return -jnp.linalg.solve(covariance, x)

    def exact(self, x):
        e = scipy.linalg.expm(self.a * self.end)
        gain = e.T @ np.linalg.inv(self.covariance(self.end, np))
        left = np.eye(len(self.a)) - gain @ e
        return gain @ np.asarray(x, float), np.sqrt(np.diag(left))

    def start(self, key, n):
        return jax.random.normal(key, (n, len(self.a)))


def oscillators(steps=20):
    """A ring of six masses on springs, in positions and speeds."""
    ring = 2 * np.eye(6) - np.roll(np.eye(6), 1, 0) - np.roll(np.eye(6), -1, 0)
    k = 7.0 * ring + 0.5 * np.eye(6)
    a = np.block([[np.zeros((6, 6)), np.eye(6)], [-k, -0.1 * np.eye(6)]])
    return Matrix(a, 0.2, 2.0, steps)


CASES = {
    "advection": lambda: advection(48, -2.0, 2e-3, 0.2, 0.4, 25),
    "stiff diffusion": lambda: advection(64, 0.3, 0.2, 0.3, 0.4, 30),
    "dispersive": dispersive,
    "plane": plane,
    "oscillators": oscillators,
    "oscillators in short steps": lambda: oscillators(80),
    "stiff scalar": lambda: Matrix(np.array([[-40.0]]), 2.0, 0.5, 8),
}


def check_posterior(case, sde, n=1500):
    x = case.start(jax.random.key(1), 1)[0]
    end = smdp.simulate(sde, x[None], case.ts, key=KEY).xs[0, -1]
    mean, std = case.exact(end)
    past = smdp.sample_posterior(sde, case.score, end, case.ts, num_samples=n, key=KEY)
    off = (np.asarray(past.samples).mean(axis=0) - mean) / std
    assert np.sqrt(np.mean(off**2)) < 0.08
    spread = np.sqrt((np.asarray(past.samples).var(axis=0) / np.asarray(std) ** 2).mean())
    np.testing.assert_allclose(spread, 1, atol=0.04)
    return past


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_default_call_is_exact_where_euler_amplifies(name):
    case = CASES[name]()
    check_posterior(case, smdp.SDE(case.drift, diffusion=case.g))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["advection", "stiff diffusion", "plane", "oscillators in short steps"]
)
def test_default_call_of_a_flow_map(name):
    """With ``negated`` as their inverse they blow up; the oscillators are integrated backward."""
    case = CASES[name]()
    check_posterior(case, smdp.SDE(step=case.step, diffusion=case.g))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["advection", "stiff diffusion", "dispersive"])
@pytest.mark.parametrize("score_targets", [False, True])
def test_simulated_variance_is_that_of_the_process(name, score_targets):
    """Pooled over entries: 400 paths, 20 effective entries at least, 1.1 % of standard error."""
    case = CASES[name]()
    sde = smdp.SDE(case.drift, diffusion=case.g)
    ts = case.ts[jnp.array([0, 10, -1])]
    data = smdp.simulate(sde, case.start(KEY, 400), ts, key=KEY, score_targets=score_targets)
    for i in (1, 2):
        power = case.variance(float(ts[i]), np)
        column = np.arange(power.shape[-1])
        weight = np.where((column == 0) | (2 * column == case.shape[-1]), 1, 2)
        modes = np.abs(np.fft.rfft(np.asarray(data.xs[:, i]), norm="ortho")) ** 2
        seen = (modes.mean(axis=0) / power * weight).sum() / weight.sum()
        np.testing.assert_allclose(seen, 1, atol=0.05)


@pytest.mark.slow
def test_simulated_variance_in_substeps():
    """Where no mode can be looked up: 4000 paths, 2.2 % of standard error, six of them."""
    case = CASES["stiff scalar"]()
    x = smdp.simulate(
        smdp.SDE(case.drift, diffusion=2.0), jnp.zeros((4000, 1)), case.ts, key=KEY
    ).xs
    np.testing.assert_allclose(np.var(x[:, -1]), 4 / 80, rtol=0.13)
    coupled = CASES["oscillators"]()
    ends = smdp.simulate(
        smdp.SDE(coupled.drift, diffusion=0.2), coupled.start(KEY, 4000), coupled.ts[::4], key=KEY
    ).xs[:, -1]
    exact = np.diag(coupled.covariance(coupled.end, np))
    np.testing.assert_allclose(np.var(ends, axis=0), exact, rtol=0.13)


@pytest.mark.slow
def test_a_single_step_of_any_length_has_the_exact_noise():
    """4000 paths of 24 points, pooled: 0.5 % of standard error."""
    case = advection(24, 1.5, 0.02, 0.3, 3.0, 1)
    sde = smdp.SDE(case.drift, diffusion=case.g)
    x = smdp.simulate(sde, jnp.zeros((4000, 24)), case.ts, key=KEY).xs[:, -1]
    power = np.abs(np.fft.rfft(np.asarray(x), norm="ortho") ** 2).mean(axis=0)
    np.testing.assert_allclose((power / case.noise(3.0, np))[1:-1].mean(), 1, atol=0.03)


# Nonlinear processes in equilibrium: dx = -g^2/2 grad U dt + R(x) dt + g dW with R free of
# divergence and along the levels of U keeps exp(-U), whose score -grad U is exact at all times.


def burgers(t, x, args):
    """The advection u u_x in the form that keeps the energy; rests with variance 1."""
    slope = lambda v: 16.0 * (jnp.roll(v, -1) - jnp.roll(v, 1))
    return -0.5 * x - (slope(x**2) + x * slope(x)) / 3


def reaction_diffusion(t, x, args):
    """Two phases, coupled to their neighbours."""
    bend = jnp.roll(x, 1) - 2 * x + jnp.roll(x, -1)
    return 0.5 * (70.0 * bend + 2.0 * x - 2.0 * x**3)


def equilibrium(drift, dt, n):
    """States after many short steps."""
    x = jax.random.normal(KEY, (256, n))

    def step(x, key):
        p = jax.vmap(lambda x: drift(0.0, x, None))(x)
        return x + dt * p + dt**0.5 * jax.random.normal(key, x.shape), None

    return jax.jit(lambda x: jax.lax.scan(step, x, jax.random.split(KEY, 4000))[0])(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["burgers", "reaction_diffusion"])
def test_nonlinear_process_stays_in_equilibrium(name):
    """256 end states, one sample each: moments of the start are those of the end.

    Mean squares have standard errors of 1.6 % (32 independent points) and of 4 %; bounds of 4.
    """
    if name == "burgers":
        ends, drift, score = jax.random.normal(KEY, (256, 32)), burgers, lambda t, x, args: -x
        ts, tolerance = jnp.linspace(0.0, 0.5, 11), 0.07
    else:
        drift = reaction_diffusion
        ends, score = equilibrium(drift, 2e-3, 16), lambda t, x, args: 2 * drift(t, x, args)
        ts, tolerance = jnp.linspace(0.0, 0.6, 21), 0.16
    past = smdp.sample_posterior(
        smdp.SDE(drift, diffusion=1.0), score, ends, ts, num_samples=1, batch_axes=1, key=KEY
    )
    x = np.asarray(past.samples[:, 0])
    np.testing.assert_allclose((x**2).mean(), (np.asarray(ends) ** 2).mean(), rtol=tolerance)
    gap = [np.diff(v, axis=1).var() for v in (x, np.asarray(ends))]
    np.testing.assert_allclose(gap[0], gap[1], rtol=0.08)


# What keeps its steps, and what is said of others -------------------------------------------------


@pytest.mark.slow
def test_well_behaved_processes_keep_their_euler_steps():
    case = Matrix(np.array([[-0.5, 0.8], [-0.8, -0.5]]), 0.3, 2.0, 80)
    sde, x = smdp.SDE(case.drift, diffusion=0.3), jnp.array([0.4, -0.2])
    call = {"num_samples": 5, "key": KEY}
    past, euler = (
        smdp.sample_posterior(sde, case.score, x, case.ts, solver=solver, **call)
        for solver in (None, diffrax.Euler())
    )
    np.testing.assert_array_equal(past.samples, euler.samples)
    inside = jax.jit(lambda x: smdp.sample_posterior(sde, case.score, x, case.ts, **call))(x)
    np.testing.assert_allclose(inside.samples, past.samples, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["drift", "step"])
def test_steps_too_long_for_the_right_spread_are_not_taken(kind):
    """Euler's steps are stable here, 0.8 of the fastest rate, and their spread is too small."""
    system = smdp.physics.Heat(16, 0.7, 0.1, 0.2)
    sde = system.continuous_sde() if kind == "drift" else system.sde()
    starts, key = system.prior(KEY, 4), jax.random.key(5)
    ends = jax.vmap(system.transition, (0, None, None, 0))(
        jax.random.split(key, 4), 0.0, 0.2, starts
    )
    ts, std = smdp.linear_grid(0.0, 0.2, 48), float(system.posterior_point_variance()) ** 0.5

    def pooled(solver):
        past = smdp.sample_posterior(
            sde, system.score, ends, ts, num_samples=60, key=KEY, batch_axes=1, solver=solver
        ).samples
        off = past.mean(axis=1) - jax.vmap(system.posterior_mean)(ends)
        return float(past.std(axis=1, ddof=1).mean()) / std, float(jnp.abs(off).mean()) / std

    # 240 draws of 256 entries: standard errors below 0.4 % and 0.01; the mean of |off| is 0.103.
    spread, off = pooled(None)
    assert abs(spread - 1) < 0.03
    assert off < 0.13
    if kind == "drift":
        assert pooled(diffrax.Euler())[0] < 0.95


def friction(size):
    """A pull that saturates: rests with density cosh(x)^(-2 size / g^2)."""
    return lambda t, x, args: -size * jnp.tanh(x)


def slopes(x):
    """Of U = (x0^2 - 1)^2 / 2 + x1^2 + x0 x1 / 2."""
    return jnp.stack([2 * x[0] * (x[0] ** 2 - 1) + x[1] / 2, 2 * x[1] + x[0] / 2])


def turning(t, x, args):
    """Two wells that are gone around, as a nerve does: rests with density exp(-U), g = 1."""
    u = slopes(x)
    return -0.5 * u + 1.5 * jnp.stack([-u[1], u[0]])


def of_grid(log_density, *axes):
    """Standard deviations of a density on a grid."""
    grid = np.meshgrid(*axes, indexing="ij")
    p = np.exp(log_density(*grid))
    mean = [(p * x).sum() / p.sum() for x in grid]
    return np.sqrt([(p * (x - m) ** 2).sum() / p.sum() for x, m in zip(grid, mean, strict=True)])


@pytest.mark.parametrize("name", ["friction", "turning"])
def test_nonlinear_steps_too_long_for_the_right_spread_are_not_taken(name):
    """Euler's are stable. 4000 paths that have come to rest: errors below 1.4 %, bounds of 4."""
    if name == "friction":
        drift, score, g = friction(5.0), lambda t, x, args: -2 * 5 * jnp.tanh(x) / 1.5**2, 1.5
        ts, x = smdp.linear_grid(0.0, 1.6, 12), jnp.array([0.2])
        std = of_grid(lambda x: -10 / 2.25 * np.log(np.cosh(x)), np.linspace(-9, 9, 2001))
    else:
        drift, score, g = turning, lambda t, x, args: -slopes(x), 1.0
        ts, x = smdp.linear_grid(0.0, 6.0, 80), jnp.array([1.0, 0.3])
        axes = np.linspace(-3, 3, 301), np.linspace(-5, 5, 401)
        std = of_grid(lambda x, y: -((x**2 - 1) ** 2) / 2 - y**2 - x * y / 2, *axes)
    call = {"num_samples": 4000, "key": KEY}
    past = smdp.sample_posterior(smdp.SDE(drift, diffusion=g), score, x, ts, **call)
    np.testing.assert_allclose(past.samples.std(axis=0), std, rtol=0.06)
    euler = smdp.sample_posterior(
        smdp.SDE(drift, diffusion=g), score, x, ts, solver=diffrax.Euler(), **call
    )
    assert float(np.abs(euler.samples.std(axis=0) / std - 1).max()) > 0.15


def lorenz(t, x, args):
    return jnp.stack([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])


@pytest.mark.parametrize("name", ["lorenz", "turning", "friction"])
def test_nonlinear_steps_that_resolve_the_process_are_kept_in_silence(name):
    drift, score, x, end = {
        "lorenz": (
            lorenz,
            lambda t, x, args: (jnp.array([0.0, 0.0, 25.0]) - x) / 75,
            jnp.array([3.0, 4.0, 20.0]),
            0.4,
        ),
        "turning": (turning, lambda t, x, args: -slopes(x), jnp.array([1.0, 0.3]), 1.0),
        "friction": (friction(3.0), lambda t, x, args: -6 * jnp.tanh(x), jnp.array([0.6]), 2.0),
    }[name]
    sde, ts = smdp.SDE(drift, diffusion=4.0 if name == "lorenz" else 1.0), jnp.linspace(0, end, 81)
    call = {"num_samples": 3, "key": KEY}
    past, euler = (
        smdp.sample_posterior(sde, score, x, ts, solver=solver, **call)
        for solver in (None, diffrax.Euler())
    )
    np.testing.assert_array_equal(past.samples, euler.samples)


class Pull(nn.Module):
    """The score of ``friction`` with g = 1, learned."""

    size: float

    @nn.compact
    def __call__(self, t, x, args):
        return -2 * self.size * self.param("one", lambda key: jnp.ones(())) * jnp.tanh(x)


def test_a_learned_score_keeps_its_steps_and_is_told_of_their_spread():
    """What was learned in steps may suit them in the mean, not in the spread."""
    model, ts, x = Pull(4.0), smdp.linear_grid(0.0, 3.6, 13), jnp.array([0.1])
    score = smdp.LearnedScore(model, model.init(KEY, 0.0, x, None), ts=ts[jnp.array([0, -1])])
    sde, call = smdp.SDE(friction(4.0), diffusion=1.0), {"num_samples": 2, "key": KEY}
    with pytest.warns(UserWarning, match=r"too long for this drift: paths spread 1\.[3-9]"):
        past = smdp.sample_posterior(sde, score, x, ts, **call)
    assert (past.info.evaluations == 13).all()
    smdp.sample_posterior(sde, score, x, ts, substeps=8, **call)


def test_stretching_that_shorter_steps_do_not_share_is_an_error():
    """Decay by 5 a step: exact inverses outrun the pull of the score over so long a step."""
    decay, g = 1.6, 0.4
    sde = smdp.SDE(step=lambda t0, t1, x, args: x * jnp.exp(-decay * (t1 - t0)), diffusion=g)
    score = lambda t, x, args: -2 * decay / g**2 * x
    ts, x = smdp.linear_grid(0.0, 40.0, 40), jnp.array([0.1, -0.2])
    with pytest.warns(UserWarning, match="no way back along this flow map is stable"):
        smdp.sample_posterior(sde, score, x, ts, num_samples=2, key=KEY)
    past = smdp.sample_posterior(sde, score, x, ts / 20, num_samples=400, key=KEY)
    assert float(past.samples.std()) == pytest.approx(g / (2 * decay) ** 0.5, rel=0.1)


@pytest.mark.slow
def test_a_named_solver_that_amplifies_is_warned_of_before():
    case = CASES["advection"]()
    sde, x = smdp.SDE(case.drift, diffusion=case.g), jnp.zeros(48)
    with pytest.warns(UserWarning, match=r"sample_posterior: one backward step amplifies errors"):
        smdp.sample_posterior(
            sde, case.score, x, case.ts, solver=diffrax.Heun(), num_samples=1, key=KEY
        )
    with pytest.warns(UserWarning, match="name no solver"):
        smdp.probability_flow(sde, case.score, x, case.ts, solver=diffrax.Euler())
    path = smdp.probability_flow(sde, case.score, case.start(KEY, 1)[0], case.ts)
    start, end = case.variance(0.0, np), case.variance(case.end, np)
    ratio = np.abs(np.fft.rfft(np.asarray(path.xs[jnp.array([0, -1])]))) ** 2
    np.testing.assert_allclose(ratio[0] / ratio[1], start / end, rtol=0.02)


@pytest.mark.slow
def test_flow_map_without_a_stable_inverse_says_so_with_figures():
    """Advection at a speed that varies, damped: no inverse is right, no mode can be looked up."""
    n = 24
    k = 2 * np.pi * np.fft.rfftfreq(n, 1 / n)
    k[-1] = 0
    slope = np.fft.irfft(1j * k[:, None] * np.fft.rfft(np.eye(n), axis=0), n, axis=0)
    speed = 1.5 + 0.8 * np.sin(2 * np.pi * np.arange(n) / n)
    a = -speed[:, None] * slope - 0.02 * slope.T @ slope
    case = Matrix(a, 0.3, 0.5, 10)
    sde = smdp.SDE(step=case.step, diffusion=0.3)
    says = r"negated: misses by .* times the noise of a step and amplifies .*integrated_backward"
    with pytest.warns(UserWarning, match=says):
        smdp.sample_posterior(
            sde, lambda t, x, args: -x, jnp.ones(n) / 9, case.ts, num_samples=2, key=KEY
        )


class Away(nn.Module):
    """A score that pushes away from the data."""

    @nn.compact
    def __call__(self, t, x, args):
        return x * self.param("size", lambda key: jnp.array(6.0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:sample_posterior. steps are too long")  # for what runs away
def test_paths_that_leave_the_range_of_the_data_are_told():
    sde = smdp.SDE(lambda t, x, args: jnp.zeros_like(x), diffusion=1.0)
    ts = jnp.linspace(0.0, 2.0, 41)
    data = smdp.simulate(sde, jnp.zeros((200, 2)), ts, key=KEY)
    score = smdp.LearnedScore(
        Away(),
        {"params": {"size": jnp.array(6.0)}},
        ts=ts[jnp.array([0, -1])],
        seen=SeenRange.of(data),
    )
    says = r"of 6 paths left the range of the training paths, from t=.*score is not right off"
    with pytest.warns(UserWarning, match=says):
        past = smdp.sample_posterior(sde, score, jnp.array([1.0, -1.0]), ts, num_samples=6, key=KEY)
    assert ((past.info.left_range_at > 0.5) & (past.info.left_range_at < 2)).all()
    good = smdp.LearnedScore(
        Away(),
        {"params": {"size": jnp.array(-1.0)}},
        ts=ts[jnp.array([0, -1])],
        seen=SeenRange.of(data),
    )
    past = smdp.sample_posterior(sde, good, jnp.array([1.0, -1.0]), ts, num_samples=6, key=KEY)
    np.testing.assert_array_equal(past.info.left_range_at, -np.inf)


class Nothing(nn.Module):
    """A network of which only the preconditioner's Gaussian is left."""

    @nn.compact
    def __call__(self, t, x, args):
        return x * self.param("size", lambda key: jnp.array(0.0))


class Exact(nn.Module):
    """A network that has learned everything, but was never shown the first time."""

    case: Any

    @nn.compact
    def __call__(self, t, x, args):
        size = self.param("size", lambda key: jnp.array(1.0))
        return jnp.where(t > 0, size, jnp.nan) * self.case.score(t, x, args)


@pytest.mark.slow
def test_a_learned_score_of_a_stiff_field():
    """20 samples of 64 entries, pooled: 3 % of standard error; the last step knows no prior."""
    case = CASES["stiff diffusion"]()
    sde = smdp.SDE(case.drift, diffusion=case.g)
    data = smdp.simulate(sde, case.start(KEY, 50), case.ts, key=KEY)
    variables, ends = {"params": {"size": jnp.array(1.0)}}, case.ts[jnp.array([0, -1])]
    score = smdp.LearnedScore(Exact(case), variables, ts=ends, seen=SeenRange.of(data))
    past = smdp.sample_posterior(sde, score, data.at(0, -1), case.ts, num_samples=20, key=KEY)
    mean, std = case.exact(data.at(0, -1))
    spread = np.sqrt(((np.asarray(past.samples) - mean) ** 2).mean()) / std
    np.testing.assert_allclose(spread, 1, atol=0.15)

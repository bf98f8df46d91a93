"""Gaussian-exact backward steps against closed forms, orders, and the steps they turn into."""

import re

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.physics import Affine
from smdp_jax.solve.gaussian import bind
from smdp_jax.solve.linear import check_transform, multiplicity

ORTHO = (lambda x: jnp.fft.rfft(x, norm="ortho"), lambda w: jnp.fft.irfft(w, norm="ortho"))
KEY = jax.random.key(0)
N, END, G = 16, 0.5, 0.4
K = 2 * np.pi * np.fft.rfftfreq(N, 1 / N)
RATES = 0.02 * K**2 + 0.7j * K  # diffusion and advection
RATES[-1] = RATES[-1].real
PRIOR = 1 / (1 + (np.arange(N // 2 + 1) / 3) ** 2) ** 2


def noise_left(t):
    decay = jnp.asarray(RATES.real, float)
    return G**2 * jnp.where(decay > 0, -jnp.expm1(-2 * decay * t) / jnp.maximum(2 * decay, 1e-9), t)


def variance(t):
    return jnp.asarray(PRIOR, float) * jnp.exp(
        -2 * jnp.asarray(RATES.real, float) * t
    ) + noise_left(t)


def filtered(gain, x):
    return ORTHO[1](jnp.asarray(gain).astype(complex) * ORTHO[0](x.astype(float)))


def score(t, x, args):
    return filtered(-1 / variance(t), x)


LINEAR = smdp.LinearPart(RATES, ORTHO)
DRIFT = smdp.SDE(lambda t, x, args: filtered(-RATES, x), diffusion=G, linear=LINEAR)
FLOW = smdp.SDE(
    step=lambda t0, t1, x, args: filtered(
        jnp.exp(-RATES * jnp.asarray(t1 - t0).astype(complex)), x
    ),
    diffusion=G,
    linear=LINEAR,
)
X_END = jnp.sin(2 * np.pi * np.arange(N) / N) + 0.2 * jax.random.normal(KEY, (N,))


def exact():
    decay = np.exp(-RATES * END)
    gain = PRIOR * decay.conj() / np.asarray(variance(END))
    left = PRIOR - (gain * decay).real * PRIOR
    return filtered(gain, X_END), left


@pytest.mark.parametrize("process", [DRIFT, FLOW], ids=["drift", "flow map"])
@pytest.mark.parametrize("steps", [1, 3, 16])
@pytest.mark.parametrize("order", [1, 2])
def test_linear_gaussian_posterior_is_exact_at_every_step_size(process, steps, order, x64):
    """Mean and variances of the composed kernels, without samples."""
    step = smdp.GaussianStep(order=order, reference=variance)
    ts = np.linspace(0, END, steps + 1)
    x, spread = X_END.astype(float), np.zeros(N // 2 + 1)
    for t1, t0 in zip(ts[:0:-1], ts[-2::-1], strict=True):
        law = step.transition(process, score, t1, t0, x)
        gain = np.exp(-RATES.real * (t1 - t0)) * variance(t0) / variance(t1)
        x, spread = law.mean, gain**2 * spread + law.variance
    mean, left = exact()
    np.testing.assert_allclose(x, mean, atol=1e-9)
    np.testing.assert_allclose(spread, left, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("process", [DRIFT, FLOW], ids=["drift", "flow map"])
def test_samples_have_the_exact_mean_and_spread(process):
    """False alarms: 6 standard errors of a mean of 16 entries, 5 of a spread: below 1e-6."""
    draws = 2000
    past = smdp.sample_posterior(
        process,
        score,
        X_END,
        jnp.linspace(0, END, 4),
        num_samples=draws,
        key=KEY,
        solver=smdp.GaussianStep(reference=variance),
    )
    mean, left = exact()
    std = np.sqrt((multiplicity(ORTHO, X_END) * left).sum() / N)
    assert np.abs(past.samples.mean(axis=0) - mean).max() < 6 * std / draws**0.5
    ratio = np.sqrt(past.samples.var(axis=0).mean()) / std
    assert abs(ratio - 1) < 5 / np.sqrt(2 * draws * 3)
    assert (past.info.evaluations == 6).all()


@pytest.mark.parametrize("steps", [1, 5])
def test_probability_flow_scales_modes_by_their_spread_and_turns_them_back(steps):
    ts = jnp.linspace(0, END, steps + 1)
    solver = smdp.GaussianStep(reference=variance)
    path = smdp.probability_flow(DRIFT, score, X_END, ts, solver=solver)
    gain = np.sqrt(variance(0.0) / variance(END)) * np.exp(1j * RATES.imag * END)
    np.testing.assert_allclose(path.xs[0], filtered(gain, X_END), atol=1e-4)


def test_a_level_between_keeps_the_marginal_variance(x64):
    """|G|^2 C1 + spread = C0 at every noise level."""
    for level in (0.0, 0.5, 1.0):
        solver = bind(smdp.GaussianStep(reference=variance), DRIFT, score, X_END, level)
        c = solver.coefficients(0.1, 0.4, X_END.astype(float), None)
        spread = c.variance if level else 0.0
        np.testing.assert_allclose(abs(c.gain) ** 2 * variance(0.4) + spread, variance(0.1))


def bumpy(t, x, args):
    """A drift with a linear and a nonlinear part, of two coupled numbers."""
    return {"a": -x["a"] + 0.5 * jnp.sin(x["b"]), "b": -2.0 * x["b"] - 0.3 * x["a"] ** 2}


def bent(t, x, args):
    """No score of anything: any smooth function tests the order of the flow."""
    return {"a": -x["a"] + 0.4 * jnp.cos(x["b"]), "b": -x["b"] / (1 + t) + 0.2 * x["a"] ** 2}


def flow_error(process, order, steps, level=0.0):
    start = {"a": jnp.array([1.0, -0.5]), "b": jnp.array([0.3, 0.8])}
    solver = smdp.GaussianStep(
        order, smdp.LinearPart({"a": 1.0, "b": 2.0}), lambda t: {"a": 1.0 + t, "b": 1.0}
    )

    def end(steps, solver, process):
        ts = jnp.linspace(0.0, 1.0, steps + 1)
        return smdp.probability_flow(process, bent, start, ts, solver=solver).xs["a"][0]

    truth = end(256, diffrax.Heun(), smdp.SDE(bumpy, diffusion=0.7))
    return float(jnp.abs(end(steps, solver, process) - truth).max())


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", ["drift", "flow map"])
def test_order_of_the_flow_with_a_remainder_of_score_and_physics(order, kind, x64):
    """Halving the steps divides the error by 2 or 4, pytree state, no transform."""
    process = smdp.SDE(bumpy, diffusion=0.7)
    if kind == "flow map":
        process = smdp.flow_map_of(process, diffrax.Tsit5())
    errors = [flow_error(process, order, steps) for steps in (16, 32)]
    assert order - 0.25 < np.log2(errors[0] / errors[1]) < order + 0.75


AFFINE = Affine(rate=0.5, noise=0.04)


def affine_moments(solver, steps, draws=20_000):
    """Error of the mean, in stds, and of the std of x at 0.5 given x at 5."""
    x_end = jnp.array([0.02])
    past = smdp.sample_posterior(
        AFFINE.sde(),
        AFFINE.score,
        x_end,
        jnp.linspace(0.5, 5.0, steps + 1),
        num_samples=draws,
        key=KEY,
        solver=solver,
    )
    mean, square = AFFINE.bridge_moments(0.5, 5.0, x_end)
    std = jnp.sqrt(square)
    error = (past.samples.mean(axis=0) - mean) / std, past.samples.std(axis=0) / std - 1
    return [abs(float(e[0])) for e in error]


def mixture_variance(t):
    return jnp.exp(-2 * 0.5 * t) + AFFINE.transition_variance(t)


@pytest.mark.slow
def test_two_peaks_are_nearer_than_euler_for_equal_evaluations():
    """The prior is far from Gaussian. Chance: 0.007 per figure, so 0.02 is three of them."""
    linear = smdp.LinearPart(0.5)
    ours = affine_moments(smdp.GaussianStep(2, linear, mixture_variance), 36)
    assert max(ours) < 0.03
    euler = affine_moments(diffrax.Euler(), 72)
    assert max(euler) > 0.035
    first = [affine_moments(smdp.GaussianStep(1, linear, mixture_variance), n)[1] for n in (8, 32)]
    assert 2.0 < first[0] / first[1] < 8.0


def test_short_steps_are_those_of_euler(x64):
    """The kernel's mean and variance as dt -> 0, whatever the reference."""
    x, dt = jnp.array([0.7]), 1e-5
    step = smdp.GaussianStep(1, None, lambda t: 0.3 + t)
    law = step.transition(AFFINE.sde(), AFFINE.score, 1.0, 1.0 - dt, x)
    euler = x - dt * (AFFINE.drift(1.0, x) - 0.04**2 * AFFINE.score(1.0, x))
    np.testing.assert_allclose(law.mean - x, euler - x, rtol=1e-3)
    np.testing.assert_allclose(law.variance, 0.04**2 * dt, rtol=1e-3)


@pytest.mark.slow
def test_transition_density_is_that_of_its_samples(x64):
    """Mean of log density is minus the entropy. False alarms: 5 standard errors, below 1e-6."""
    x = X_END.astype(float)
    law = smdp.GaussianStep(reference=variance).transition(DRIFT, score, 0.5, 0.3, x)
    draws = jax.vmap(law.sample)(jax.random.split(KEY, 4000))
    counts = np.round(multiplicity(ORTHO, x))
    entropy = 0.5 * (counts * np.log(2 * np.pi * np.e * np.asarray(law.variance))).sum()
    logs = jax.vmap(law.log_density)(draws)
    assert abs(logs.mean() + entropy) < 5 * np.sqrt(N / 2 / 4000)


@pytest.mark.slow
def test_reference_of_paths_gives_moments_and_linear_part(x64):
    """Moments and rates within 5 standard errors of 4000 paths of a linear process."""
    ts = jnp.linspace(0.0, END, 6)
    modes = np.sqrt(PRIOR)
    x0 = jax.vmap(lambda z: filtered(modes, z))(jax.random.normal(KEY, (4000, N)))
    data = smdp.simulate(DRIFT, x0, ts, key=jax.random.key(3))
    reference = smdp.GaussianReference.of(data, ORTHO)
    for t in (0.0, 0.2, END):
        mean, spread = reference.moments(t)
        np.testing.assert_allclose(spread / variance(t), 1.0, atol=5 * np.sqrt(2 / 4000))
        assert (np.abs(mean) < 5 * np.sqrt(variance(t) / 4000)).all()
    linear = reference.linear_part(data)
    rates = np.asarray(linear.rates)
    error = np.abs(rates - RATES)[:4] / np.abs(RATES[3])
    assert error.max() < 0.1
    assert (rates.real >= 0).all()


def test_rates_may_depend_on_conditions(x64):
    rates = smdp.LinearPart(lambda args: args["nu"] * K**2, ORTHO)
    sde = smdp.SDE(lambda t, x, args: filtered(-args["nu"] * K**2, x), diffusion=G, linear=rates)
    args = {"nu": jnp.array(0.03)}
    solver = bind(smdp.GaussianStep(reference=lambda t: 1.0), sde, score, X_END, 1.0)
    c = solver.coefficients(0.0, 0.5, X_END.astype(float), args)
    np.testing.assert_allclose(c.decay, np.exp(-0.03 * K**2 * 0.5), rtol=1e-6)


SCALE = (lambda x: 3.0 * x, lambda w: w / 3.0)
SHEAR = (lambda x: x.at[0].add(x[1]), lambda w: w.at[0].add(-w[1]))
LOSSY = (lambda x: x, lambda w: 0.5 * w)


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        ((jnp.fft.rfft, jnp.fft.irfft), "multiplies squared lengths by"),
        (SCALE, "multiplies squared lengths by 9"),
        (SHEAR, "not orthogonal|multiplies squared lengths"),
        (LOSSY, "does not undo forward"),
    ],
)
def test_transform_that_is_not_unitary_is_refused(transform, says):
    with pytest.raises(ValueError, match=f"transform must be unitary.*{says}"):
        check_transform(transform, X_END)


def test_unitary_transforms_pass():
    half = (lambda x: jnp.fft.fft(x, norm="ortho"), lambda w: jnp.fft.ifft(w, norm="ortho").real)
    for transform in (ORTHO, half, None):
        check_transform(transform, X_END)


TABLE = jnp.ones((300, 128))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: smdp.LinearPart(np.array([1.0, -2.0])), "decay rates .* got -2"),
        (lambda: smdp.LinearPart(np.nan), "must be finite decay rates"),
        (lambda: smdp.GaussianStep(3), r"order must be one of \[1, 2\], got 3"),
        (
            lambda: smdp.GaussianReference(jnp.arange(2.0), jnp.zeros(2), jnp.array([1.0, -1.0])),
            "variance must be finite and not negative, got -1",
        ),
        (
            lambda: smdp.GaussianReference(TABLE[:, 0], TABLE, TABLE.at[1, 7].set(jnp.nan)),
            "variance must be finite and not negative, got nan",
        ),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("solver", "says"),
    [
        (smdp.GaussianStep(), "must know a Gaussian near p_t, got a score that brings none"),
        (smdp.GaussianStep(reference=lambda t: -1.0), "variances .* must be at least 0, got -1"),
        (smdp.GaussianStep(reference=lambda t: jnp.ones(3)), "of shape (9,) like the modes"),
        (smdp.GaussianStep(2, smdp.LinearPart(1j), lambda t: 1.0), "come with a complex transform"),
        (
            smdp.GaussianStep(2, smdp.LinearPart(1.0, SCALE), lambda t: 1.0),
            "transform must be unitary",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_solve(solver, says):
    with pytest.raises(
        ValueError, match=re.escape(says).replace(r"\.\*", ".*").replace(r"\ ", " ")
    ):
        smdp.sample_posterior(
            DRIFT, score, X_END, jnp.linspace(0, END, 3), num_samples=2, key=KEY, solver=solver
        )


def test_leaves_of_a_tuple_are_those_of_a_dict():
    """A state of two leaves is no pair of mean and variance."""
    decay = lambda t, x, args: jax.tree.map(lambda x: -x, x)
    sde, ts = smdp.SDE(decay, diffusion=0.5), jnp.linspace(0.0, 1.0, 4)
    starts = {"a": jnp.arange(40.0).reshape(20, 2), "b": jnp.ones((20,))}
    found = []
    for state in (starts, (starts["a"], starts["b"])):
        data = smdp.simulate(sde, state, ts, key=KEY)
        solver = smdp.GaussianStep(reference=smdp.GaussianReference.of(data))
        how = {"num_samples": 3, "key": KEY, "batch_axes": 0, "solver": solver}
        past = smdp.sample_posterior(sde, decay, data.at(0, 3), ts, **how)
        found.append(jax.tree.leaves(past.samples))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_reference_with_one_variance_of_many_that_is_not_a_number_is_refused():
    """At one of 64 times, in one of 128 entries."""
    ts, table = jnp.linspace(0.0, END, 64), jnp.ones((64, 128)).at[9, 5].set(jnp.nan)
    solver = smdp.GaussianStep(reference=lambda t: table[jnp.searchsorted(ts, t)])
    decay = lambda t, x, args: -x
    sde, x_end = smdp.SDE(decay, diffusion=0.5), jnp.ones(128)
    with pytest.raises(ValueError, match=r"variances .* must be at least 0, got nan"):
        smdp.sample_posterior(sde, decay, x_end, ts, num_samples=2, key=KEY, solver=solver)

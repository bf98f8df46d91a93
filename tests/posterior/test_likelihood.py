"""Log densities and certificates against closed forms: affine, heat, and chains of Gaussians."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import multivariate_normal

import smdp_jax as smdp
from benchmarks import linear_gaussian as exact
from smdp_jax import physics
from smdp_jax.solve.transitions import transitions_of

pytestmark = pytest.mark.usefixtures("compiles_quickly")

AFFINE = physics.Affine(rate=0.7, noise=0.3)
HEAT = physics.Heat(size=6, diffusivity=0.8)
START = 0.02


def affine_prior(x, args):
    return AFFINE.log_density(START, x)


def heat_prior(x, args):
    return HEAT.log_density(START, x)


@pytest.fixture(scope="module")
def fields():
    """End states of the heat equation."""
    k_prior, k_noise = jax.random.split(jax.random.key(3))
    x0 = HEAT.prior(k_prior, 3)
    end = jax.jit(jax.vmap(lambda key, x: HEAT.transition(key, 0.0, 0.2, x)))
    return end(jax.random.split(k_noise, 3), x0)


@pytest.mark.slow
def test_affine_log_density():
    """Both signs, both modes, far out: 1e-4 relative, whatever the chunk."""
    ts = jnp.geomspace(START, 3.0, 61)
    x = jnp.array([[0.01], [-0.3], [0.9], [1.6]])
    given = (AFFINE.sde(), AFFINE.score, x, ts, affine_prior)
    found = smdp.log_prob(*given, solver=diffrax.Dopri8(), batch_axes=1)
    want = jax.jit(jax.vmap(lambda x: AFFINE.log_density(3.0, x)))(x)
    np.testing.assert_allclose(found.log_prob, want, rtol=1e-4)
    assert not found.standard_error.any()
    chunked = smdp.log_prob(*given, solver=diffrax.Dopri8(), batch_axes=1, chunk_size=3)
    np.testing.assert_allclose(chunked.log_prob, found.log_prob, rtol=1e-5)


@pytest.mark.slow
def test_heat_log_density_exact_and_hutchinson(fields):
    """Exact to 1e-4; the estimate within its own stated error (5 sigma of 3: 1 in 10^6)."""
    ts = smdp.linear_grid(START, 0.2, 12)
    given = (HEAT.continuous_sde(), HEAT.score, fields, ts, heat_prior)
    want = np.asarray(jax.jit(jax.vmap(HEAT.log_evidence))(fields))
    found = smdp.log_prob(*given, solver=diffrax.Dopri5(), batch_axes=1)
    np.testing.assert_allclose(found.log_prob, want, rtol=1e-4)
    rough = smdp.log_prob(
        *given,
        solver=diffrax.Dopri5(),
        batch_axes=1,
        trace="hutchinson",
        probes=64,
        key=jax.random.key(5),
    )
    assert (np.abs(rough.log_prob - want) < 5 * rough.standard_error).all()
    assert (rough.standard_error > 0).all()
    few = smdp.log_prob(
        *given,
        solver=diffrax.Dopri5(),
        batch_axes=1,
        trace="hutchinson",
        probes=4,
        key=jax.random.key(5),
    )
    assert float(few.standard_error.mean() / rough.standard_error.mean()) > 2


def test_log_density_of_a_flow_map_of_a_tree_with_conditions():
    """A flow map is a discrete flow: the density that its own steps push forward."""
    ts = jnp.linspace(0.0, 1.0, 5)

    def step(t0, t1, x, args):
        return jax.tree.map(lambda x: x * jnp.exp(args["rate"] * (t0 - t1)), x)

    sde = smdp.SDE(step=step, inverse=smdp.integrated_backward(step), diffusion=0.5)
    score = lambda t, x, args: jax.tree.map(lambda x: -args["slope"] * x, x)
    prior = lambda x, args: -0.5 * (jnp.sum(x["a"] ** 2) + x["b"] ** 2)
    args = {"rate": jnp.array([0.3, 0.9]), "slope": jnp.array([1.0, 0.2])}
    x = {"a": jnp.array([[0.2, -1.0], [0.5, 0.1]]), "b": jnp.array([0.7, -0.4])}
    found = smdp.log_prob(sde, score, x, ts, prior, args=args, args_axes=0, batch_axes=1)
    factor = (np.exp(0.25 * args["rate"]) - 0.25 * 0.25 / 2 * args["slope"]) ** 4
    size = np.asarray((x["a"] ** 2).sum(axis=1) + x["b"] ** 2)
    np.testing.assert_allclose(
        found.log_prob, -0.5 * factor**2 * size + 3 * np.log(factor), rtol=1e-5
    )


@pytest.mark.slow
def test_exact_steps_certify_to_rounding_and_correct_expectations(fields):
    """Where the sampler is the posterior all weights are one, with and without resampling."""
    ts = smdp.linear_grid(START, 0.2, 7)
    given = (HEAT.continuous_sde(), HEAT.score, fields[0], ts, heat_prior)
    solver = exact.ExactHeatSteps(HEAT)
    found = smdp.certify(*given, num_paths=64, key=jax.random.key(0), solver=solver)
    want = float(HEAT.log_evidence(fields[0]))
    assert float(found.share) == pytest.approx(1, abs=1e-4)
    for value in (found.elbo, found.bound, found.log_evidence):
        assert float(value) == pytest.approx(want, abs=5e-3)
    assert "nats from the truth" in str(found)
    guided = smdp.certify(
        *given, num_paths=64, key=jax.random.key(0), solver=solver, reference=HEAT.log_density
    )
    assert float(guided.log_evidence) == pytest.approx(want, abs=5e-3)


MODES = smdp.LinearPart(
    HEAT.decay_rates()[:, :4],
    (partial(jnp.fft.rfft2, norm="ortho"), partial(jnp.fft.irfft2, norm="ortho")),
)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_gaussian_steps_certify_in_half_a_spectrum(fields, order):
    """Modes that stand for two entries; an inexact score costs as much as its own law says."""
    step = smdp.GaussianStep(order, MODES, lambda t: HEAT.marginal_variance(t)[:, :4])
    ts = smdp.linear_grid(START, 0.2, 5)
    given = {"num_paths": 400, "key": jax.random.key(0), "solver": step}
    sde, want = HEAT.continuous_sde(), float(HEAT.log_evidence(fields[0]))
    found = smdp.certify(sde, HEAT.score, fields[0], ts, heat_prior, **given)
    assert float(found.elbo) == pytest.approx(want, abs=5e-3)
    assert float(found.share) == pytest.approx(1, abs=1e-3)
    wrong = lambda t, x, args: 1.3 * HEAT.score(t, x)
    found = smdp.certify(sde, wrong, fields[0], ts, heat_prior, **given, reference=HEAT.log_density)
    # Five of its own standard errors, which are below 0.2; the gap above five of its own.
    assert float(found.log_evidence_error) < 0.2
    assert float(found.log_evidence) == pytest.approx(want, abs=1.0)
    assert want - float(found.elbo) > 5 * float(found.elbo_error)


@pytest.mark.slow
def test_spread_in_half_a_spectrum_is_the_dense_gaussian():
    """Covariance column by column, and its log density, of a state of two leaves."""
    transform = (
        partial(jax.tree.map, partial(jnp.fft.rfft, norm="ortho")),
        lambda w: {k: jnp.fft.irfft(w[k], n=n, norm="ortho") for k, n in (("a", 5), ("b", 4))},
    )
    like = {"a": jnp.zeros(5), "b": jnp.zeros(4)}
    linear = smdp.LinearPart({"a": jnp.array([0.0, 1.0, 3.0]), "b": 0.5}, transform)
    sde = smdp.SDE(lambda t, x, args: x, diffusion={"a": 0.3, "b": 0.7}, linear=linear)
    step = smdp.GaussianStep(1, reference=lambda t: {"a": 1.0, "b": 1.0})
    score = lambda t, x, args: jax.tree.map(jnp.negative, x)
    steps = transitions_of(step, sde, score, jnp.array([0.0, 0.4]), like, None)
    _, spread = steps.forward(jnp.asarray(0.0), jnp.asarray(0.4), like, None)
    flat, unravel = ravel_pytree(like)
    dense = jax.vmap(lambda v: ravel_pytree(spread.power(1.0, unravel(v)))[0])(jnp.eye(flat.size))
    x = jnp.linspace(-0.5, 1.0, 9)
    want = multivariate_normal(np.zeros(9), np.asarray(dense, np.float64)).logpdf(x)
    assert float(spread.log_density(unravel(x))) == pytest.approx(want, rel=1e-4)
    rates = np.repeat([0.0, 1.0, 3.0, 0.5], [1, 2, 2, 4])
    noise = np.repeat([0.09, 0.49], [5, 4])
    exact = np.where(
        rates > 0, noise * (1 - np.exp(-0.8 * rates)) / (2 * rates + (rates == 0)), 0.4 * noise
    )
    np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(dense)), np.sort(exact), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 2])
def test_kernel_from_paths_certifies_on_its_own_steps(start):
    """A rotating decay, exact forward: evidence in closed form, and a gap that paths explain."""
    rate, noise, ts = 0.8, 0.4, jnp.linspace(0.0, 1.0, 6)
    linear = smdp.LinearPart(rate)
    sde = smdp.SDE(lambda t, x, args: -rate * x, diffusion=noise, linear=linear)
    x0 = 0.7 * jax.random.normal(jax.random.key(0), (4000, 2)) + jnp.array([[0.5, -0.2]])
    kernel = smdp.estimate_kernel(sde, smdp.simulate(sde, x0, ts, key=jax.random.key(1)))
    grown = lambda t: noise**2 * (1 - np.exp(-2 * rate * t)) / (2 * rate)
    moments = lambda t: (
        np.exp(-rate * t) * np.array([0.5, -0.2]),
        0.49 * np.exp(-2 * rate * t) + grown(t),
    )
    first, x_end = float(ts[start]), jnp.array([0.9, 0.1])
    mean, variance = moments(first)

    def prior(x, args):
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, jnp.asarray(mean, x.dtype), variance**0.5))

    found = smdp.certify(
        sde, kernel, x_end, ts[start:], prior, num_paths=2000, key=jax.random.key(2),
        solver=smdp.GaussianStep(),
    )  # fmt: skip
    mean, variance = moments(1.0)
    want = multivariate_normal(mean, variance * np.eye(2)).logpdf(np.asarray(x_end, np.float64))
    # Per step 2 x 3 numbers from 4000 paths: a gap of 6 / (2 x 4000) each on average.
    assert float(found.log_evidence) == pytest.approx(want, abs=5e-3)
    assert abs(want - float(found.elbo)) < 0.03
    with pytest.raises(ValueError, match="a LearnedKernel has its own steps"):
        smdp.certify(
            sde, kernel, x_end, ts[::2][:2], prior, num_paths=8, key=jax.random.key(2),
            solver=smdp.GaussianStep(),
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.3, 0.0), (1.0, 8.0)])
def test_gap_of_euler_steps_and_of_wrong_scores_is_the_closed_form(fields, scale, shift):
    """ELBO of linear chains in closed form; five standard errors of 4000 paths, gap to 10 %."""
    ts = smdp.linear_grid(START, 0.2, 40)
    tilt = shift * jnp.sin(jnp.arange(36.0).reshape(6, 6))
    wrong = lambda t, x, args: scale * HEAT.score(t, x) + tilt
    found = smdp.certify(
        HEAT.continuous_sde(), wrong, fields[1], ts, heat_prior, num_paths=4000,
        key=jax.random.key(1),
    )  # fmt: skip
    elbo, evidence = exact.euler_elbo(HEAT, ts, fields[1], scale, tilt)
    assert float(found.elbo) == pytest.approx(elbo, abs=5 * float(found.elbo_error))
    assert evidence - float(found.elbo) == pytest.approx(evidence - elbo, rel=0.1)
    assert float(found.elbo) < float(found.bound) <= evidence + 1


@pytest.mark.slow
def test_many_paths_and_resampling_reach_the_evidence_of_the_chain():
    """Bimodal affine chain by Euler steps, a mixture in closed form; a third-off score."""
    ts = jnp.geomspace(START, 1.0, 40)
    x_end = jnp.array([0.1])
    wrong = lambda t, x, args: 0.8 * AFFINE.score(t, x)
    shrink, variance = np.exp(-0.7 * START), float(AFFINE.transition_variance(START))
    for dt in np.diff(np.asarray(ts, np.float64)):
        shrink, variance = shrink * (1 - 0.7 * dt), variance * (1 - 0.7 * dt) ** 2 + 0.09 * dt
    logs = [-((0.1 - s * shrink) ** 2) / (2 * variance) for s in (1, -1)]
    want = np.logaddexp(*logs) - np.log(2) - 0.5 * np.log(2 * np.pi * variance)
    plus = 1 / (1 + np.exp(logs[1] - logs[0]))
    given = (AFFINE.sde(), wrong, x_end, ts, affine_prior)
    for reference in (None, AFFINE.log_density):
        found = smdp.certify(*given, num_paths=8000, key=jax.random.key(2), reference=reference)
        # Five of its own standard errors, which are below 0.05.
        assert float(found.log_evidence_error) < 0.05
        assert float(found.log_evidence) == pytest.approx(
            want, abs=5 * float(found.log_evidence_error)
        )
        assert float(found.mean(lambda x: (x[0] > 0).astype(float))) == pytest.approx(
            plus, abs=0.05
        )
        assert found.resample(jax.random.key(0), 10).shape == (10, 1)


@pytest.mark.slow
def test_gradient_of_the_evidence_with_respect_to_a_parameter(fields):
    """Against finite differences of the closed form: d log p / d diffusivity."""
    ts = smdp.linear_grid(START, 0.2, 7)
    solver = exact.ExactHeatSteps(HEAT)

    def evidence(share):
        return smdp.certify(
            HEAT.continuous_sde(),
            HEAT.score,
            fields[2],
            ts,
            heat_prior,
            num_paths=4000,
            key=jax.random.key(4),
            solver=solver,
            args=share,
        ).log_evidence

    modes = np.abs(np.fft.fft2(np.asarray(fields[2], np.float64), norm="ortho")) ** 2

    def closed(share):
        kappa = np.asarray(HEAT.decay_rates(), np.float64) * share
        span, first = 0.2 - START, np.asarray(HEAT.marginal_variance(START), np.float64)
        rate = np.where(kappa > 0, kappa, 1)
        noise = 0.01 * np.where(kappa > 0, (1 - np.exp(-2 * kappa * span)) / (2 * rate), span)
        total = first * np.exp(-2 * kappa * span) + noise
        return -0.5 * np.sum(modes / total + np.log(2 * np.pi * total))

    slope = (closed(1.001) - closed(0.999)) / 0.002
    assert float(jax.jit(jax.grad(evidence))(jnp.asarray(1.0))) == pytest.approx(slope, rel=0.01)


@pytest.mark.slow
def test_gradient_of_the_evidence_passes_resampling():
    """An affine chain of a wrong score, resampled at each step; five errors of 64 keys' mean."""
    ts, x_end = jnp.geomspace(START, 0.5, 9), jnp.array([0.6])
    sde = smdp.SDE(lambda t, x, args: -args * x, diffusion=0.3)
    wrong = lambda t, x, args: 0.9 * AFFINE.score(t, x)

    def evidence(rate, key):
        return smdp.certify(
            sde, wrong, x_end, ts, affine_prior, num_paths=500, key=key, args=rate,
            reference=AFFINE.log_density, threshold=1.0,
        ).log_evidence  # fmt: skip

    def closed(rate):
        shrink, variance = np.exp(-0.7 * START), float(AFFINE.transition_variance(START))
        for dt in np.diff(np.asarray(ts, np.float64)):
            shrink, variance = shrink * (1 - rate * dt), variance * (1 - rate * dt) ** 2 + 0.09 * dt
        logs = [-((0.6 - s * shrink) ** 2) / (2 * variance) for s in (1, -1)]
        return np.logaddexp(*logs) - 0.5 * np.log(variance)

    slopes = jax.jit(jax.vmap(jax.grad(evidence), (None, 0)))(
        jnp.asarray(0.7), jax.random.split(jax.random.key(0), 64)
    )
    want, error = (closed(0.701) - closed(0.699)) / 0.002, float(slopes.std()) / 8
    assert float(slopes.mean()) == pytest.approx(want, abs=5 * error)
    assert error < 0.05 * abs(want)

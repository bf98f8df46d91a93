"""Sensors, several times, evidence: dense Gaussians and mixtures in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from benchmarks import linear_gaussian as exact
from smdp_jax import physics
from smdp_jax.physics.exact.sensors import sensor_posterior

pytestmark = pytest.mark.usefixtures("compiles_quickly")

HEAT = physics.Heat(size=8, noise=0.3)
TS = smdp.linear_grid(0.0, 0.2, 8)
STEP = smdp.GaussianStep(
    linear=smdp.LinearPart(
        HEAT.decay_rates()[:, :5],
        (partial(jnp.fft.rfft2, norm="ortho"), partial(jnp.fft.irfft2, norm="ortho")),
    ),
    reference=lambda t: HEAT.marginal_variance(t)[:, :5],
)
AFFINE = physics.Affine(rate=0.5, noise=0.5)
FINE = jnp.geomspace(0.02, 2.0, 193)


@pytest.fixture(scope="module")
def heat_paths():
    """Paths of the continuous heat equation, without error of the steps."""
    return exact.exact_heat_paths(HEAT, TS, jax.random.key(0), 512)


@pytest.fixture(scope="module")
def affine_paths():
    """Paths of the affine process on a fine grid."""
    k_prior, k_noise = jax.random.split(jax.random.key(1))
    ts = jnp.concatenate([jnp.zeros(1), FINE])
    paths = smdp.simulate(AFFINE.sde(), AFFINE.prior(k_prior, 1024), ts, key=k_noise)
    return smdp.Trajectories(FINE, paths.xs[:, 1:])


@pytest.mark.slow
@pytest.mark.parametrize("indices", [(8,), (2, 5, 8)])
@pytest.mark.parametrize("kind", ["modes", "dense"])
def test_heat_sensors_against_the_dense_gaussian(heat_paths, indices, kind):
    """Mean, spread and evidence; the mean to twice its Monte Carlo error (an RMS over points)."""
    truth, sensors = heat_paths.xs[0], np.s_[::2, 1::3]
    variance = 0.05**2
    keys = jax.random.split(jax.random.key(2), 3)
    values = [
        truth[i][sensors] + 0.05 * jax.random.normal(k, (4, 3))
        for i, k in zip(indices, keys, strict=False)
    ]
    times = [float(TS[i]) for i in indices]
    seen = [
        smdp.LinearObservation(t, sensors, v, variance) for t, v in zip(times, values, strict=True)
    ]
    found = smdp.condition(
        HEAT.continuous_sde(),
        HEAT.score,
        seen,
        TS,
        num_particles=1500,
        key=jax.random.key(3),
        data=heat_paths,
        twist=smdp.LinearTwist.of(heat_paths, seen, kind=kind),
        solver=exact.ExactHeatSteps(HEAT) if len(indices) == 1 else STEP,
    )
    looks = [o.matrix(truth[0]) for o in seen]
    mean, covariance, evidence = sensor_posterior(HEAT, looks, times, values, variance)
    spread = np.sqrt(np.diag(covariance))
    miss = np.asarray(found.samples.mean(axis=0)).ravel() - mean
    least = float(found.info.ess.min())
    assert least > 100
    # Every resampling adds about 1 / ESS to the relative variance of a mean (Chopin 2004).
    resampled = np.asarray(found.info.ess)[np.asarray(found.info.ess) < 1499]
    error = np.sqrt(1 / 1500 + (1 / resampled).sum())
    assert np.sqrt(np.mean(miss**2) / np.mean(spread**2)) < 2 * error
    ratio = np.asarray(found.samples.std(axis=0)).ravel() / spread
    assert abs(ratio.mean() - 1) < 0.05
    assert float(found.log_evidence_error) < 0.3
    assert abs(found.log_evidence - evidence) < 5 * found.log_evidence_error
    assert np.nanmin(found.info.acceptance) > 0.3


def _affine_answer(times, values, variance):
    """Log evidence, and P(+1), of noisy values of the affine process."""
    t, y = np.asarray(times), np.asarray(values)
    early = np.minimum(t[:, None], t[None])
    own = 0.25 * (1 - np.exp(-early)) * np.exp(-0.5 * np.abs(t[:, None] - t[None]))
    total = own + variance * np.eye(len(t))
    logs = []
    for sign in (1, -1):
        miss = y - sign * np.exp(-0.5 * t)
        _, logdet = np.linalg.slogdet(2 * np.pi * total)
        logs.append(-0.5 * (miss @ np.linalg.solve(total, miss) + logdet) - np.log(2))
    evidence = np.logaddexp(*logs)
    return evidence, np.exp(logs[0] - evidence)


@pytest.mark.slow
@pytest.mark.parametrize("places", [(192,), (60, 120, 192)])
@pytest.mark.parametrize("how", ["twisted", "plain", "any"])
def test_bimodal_posterior_of_the_start(affine_paths, places, how):
    """P(+1) and evidence, with a twist, without one, and by log-likelihoods as functions.

    Five standard errors: 0.5 / sqrt(4000) of the probability, with half of the particles alike.
    """
    times, values = [float(FINE[i]) for i in places], [0.1, 0.25, 0.05][-len(places) :]

    def any_likelihood(value):
        return lambda x, args: (
            -0.5 * ((value - x[0]) ** 2 / args["variance"] + jnp.log(2 * jnp.pi * args["variance"]))
        )

    if how == "any":
        seen = [smdp.Observation(t, any_likelihood(v)) for t, v in zip(times, values, strict=True)]
    else:
        seen = [
            smdp.LinearObservation(t, lambda x: x[0], jnp.asarray(v), 0.09)
            for t, v in zip(times, values, strict=True)
        ]
    found = smdp.condition(
        AFFINE.sde(),
        AFFINE.score,
        seen,
        FINE,
        num_particles=4000,
        key=jax.random.key(5),
        data=affine_paths,
        twist="learn" if how == "twisted" else None,
        args={"variance": jnp.asarray(0.09)},
        resample=False,
    )
    evidence, plus = _affine_answer(times, values, 0.09)
    share = float(found.mean(lambda x: (x[0] > 0).astype(float)))
    assert share == pytest.approx(plus, abs=0.05)
    assert float(found.log_evidence) == pytest.approx(evidence, abs=0.15)
    assert float(jnp.exp(found.log_weights).sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_stated_error_of_the_evidence_is_the_spread_over_keys():
    """64 repetitions under vmap: the ratio's own error is 9 %; bounds are five of them (1e-6)."""
    rate, ts = 1.0, jnp.linspace(0.2, 1.0, 9)
    sde = smdp.SDE(lambda t, x, args: -rate * x, diffusion=0.5)
    variance = lambda t: jnp.exp(-2 * t) + 0.125 * (1 - jnp.exp(-2 * t))
    score = lambda t, x, args: -x / variance(t)
    ends = jnp.sqrt(variance(1.0)) * jax.random.normal(jax.random.key(0), (8192, 1))
    seen = [smdp.LinearObservation(float(ts[i]), 0, jnp.asarray(0.7), 0.02) for i in (3, 8)]

    def evidence(key):
        found = smdp.condition(
            sde, score, seen, ts, num_particles=256, key=key, ends=ends, twist=None
        )
        return found.log_evidence, found.log_evidence_error

    found, stated = jax.jit(jax.vmap(evidence))(jax.random.split(jax.random.key(7), 64))
    assert 0.55 < float(found.std() / stated.mean()) < 1.5


def test_operators_say_the_same_of_a_tree():
    """A function, a mask and a matrix on a state of two leaves; an index on an array."""
    x = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([10.0, 20.0])}
    mask = {"a": np.array([[True, False, False], [False, True, False]]), "b": np.array([0, 1]) > 0}
    matrix = np.zeros((3, 8))
    matrix[[0, 1, 2], [0, 4, 7]] = 1
    look = lambda x: jnp.stack([x["a"][0, 0], x["a"][1, 1], x["b"][1]])
    value, covariance = jnp.array([1.0, 2.0, jnp.nan]), np.diag([1.0, 2.0, 3.0])
    kept = np.array([True, True, False])
    for operator in (look, mask, matrix):
        seen = smdp.LinearObservation(0.0, operator, value, covariance, seen=kept)
        np.testing.assert_array_equal(seen.apply(x), [0, 4, 20])
        np.testing.assert_allclose(seen.matrix(x), matrix[:2], atol=1e-6)
        np.testing.assert_array_equal(seen.noise(jnp.float32), np.diag([1.0, 2.0]))
        np.testing.assert_array_equal(seen.read(jnp.float32), [1, 2])
    strided = smdp.LinearObservation(0.0, np.s_[:, ::2], jnp.zeros((2, 2)), 1.0)
    rows = np.asarray(strided.matrix(jnp.zeros((2, 3))))
    np.testing.assert_array_equal(rows @ np.arange(6.0), [0, 2, 3, 5])


def test_a_tree_seen_at_three_times_against_its_gaussian():
    """A function of two leaves, a mask with a broken sensor, a log-likelihood, and a rate in args.

    Means and evidence to five standard errors, spread to as many: 1e-5; Euler's 128 steps move
    spreads by half a per cent.
    """
    rates, args = {"u": 1.0, "v": 0.6}, {"rate": jnp.asarray(0.5)}
    decay = lambda x, args: jax.tree.map(lambda x, r: -r * args["rate"] * x, x, rates)
    sde = smdp.SDE(lambda t, x, args: decay(x, args), diffusion=0.8)

    def variance(t, r):
        return jnp.exp(-r * t) + 0.64 * (1 - jnp.exp(-r * t)) / r  # twice args["rate"] is 1

    def score(t, x, args):
        return jax.tree.map(lambda x, r: -x / variance(t, 2 * r * args["rate"]), x, rates)

    ts = jnp.linspace(0.0, 1.6, 129)
    keys = jax.random.split(jax.random.key(8), 4)
    start = {
        "u": jax.random.normal(keys[0], (1024, 2, 2)),
        "v": jax.random.normal(keys[1], (1024, 3)),
    }
    data = smdp.simulate(sde, start, ts, key=keys[2], args=args)
    mask = {"u": np.array([[False, True], [False, False]]), "v": np.array([True, False, True])}
    seen = [
        smdp.LinearObservation(0.4, lambda x: x["u"][0] - x["v"][:2], jnp.array([0.9, -0.4]), 0.05),
        smdp.LinearObservation(
            1.6, mask, [0.7, np.nan, -0.5], [0.1, 0.2, 0.1], seen=[True, False, True]
        ),
        smdp.Observation(
            0.8, lambda x, args: jax.scipy.stats.norm.logpdf(x["u"][1].sum(), 0.3, 0.5)
        ),
    ]
    found = smdp.condition(
        sde, score, seen, ts, num_particles=512, key=keys[3], data=data, args=args
    )
    # Seven entries: u, then v; five sensors: rows, times, values, variances.
    rows = np.zeros((5, 7))
    rows[[0, 0, 1, 1], [0, 4, 1, 5]] = [1, -1, 1, -1]
    rows[[2, 3, 4, 4], [1, 6, 2, 3]] = 1
    at, y = np.array([0.4, 0.4, 1.6, 1.6, 0.8]), np.array([0.9, -0.4, 0.7, -0.5, 0.3])
    r = np.array([1.0] * 4 + [0.6] * 3)
    first, after = np.minimum(at[:, None], at), np.abs(at[:, None] - at)
    past = np.exp(-r * first[..., None])
    own = (past + 0.64 * (1 - past) / r) * np.exp(-0.5 * r * after[..., None])
    total = np.einsum("ie,ije,je->ij", rows, own, rows) + np.diag([0.05, 0.05, 0.1, 0.1, 0.25])
    cross = rows.T * np.exp(-0.5 * r[:, None] * at[None])
    mean = cross @ np.linalg.solve(total, y)
    spread = np.sqrt(1 - np.einsum("ei,ie->e", cross, np.linalg.solve(total, cross.T)))
    evidence = -0.5 * (y @ np.linalg.solve(total, y) + np.linalg.slogdet(2 * np.pi * total)[1])
    own = np.concatenate(
        [np.asarray(v).reshape(512, -1) for v in (found.samples["u"], found.samples["v"])], axis=1
    )
    error = float(found.info.independent) ** -0.5
    assert error < 0.12
    assert np.abs((own.mean(axis=0) - mean) / spread).max() < 5 * error
    assert np.abs(own.std(axis=0) / spread - 1).max() < 5 * error / np.sqrt(2) + 0.005
    assert abs(float(found.log_evidence) - evidence) < 5 * float(found.log_evidence_error)


@pytest.mark.slow
def test_values_covariances_and_args_are_traced(affine_paths):
    """Two sensors, a twist, a function as operator: compiled, the same as without."""
    ts, cut = FINE[::32], smdp.Trajectories(FINE[::32], affine_paths.xs[:, ::32])
    times = np.asarray(ts, float).tolist()

    def evidence(args, value, covariance):
        seen = [
            smdp.LinearObservation(times[3], lambda x: 2 * x, value, covariance),
            smdp.LinearObservation(times[6], 0, 0.1, 0.2),
        ]
        return smdp.condition(
            AFFINE.sde(), lambda t, x, args: args * AFFINE.score(t, x), seen, ts,
            num_particles=64, key=jax.random.key(0), data=cut, args=args,
        ).log_evidence  # fmt: skip

    given = jnp.ones(()), jnp.array([0.3]), jnp.asarray(0.1)
    np.testing.assert_allclose(jax.jit(evidence)(*given), evidence(*given), rtol=1e-4)


def test_lists_are_operators_as_arrays_are():
    """Numbers of entries, a mask and a matrix."""
    x = jnp.arange(4.0)
    for operator in ([0, 2], [True, False, True, False], [[1.0, 0, 0, 0], [0, 0, 1.0, 0]]):
        seen = smdp.LinearObservation(0.0, operator, jnp.zeros(2), 1.0)
        np.testing.assert_array_equal(seen.apply(x), [0, 2])

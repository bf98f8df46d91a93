"""Sensors, several times, evidence: dense Gaussians and mixtures in closed form."""

import importlib.util
import warnings
from functools import partial
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax import physics
from smdp_jax.physics.exact.sensors import sensor_posterior
from smdp_jax.solve.conditioned import say_how_it_went
from smdp_jax.solve.particles import independent_number

_spec = importlib.util.spec_from_file_location(
    "linear_gaussian", Path(__file__).parent.parent / "benchmarks" / "linear_gaussian.py"
)
exact = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(exact)

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

    found, stated = jax.vmap(evidence)(jax.random.split(jax.random.key(7), 64))
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


def test_twist_of_a_tree_with_few_paths_predicts_what_sensors_show():
    """Regression on components: whitened misses of unseen paths have unit variance (to 15 %)."""
    ts = jnp.linspace(0.0, 1.0, 5)
    sde = smdp.SDE(lambda t, x, args: {"u": x["v"], "v": -x["u"] - 0.3 * x["v"]}, diffusion=0.2)
    keys = jax.random.split(jax.random.key(0), 3)
    x0 = {n: jax.random.normal(k, (800, 3)) for n, k in zip("uv", keys, strict=False)}
    paths = smdp.simulate(sde, x0, ts, key=keys[2], substeps=8)
    seen = [smdp.LinearObservation(0.5, lambda x: x["u"][:2], jnp.zeros(2), 0.01)]
    half = lambda cut: smdp.Trajectories(ts, jax.tree.map(lambda x: x[cut], paths.xs))
    twist = smdp.LinearTwist.of(half(slice(0, 400)), seen)
    gain, offset, residual = twist.at(ts[4])
    test = half(slice(400, None))
    flat = jnp.concatenate([test.xs["u"][:, 4], test.xs["v"][:, 4]], axis=1)
    miss = test.xs["u"][:, 2, :2] - flat @ gain.T - offset[None]
    white = np.linalg.solve(np.linalg.cholesky(np.asarray(residual)), np.asarray(miss).T)
    assert abs(np.mean(white**2) - 1) < 0.15
    assert float(jnp.abs(twist.at(ts[1])[0]).max()) == 0
    np.testing.assert_array_equal(twist.at(ts[2])[0][:, :3], np.eye(3)[:2])


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


def _condition(**changes):
    given = {
        "sde": AFFINE.sde(),
        "score": AFFINE.score,
        "observations": [smdp.LinearObservation(1.0, 0, jnp.asarray(0.1), 0.1)],
        "ts": jnp.linspace(0.1, 1.0, 10),
        "num_particles": 32,
        "key": jax.random.key(0),
        "ends": jnp.linspace(-1, 1, 16)[:, None],
    }
    return smdp.condition(**(given | changes))


def _seen(time=1.0, operator=0, value=0.1, covariance=0.1, **more):
    return [smdp.LinearObservation(time, operator, jnp.asarray(value), covariance, **more)]


DATA = smdp.Trajectories(jnp.linspace(0.0, 0.9, 4), jnp.ones((8, 4, 1)))
CORRECTION = smdp.StepCorrection(smdp.models.MLP(), {}, ts=jnp.linspace(0, 1, 5), noise_level=1.0)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {"score": CORRECTION}, "must have a score, got a StepCorrection"),
        (lambda: {"observations": []}, "list of at least one"),
        (lambda: {"observations": _seen(time=0.55)}, "add the time to the grid"),
        (lambda: {"observations": _seen(time=3.0)}, "the grid goes from 0.1 to 1"),
        (lambda: {"observations": _seen(time=np.nan)}, "must be one of the solve's ts, got nan"),
        (
            lambda: {"data": DATA, "ends": None, "twist": smdp.LinearTwist.of(DATA, _seen())},
            "must be one of the data's ts",
        ),
        (lambda: {"observations": _seen(operator=lambda x: x, value=0.1)}, "shape of value"),
        (lambda: {"observations": _seen(operator=np.ones((1, 3)), value=[0.1])}, "1 columns"),
        (lambda: {"observations": _seen(operator=np.ones((2,), bool), value=[0.1])}, "a mask must"),
        (lambda: {"observations": _seen(operator=lambda x: x[0] + 1)}, "operator must be linear"),
        (lambda: {"observations": _seen(operator=np.s_[:, 0])}, "an index into a state of shape"),
        (lambda: {"observations": [smdp.LinearObservation("1", 0, 0.1, 0.1)]}, "must be a number"),
        (
            lambda: {"observations": [smdp.LinearObservation(1.0, 0, None, 0.1)]},
            "real numbers, got None",
        ),
        (
            lambda: {"observations": [smdp.LinearObservation(1.0, 0, 1j, 0.1)]},
            "value must be an array of",
        ),
        (
            lambda: {"observations": [smdp.LinearObservation(1.0, 0, 0.1, None)]},
            "covariance must be an array",
        ),
        (lambda: {"num_particles": 1}, "at least 2, to know a spread"),
        (lambda: {"ends": None, "data": DATA}, r"must hold ts\[-1\]=1, got times from 0 to 0.9"),
        (
            lambda: {
                "observations": _seen(value=[0, 0], covariance=np.array([[1.0, 0.2], [0, 1]]))
            },
            "must be symmetric",
        ),
        (lambda: {"observations": _seen(covariance=0.0)}, "covariance must be positive"),
        (lambda: {"observations": _seen(covariance=np.inf)}, "covariance must be positive"),
        (
            lambda: {"observations": _seen(covariance=np.array([1.0, -1.0]), value=[0, 0])},
            "positive",
        ),
        (
            lambda: {"observations": _seen(value=[0, 0], covariance=np.array([[1.0, 2], [2, 1]]))},
            "positive definite",
        ),
        (
            lambda: {"observations": _seen(covariance=np.ones((3, 2)))},
            "must be a number",
        ),
        (lambda: {"observations": _seen(value=jnp.nan)}, "leave broken sensors out by seen="),
        (lambda: {"observations": _seen(value=[1, 2], seen=[True])}, "seen must have the shape"),
        (
            lambda: {"observations": [smdp.Observation(1.0, lambda x, args: x)]},
            "must return one number",
        ),
        (
            lambda: {
                "observations": [smdp.Observation(1.0, lambda x, args: jnp.log(-(x[0] ** 2)))]
            },
            "must reach temperature 1.*more particles, gentler tempering",
        ),
        (
            lambda: {"observations": [smdp.Observation(0.5, lambda x, args: -jnp.inf * x[0] ** 2)]},
            "must stay above 1.*more particles, tempering, a twist",
        ),
        (lambda: {"ends": None}, "got neither"),
        (lambda: {"ends": jnp.ones((1, 1))}, "at least 2 draws"),
        (lambda: {"twist": "guess"}, "twist must be"),
        (lambda: {"threshold": 2.0}, "threshold must be"),
        (lambda: {"solver": diffrax.Heun()}, "must have Gaussian steps"),
        (lambda: {"num_particles": 0}, "at least 1"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        _condition(**make())


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {"observations": _seen(operator=lambda x: {"a": x})}, "must be a JAX function"),
        (
            lambda: {"observations": _seen(operator=np.asarray)},
            "must be a JAX function",
        ),
        (lambda: {"ends": None, "data": jnp.ones((8, 4, 1))}, "data must be Trajectories"),
        (lambda: {"tempering": 4}, "tempering must be a Tempering"),
    ],
)
def test_another_kind_is_answered_in_a_sentence(make, message):
    with pytest.raises(TypeError, match=message):
        _condition(**make())


@pytest.mark.usefixtures("untyped")
def test_what_must_be_known_is_not_traced():
    ts = jnp.linspace(0.1, 1.0, 10)
    for trace, message in (
        (lambda ts: _condition(ts=ts), "must be known before tracing"),
        (lambda ts: _condition(ends=ts[:, None]), "must be known before tracing"),
        (lambda ts: _seen(time=ts[0]), "a number that is known before tracing"),
        (lambda ts: _seen(seen=ts[0] > 0), "seen must be known before tracing"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.jit(trace)(ts)


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


def test_few_particles_that_count_are_warned_of():
    """Sensors far sharper than a step is wide, after a wide prior, and no way to see them."""
    sharp = smdp.Observation(0.1, lambda x, args: -0.5 * ((x[0] - 1.3) / 1e-3) ** 2)
    with pytest.warns(UserWarning, match="particles count at t="):
        _condition(observations=[sharp], ends=jnp.linspace(-1, 1, 64)[:, None], num_particles=64)


def _turn(x, dt):
    """Pairs turn, far ones faster; standard normals stay what they are."""
    z = x.reshape(-1, 2)
    angle = dt * (1.2 + 0.3 * (z**2).sum(axis=1))
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([c * z[:, 0] - s * z[:, 1], s * z[:, 0] + c * z[:, 1]], axis=1).reshape(-1)


def _decay(dt, sign):
    return jnp.exp(-0.5 * sign * dt * 0.2**2)


TURNING = smdp.SDE(
    step=lambda t0, t1, x, args: _decay(t1 - t0, 1) * _turn(x, t1 - t0),
    inverse=lambda t1, t0, x, args: _turn(_decay(t1 - t0, -1) * x, t0 - t1),
    diffusion=0.2,
)


def _turned(times, pairs, noise, twist):
    """Condition pairs seen at some of 25 times by one coordinate each; and what was seen."""
    keys = jax.random.split(jax.random.key(5), 4)
    ts, normal = jnp.linspace(0.0, 1.0, 25), jax.random.normal
    data = smdp.simulate(TURNING, normal(keys[0], (1024, 2 * pairs)), ts, key=keys[0])
    truth = smdp.simulate(TURNING, normal(keys[1], (1, 2 * pairs)), ts, key=keys[1]).xs[0]
    miss = noise * normal(keys[2], (len(times), pairs))
    values = truth[jnp.asarray(times), 1::2] + miss
    seen = [
        smdp.LinearObservation(float(ts[i]), np.s_[1::2], value, noise**2)
        for i, value in zip(times, values, strict=True)
    ]
    found = smdp.condition(
        TURNING,
        lambda t, x, args: -x,
        seen,
        ts,
        num_particles=192,
        key=keys[3],
        data=data,
        twist=twist,
    )
    return found, values


def test_a_twist_is_learned_again_where_physics_is_not_linear():
    """Mean, spread and evidence of independent pairs; each pair's by importance weights.

    Means to five standard errors of as many independent draws as are stated, spread and evidence
    likewise: 1e-5 over the ten comparisons.
    """
    noise, times = 0.12, (6, 14, 24)
    found, values = _turned(times, 3, noise, "learn")
    assert int(found.info.rounds) > 1
    independent = float(found.info.independent)
    assert independent > 40
    start = jax.random.normal(jax.random.key(10), (1 << 16, 2))
    paths = smdp.simulate(TURNING, start, jnp.linspace(0.0, 1.0, 25), key=jax.random.key(11))
    shown = paths.xs[:, jnp.asarray(times), 1]
    evidence = 0.0
    for k in range(3):
        miss = (values[:, k][None] - shown) / noise
        logs = jnp.sum(-0.5 * miss**2 - np.log(noise * np.sqrt(2 * np.pi)), axis=1)
        weights = jax.nn.softmax(logs)
        evidence += float(jax.nn.logsumexp(logs) - np.log(len(start)))
        mean = weights @ start
        spread = jnp.sqrt(weights @ (start - mean[None]) ** 2)
        own = found.samples[:, 2 * k : 2 * k + 2]
        few = 1 / independent + float((weights**2).sum())
        assert float(jnp.abs((own.mean(axis=0) - mean) / spread).max()) < 5 * few**0.5
        assert float(jnp.abs(own.std(axis=0) / spread - 1).max()) < 5 * (few / 2) ** 0.5
    assert abs(float(found.log_evidence) - evidence) < 5 * float(found.log_evidence_error)


@pytest.mark.parametrize(
    ("independent", "error", "said"), [(100.0, 0.3, False), (7.0, 0.3, True), (100.0, 1.2, True)]
)
def test_particles_of_few_families_are_warned_of(independent, error, said):
    """Also where many of them count at every time."""
    stages = np.array([0.5, 1.0, np.nan])
    info = smdp.ConditionInfo(
        np.linspace(0.0, 1.0, 5), np.full(5, 90.0), np.ones(4, bool), stages, stages, stages,
        0.0, independent, 3, np.ones(192, bool),
    )  # fmt: skip
    found = smdp.Conditioned(np.zeros((192, 2)), np.full(192, -np.log(192)), 0.0, error, info)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        say_how_it_went(found, smdp.Tempering())
    sentences = [str(w.message) for w in caught]
    assert said == any("resampled 4 times on the way and descend from few" in s for s in sentences)


def test_relatives_count_as_one():
    """Copies, strangers, copies that have parted, and a single particle that counts."""
    x = jax.random.normal(jax.random.key(0), (64, 3))
    pairs, equal = jnp.repeat(jnp.arange(32), 2)[None], jnp.zeros(64)
    copies = x[::2].repeat(2, axis=0)
    assert float(independent_number(jnp.arange(64)[None], equal, x)) == pytest.approx(64, rel=1e-4)
    assert float(independent_number(pairs, equal, copies)) == pytest.approx(32, rel=1e-4)
    # The mean of 32 products of independent normals, over three coordinates: 0.1; five of them.
    assert 64 / float(independent_number(pairs, equal, x)) == pytest.approx(1, abs=0.5)
    alone = jnp.where(jnp.arange(64) == 5, 0.0, -jnp.inf)
    assert float(independent_number(pairs, alone, x)) == pytest.approx(1)


def test_short_moves_are_warned_of():
    """On a thin ring the law is as wide as the ring, and moves are as short as it is thin."""
    angle = jax.random.uniform(jax.random.key(1), (64,), maxval=2 * jnp.pi)
    radius = 1 + 0.01 * jax.random.normal(jax.random.key(2), (64,))
    ends = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    density = lambda x: -0.5 * ((jnp.sqrt(x @ x) - 1) / 0.01) ** 2 - 0.5 * jnp.log(x @ x)
    score = lambda t, x, args: jax.grad(density)(x)
    sde = smdp.SDE(lambda t, x, args: 0 * x, diffusion=0.1)
    seen = [smdp.LinearObservation(1.0, 0, jnp.asarray(0.3), 0.02)]
    with pytest.warns(UserWarning, match="moves of the end state are short"):
        _condition(sde=sde, score=score, observations=seen, ends=ends, num_particles=64)


@pytest.mark.parametrize("width", [1e-3, 0.3, 1.0, 4.0])
def test_a_score_of_another_law_is_warned_of(width):
    """Draws of the unit width, 256 of them, and a score of another one."""
    seen = [smdp.LinearObservation(1.0, np.s_[:2], jnp.array([0.3, -0.2]), 0.5)]
    score = lambda t, x, args: -x / args**2
    given = {
        "sde": smdp.SDE(lambda t, x, args: 0 * x, diffusion=0.1),
        "score": score,
        "observations": seen,
        "ends": jax.random.normal(jax.random.key(1), (256, 4)),
        "num_particles": 256,
        "args": jnp.asarray(width),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        share = float(_condition(**given).info.foreign)
    said = any("is not that of the end states" in str(w.message) for w in caught)
    assert share == (width != 1.0)
    assert said == (width != 1.0)

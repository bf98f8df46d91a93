"""Samples drawn to the end that was seen: closed forms of linear processes, and a grid."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.solve.proximal import Spread
from tests.refined_paths import (
    CUBIC,
    DATA,
    ENDS,
    GAIN,
    GRID,
    KEY,
    NOISE,
    RATES,
    SEEN,
    STARTS,
    TS,
    refine,
)

pytestmark = pytest.mark.usefixtures("untyped")  # what users see


def posterior():
    """Mean and covariance of the past of ``SEEN``, by the moments that the data have."""
    miss = ENDS - GAIN * STARTS
    c, r, j = np.cov(STARTS.T), np.cov(miss.T), np.diag(GAIN)
    gain = c @ j @ np.linalg.inv(j @ c @ j + r)
    mean = STARTS.mean(0) + gain @ (SEEN - miss.mean(0) - j @ STARTS.mean(0))
    return mean, c - gain @ j @ c, c, r


def assert_posterior(samples):
    """Means and covariances within 5 standard errors: one in a hundred thousand is refused."""
    mean, covariance, *_ = posterior()
    found, n = np.asarray(samples, float), len(samples)
    spread = np.sqrt(np.diag(covariance))
    assert (np.abs(found.mean(0) - mean) < 5 * spread / np.sqrt(n)).all()
    error = np.abs(np.cov(found.T) - covariance) / np.outer(spread, spread)
    assert error.max() < 5 * np.sqrt(2 / n)


@pytest.mark.parametrize(("step", "rounds"), [(0.05, 1), (0.3, 2), (1.0, 1)])
def test_samples_of_the_posterior_stay_such(step, rounds):
    mean, covariance, _, r = posterior()
    exact = np.random.default_rng(2).multivariate_normal(mean, covariance, 8000)
    found = refine(exact, step=step, rounds=rounds)
    assert_posterior(found.samples)
    left = SEEN - (ENDS - GAIN * STARTS).mean(0) - GAIN * mean
    second = np.outer(left, left) + GAIN[:, None] * covariance * GAIN
    np.testing.assert_allclose(
        found.misfit.mean(), np.trace(second @ np.linalg.inv(r)) / 3, rtol=0.05
    )


def test_draws_of_the_prior_become_samples_in_one_whole_step():
    draws = np.random.default_rng(3).multivariate_normal(STARTS.mean(0), np.cov(STARTS.T), 8000)
    assert_posterior(refine(draws, step=1.0, rounds=1).samples)


@pytest.mark.parametrize("rounds", [1, 3])
def test_wrong_samples_come_nearer_by_the_closed_form(rounds):
    """In modes of C^-1 and J R^-1 J the mean's error shrinks by a / (1 + l + a) in every round."""
    mean, _, c, r = posterior()
    a, off = 1 / 0.2 - 1, np.array([1.5, -1.0, 0.5])
    told = np.diag(GAIN) @ np.linalg.inv(r) @ np.diag(GAIN)
    shrink = a * np.linalg.inv((1 + a) * np.eye(3) + c @ told)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = refine(np.tile(mean + off, (4000, 1)), step=0.2, rounds=rounds).samples
    want = mean + np.linalg.matrix_power(shrink, rounds) @ off
    assert (np.abs(np.asarray(found).mean(0) - want) < 5 * np.sqrt(np.diag(c) / 4000)).all()


def test_few_directions_leave_the_others_alone():
    found = np.asarray(refine(np.tile(SEEN, (5, 1)), directions=1).samples)
    moved = found - SEEN
    first = np.linalg.svd(STARTS - STARTS.mean(0))[2][0]
    assert np.abs(moved @ first).max() > 0.1
    np.testing.assert_allclose(moved, np.outer(moved @ first, first), atol=1e-5)


@pytest.mark.parametrize(("directions", "junk"), [(64, 1e-2), (64, 7.0), (1, 30.0)])
def test_what_no_start_has_is_taken_out(directions, junk):
    """Beside the components, all of the variance or the first: there the samples had only junk."""
    own = np.random.default_rng(5)
    rows = own.normal(size=(2, 3))
    starts = STARTS.mean(0) + own.normal(size=(900, 2)) * [1.0, 0.3] @ rows
    ends = GAIN * starts + NOISE * own.normal(size=starts.shape)
    pairs = jnp.asarray(np.stack([starts, ends], 1), "float32")
    spoilt = starts + junk * np.cross(*rows) / np.linalg.norm(np.cross(*rows))
    data = smdp.Trajectories(TS[jnp.array([0, 2])], pairs)
    found = np.asarray(refine(spoilt[:50], ends[0], data=data, directions=directions).samples)
    components = np.linalg.svd(starts - starts.mean(0))[2][: min(directions, 2)]
    off = (found - starts.mean(0)) @ (np.eye(3) - components.T @ components)
    np.testing.assert_allclose(off, 0, atol=1e-4)


# A process that is not linear -------------------------------------------------------------------


@pytest.mark.parametrize(("step", "rounds"), [(0.5, 3), (1.0, 1)])
def test_a_nonlinear_past_against_a_grid(step, rounds):
    """Starts N(0, 1) that decay by their cube: the posterior times F', by quadrature.

    Means and spreads of 8000 samples within 5 standard errors: one in a million is refused. The
    posterior itself lies 7 standard errors away, a tenth of its spread.
    """
    x0 = jax.random.normal(jax.random.key(1), (9000, 1))
    data = smdp.simulate(CUBIC, x0[:1000], GRID, key=jax.random.key(2), args=2.0)
    how = {"sde": CUBIC, "ts": GRID, "data": data, "args": 2.0, "substeps": 4}
    found = refine(x0[1000:], jnp.array([0.3]), **how, step=step, rounds=rounds)
    end = lambda x: x / np.sqrt(1 + 4 * x**2)
    x = np.linspace(-4, 4, 4001)
    noise = np.asarray(data.xs[:, -1, 0]) - end(np.asarray(x0[:1000, 0]))
    weights = np.exp(-((0.3 - noise.mean() - end(x)) ** 2) / 2 / noise.var() - x**2 / 2)
    weights *= (1 + 4 * x**2) ** -1.5
    weights /= weights.sum()
    mean = weights @ x
    spread = np.sqrt(weights @ (x - mean) ** 2)
    samples = np.asarray(found.samples)[:, 0]
    assert abs(np.mean(samples) - mean) < 5 * spread / np.sqrt(8000)
    assert abs(np.std(samples) / spread - 1) < 5 / np.sqrt(2 * 8000)
    assert np.median(found.misfit) < 2 < np.median(found.misfit_before)


RATES_OF = lambda a: 2.05 + 1.95 * jnp.tanh(2 * a)
UNLIKE = smdp.SDE(
    lambda t, x, args: {"a": jnp.zeros_like(x["a"]), "b": -RATES_OF(x["a"]) * x["b"]},
    diffusion={"a": 0.01, "b": 0.3},
)


@pytest.mark.parametrize("a", [-1.2, -0.2, 1.0])
def test_noise_that_differs_between_paths(a):
    """b decays at a rate that a, which is all but seen, tells: so do gain and noise of its end.

    Means and spreads of 2000 samples within 5 standard errors, and 3 % of the spread for noise that
    is known from 128 paths; that of all paths misses by a fifth where it is most unlike.
    """
    k_a, k_b, k_noise = jax.random.split(jax.random.key(3), 3)
    x0 = {"a": jax.random.normal(k_a, (1000,)), "b": jax.random.normal(k_b, (1000,))}
    data = smdp.simulate(UNLIKE, x0, GRID, key=k_noise, substeps=4)
    rate = float(RATES_OF(jnp.asarray(a)))
    gain, noise = np.exp(-rate), 0.09 * (1 - np.exp(-2 * rate)) / (2 * rate)
    std = (1 + gain**2 / noise) ** -0.5
    mean = std**2 * gain / noise * 0.2
    exact = {
        "a": a + 0.01 * jax.random.normal(k_a, (2000,)),
        "b": mean + std * jax.random.normal(k_b, (2000,)),
    }

    def misses(paths):
        how = {"rounds": 3, "noise_paths": paths}
        seen = {"a": a, "b": 0.2}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = refine(exact, seen, UNLIKE, GRID, data, **how).samples["b"]
        return abs(float(found.mean()) - mean) / std, abs(float(found.std()) / std - 1)

    if a == -1.2:
        assert misses(0)[1] > 0.2
    off, wrong = misses(128)
    assert off < 5 / np.sqrt(2000) + 0.03
    assert wrong < 5 / np.sqrt(2 * 2000) + 0.03


def test_samples_whose_simulation_fails_start_elsewhere():
    """At x = 12 Heun's steps run off; at 2 the end hardly knows where it began."""
    x0 = jax.random.normal(jax.random.key(1), (500, 1))
    data = smdp.simulate(CUBIC, x0, GRID, key=jax.random.key(2), args=2.0)
    far = jnp.array([[12.0], [-12.0], [2.0]])
    with pytest.warns(UserWarning, match="2 of 3 samples lay where no start of the data does"):
        found = refine(far, jnp.array([0.3]), sde=CUBIC, ts=GRID, data=data, args=2.0, rounds=2)
    assert not np.isfinite(found.misfit_before[:2]).any()
    np.testing.assert_array_equal(found.lost, [True, True, False])
    assert (found.misfit < 10).all()
    assert (np.abs(found.samples - 0.3) < 0.3).all()


@pytest.mark.parametrize("lost", [30.0, -1e20, np.nan])
def test_lost_samples_become_samples_as_draws_of_the_prior_do(lost):
    """What the end does not tell is that of the prior, not a share of where the sample was lost."""
    with pytest.warns(UserWarning, match="8000 of 8000 samples lay where no start"):
        found = refine(np.full((8000, 3), lost), step=1.0, rounds=1)
    assert_posterior(found.samples)
    draws = np.random.default_rng(3).multivariate_normal(STARTS.mean(0), np.cov(STARTS.T), 4000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begun, anew = (refine(x, rounds=1).samples for x in (draws, np.full((4000, 3), lost)))
    spread = np.std(draws, axis=0)
    error = (np.mean(begun, axis=0) - np.mean(anew, axis=0)) / spread
    assert np.abs(error).max() < 5 * np.sqrt(2 / 4000)  # 5 standard errors: one in a million
    assert np.abs(np.std(begun, axis=0) / np.std(anew, axis=0) - 1).max() < 5 / np.sqrt(4000)


@pytest.mark.parametrize("paths", [50, 120])
def test_samples_of_few_paths_are_not_lost(paths):
    """Forty numbers: among 120 paths each widens the spread it is told by, 50 hardly tell it."""
    draws = np.random.default_rng(7).normal(size=(paths, 40)).astype("float32")
    spread = Spread.of(draws, 64)
    leave_out = draws[:1], np.delete(draws, 0, axis=0)
    far = (leave_out[0] - leave_out[1].mean(0)) @ np.linalg.inv(np.cov(leave_out[1].T))
    assert (far * (leave_out[0] - leave_out[1].mean(0))).sum() <= spread.farthest * 1.001
    fresh = np.random.default_rng(8).normal(size=(1000, 40)).astype("float32")
    assert jax.vmap(spread.holds)(fresh).mean() > 0.95
    assert not jax.vmap(spread.holds)(jnp.full((1, 40), jnp.nan)).any()


# How it is asked --------------------------------------------------------------------------------


def test_batches_and_chunks_are_what_each_is_alone():
    """Of two end states with conditions of their own, in trees."""
    rng = np.random.default_rng(4)
    sde = smdp.SDE(lambda t, x, args: {"u": -args * x["u"]}, diffusion=0.1)
    starts = {"u": jnp.asarray(rng.normal(size=(60, 2)), "float32")}
    rates = jnp.asarray(rng.uniform(0.5, 2.0, 60), "float32")
    data = smdp.simulate(sde, starts, TS, key=KEY, args=rates, args_axes=0)
    samples = {"u": jnp.asarray(rng.normal(size=(2, 5, 2)), "float32")}
    ends = {"u": jnp.array([[0.2, 0.1], [-0.3, 0.4]])}
    how = {"sde": sde, "data": data, "rounds": 1}
    both = refine(samples, ends, args=rates[:2], args_axes=0, batch_axes=1, chunk_size=3, **how)
    assert both.samples["u"].shape == (2, 5, 2)
    assert both.misfit.shape == both.misfit_before.shape == (2, 5)
    pick = lambda tree, i: jax.tree.map(lambda v: v[i], tree)
    first = refine(pick(samples, 0), pick(ends, 0), args=rates[0], **how)
    np.testing.assert_allclose(both.samples["u"][0], first.samples["u"], rtol=1e-4, atol=1e-5)
    moved = refine(samples, ends, args=rates[:2], args_axes=0, batch_axes=1, **how)
    np.testing.assert_allclose(both.samples["u"], moved.samples["u"], rtol=1e-4, atol=1e-5)


def test_calls_may_be_mapped_and_compiled():
    samples = np.tile(SEEN, (4, 1))
    keys = jax.random.split(KEY, 2)
    many = jax.jit(jax.vmap(lambda key: refine(samples, key=key).samples))(keys)
    np.testing.assert_allclose(many[1], refine(samples, key=keys[1]).samples, rtol=1e-4, atol=1e-4)


def test_a_process_of_traced_parameters_is_refused():
    """Its noise is measured; conditions in ``args`` may be traced."""
    step = lambda t0, t1, x, rates: x * jnp.exp(-rates * (t1 - t0))
    samples, rates = np.tile(SEEN, (4, 1)), jnp.asarray(RATES)
    how = {"data": dataclasses.replace(DATA, args=rates, args_axes=None)}
    of_args = lambda rates: refine(
        samples, args=rates, sde=smdp.SDE(step=step, diffusion=0.1), **how
    )

    def closed_over(rates):
        own = lambda t0, t1, x, args: step(t0, t1, x, rates)
        return refine(samples, sde=smdp.SDE(step=own, diffusion=0.1))

    with pytest.raises(ValueError, match="what sde closes over must be known before tracing"):
        jax.jit(closed_over)(rates)
    found = jax.jit(of_args)(rates).samples
    np.testing.assert_allclose(found, closed_over(rates).samples, rtol=1e-3, atol=1e-3)

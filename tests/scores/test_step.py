"""The surrogate of the inverse physics: known inverses are learned, and a score on top of them."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import expm

import smdp_jax as smdp
from smdp_jax.scores.step import check_steps

pytestmark = pytest.mark.usefixtures("compiles_quickly")

RATES = np.array([[-0.5, 2.0], [-2.0, -0.2]])  # a damped rotation
TS = smdp.linear_grid(0.0, 1.0, 10)
DT = 0.1
STEP = expm(DT * RATES)


class Affine(nn.Module):
    """A matrix: linear physics is within its reach, and nothing else."""

    @nn.compact
    def __call__(self, t, x, args):
        vector = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(x)])
        out = nn.Dense(vector.size, kernel_init=nn.initializers.zeros)(vector)
        leaves, treedef = jax.tree.flatten(x)
        sizes = np.cumsum([leaf.size for leaf in leaves])[:-1]
        parts = jnp.split(out, sizes)
        shaped = [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(treedef, shaped)


def flow(t0, t1, x, args):
    """The flow of a damped rotation over one step or a share of it, exact for one."""
    share = (t1 - t0) / DT
    return {
        "a": x["a"] + share * ((STEP - np.eye(2))[0] @ join(x)),
        "b": x["b"] + share * ((STEP - np.eye(2))[1:] @ join(x)),
    }


def join(x):
    return jnp.concatenate([x["a"][None], x["b"]])


@functools.cache
def paths(noise, key=0, samples=200):
    sde = smdp.SDE(step=flow, diffusion=noise)
    k_start, k_path = jax.random.split(jax.random.key(key))
    start = jax.random.normal(k_start, (samples, 2))
    x0 = {"a": start[:, 0], "b": start[:, 1:]}
    return sde, smdp.simulate(sde, x0, TS, key=k_path)


def fit(sde, data, objective=None, **settings):
    settings = {
        "steps": 400,
        "key": jax.random.key(5),
        "batch_size": 64,
        "ema": 0.9,
        "progress": False,
    } | settings
    rate = optax.cosine_decay_schedule(0.05, settings["steps"])
    objective = smdp.InverseStep() if objective is None else objective
    return smdp.fit(sde, Affine(), data, objective, optax.adam(rate), **settings)


def matrix_of(step, start=0.1, stop=0.0):
    def apply(v):
        return join(step(start, stop, {"a": v[0], "b": v[1:]}, None))

    return np.asarray(jax.jacobian(apply)(jnp.zeros(2)))


@pytest.fixture(scope="module")
def noiseless():
    sde, data = paths(1e-6)
    return fit(sde, data, validation=paths(1e-6, key=1)[1])


@pytest.mark.slow
def test_inverse_of_linear_physics_is_learned(noiseless):
    result = noiseless
    np.testing.assert_allclose(matrix_of(result.step), np.linalg.inv(STEP), atol=2e-3)
    assert result.history["validation_loss"][-1] < 1e-4
    assert result.step_miss.shape == (10,)
    assert result.step_miss.max() < 1e-4
    # Half a step takes half of the increment, forward the negative of it.
    half = matrix_of(result.step, 0.1, 0.05)
    np.testing.assert_allclose(half, (np.eye(2) + matrix_of(result.step)) / 2, atol=1e-5)
    forward = matrix_of(result.step, 0.0, 0.1)
    np.testing.assert_allclose(forward, 2 * np.eye(2) - matrix_of(result.step), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("noise_free", [False, True])
def test_noise_enters_the_pairs_only_where_asked_for(noise_free):
    # With noise the minimiser is the regression of x_i on x_{i+1}, averaged over times, here
    # computed from the same paths; without, the inverse.
    sde, data = paths(noise=1.0, samples=2000)
    result = fit(sde, data, smdp.InverseStep(noise_free=noise_free), steps=800, batch_size=256)
    x = np.concatenate([data.xs["a"][..., None], data.xs["b"]], axis=-1)
    earlier, later = x[:, :-1].reshape(-1, 2), x[:, 1:].reshape(-1, 2)
    with_ones = np.concatenate([later, np.ones((len(later), 1))], axis=1)
    regression = np.linalg.lstsq(with_ones, earlier, rcond=None)[0][:2].T
    expected = np.linalg.inv(STEP) if noise_free else regression
    assert np.abs(np.linalg.inv(STEP) - regression).max() > 0.05
    np.testing.assert_allclose(matrix_of(result.step), expected, atol=0.01)


@pytest.mark.slow
def test_score_learned_on_top_gives_the_posterior():
    # All is Gaussian: the posterior mean of x_0 given x_T is known. Its own standard error from
    # 2000 samples is 0.004 of the prior's spread; the tolerance is for what training misses.
    noise = 0.5
    sde, data = paths(noise, samples=4000)
    back = fit(sde, data, smdp.InverseStep(noise_free=True)).step
    learned = dataclasses.replace(sde, inverse=back)
    settings = {"steps": 2000, "precondition": True, "batch_size": 256}
    correction = fit(learned, data, smdp.OneStep(), **settings).correction
    x_end = {"a": jnp.array(0.4), "b": jnp.array([-0.3])}
    past = smdp.sample_posterior(
        learned, correction, x_end, TS, num_samples=2000, key=jax.random.key(9)
    )
    powers = [np.linalg.matrix_power(STEP, n) for n in range(11)]
    spread = sum(DT * noise**2 * p @ p.T for p in powers[:10])
    total = powers[10] @ powers[10].T + spread
    expected = powers[10].T @ np.linalg.solve(total, join(x_end))
    mean = [past.samples["a"].mean(), past.samples["b"].mean()]
    np.testing.assert_allclose(mean, expected, atol=0.05)


def test_goes_on_from_a_checkpoint(tmp_path):
    sde, data = paths(1e-6)
    settings = {"steps": 40, "epoch_steps": 10, "checkpoint_seconds": 0.0}
    first = fit(sde, data, directory=tmp_path, **settings)
    again = fit(sde, data, directory=tmp_path, **settings)
    jax.tree.map(np.testing.assert_array_equal, again.step.variables, first.step.variables)
    np.testing.assert_array_equal(again.history["loss"], first.history["loss"])
    # And from its own parameters, as another run.
    more = fit(sde, data, initial=first.step, **settings)
    assert more.history["loss"][-1] < first.history["loss"][0]


def test_fit_tells_what_it_learned(noiseless):
    for name in ("score", "correction"):
        with pytest.raises(TypeError, match="learned a step of the physics"):
            getattr(noiseless, name)
    score = smdp.LearnedScore(noiseless.step.model, noiseless.step.variables)
    with pytest.raises(TypeError, match=r"learned a score: use fit\.score"):
        _ = dataclasses.replace(noiseless, learned=score).step


def test_data_without_a_step_to_learn():
    sde, data = paths(1e-6)
    uneven = dataclasses.replace(data, ts=data.ts**2)
    with pytest.raises(ValueError, match=r"must have evenly spaced ts, got steps of 0\.01"):
        fit(sde, uneven)
    still = dataclasses.replace(data, xs=data.xs | {"a": jnp.ones((200, 11))})
    with pytest.raises(ValueError, match=r"xs\['a'\] never changes"):
        check_steps(still)

"""Baselines on a decaying Gaussian: posterior, mode and steps in closed form.

The state is a tree of two leaves with noises of their own, and every entry has its own answer.
"""

import math
from typing import Any

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import smdp_jax as smdp
from smdp_jax import baselines
from smdp_jax.scores.step import StepScale
from tests.baselines.decaying_gaussian import (
    C0,
    DECAY,
    M0,
    SDE,
    SPREAD,
    TS,
    X_END,
    G,
    diffusion_prior,
    drift,
    prior,
)


def exact(name):
    """Posterior mean and variance of a leaf's start."""
    r2 = SPREAD[name] ** 2
    variance = 1 / (1 / C0 + DECAY**2 / r2)
    return variance * (M0 / C0 + DECAY * np.asarray(X_END[name]) / r2), variance


def distance(x, centre):
    parts = jax.tree.map(lambda x, c: jnp.sum((x - c) ** 2) / (2 * C0), x, centre)
    return sum(jax.tree.leaves(parts))


def check_moments(samples, errors=4.5):
    """Mean and variance of every entry, within standard errors (4.5: false alarms below 5e-5)."""
    for name in G:
        mean, variance = exact(name)
        got = np.asarray(samples[name], np.float64)
        n = len(got)
        assert (np.abs(got.mean(axis=0) - mean) < errors * math.sqrt(variance / n)).all()
        assert (np.abs(got.var(axis=0) / variance - 1) < errors * math.sqrt(2 / n)).all()


@pytest.mark.slow
def test_best_of_several_starts_is_the_posterior_mean():
    starts = prior(jax.random.key(0), 5)
    centre = jax.tree.map(lambda x: jnp.full(x.shape, M0), X_END)
    found = baselines.optimise_start(
        SDE, X_END, TS, starts, spread=SPREAD, prior_loss=lambda x: distance(x, centre), steps=15
    )
    flat = baselines.optimise_start(SDE, X_END, TS, starts, spread=SPREAD, steps=15)
    assert found.info.finite.tolist() == [True]
    for name in G:
        # Heun's 16 steps are right to 1e-5.
        np.testing.assert_allclose(found.samples[name][0], exact(name)[0], atol=1e-3)
        np.testing.assert_allclose(flat.samples[name][0], X_END[name] / DECAY, atol=1e-3)


@pytest.mark.slow
def test_best_start_is_kept_where_there_are_several_valleys():
    """dx = -x^3 + x without noise: x^2 observed has no valley in between for starts of one sign."""
    sde = smdp.SDE(lambda t, x, args: x - x**3, diffusion=0.1)
    starts = jnp.array([[-3.0], [jnp.nan], [2.0]])
    with pytest.raises(ValueError, match="starts must be finite"):
        baselines.optimise_start(sde, jnp.array([0.9]), TS, starts, spread=0.1)
    found = baselines.optimise_start(
        sde, jnp.array([0.9]), TS, jnp.array([[-3.0], [2.0]]), spread=0.1, steps=20
    )
    quiet = smdp.SDE(lambda t, x, args: x - x**3, diffusion=None)
    there, _ = smdp.integrate(quiet, found.samples[0], TS, solver=diffrax.Heun(), save="last")
    np.testing.assert_allclose(there, 0.9, atol=2e-3)


@pytest.mark.slow
def test_randomised_maximum_likelihood_samples_the_posterior():
    draws = prior(jax.random.key(1), 2000)
    found = baselines.randomised_maximum_likelihood(
        SDE,
        X_END,
        TS,
        draws,
        spread=SPREAD,
        prior_distance=distance,
        key=jax.random.key(2),
        steps=8,
    )
    check_moments(found.samples)


@pytest.mark.slow
def test_spread_of_the_end_is_measured():
    data = smdp.simulate(SDE, prior(jax.random.key(3), 4000), TS, key=jax.random.key(4), substeps=2)
    found = baselines.end_spread(SDE, data)
    for name, entries in (("a", 8000), ("b", 4000)):
        assert abs(float(found[name]) / SPREAD[name] - 1) < 4.5 / math.sqrt(2 * entries)  # 7e-6


class Linear(nn.Module):
    """``(a + b t) x + c`` of every leaf."""

    @nn.compact
    def __call__(self, t, x, args):
        p = self.param("p", nn.initializers.zeros, (3,))
        return jax.tree.map(lambda x: (p[0] + p[1] * t) * x + p[2], x)


@pytest.mark.slow
@pytest.mark.usefixtures("no_step_miss")
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_regression_learns_the_conditional_mean(noise):
    """Two steps: E[x0 | x2], and the attenuation that training noise brings, in closed form."""
    ts, k, g, c0 = jnp.array([0.0, 0.5, 1.0]), 0.4, 0.6, 0.7
    sde = smdp.SDE(lambda t, x, args: -k * x, diffusion=g)
    x0 = math.sqrt(c0) * jax.random.normal(jax.random.key(5), (20_000, 1))
    data = smdp.simulate(sde, x0, ts, key=jax.random.key(6), substeps=4)
    found = smdp.fit(
        sde,
        Linear(),
        data,
        baselines.Regression(training_noise=noise),
        optax.adam(optax.cosine_decay_schedule(0.05, 600)),
        steps=600,
        batch_size=1024,
        key=jax.random.key(7),
        progress=False,
    )
    got = baselines.regress(sde, found.step, jnp.array([1.3]), ts)
    assert got.samples.shape == (1, 1)
    gain, decay = 1.0, math.exp(-k * 0.5)
    for t in (0.0, 0.5):
        earlier = c0 * math.exp(-2 * k * t) + g**2 * (1 - math.exp(-2 * k * t)) / (2 * k)
        later = decay**2 * earlier + g**2 * (1 - decay**2) / (2 * k) + noise**2 * g**2 * 0.5
        gain *= decay * earlier / later
    # Slopes from 20 000 pairs have errors below 1 %; two of them and the network's bend.
    np.testing.assert_allclose(got.samples[0, 0] / 1.3, gain, rtol=0.05)


@pytest.mark.slow
def test_dropout_draws_networks():
    """One mask for each sample; their spread is of the rate's size, and none without a key."""
    net = baselines.DropoutResNet(dims=1, channels=8, blocks=2, rate=0.2)
    x, ts = jnp.sin(jnp.arange(16.0)), jnp.array([0.0, 1.0])
    data = smdp.Trajectories(ts, jnp.stack([x[None], 2 * x[None]], axis=1))
    variables = net.init(jax.random.key(0), ts[1], x, None)
    last = variables["params"]["Conv_9"]["kernel"]
    variables["params"]["Conv_9"]["kernel"] = jax.random.normal(jax.random.key(1), last.shape)
    step = baselines.RegressedStep(net, variables, StepScale.of(data))
    key = jax.random.key(2)
    drawn = baselines.regress(SDE, step, x, ts, num_samples=200, key=key).samples
    again = baselines.regress(SDE, step, x, ts, num_samples=200, key=key).samples
    plain = baselines.regress(SDE, step, x, ts).samples
    np.testing.assert_array_equal(drawn, again)
    assert plain.shape == (1, 16)
    assert 0.05 < float(jnp.std(drawn, axis=0).mean() / jnp.abs(plain - x[None]).mean()) < 2
    blind = baselines.RegressedStep(net.copy(rate=0.0), variables, StepScale.of(data))
    still = baselines.regress(SDE, blind, x, ts, num_samples=2, key=key).samples
    np.testing.assert_allclose(still, jnp.tile(plain, (2, 1)), atol=1e-5)
    with pytest.raises(ValueError, match="num_samples must be 1 without a key, got 3"):
        baselines.regress(SDE, step, x, ts, num_samples=3)


@pytest.mark.slow
def test_score_alone_walks_the_same_paths():
    """The physics moved into the score, ``s - P / g^2``: the same samples, without any drift."""
    score = lambda t, x, args: jax.tree.map(lambda x, g: -x / (g + t.astype(x.dtype)), x, G)
    both = lambda t, x, args: jax.tree.map(
        lambda s, p, g: s - p / g**2, score(t, x, args), drift(t, x, args), G
    )
    key = jax.random.key(8)
    usual = smdp.sample_posterior(SDE, score, X_END, TS, num_samples=7, key=key)
    alone = baselines.score_only(SDE)
    found = smdp.sample_posterior(alone, both, X_END, TS, num_samples=7, key=key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found.samples, usual.samples
    )
    assert baselines.score_only(SDE) == alone


@pytest.mark.usefixtures("untyped")
def test_bad_inputs():
    lost: Any = {"a": jnp.array([0.9, jnp.nan]), "b": jnp.array(0.5)}
    draws, key = prior(jax.random.key(0), 3), jax.random.key(0)
    with pytest.raises(ValueError, match="x_end must be finite"):
        baselines.optimise_start(SDE, lost, TS, draws, spread=1.0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        baselines.randomised_maximum_likelihood(
            SDE, X_END, TS, draws, spread=1.0, prior_distance=distance, key=key, steps=0
        )
    with pytest.raises(ValueError, match="ts must increase"):
        baselines.guided_posterior(
            diffusion_prior(), SDE, X_END, TS[::-1], num_samples=2, key=key, spread=1.0
        )
    with pytest.raises(ValueError, match="training_noise must be at least 0, got -1"):
        baselines.Regression(training_noise=-1.0)
    with pytest.raises(TypeError, match="step must be a learned step"):
        baselines.regress(SDE, drift, X_END, TS)
    with pytest.raises(ValueError, match="chains must be at least 2, got 1"):
        baselines.pcn(lambda u: u, jnp.zeros(2), jnp.eye(2), key=key, steps=9, warmup=1, chains=1)

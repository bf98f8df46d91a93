"""Every baseline on dx = -k x dt + g dW from N(m0, c0): posterior, mode and steps in closed form.

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
from smdp_jax.baselines.guided import Guided
from smdp_jax.baselines.parts import NoiseFree
from smdp_jax.scores.step import StepScale

K, M0, C0 = 0.6, 0.3, 0.8
G = {"a": 0.5, "b": 0.9}
TS = smdp.linear_grid(0.0, 1.0, 16)


def drift(t, x, args):
    return jax.tree.map(lambda x: -K * x, x)


SDE = smdp.SDE(drift, diffusion=G)
X_END = {"a": jnp.array([0.9, -0.4]), "b": jnp.array(0.5)}
DECAY = math.exp(-K)
SPREAD = {name: g * math.sqrt((1 - DECAY**2) / (2 * K)) for name, g in G.items()}


def exact(name):
    """Posterior mean and variance of a leaf's start."""
    r2 = SPREAD[name] ** 2
    variance = 1 / (1 / C0 + DECAY**2 / r2)
    return variance * (M0 / C0 + DECAY * np.asarray(X_END[name]) / r2), variance


def prior(key, count):
    z = jax.random.normal(key, (count, 3))
    x = M0 + math.sqrt(C0) * z
    return {"a": x[:, :2], "b": x[:, 2]}


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


def diffused_score(prior_of):
    """Exact score of the diffused prior."""

    def score(t, x, args):
        left = jnp.exp(-t / 2)

        def one(x, m, c):
            variance = left**2 * C0 + c**2 * (1 - left**2)
            return -(x - m - left * (M0 - m)) / variance.astype(x.dtype)

        return jax.tree.map(one, x, prior_of.mean, prior_of.std)

    return score


def diffusion_prior():
    ts = smdp.log_grid(0.0, 8.0, 300, offset=1e-2)
    sized = lambda value: {"a": jnp.array(value), "b": jnp.array(value)}
    blank = baselines.DiffusionPrior(lambda t, x, args: x, ts, sized(0.0), sized(1.1))
    return baselines.DiffusionPrior(diffused_score(blank), ts, blank.mean, blank.std)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_guidance_is_what_its_formula_says(scale):
    """All is linear: the sampler's mean and variance, step by step in numpy. Scale 0: the prior."""
    model, count = diffusion_prior(), 4000
    found = baselines.guided_posterior(
        model, SDE, X_END, TS, num_samples=count, key=jax.random.key(9), spread=SPREAD, scale=scale
    )
    times, c2 = np.asarray(model.ts, np.float64), 1.1**2
    for name in G:
        y, mean, variance = np.asarray(X_END[name], np.float64), 0.0, c2
        for t1, t0 in zip(times[:0:-1], times[-2::-1], strict=True):
            dt, left = t1 - t0, math.exp(-t1 / 2)
            total = left**2 * C0 + c2 * (1 - left**2)
            # The guess of the start is ``slope x + offset``.
            slope = (1 - c2 * (1 - left**2) / total) / left
            offset = c2 * (1 - left**2) / total * M0
            push = scale * DECAY * slope / SPREAD[name] ** 2
            a = 1 + dt * (0.5 - c2 / total - c2 * push * DECAY * slope)
            b = dt * c2 * (left * M0 / total + push * (y - DECAY * offset))
            mean, variance = a * mean + b, a**2 * variance + c2 * dt
        got = np.asarray(found.samples[name], np.float64)
        assert (np.abs(got.mean(axis=0) - mean) < 4.5 * math.sqrt(variance / count)).all()
        assert (np.abs(got.var(axis=0) / variance - 1) < 4.5 * math.sqrt(2 / count)).all()
        if scale == 0:
            assert abs(variance / C0 - 1) < 0.05


def test_normalised_guidance_keeps_its_size():
    """The plain push grows with the miss; both are equal where it is what noise makes it."""
    model, end, t = diffusion_prior(), NoiseFree(SDE, TS, None, 1), jnp.array(0.7)
    x: Any = {"a": jnp.array([0.3, -0.4]), "b": jnp.array(1.2)}
    own = model.score(t, x, None)
    found = end(model.clean(t, x, own), None)

    def push(misses: float, normalised: bool) -> Any:
        """Every entry is missed by so many spreads."""
        x_end = jax.tree.map(lambda v, s: v + jnp.asarray(misses * s, v.dtype), found, SPREAD)
        guided = Guided(model, end, SPREAD, 0.3, normalised)(t, x, (x_end, None))
        return np.concatenate([np.ravel(guided[name] - own[name]) for name in x])

    one = push(1.0, False)
    assert np.abs(one).min() > 0.01
    np.testing.assert_allclose(push(7.0, False), 7 * one, rtol=1e-3)
    for misses in (1.0, 0.2, 7.0):
        np.testing.assert_allclose(push(misses, True), one, rtol=2e-3)


@pytest.mark.slow
def test_scale_is_searched_by_the_score_of_the_starts():
    """Between no guidance, some, and far too much, which blows up."""
    starts = prior(jax.random.key(10), 12)
    data = smdp.simulate(SDE, starts, TS, key=jax.random.key(11))
    ends = jax.tree.map(lambda x: x[:, -1], data.xs)
    best, found = baselines.search_scale(
        diffusion_prior(),
        SDE,
        starts,
        ends,
        TS,
        (0.0, 0.7, 1e6),
        num_samples=16,
        key=jax.random.key(12),
        spread=SPREAD,
    )
    assert best == 0.7
    assert found[0.7] < 0.9 * found[0.0]
    assert found[1e6] > found[0.0]
    with pytest.raises(ValueError, match="scales must hold at least one"):
        baselines.search_scale(
            diffusion_prior(), SDE, starts, ends, TS, (), num_samples=4, key=jax.random.key(0)
        )


@pytest.mark.slow
@pytest.mark.usefixtures("no_step_miss")
def test_diffusion_prior_learns_its_states():
    """Unguided samples have mean and variance of every entry, which one Gaussian does not."""
    wide, still = {"a": jnp.array([0.3, 1.3]), "b": jnp.array(0.5)}, M0
    scale = lambda x, v: still + jnp.sqrt(jnp.asarray(v / C0)) * (x - still)
    drawn = prior(jax.random.key(13), 4000)
    states = {"a": scale(drawn["a"], wide["a"][None]), "b": scale(drawn["b"], wide["b"])}
    model = baselines.fit_diffusion_prior(
        states,
        smdp.models.MLP((32, 32)),
        steps=1500,
        key=jax.random.key(14),
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 1500)),
        batch_size=256,
        levels=48,
    )
    found = baselines.guided_posterior(
        model, SDE, X_END, TS, num_samples=2000, key=jax.random.key(15), spread=1.0, scale=0.0
    )
    for name, variance in wide.items():
        got = np.asarray(found.samples[name])
        # Standard errors below 0.026 and 3.2 %, 4 of them; the rest for training and 48 steps.
        assert (np.abs(got.mean(axis=0) - M0) < 0.104 + 0.05).all()
        assert (np.abs(got.var(axis=0) / np.asarray(variance) - 1) < 0.13 + 0.1).all()
    equal = jax.tree.map(jnp.ones_like, states)
    with pytest.raises(ValueError, match="states must vary, got 4000 equal ones"):
        baselines.fit_diffusion_prior(equal, smdp.models.MLP(), steps=2, key=jax.random.key(0))


def chain_posterior(name, ts):
    """Posterior of the discrete chain, whose noise g sqrt(dt) comes after every step."""
    decay, r2 = math.exp(-K), 0.0
    for dt in np.diff(np.asarray(ts, np.float64)):
        r2 = math.exp(-2 * K * dt) * r2 + G[name] ** 2 * dt
    variance = 1 / (1 / C0 + decay**2 / r2)
    return variance * (M0 / C0 + decay * np.asarray(X_END[name]) / r2), variance


@pytest.mark.slow
def test_pcn_samples_start_and_noise_path():
    """Exact reference: nearly every proposal is taken; a poor one: more steps, the same law."""
    ts = jnp.array([0.0, 0.4, 0.7, 1.0])

    def start_of(z):
        x = M0 + math.sqrt(C0) * z
        return {"a": x[:2], "b": x[2]}

    residuals, size = baselines.bridge_residuals(SDE, start_of, X_END, ts, size=3, substeps=4)
    assert size == 3 + 2 * 3
    mean, factor = baselines.gauss_newton_reference(residuals, jnp.zeros(size))
    key = jax.random.key(16)
    right = baselines.pcn(residuals, mean, factor, key=key, steps=3000, warmup=300, observed=3)
    poor = baselines.pcn(
        residuals, mean + 0.3, 1.4 * factor, key=key, steps=40_000, warmup=1000, thin=4, observed=3
    )
    assert right.accepted.min() > 0.9
    assert poor.accepted.max() < 0.9
    for found, size in ((right, 4 * 3000), (poor, 4 * 40_000 / 40)):  # about so many independent
        assert found.r_hat.max() < 1.02
        draws = np.asarray(found.draws, np.float64).reshape(-1, 3)
        for i, name in enumerate(("a", "a", "b")):
            m, v = chain_posterior(name, ts)
            x = M0 + math.sqrt(C0) * draws[:, i]
            # Errors of 5 standard ones: false alarms 4e-6 each.
            assert abs(x.mean() - np.ravel(m)[i % 2 if name == "a" else 0]) < 5 * math.sqrt(
                v / size
            )
            assert abs(x.var() / v - 1) < 5 * math.sqrt(2 / size)


def test_r_hat_tells_chains_that_disagree():
    draws = np.random.default_rng(0).standard_normal((4, 500, 3)).astype(np.float32)
    draws[2, :, 1] += 1.0  # one chain elsewhere
    draws[:, 250:, 2] += 1.0  # all chains on the move
    found = np.asarray(baselines.r_hat(jnp.asarray(draws)))
    assert found[0] < 1.01
    assert found[1] > 1.05
    assert found[2] > 1.05
    with pytest.raises(ValueError, match="at least 4 of each chain, got 3"):
        baselines.r_hat(jnp.asarray(draws[:, :3]))


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

"""Diffusion priors, and the guidance of their samples: formulas, sizes and scales."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import smdp_jax as smdp
from smdp_jax import baselines
from smdp_jax.baselines.guided import Guided
from smdp_jax.solve.noise_free import NoiseFree
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
    prior,
)


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
    with pytest.raises(ValueError, match="scales must hold at least 1"):
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

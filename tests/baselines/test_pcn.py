"""Chains of starts and noise paths, and what tells chains that disagree."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import baselines
from tests.baselines.decaying_gaussian import C0, M0, SDE, X_END, G, K


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

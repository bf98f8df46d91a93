"""How near the power of samples and of the probability flow comes to the truth's, at best.

For a Gaussian mode of correlation rho between its start and its end, the exact flow has correlation
rho with the true start, and a draw of the exact posterior rho^2: whoever draws must not follow the
end state alone. The squared error of the power, over its variance, is 2 (1 - rho^2) for the flow,
2 (1 - rho^4) for a draw, and (1 + 1/m) (1 - rho^4) for the mean power of m draws. So one draw lies
further from the truth than the flow, by sqrt(1 + rho^2), and the power that the posterior expects
lies nearer than any other function of the end state.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp

NOISE, DRAWS = 0.5, 4
RATES = jnp.array([0.05, 0.3, 1.0])


def variance(t):
    c = jnp.exp(-2 * RATES * t)
    return c + NOISE**2 * (1 - c) / (2 * RATES)


@pytest.mark.slow
def test_power_of_the_flow_of_a_draw_and_of_many_draws():
    """Nine figures against closed forms; false alarm below 1e-4."""
    sde = smdp.SDE(lambda t, x, args: -RATES * x, diffusion=NOISE)
    ts, number = smdp.linear_grid(0.0, 1.0, 32), 20_000

    def score(t, x, args):
        return -x / variance(t)

    k_start, k_noise, k_past = jax.random.split(jax.random.key(3), 3)
    truth = jax.random.normal(k_start, (number, 3))
    decay, whole = np.exp(-RATES), np.asarray(variance(1.0))
    noise = np.sqrt(whole - decay**2) * np.asarray(jax.random.normal(k_noise, (number, 3)))
    ends = jnp.asarray(decay * np.asarray(truth) + noise)
    past = smdp.sample_posterior(
        sde, score, ends, ts, num_samples=DRAWS, key=k_past, solver=diffrax.Heun(), batch_axes=1
    ).samples
    flow = jax.vmap(
        lambda x: smdp.probability_flow(sde, score, x, ts, solver=diffrax.Heun()).xs[0]
    )(ends)
    rho = decay / np.sqrt(whole)
    given = {
        "flow": (flow**2, 2 * (1 - rho**2)),
        "draw": (past[:, 0] ** 2, 2 * (1 - rho**4)),
        "draws": ((past**2).mean(axis=1), (1 + 1 / DRAWS) * (1 - rho**4)),
    }
    for name, (power, expected) in given.items():
        errors = np.asarray(power - truth**2, np.float64) ** 2 / 2  # of a variance of 2
        z = (errors.mean(axis=0) - expected) / (errors.std(axis=0) / np.sqrt(number))
        assert np.abs(z).max() < 4.5, name

"""The default solver on processes that nothing was tuned to, against posteriors in closed form.

Samples of a linear process are compared with its exact posterior: 1500 per case, the root mean
square over entries of (mean - exact) / std must be below 0.08 (its expectation is 0.026, so that
it takes a bias of 0.07), and the pooled std must be right to 4 %: at least 8 effective entries
have a standard error of 0.65 %, so a false alarm is beyond six of them.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import smdp_jax as smdp
from smdp_jax.scores.seen import SeenRange
from tests.solve.linear_processes import CASES, Matrix, advection

pytestmark = pytest.mark.usefixtures("compiles_quickly")

KEY = jax.random.key(23)


def check_posterior(case, sde, n=1500):
    x = case.start(jax.random.key(1), 1)[0]
    end = smdp.simulate(sde, x[None], case.ts, key=KEY).xs[0, -1]
    mean, std = case.exact(end)
    past = smdp.sample_posterior(sde, case.score, end, case.ts, num_samples=n, key=KEY)
    off = (np.asarray(past.samples).mean(axis=0) - mean) / std
    assert np.sqrt(np.mean(off**2)) < 0.08
    spread = np.sqrt((np.asarray(past.samples).var(axis=0) / np.asarray(std) ** 2).mean())
    np.testing.assert_allclose(spread, 1, atol=0.04)
    return past


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_default_call_is_exact_where_euler_amplifies(name):
    case = CASES[name]()
    check_posterior(case, smdp.SDE(case.drift, diffusion=case.g))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["advection", "stiff diffusion", "plane", "oscillators in short steps"]
)
def test_default_call_of_a_flow_map(name):
    """With ``negated`` as their inverse they blow up; the oscillators are integrated backward."""
    case = CASES[name]()
    check_posterior(case, smdp.SDE(step=case.step, diffusion=case.g))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["advection", "stiff diffusion", "dispersive"])
@pytest.mark.parametrize("score_targets", [False, True])
def test_simulated_variance_is_that_of_the_process(name, score_targets):
    """Pooled over entries: 400 paths, 20 effective entries at least, 1.1 % of standard error."""
    case = CASES[name]()
    sde = smdp.SDE(case.drift, diffusion=case.g)
    ts = case.ts[jnp.array([0, 10, -1])]
    data = smdp.simulate(sde, case.start(KEY, 400), ts, key=KEY, score_targets=score_targets)
    for i in (1, 2):
        power = case.variance(float(ts[i]), np)
        column = np.arange(power.shape[-1])
        weight = np.where((column == 0) | (2 * column == case.shape[-1]), 1, 2)
        modes = np.abs(np.fft.rfft(np.asarray(data.xs[:, i]), norm="ortho")) ** 2
        seen = (modes.mean(axis=0) / power * weight).sum() / weight.sum()
        np.testing.assert_allclose(seen, 1, atol=0.05)


@pytest.mark.slow
def test_simulated_variance_in_substeps():
    """Where no mode can be looked up: 4000 paths, 2.2 % of standard error, six of them."""
    case = CASES["stiff scalar"]()
    x = smdp.simulate(
        smdp.SDE(case.drift, diffusion=2.0), jnp.zeros((4000, 1)), case.ts, key=KEY
    ).xs
    np.testing.assert_allclose(np.var(x[:, -1]), 4 / 80, rtol=0.13)
    coupled = CASES["oscillators"]()
    ends = smdp.simulate(
        smdp.SDE(coupled.drift, diffusion=0.2), coupled.start(KEY, 4000), coupled.ts[::4], key=KEY
    ).xs[:, -1]
    exact = np.diag(coupled.covariance(coupled.end, np))
    np.testing.assert_allclose(np.var(ends, axis=0), exact, rtol=0.13)


@pytest.mark.slow
def test_a_single_step_of_any_length_has_the_exact_noise():
    """4000 paths of 24 points, pooled: 0.5 % of standard error."""
    case = advection(24, 1.5, 0.02, 0.3, 3.0, 1)
    sde = smdp.SDE(case.drift, diffusion=case.g)
    x = smdp.simulate(sde, jnp.zeros((4000, 24)), case.ts, key=KEY).xs[:, -1]
    power = np.abs(np.fft.rfft(np.asarray(x), norm="ortho") ** 2).mean(axis=0)
    np.testing.assert_allclose((power / case.noise(3.0, np))[1:-1].mean(), 1, atol=0.03)


# What keeps its steps, and what is said of others -------------------------------------------------
@pytest.mark.slow
def test_well_behaved_processes_keep_their_euler_steps():
    case = Matrix(np.array([[-0.5, 0.8], [-0.8, -0.5]]), 0.3, 2.0, 80)
    sde, x = smdp.SDE(case.drift, diffusion=0.3), jnp.array([0.4, -0.2])
    call = {"num_samples": 5, "key": KEY}
    past, euler = (
        smdp.sample_posterior(sde, case.score, x, case.ts, solver=solver, **call)
        for solver in (None, diffrax.Euler())
    )
    np.testing.assert_array_equal(past.samples, euler.samples)
    inside = jax.jit(lambda x: smdp.sample_posterior(sde, case.score, x, case.ts, **call))(x)
    np.testing.assert_allclose(inside.samples, past.samples, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["drift", "step"])
def test_steps_too_long_for_the_right_spread_are_not_taken(kind):
    """Euler's steps are stable here, 0.8 of the fastest rate, and their spread is too small."""
    system = smdp.physics.Heat(16, 0.7, 0.1, 0.2)
    sde = system.continuous_sde() if kind == "drift" else system.sde()
    starts, key = system.prior(KEY, 4), jax.random.key(5)
    ends = jax.vmap(system.transition, (0, None, None, 0))(
        jax.random.split(key, 4), 0.0, 0.2, starts
    )
    ts, std = smdp.linear_grid(0.0, 0.2, 48), float(system.posterior_point_variance()) ** 0.5

    def pooled(solver):
        past = smdp.sample_posterior(
            sde, system.score, ends, ts, num_samples=60, key=KEY, batch_axes=1, solver=solver
        ).samples
        off = past.mean(axis=1) - jax.vmap(system.posterior_mean)(ends)
        return float(past.std(axis=1, ddof=1).mean()) / std, float(jnp.abs(off).mean()) / std

    # 240 draws of 256 entries: standard errors below 0.4 % and 0.01; the mean of |off| is 0.103.
    spread, off = pooled(None)
    assert abs(spread - 1) < 0.03
    assert off < 0.13
    if kind == "drift":
        assert pooled(diffrax.Euler())[0] < 0.95


@pytest.mark.slow
def test_a_named_solver_that_amplifies_is_warned_of_before():
    case = CASES["advection"]()
    sde, x = smdp.SDE(case.drift, diffusion=case.g), jnp.zeros(48)
    with pytest.warns(UserWarning, match=r"sample_posterior: one backward step amplifies errors"):
        smdp.sample_posterior(
            sde, case.score, x, case.ts, solver=diffrax.Heun(), num_samples=1, key=KEY
        )
    with pytest.warns(UserWarning, match="name no solver"):
        smdp.probability_flow(sde, case.score, x, case.ts, solver=diffrax.Euler())
    path = smdp.probability_flow(sde, case.score, case.start(KEY, 1)[0], case.ts)
    start, end = case.variance(0.0, np), case.variance(case.end, np)
    ratio = np.abs(np.fft.rfft(np.asarray(path.xs[jnp.array([0, -1])]))) ** 2
    np.testing.assert_allclose(ratio[0] / ratio[1], start / end, rtol=0.02)


@pytest.mark.slow
def test_flow_map_without_a_stable_inverse_says_so_with_figures():
    """Advection at a speed that varies, damped: no inverse is right, no mode can be looked up."""
    n = 24
    k = 2 * np.pi * np.fft.rfftfreq(n, 1 / n)
    k[-1] = 0
    slope = np.fft.irfft(1j * k[:, None] * np.fft.rfft(np.eye(n), axis=0), n, axis=0)
    speed = 1.5 + 0.8 * np.sin(2 * np.pi * np.arange(n) / n)
    a = -speed[:, None] * slope - 0.02 * slope.T @ slope
    case = Matrix(a, 0.3, 0.5, 10)
    sde = smdp.SDE(step=case.step, diffusion=0.3)
    says = r"negated: misses by .* times the noise of a step and amplifies .*integrated_backward"
    with pytest.warns(UserWarning, match=says):
        smdp.sample_posterior(
            sde, lambda t, x, args: -x, jnp.ones(n) / 9, case.ts, num_samples=2, key=KEY
        )


class Exact(nn.Module):
    """A network that has learned everything, but was never shown the first time."""

    case: Any

    @nn.compact
    def __call__(self, t, x, args):
        size = self.param("size", lambda key: jnp.array(1.0))
        return jnp.where(t > 0, size, jnp.nan) * self.case.score(t, x, args)


@pytest.mark.slow
def test_a_learned_score_of_a_stiff_field():
    """20 samples of 64 entries, pooled: 3 % of standard error; the last step knows no prior."""
    case = CASES["stiff diffusion"]()
    sde = smdp.SDE(case.drift, diffusion=case.g)
    data = smdp.simulate(sde, case.start(KEY, 50), case.ts, key=KEY)
    variables, ends = {"params": {"size": jnp.array(1.0)}}, case.ts[jnp.array([0, -1])]
    score = smdp.LearnedScore(Exact(case), variables, ts=ends, seen=SeenRange.of(data))
    past = smdp.sample_posterior(sde, score, data.at(0, -1), case.ts, num_samples=20, key=KEY)
    mean, std = case.exact(data.at(0, -1))
    spread = np.sqrt(((np.asarray(past.samples) - mean) ** 2).mean()) / std
    np.testing.assert_allclose(spread, 1, atol=0.15)

"""The default solver where the drift bends, or the score was learned: what rests, stays at rest."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import smdp_jax as smdp
from smdp_jax.scores.seen import SeenRange

KEY = jax.random.key(23)


# Nonlinear processes in equilibrium: dx = -g^2/2 grad U dt + R(x) dt + g dW with R free of
# divergence and along the levels of U keeps exp(-U), whose score -grad U is exact at all times.
def burgers(t, x, args):
    """The advection u u_x in the form that keeps the energy; rests with variance 1."""
    slope = lambda v: 16.0 * (jnp.roll(v, -1) - jnp.roll(v, 1))
    return -0.5 * x - (slope(x**2) + x * slope(x)) / 3


def reaction_diffusion(t, x, args):
    """Two phases, coupled to their neighbours."""
    bend = jnp.roll(x, 1) - 2 * x + jnp.roll(x, -1)
    return 0.5 * (70.0 * bend + 2.0 * x - 2.0 * x**3)


def equilibrium(drift, dt, n):
    """States after many short steps."""
    x = jax.random.normal(KEY, (256, n))

    def step(x, key):
        p = jax.vmap(lambda x: drift(0.0, x, None))(x)
        return x + dt * p + dt**0.5 * jax.random.normal(key, x.shape), None

    return jax.jit(lambda x: jax.lax.scan(step, x, jax.random.split(KEY, 4000))[0])(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["burgers", "reaction_diffusion"])
def test_nonlinear_process_stays_in_equilibrium(name):
    """256 end states, one sample each: moments of the start are those of the end.

    Mean squares have standard errors of 1.6 % (32 independent points) and of 4 %; bounds of 4.
    """
    if name == "burgers":
        ends, drift, score = jax.random.normal(KEY, (256, 32)), burgers, lambda t, x, args: -x
        ts, tolerance = jnp.linspace(0.0, 0.5, 11), 0.07
    else:
        drift = reaction_diffusion
        ends, score = equilibrium(drift, 2e-3, 16), lambda t, x, args: 2 * drift(t, x, args)
        ts, tolerance = jnp.linspace(0.0, 0.6, 21), 0.16
    past = smdp.sample_posterior(
        smdp.SDE(drift, diffusion=1.0), score, ends, ts, num_samples=1, batch_axes=1, key=KEY
    )
    x = np.asarray(past.samples[:, 0])
    np.testing.assert_allclose((x**2).mean(), (np.asarray(ends) ** 2).mean(), rtol=tolerance)
    gap = [np.diff(v, axis=1).var() for v in (x, np.asarray(ends))]
    np.testing.assert_allclose(gap[0], gap[1], rtol=0.08)


def friction(size):
    """A pull that saturates: rests with density cosh(x)^(-2 size / g^2)."""
    return lambda t, x, args: -size * jnp.tanh(x)


def slopes(x):
    """Of U = (x0^2 - 1)^2 / 2 + x1^2 + x0 x1 / 2."""
    return jnp.stack([2 * x[0] * (x[0] ** 2 - 1) + x[1] / 2, 2 * x[1] + x[0] / 2])


def turning(t, x, args):
    """Two wells that are gone around, as a nerve does: rests with density exp(-U), g = 1."""
    u = slopes(x)
    return -0.5 * u + 1.5 * jnp.stack([-u[1], u[0]])


def of_grid(log_density, *axes):
    """Standard deviations of a density on a grid."""
    grid = np.meshgrid(*axes, indexing="ij")
    p = np.exp(log_density(*grid))
    mean = [(p * x).sum() / p.sum() for x in grid]
    return np.sqrt([(p * (x - m) ** 2).sum() / p.sum() for x, m in zip(grid, mean, strict=True)])


@pytest.mark.parametrize("name", ["friction", "turning"])
def test_nonlinear_steps_too_long_for_the_right_spread_are_not_taken(name):
    """Euler's are stable. 4000 paths that have come to rest: errors below 1.4 %, bounds of 4."""
    if name == "friction":
        drift, score, g = friction(5.0), lambda t, x, args: -2 * 5 * jnp.tanh(x) / 1.5**2, 1.5
        ts, x = smdp.linear_grid(0.0, 1.6, 12), jnp.array([0.2])
        std = of_grid(lambda x: -10 / 2.25 * np.log(np.cosh(x)), np.linspace(-9, 9, 2001))
    else:
        drift, score, g = turning, lambda t, x, args: -slopes(x), 1.0
        ts, x = smdp.linear_grid(0.0, 6.0, 80), jnp.array([1.0, 0.3])
        axes = np.linspace(-3, 3, 301), np.linspace(-5, 5, 401)
        std = of_grid(lambda x, y: -((x**2 - 1) ** 2) / 2 - y**2 - x * y / 2, *axes)
    call = {"num_samples": 4000, "key": KEY}
    past = smdp.sample_posterior(smdp.SDE(drift, diffusion=g), score, x, ts, **call)
    np.testing.assert_allclose(past.samples.std(axis=0), std, rtol=0.06)
    euler = smdp.sample_posterior(
        smdp.SDE(drift, diffusion=g), score, x, ts, solver=diffrax.Euler(), **call
    )
    assert float(np.abs(euler.samples.std(axis=0) / std - 1).max()) > 0.15


def lorenz(t, x, args):
    return jnp.stack([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])


@pytest.mark.parametrize("name", ["lorenz", "turning", "friction"])
def test_nonlinear_steps_that_resolve_the_process_are_kept_in_silence(name):
    drift, score, x, end = {
        "lorenz": (
            lorenz,
            lambda t, x, args: (jnp.array([0.0, 0.0, 25.0]) - x) / 75,
            jnp.array([3.0, 4.0, 20.0]),
            0.4,
        ),
        "turning": (turning, lambda t, x, args: -slopes(x), jnp.array([1.0, 0.3]), 1.0),
        "friction": (friction(3.0), lambda t, x, args: -6 * jnp.tanh(x), jnp.array([0.6]), 2.0),
    }[name]
    sde, ts = smdp.SDE(drift, diffusion=4.0 if name == "lorenz" else 1.0), jnp.linspace(0, end, 81)
    call = {"num_samples": 3, "key": KEY}
    past, euler = (
        smdp.sample_posterior(sde, score, x, ts, solver=solver, **call)
        for solver in (None, diffrax.Euler())
    )
    np.testing.assert_array_equal(past.samples, euler.samples)


class Pull(nn.Module):
    """The score of ``friction`` with g = 1, learned."""

    size: float

    @nn.compact
    def __call__(self, t, x, args):
        return -2 * self.size * self.param("one", lambda key: jnp.ones(())) * jnp.tanh(x)


def test_a_learned_score_keeps_its_steps_and_is_told_of_their_spread():
    """What was learned in steps may suit them in the mean, not in the spread."""
    model, ts, x = Pull(4.0), smdp.linear_grid(0.0, 3.6, 13), jnp.array([0.1])
    score = smdp.LearnedScore(model, model.init(KEY, 0.0, x, None), ts=ts[jnp.array([0, -1])])
    sde, call = smdp.SDE(friction(4.0), diffusion=1.0), {"num_samples": 2, "key": KEY}
    with pytest.warns(UserWarning, match=r"too long for this drift: paths spread 1\.[3-9]"):
        past = smdp.sample_posterior(sde, score, x, ts, **call)
    assert (past.info.evaluations == 13).all()
    smdp.sample_posterior(sde, score, x, ts, substeps=8, **call)


def test_stretching_that_shorter_steps_do_not_share_is_an_error():
    """Decay by 5 a step: exact inverses outrun the pull of the score over so long a step."""
    decay, g = 1.6, 0.4
    sde = smdp.SDE(step=lambda t0, t1, x, args: x * jnp.exp(-decay * (t1 - t0)), diffusion=g)
    score = lambda t, x, args: -2 * decay / g**2 * x
    ts, x = smdp.linear_grid(0.0, 40.0, 40), jnp.array([0.1, -0.2])
    with pytest.warns(UserWarning, match="no way back along this flow map is stable"):
        smdp.sample_posterior(sde, score, x, ts, num_samples=2, key=KEY)
    past = smdp.sample_posterior(sde, score, x, ts / 20, num_samples=400, key=KEY)
    assert float(past.samples.std()) == pytest.approx(g / (2 * decay) ** 0.5, rel=0.1)


class Away(nn.Module):
    """A score that pushes away from the data."""

    @nn.compact
    def __call__(self, t, x, args):
        return x * self.param("size", lambda key: jnp.array(6.0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:sample_posterior. steps are too long")  # for what runs away
def test_paths_that_leave_the_range_of_the_data_are_told():
    sde = smdp.SDE(lambda t, x, args: jnp.zeros_like(x), diffusion=1.0)
    ts = jnp.linspace(0.0, 2.0, 41)
    data = smdp.simulate(sde, jnp.zeros((200, 2)), ts, key=KEY)
    score = smdp.LearnedScore(
        Away(),
        {"params": {"size": jnp.array(6.0)}},
        ts=ts[jnp.array([0, -1])],
        seen=SeenRange.of(data),
    )
    says = r"of 6 paths left the range of the training paths, from t=.*score is not right off"
    with pytest.warns(UserWarning, match=says):
        past = smdp.sample_posterior(sde, score, jnp.array([1.0, -1.0]), ts, num_samples=6, key=KEY)
    assert ((past.info.left_range_at > 0.5) & (past.info.left_range_at < 2)).all()
    good = smdp.LearnedScore(
        Away(),
        {"params": {"size": jnp.array(-1.0)}},
        ts=ts[jnp.array([0, -1])],
        seen=SeenRange.of(data),
    )
    past = smdp.sample_posterior(sde, good, jnp.array([1.0, -1.0]), ts, num_samples=6, key=KEY)
    np.testing.assert_array_equal(past.info.left_range_at, -np.inf)

"""Regression on score targets: its scale by time and mode, its minimiser, what it refuses."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.objectives import Objective
from smdp_jax.objectives.step_miss import mean_square
from smdp_jax.physics import Heat
from smdp_jax.trajectories import window

pytestmark = pytest.mark.usefixtures("compiles_quickly")

SDE = smdp.SDE(step=lambda t0, t1, x, args: x * jnp.exp(t0 - t1), diffusion=1.0)
TS = jnp.array([0.0, 0.1, 0.5, 1.0])
SIZES = jnp.array([0.0, 100.0, 10.0, 1.0])  # how large the targets are at each time


def tree_data():
    """Two leaves, 30 samples, targets that shrink with time."""
    k_a, k_b = jax.random.split(jax.random.key(0))
    targets = {
        "a": jax.random.normal(k_a, (30, 4, 2)) * SIZES[None, :, None],
        "b": 5 * jax.random.normal(k_b, (30, 4)) * SIZES[None],
    }
    return smdp.Trajectories(TS, jax.tree.map(jnp.ones_like, targets), None, targets)


def losses(objective, data, score, time):
    """Loss of every sample at one time."""
    constants = objective.prepare(SDE, data)

    def one(i):
        piece = window(data, i, jnp.array(time), 0)
        return objective.loss(score, SDE, piece, constants, jax.random.key(0))

    return jax.jit(jax.vmap(one))(jnp.arange(data.num_samples))


@pytest.mark.parametrize("time", [1, 2, 3])
def test_every_time_and_leaf_counts_alike(time):
    """A score of 0 misses by E|T|^2 / E|T|^2 = 1 in the mean, at every time."""
    data = tree_data()
    zero = lambda t, x, args: jax.tree.map(jnp.zeros_like, x)
    np.testing.assert_allclose(losses(smdp.PathScore(), data, zero, time).mean(), 1, rtol=1e-5)


def test_loss_of_one_state_by_hand():
    data = tree_data()
    score = lambda t, x, args: {"a": 20.0 * t * x["a"], "b": -x["b"]}
    got = losses(smdp.PathScore(), data, score, 2)[7]
    a, b = (np.asarray(data.score_targets[k][:, 2], np.float64) for k in ("a", "b"))
    entries = np.append((10 - a[7]) / np.sqrt(np.mean(a**2)), (-1 - b[7]) / np.sqrt(np.mean(b**2)))
    np.testing.assert_allclose(got, np.mean(entries**2), rtol=1e-5)


@pytest.mark.parametrize(("kind", "noise"), [("path", 0.0), ("path", 1.5), ("denoising", 1.5)])
def test_the_minimiser_is_the_score(kind, noise):
    """d/da of the loss of ``a`` times the chain's exact score is 0 at a = 1.

    With noise on the states that of the density with so much more variance. 20 000 paths from +-1
    at three times, 4.5 standard errors: false alarms below 3e-5.
    """
    count, rate, dt = 20_000, 1.0, 0.1
    ts = smdp.linear_grid(0.0, 1.0, 10)
    x0 = jnp.where(jnp.arange(count) % 2 == 0, 1.0, -1.0)
    data = smdp.simulate(SDE, x0, ts, key=jax.random.key(3), score_targets=smdp.PowerRamp(2.0))
    left = lambda t: dt * jnp.expm1(-2 * rate * t) / math.expm1(-2 * rate * dt)
    known = smdp.DenoisingScore.gaussian(lambda t, x0, args: jnp.exp(-rate * t) * x0, left)
    objective = smdp.PathScore() if kind == "path" else known
    objective = dataclasses.replace(objective, input_noise=noise)
    constants = objective.prepare(SDE, data)

    def exact(t, x, args):
        m, v = jnp.exp(-rate * t), left(t) + noise**2 * dt
        return -(x - m * jnp.tanh(x * m / v)) / v

    def slope(i, time):
        piece = objective.cut(data, i, time, 0)

        def loss(a):
            score = lambda t, x, args: a * exact(t, x, args)
            own = jax.random.fold_in(jax.random.key(4), i)
            return objective.loss(score, SDE, piece, constants, own)

        return jax.grad(loss)(1.0), jax.grad(loss)(1.1)

    for time in (2, 5, 10):
        at_one, beyond = jax.jit(jax.vmap(slope, (0, None)))(jnp.arange(count), jnp.array(time))
        error = float(at_one.std()) / math.sqrt(count)
        assert abs(at_one.mean()) < 4.5 * error
        assert beyond.mean() > 2 * error


@pytest.mark.slow
def test_transform_scales_every_mode():
    """Fields whose modes differ by orders of magnitude: each counts alike; a tree in a tree."""
    heat = Heat(size=8)
    fields = jax.vmap(lambda s: 100 * heat.step(0.0, 0.1, s))(
        jax.random.normal(jax.random.key(1), (40, 8, 8))
    )
    targets = {"u": jnp.stack([0 * fields, fields, 3 * fields], axis=1)}
    data = smdp.Trajectories(TS[:3], jax.tree.map(jnp.ones_like, targets), None, targets)
    transform = lambda x: {"modes": jnp.fft.rfft2(x["u"])}
    objective = smdp.PathScore(transform)

    def missing(mode):
        """A score that is right in all modes but one, where it is 0."""

        def score(t, x, args):
            return {"u": jnp.zeros((8, 8))}

        kept = jnp.zeros((8, 5)).at[mode].set(1.0)
        only = jax.vmap(jax.vmap(lambda f: jnp.fft.irfft2(jnp.fft.rfft2(f) * kept.astype(complex))))
        part = smdp.Trajectories(data.ts, data.xs, None, {"u": only(targets["u"])})
        constants = objective.prepare(SDE, data)

        def one(i):
            piece = window(part, i, jnp.array(2), 0)
            return objective.loss(score, SDE, piece, constants, jax.random.key(0))

        return jax.vmap(one)(jnp.arange(40)).mean()

    low, high = missing((0, 1)), missing((0, 3))
    np.testing.assert_allclose(low, 1 / 40, rtol=1e-3)
    np.testing.assert_allclose(high, 1 / 40, rtol=1e-3)
    zero = lambda t, x, args: {"u": jnp.zeros((8, 8))}
    np.testing.assert_allclose(losses(objective, data, zero, 1).mean(), 1, rtol=1e-4)


def test_gradient_is_finite_where_the_miss_is_zero():
    """A network that starts at the target, mode by mode, is no NaN."""
    targets = jnp.ones((3, 4, 8, 8)) * SIZES[None, :, None, None]
    data = smdp.Trajectories(TS, targets, None, targets)
    for transform in (None, jnp.fft.rfft2):
        objective = smdp.PathScore(transform)
        constants = objective.prepare(SDE, data)
        piece = window(data, jnp.array(0), jnp.array(3), 0)

        def loss(a, objective=objective, constants=constants, piece=piece):
            score = lambda t, x, args: a * x
            return objective.loss(score, SDE, piece, constants, jax.random.key(0))

        assert jax.grad(loss)(1.0) == 0


def test_what_it_is():
    objective = smdp.PathScore()
    flow = SDE
    drift = smdp.SDE(lambda t, x, args: -x, diffusion=1.0)
    assert isinstance(objective, Objective)
    for sde in (flow, drift):
        assert isinstance(objective.learned(sde, None, {}, None, TS), smdp.LearnedScore)
    assert objective.windows == (0,)
    assert objective.first_time == 1  # no target where the prior decides


def test_paths_without_targets():
    data = smdp.Trajectories(TS, jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"PathScore needs score targets: simulate\(.*got none"):
        smdp.PathScore().check(SDE, data)


@pytest.mark.parametrize("noise", [-0.5, math.inf, math.nan])
def test_noise_that_is_none(noise):
    with pytest.raises(ValueError, match=rf"input_noise must be finite and not neg.*got {noise}"):
        smdp.PathScore(input_noise=noise)


def test_mean_square_of_half_precision_does_not_overflow():
    tree = {"half": jnp.full((4,), 300.0, jnp.float16), "single": jnp.zeros(4)}
    np.testing.assert_allclose(mean_square(tree), 300.0**2 / 2)


def test_mean_square_counts_entries_not_leaves():
    tree = {"a": jnp.array([3.0, 4.0, 0.0]), "b": jnp.array(1.0 + 1.0j)}
    np.testing.assert_allclose(mean_square(tree), (25 + 2) / 4)
    scale = {"a": jnp.array([1.0]), "b": jnp.array(2.0)}
    np.testing.assert_allclose(mean_square(tree, scale), (25 + 0.5) / 4)
    doubled = mean_square(tree, transform=lambda t: {"only": 2 * t["a"]})
    np.testing.assert_allclose(doubled, 100 / 3, rtol=1e-6)

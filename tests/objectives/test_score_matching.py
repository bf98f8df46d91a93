"""Implicit, sliced and denoising score matching: their minimisers on laws that are known."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import smdp_jax as smdp
from smdp_jax.physics import Affine, Heat

pytestmark = pytest.mark.usefixtures("compiles_quickly")

AFFINE = Affine(rate=0.8, noise=0.7)
TS = jnp.array([0.0, 0.5, 1.0, 1.5])
DENOISING = smdp.DenoisingScore.gaussian(
    lambda t, x0, args: AFFINE.transition_mean(t, x0), AFFINE.transition_variance
)


def affine_paths(count):
    """Exact draws at every time, from +1 and -1."""
    k_start, k_noise = jax.random.split(jax.random.key(0))
    x0 = AFFINE.prior(k_start, count)
    z = jax.random.normal(k_noise, (count, len(TS), 1))
    spread = jnp.sqrt(jax.vmap(AFFINE.transition_variance)(TS))
    mean = jnp.exp(-AFFINE.rate * TS)[None, :, None] * x0[:, None]
    return smdp.Trajectories(TS, mean + spread[None, :, None] * z)


def slopes(objective, sde, data, score, time):
    """d/da of the loss of ``a score``, for every path, at a = 1 and 1.1."""
    constants = objective.prepare(sde, data)

    def one(i, key):
        piece = objective.cut(data, i, jnp.array(time), 0)

        def loss(a):
            scaled = lambda t, x, args: jax.tree.map(lambda s: a * s, score(t, x, args))
            return objective.loss(scaled, sde, piece, constants, key)

        return jax.grad(loss)(1.0), jax.grad(loss)(1.1)

    keys = jax.random.split(jax.random.key(1), data.num_samples)
    return jax.jit(jax.vmap(one))(jnp.arange(data.num_samples), keys)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [smdp.ImplicitScore(), smdp.SlicedScore(), DENOISING])
def test_the_minimiser_is_the_score_of_a_mixture(objective):
    """The slope is 0 at the exact score, at each of three times, and not beyond.

    20 000 draws, 4.5 standard errors: false alarms below 3e-5.
    """
    data = affine_paths(20_000)
    for time in (1, 2, 3):
        at_one, beyond = slopes(objective, AFFINE.sde(), data, AFFINE.score, time)
        error = float(at_one.std()) / math.sqrt(data.num_samples)
        assert abs(at_one.mean()) < 4.5 * error
        assert beyond.mean() > 4.5 * error


def gaussian_tree(count):
    """Two leaves that vary together, the same law at all times: covariance of (a1, a2, b)."""
    covariance = np.array([[1.0, 0.6, 0.2], [0.6, 2.0, -0.5], [0.2, -0.5, 0.5]])
    z = jax.random.normal(jax.random.key(2), (count, len(TS), 3))
    x = z @ jnp.asarray(np.linalg.cholesky(covariance).T, z.dtype)
    precision = jnp.asarray(np.linalg.inv(covariance), z.dtype)

    def score(t, x, args):
        s = -precision @ jnp.concatenate([x["a"], x["b"]])
        return {"a": s[:2], "b": s[2:]}

    return smdp.Trajectories(TS, {"a": x[..., :2], "b": x[..., 2:]}), score


@pytest.mark.slow
def test_exact_and_sliced_divergence_agree_where_entries_vary_together():
    """Leaves with noises of their own; more probes vary less, around the same mean."""
    data, score = gaussian_tree(4000)
    sde = smdp.SDE(lambda t, x, args: x, diffusion={"a": 0.5, "b": 0.2})
    exact, beyond = slopes(smdp.ImplicitScore(), sde, data, score, 2)
    error = float(exact.std()) / math.sqrt(data.num_samples)
    assert abs(exact.mean()) < 4.5 * error  # false alarms 7e-6
    assert beyond.mean() > 4.5 * error
    apart = []
    for probes in (1, 8):
        sliced, _ = slopes(smdp.SlicedScore(probes), sde, data, score, 2)
        apart.append(np.asarray(sliced - exact))
        assert abs(apart[-1].mean()) < 4.5 * apart[-1].std() / math.sqrt(data.num_samples)
    # Variances fall as 1 / probes: their ratio has a standard error below 0.3.
    assert 6.5 < apart[0].var() / apart[1].var() < 9.5


@pytest.mark.slow
def test_kernels_of_fields_by_mode():
    """Heat: the regression of the target on the exact score has slope 1 in every shell."""
    heat = Heat(size=8, noise=0.5, end_time=0.1)
    objective = smdp.DenoisingScore.gaussian(
        lambda t, x0, args: heat.step(0.0, t, x0),
        heat.noise_variance,
        modes=(jnp.fft.fft2, lambda x: jnp.fft.ifft2(x).real),
    )
    k_prior, k_end = jax.random.split(jax.random.key(3))
    x0 = heat.prior(k_prior, 2000)
    x = jax.vmap(heat.transition, (0, None, None, 0))(
        jax.random.split(k_end, 2000), 0.0, heat.end_time, x0
    )
    ts = jnp.array([0.0, heat.end_time])
    data = smdp.Trajectories(ts, jnp.stack([x0, x], axis=1))
    objective.check(heat.sde(), data)
    target = jax.vmap(objective.kernel_score, (None, 0, 0, None))(ts[1], x, x0, None)
    exact = jax.vmap(heat.score, (None, 0))(ts[1], x)
    modes = lambda field: np.fft.fft2(np.asarray(field, np.float64))
    t, s = modes(target), modes(exact)
    slope = (t * s.conj()).real.mean(axis=0) / (np.abs(s) ** 2).mean(axis=0)
    # The target's own noise is that of the kernel given the end, at most 1 / V: a standard error
    # of at most sqrt(C / V / 2000) per mode; 5 of them over 64 modes, false alarms 4e-5.
    ratio = np.asarray(heat.marginal_variance(ts[1]) / heat.noise_variance(ts[1]))
    assert (np.abs(slope - 1) < 5 * np.sqrt(ratio / 2000) + 1e-3).all()
    scales = objective.prepare(heat.sde(), data)[1][1]
    np.testing.assert_allclose(scales, np.sqrt((np.abs(t) ** 2).mean(axis=0)), rtol=1e-3)


class Slopes(nn.Module):
    """A score ``a(t) x`` with a quadratic in time."""

    @nn.compact
    def __call__(self, t, x, args):
        a = self.param("a", nn.initializers.zeros, (3,))
        return (a[0] + a[1] * t + a[2] * t**2) * x


@pytest.mark.slow
@pytest.mark.usefixtures("no_step_miss")
@pytest.mark.parametrize("kind", ["implicit", "sliced", "denoising"])
def test_fit_learns_the_score_of_a_gaussian(kind):
    """OU from N(0, 1) in two entries, 4000 paths: -x / C(t) within 8 %, by the verb ``fit``."""
    rate, g, ts = 0.8, 0.7, smdp.linear_grid(0.0, 1.0, 8)
    sde = smdp.SDE(lambda t, x, args: -rate * x, diffusion=g)
    k_start, k_path = jax.random.split(jax.random.key(4))
    data = smdp.simulate(sde, jax.random.normal(k_start, (4000, 2)), ts, key=k_path, substeps=4)
    variance = lambda t: g**2 * -jnp.expm1(-2 * rate * t) / (2 * rate)
    objective = {
        "implicit": smdp.ImplicitScore(),
        "sliced": smdp.SlicedScore(2),
        "denoising": smdp.DenoisingScore.gaussian(
            lambda t, x0, args: jnp.exp(-rate * t) * x0, variance
        ),
    }[kind]
    found = smdp.fit(
        sde,
        Slopes(),
        data,
        objective,
        optax.adam(0.03),
        steps=500,
        batch_size=512,
        key=jax.random.key(5),
        precondition=False,
        ema=0.98,
        progress=False,
    )
    for t in (0.3, 0.9):
        exact = -1 / (math.exp(-2 * rate * t) + float(variance(t)))
        x = jnp.array([0.7, -1.2])
        np.testing.assert_allclose(found.score(jnp.array(t), x, None), exact * x, rtol=0.08)


def test_bad_inputs():
    data, _ = gaussian_tree(3)
    sde = smdp.SDE(lambda t, x, args: x, diffusion={"a": 0.5, "b": 0.0})
    for objective in (smdp.ImplicitScore(), smdp.SlicedScore()):
        with pytest.raises(ValueError, match=r"SDE.diffusion must be positive on all leaves"):
            objective.check(sde, data)
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        smdp.SlicedScore(0)
    half = smdp.DenoisingScore(kernel_score=lambda t, x, x0, args: {"a": x["a"], "b": x["a"]})
    with pytest.raises(ValueError, match="kernel_score must return a tree like the state"):
        half.check(sde, data)

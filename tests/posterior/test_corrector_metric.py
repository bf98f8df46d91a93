"""Langevin moves in the metric of a reference Gaussian, against the chain's own law."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp

pytestmark = pytest.mark.usefixtures("compiles_quickly")

KEY = jax.random.key(7)
N, COUNT, EPS, MOVES, STEPS = 16, 4000, 0.2, 6, 5
ORTHO = (lambda x: jnp.fft.rfft(x, norm="ortho"), lambda w: jnp.fft.irfft(w, norm="ortho"))
VARIANCE = 10.0 ** -jnp.linspace(-1.0, 4.0, N // 2 + 1)
"""Per mode, over five decades: no single step size serves them all."""
TS = jnp.linspace(0.0, 1.0, STEPS + 1)


def still(g: float = 1e-5) -> smdp.SDE:
    return smdp.SDE(lambda t, x, args: jax.tree.map(jnp.zeros_like, x), diffusion=g)


def score(t, x, args):
    return ORTHO[1]((-1 / VARIANCE).astype(complex) * ORTHO[0](x))


def constant(variance, transform=None):
    """The Gaussian of mean 0 and these variances, at all times."""
    twice = jax.tree.map(lambda v: jnp.stack([v, v]), variance)
    zero = jax.tree.map(jnp.zeros_like, twice)
    return smdp.GaussianReference(TS[jnp.array([0, -1])], zero, twice, transform)


def walked(score, x_end, metric, **how):
    corrector = smdp.Langevin(EPS, MOVES, metric=metric)
    given = {"num_samples": COUNT, "key": KEY, "batch_axes": 0, "corrector": corrector, **how}
    return smdp.sample_posterior(still(), score, x_end, TS, **given)


def test_every_mode_forgets_the_end_at_one_rate():
    """``w -> (1 - eps) w + sqrt(2 eps C) z``: mean and variance of each mode after 24 moves.

    9 + 7 real numbers and 4000 samples; means and variances at 5 standard errors: false-alarm rate
    below 4e-5.
    """
    x_end = ORTHO[1](3.0 * jnp.sqrt(VARIANCE).astype(complex))
    past = walked(score, x_end, constant(VARIANCE, ORTHO))
    moves = (STEPS - 1) * MOVES
    left = (1 - EPS) ** moves
    of_one = 2 * EPS * (1 - left**2) / (1 - (1 - EPS) ** 2)
    modes = np.asarray(jax.vmap(ORTHO[0])(past.samples)) / np.sqrt(VARIANCE)
    ends = np.array([1, *[2] * (N // 2 - 1), 1])  # real numbers that a mode stands for
    error = math.sqrt(of_one / COUNT)
    assert (np.abs(modes.real.mean(axis=0) - 3.0 * left) < 5 * error).all()
    power = (np.abs(modes - modes.mean(axis=0)) ** 2).mean(axis=0)
    assert (np.abs(power / of_one - 1) < 5 * np.sqrt(2 / ends / COUNT)).all()
    assert (past.info.evaluations == STEPS + moves).all()


@pytest.mark.parametrize("kind", [tuple, dict])
def test_states_of_several_leaves(kind):
    """Leaves of variances 100 and 0.01, one number each; bounds as above."""
    own = {"heat": 100.0, "flow": 0.01}
    leaves = {name: jnp.ones((3,)) for name in own}
    put = (lambda d: (d["heat"], d["flow"])) if kind is tuple else dict
    variances = put({name: jnp.full((3,), value) for name, value in own.items()})
    of = lambda t, x, args: jax.tree.map(lambda x, v: -x / v, x, variances)
    past = walked(of, put(leaves), constant(variances))
    left = (1 - EPS) ** ((STEPS - 1) * MOVES)
    of_one = 2 * EPS * (1 - left**2) / (1 - (1 - EPS) ** 2)
    for x, v in zip(jax.tree.leaves(past.samples), jax.tree.leaves(variances), strict=True):
        assert (np.abs(np.asarray(x).var(axis=0) / v / of_one - 1) < 5 * math.sqrt(2 / COUNT)).all()


def test_a_metric_of_one_is_none():
    """M = 1, given as a function of time, in the entries."""
    x_end = jnp.linspace(-1.0, 1.0, 5)
    of = lambda t, x, args: -x
    with_one, without = (
        walked(of, x_end, metric, num_samples=3).samples for metric in (lambda t: 1.0, None)
    )
    np.testing.assert_allclose(with_one, without, rtol=1e-6)


DOUBLED = (lambda x: 2 * x, lambda w: w / 2)


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (0.1, r"Langevin.metric must have moments\(t\)"),
        (lambda t: -1.0, "variances of the reference Gaussian must be at least 0, got -1"),
        (lambda t: jnp.ones(3), r"of shape \(16,\) like the modes, got \(3,\)"),
        (constant(jnp.ones(N), DOUBLED), "transform must be unitary"),
    ],
)
def test_what_is_no_covariance_is_refused(metric, says):
    with pytest.raises(ValueError, match=says):
        walked(score, jnp.ones((N,)), metric)

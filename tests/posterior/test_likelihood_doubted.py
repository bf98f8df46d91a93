"""What log densities and certificates refuse, and the error that few paths state."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax import physics
from smdp_jax.solve.particles import doubts, log_mean_exp, stated_error

AFFINE = physics.Affine(rate=0.7, noise=0.3)
START = 0.02


def affine_prior(x, args):
    return AFFINE.log_density(START, x)


STATED = jax.jit(jax.vmap(lambda logs: stated_error(doubts(logs))))


@pytest.mark.parametrize("width", [0.5, 2.0, 6.0, 10.0])
def test_few_paths_that_count_state_what_they_miss(width):
    """Log-normal weights, whose mean is known; 400 keys, so that a share's error is 2 %."""
    logs = width * jax.random.normal(jax.random.key(0), (400, 1000))
    off = width**2 / 2 - jax.vmap(log_mean_exp)(logs)
    stated = STATED(logs)
    # Within three stated errors: 96 % were measured; five errors of a share below that.
    assert float(jnp.mean(jnp.abs(off) < 3 * stated)) > 0.9
    # And no larger than it has to be.
    assert 0.7 < float(stated.mean() / jnp.sqrt(jnp.mean(off**2))) < 1.2


def test_paths_that_went_elsewhere_are_not_missed():
    """A fiftieth of the paths counts, the others are far below."""
    apart = jnp.broadcast_to(jnp.where(jnp.arange(1000) < 20, 0.0, -1e4), (400, 1000))
    np.testing.assert_allclose(STATED(apart), (1 / 20 - 1 / 1000) ** 0.5, rtol=1e-3)


def _log_prob(**changes):
    given = {
        "sde": AFFINE.sde(),
        "score": AFFINE.score,
        "x": jnp.array([0.1]),
        "ts": jnp.linspace(START, 1.0, 5),
        "prior": affine_prior,
    }
    return smdp.log_prob(**(given | changes))


def _certify(**changes):
    given = {
        "sde": AFFINE.sde(),
        "score": AFFINE.score,
        "x_end": jnp.array([0.1]),
        "ts": jnp.linspace(START, 1.0, 5),
        "prior": affine_prior,
        "num_paths": 8,
        "key": jax.random.key(0),
    }
    return smdp.certify(**(given | changes))


CORRECTION = smdp.StepCorrection(smdp.models.MLP(), {}, ts=jnp.linspace(0, 1, 5), noise_level=1.0)
FLOW = smdp.SDE(step=lambda t0, t1, x, args: x, diffusion=0.3)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("call", "changes", "message"),
    [
        (_log_prob, {"score": CORRECTION}, "must have a score, got a StepCorrection"),
        (_log_prob, {"prior": lambda x, args: jnp.inf * jnp.abs(x[0])}, "must be a log density"),
        (_log_prob, {"prior": lambda x, args: -jnp.inf * x[0] ** 2}, "must be a log density"),
        (_log_prob, {"trace": "rough"}, "trace must be"),
        (_log_prob, {"trace": "hutchinson"}, "key must be"),
        (_log_prob, {"trace": "hutchinson", "probes": 1}, "at least 2"),
        (_log_prob, {"sde": FLOW, "trace": "hutchinson"}, "for a flow map"),
        (_log_prob, {"x": jnp.array([jnp.nan])}, "x must be finite"),
        (_log_prob, {"batch_axes": 2}, "must share 2 leading axes"),
        (_certify, {"solver": diffrax.Heun()}, "must have Gaussian steps"),
        (_certify, {"threshold": 0.0}, "threshold must be"),
        (_certify, {"num_paths": 0}, "at least 1"),
        (_certify, {"sde": smdp.SDE(AFFINE.drift, diffusion=None)}, "must be positive, got None"),
        (_certify, {"prior": lambda x, args: -jnp.inf * x[0] ** 2}, "must be a log density"),
        (
            _certify,
            {"reference": smdp.Trajectories(jnp.linspace(0, 1, 3), jnp.ones((4, 3, 1)))},
            "must be one of the reference's ts",
        ),
    ],
)
def test_bad_input_is_answered_in_a_sentence(call, changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)

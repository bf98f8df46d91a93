"""What ``condition`` refuses, and what it warns of."""

import warnings

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax import physics
from smdp_jax.solve.conditioned import say_how_it_went
from smdp_jax.solve.particles import independent_number

AFFINE = physics.Affine(rate=0.5, noise=0.5)


def _condition(**changes):
    given = {
        "sde": AFFINE.sde(),
        "score": AFFINE.score,
        "observations": [smdp.LinearObservation(1.0, 0, jnp.asarray(0.1), 0.1)],
        "ts": jnp.linspace(0.1, 1.0, 10),
        "num_particles": 32,
        "key": jax.random.key(0),
        "ends": jnp.linspace(-1, 1, 16)[:, None],
    }
    return smdp.condition(**(given | changes))


def _seen(time=1.0, operator=0, value=0.1, covariance=0.1, **more):
    return [smdp.LinearObservation(time, operator, jnp.asarray(value), covariance, **more)]


DATA = smdp.Trajectories(jnp.linspace(0.0, 0.9, 4), jnp.ones((8, 4, 1)))
CORRECTION = smdp.StepCorrection(smdp.models.MLP(), {}, ts=jnp.linspace(0, 1, 5), noise_level=1.0)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {"score": CORRECTION}, "must have a score, got a StepCorrection"),
        (lambda: {"observations": []}, "list of at least one"),
        (lambda: {"observations": _seen(time=0.55)}, "add the time to the grid"),
        (lambda: {"observations": _seen(time=3.0)}, "the grid goes from 0.1 to 1"),
        (lambda: {"observations": _seen(time=np.nan)}, "must be one of the solve's ts, got nan"),
        (
            lambda: {"data": DATA, "ends": None, "twist": smdp.LinearTwist.of(DATA, _seen())},
            "must be one of the data's ts",
        ),
        (lambda: {"observations": _seen(operator=lambda x: x, value=0.1)}, "shape of value"),
        (
            lambda: {"observations": _seen(operator=np.ones((1, 3)), value=[0.1])},
            "column for each",
        ),
        (lambda: {"observations": _seen(operator=np.ones((2,), bool), value=[0.1])}, "a mask must"),
        (lambda: {"observations": _seen(operator=lambda x: x[0] + 1)}, "operator must be linear"),
        (lambda: {"observations": _seen(operator=np.s_[:, 0])}, "an index into a state of shape"),
        (lambda: {"observations": [smdp.LinearObservation("1", 0, 0.1, 0.1)]}, "must be a number"),
        (
            lambda: {"observations": [smdp.LinearObservation(1.0, 0, None, 0.1)]},
            "real numbers, got None",
        ),
        (
            lambda: {"observations": [smdp.LinearObservation(1.0, 0, 1j, 0.1)]},
            "value must be an array of",
        ),
        (
            lambda: {"observations": [smdp.LinearObservation(1.0, 0, 0.1, None)]},
            "covariance must be an array",
        ),
        (lambda: {"num_particles": 1}, "num_particles must be at least 2, got"),
        (
            lambda: {"ends": None, "data": DATA},
            r"ts\[-1\] must be one of .*give ends=.*, got 1: the grid goes from 0 to 0.9",
        ),
        (
            lambda: {
                "observations": _seen(value=[0, 0], covariance=np.array([[1.0, 0.2], [0, 1]]))
            },
            "must be symmetric",
        ),
        (lambda: {"observations": _seen(covariance=0.0)}, "covariance must be positive"),
        (lambda: {"observations": _seen(covariance=np.inf)}, "covariance must be positive"),
        (
            lambda: {"observations": _seen(covariance=np.array([1.0, -1.0]), value=[0, 0])},
            "positive",
        ),
        (
            lambda: {"observations": _seen(value=[0, 0], covariance=np.array([[1.0, 2], [2, 1]]))},
            "positive definite",
        ),
        (
            lambda: {"observations": _seen(covariance=np.ones((3, 2)))},
            "must be a number",
        ),
        (lambda: {"observations": _seen(value=jnp.nan)}, "leave broken sensors out by seen="),
        (lambda: {"observations": _seen(value=[1, 2], seen=[True])}, "seen must have shape"),
        (
            lambda: {"observations": [smdp.Observation(1.0, lambda x, args: x)]},
            "log_likelihood returns must have shape",
        ),
        (
            lambda: {
                "observations": [smdp.Observation(1.0, lambda x, args: jnp.log(-(x[0] ** 2)))]
            },
            "must reach temperature 1.*more particles, gentler tempering",
        ),
        (
            lambda: {"observations": [smdp.Observation(0.5, lambda x, args: -jnp.inf * x[0] ** 2)]},
            "must stay above 1.*more particles, tempering, a twist",
        ),
        (lambda: {"ends": None}, "got neither"),
        (lambda: {"ends": jnp.ones((1, 1))}, "at least 2 draws"),
        (lambda: {"twist": "guess"}, "twist must be"),
        (lambda: {"threshold": 2.0}, "threshold must be"),
        (lambda: {"solver": diffrax.Heun()}, "must have Gaussian steps"),
        (lambda: {"num_particles": 0}, "at least 1"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        _condition(**make())


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {"observations": _seen(operator=lambda x: {"a": x})}, "must be a JAX function"),
        (
            lambda: {"observations": _seen(operator=np.asarray)},
            "must be a JAX function",
        ),
        (lambda: {"ends": None, "data": jnp.ones((8, 4, 1))}, "data must be Trajectories"),
        (lambda: {"tempering": 4}, "tempering must be a Tempering"),
    ],
)
def test_another_kind_is_answered_in_a_sentence(make, message):
    with pytest.raises(TypeError, match=message):
        _condition(**make())


@pytest.mark.usefixtures("untyped")
def test_what_must_be_known_is_not_traced():
    ts = jnp.linspace(0.1, 1.0, 10)
    for trace, message in (
        (lambda ts: _condition(ts=ts), "must be known before tracing"),
        (lambda ts: _condition(ends=ts[:, None]), "must be known before tracing"),
        (lambda ts: _seen(time=ts[0]), "a number that is known before tracing"),
        (lambda ts: _seen(seen=ts[0] > 0), "seen must be known before tracing"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.jit(trace)(ts)


def test_few_particles_that_count_are_warned_of():
    """Sensors far sharper than a step is wide, after a wide prior, and no way to see them."""
    sharp = smdp.Observation(0.1, lambda x, args: -0.5 * ((x[0] - 1.3) / 1e-3) ** 2)
    with pytest.warns(UserWarning, match="particles count at t="):
        _condition(observations=[sharp], ends=jnp.linspace(-1, 1, 64)[:, None], num_particles=64)


@pytest.mark.parametrize(
    ("independent", "error", "said"), [(100.0, 0.3, False), (7.0, 0.3, True), (100.0, 1.2, True)]
)
def test_particles_of_few_families_are_warned_of(independent, error, said):
    """Also where many of them count at every time."""
    stages = np.array([0.5, 1.0, np.nan])
    info = smdp.ConditionInfo(
        np.linspace(0.0, 1.0, 5), np.full(5, 90.0), np.ones(4, bool), stages, stages, stages,
        0.0, independent, 3, np.ones(192, bool),
    )  # fmt: skip
    found = smdp.Conditioned(np.zeros((192, 2)), np.full(192, -np.log(192)), 0.0, error, info)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        say_how_it_went(found, smdp.Tempering())
    sentences = [str(w.message) for w in caught]
    assert said == any("resampled 4 times on the way and descend from few" in s for s in sentences)


def test_relatives_count_as_one():
    """Copies, strangers, copies that have parted, and a single particle that counts."""
    x = jax.random.normal(jax.random.key(0), (64, 3))
    pairs, equal = jnp.repeat(jnp.arange(32), 2)[None], jnp.zeros(64)
    copies = x[::2].repeat(2, axis=0)
    assert float(independent_number(jnp.arange(64)[None], equal, x)) == pytest.approx(64, rel=1e-4)
    assert float(independent_number(pairs, equal, copies)) == pytest.approx(32, rel=1e-4)
    # The mean of 32 products of independent normals, over three coordinates: 0.1; five of them.
    assert 64 / float(independent_number(pairs, equal, x)) == pytest.approx(1, abs=0.5)
    alone = jnp.where(jnp.arange(64) == 5, 0.0, -jnp.inf)
    assert float(independent_number(pairs, alone, x)) == pytest.approx(1)


def test_short_moves_are_warned_of():
    """On a thin ring the law is as wide as the ring, and moves are as short as it is thin."""
    angle = jax.random.uniform(jax.random.key(1), (64,), maxval=2 * jnp.pi)
    radius = 1 + 0.01 * jax.random.normal(jax.random.key(2), (64,))
    ends = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    density = lambda x: -0.5 * ((jnp.sqrt(x @ x) - 1) / 0.01) ** 2 - 0.5 * jnp.log(x @ x)
    score = lambda t, x, args: jax.grad(density)(x)
    sde = smdp.SDE(lambda t, x, args: 0 * x, diffusion=0.1)
    seen = [smdp.LinearObservation(1.0, 0, jnp.asarray(0.3), 0.02)]
    with pytest.warns(UserWarning, match="moves of the end state are short"):
        _condition(sde=sde, score=score, observations=seen, ends=ends, num_particles=64)


@pytest.mark.parametrize("width", [1e-3, 0.3, 1.0, 4.0])
def test_a_score_of_another_law_is_warned_of(width):
    """Draws of the unit width, 256 of them, and a score of another one."""
    seen = [smdp.LinearObservation(1.0, np.s_[:2], jnp.array([0.3, -0.2]), 0.5)]
    score = lambda t, x, args: -x / args**2
    given = {
        "sde": smdp.SDE(lambda t, x, args: 0 * x, diffusion=0.1),
        "score": score,
        "observations": seen,
        "ends": jax.random.normal(jax.random.key(1), (256, 4)),
        "num_particles": 256,
        "args": jnp.asarray(width),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        share = float(_condition(**given).info.foreign)
    said = any("is not that of the end states" in str(w.message) for w in caught)
    assert share == (width != 1.0)
    assert said == (width != 1.0)

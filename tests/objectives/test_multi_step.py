"""Window losses: how they unroll, by hand, and what they refuse."""

import math
import re
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.objectives import Objective
from smdp_jax.trajectories import window

FORMS = ("backward", "bidirectional", "penalised")


# One window by hand ------------------------------------------------------------------------------


def tree_drift(t, x, args):
    return {"a": -args * x["a"] + x["b"][None], "b": jnp.sin(t) * x["b"] ** 2}


TREE = smdp.SDE(tree_drift, diffusion={"a": lambda t: 0.5 + t, "b": 0.3})
FLOW = smdp.SDE(
    step=lambda t0, t1, x, args: {
        "a": x["a"] * jnp.exp(-args * (t1 - t0)),
        "b": x["b"] + (t1 - t0) * jnp.sin(x["a"][0] + t0),
    },
    diffusion=TREE.diffusion,
)
TS = jnp.array([0.2, 0.3, 0.5, 0.6, 1.0])
XS = {
    "a": jax.random.normal(jax.random.key(0), (5, 2)),
    "b": jax.random.normal(jax.random.key(1), (5,)),
}
PIECE = smdp.Trajectories(TS, XS, jnp.array(0.4))


def piece_of(start, steps):
    """A part of that window."""
    data = smdp.Trajectories(TS, jax.tree.map(lambda x: x[None], XS), jnp.array(0.4))
    return window(data, jnp.array(0), jnp.array(start), steps)


def score_of(theta):
    def score(t, x, args):
        return {
            "a": -theta * x["a"] * (1 + t) + args,
            "b": theta * jnp.cos(x["b"]) - jnp.sum(x["a"]),
        }

    return score


def amplitude(t):
    return {"a": 0.5 + t, "b": 0.3}


def noise_of(sde, i):
    """g of the step to time i, which a flow map puts in at its start."""
    return amplitude(TS[i] if sde.step is None else TS[i - 1])


def loss_by_hand(theta, sde, form, cut):
    """The definition, step by step in Python."""
    score, args, c = score_of(theta), PIECE.args, 1.0 if form == "backward" else 0.5
    states = [jax.tree.map(lambda x, i=i: x[i], XS) for i in range(5)]
    total, count = 0.0, 4 * 3

    def squares(distance, sigma):
        return sum(jnp.sum((distance[k] / sigma[k]) ** 2) for k in distance)

    def sigma(i):
        return {k: g * jnp.sqrt(TS[i] - TS[i - 1]) for k, g in noise_of(sde, i).items()}

    x = states[4]
    for n, i in enumerate((4, 3, 2, 1)):
        if cut and n % cut == 0:
            x = jax.lax.stop_gradient(x)
        t0, t1 = TS[i - 1], TS[i]
        dt, g, s = t1 - t0, noise_of(sde, i), score(t1, x, args)
        if sde.step is None:
            p = sde.drift(t1, x, args)
            walked = {k: x[k] - dt * p[k] for k in x}
        else:
            forth = sde.step(t0, t1, x, args)
            walked = {k: 2 * x[k] - forth[k] for k in x}
        x = {k: walked[k] + c * dt * g[k] ** 2 * s[k] for k in x}
        total += squares({k: x[k] - states[i - 1][k] for k in x}, sigma(i))
    if form == "penalised":
        for i in range(1, 5):
            s, width = score(TS[i], states[i], args), sigma(i)
            weight = sum(4 - j for j in range(i))  # each step back to j adds up 4 - j scores
            total += weight * squares({k: 0.5 * width[k] ** 2 * s[k] for k in s}, width)
    if form == "bidirectional":
        x = states[0]
        for i in range(1, 5):
            if cut and (i - 1) % cut == 0:
                x = jax.lax.stop_gradient(x)
            t0, t1 = TS[i - 1], TS[i]
            dt, g, s = t1 - t0, amplitude(t0), score(t0, x, args)
            if sde.step is None:
                p = sde.drift(t0, x, args)
                walked = {k: x[k] + dt * p[k] for k in x}
            else:
                walked = sde.step(t0, t1, x, args)
            x = {k: walked[k] - 0.5 * dt * g[k] ** 2 * s[k] for k in x}
            total += squares({k: x[k] - states[i][k] for k in x}, sigma(i))
    return total / count


@pytest.mark.parametrize("sde", [TREE, FLOW], ids=["drift", "flow map"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [None, 2])
def test_loss_and_gradient_of_one_window_by_hand(sde, form, cut):
    objective = smdp.MultiStep((4,), form=form, gradient_cut=cut)

    def loss(theta):
        return objective.loss(score_of(theta), sde, PIECE, None, jax.random.key(0))

    theta = jnp.array(0.6)
    value, gradient = jax.jit(jax.value_and_grad(loss))(theta)
    expected, slope = jax.jit(jax.value_and_grad(lambda p: loss_by_hand(p, sde, form, cut)))(theta)
    np.testing.assert_allclose(value, expected, rtol=2e-5)
    np.testing.assert_allclose(gradient, slope, rtol=2e-4)


def evaluate(objective, piece=PIECE, seed=0, sde=TREE):
    """Loss of one window and its gradient, jitted."""

    def loss(theta, key):
        return objective.loss(score_of(theta), sde, piece, None, key)

    return jax.jit(jax.value_and_grad(loss))(jnp.array(0.6), jax.random.key(seed))


def test_cut_changes_the_gradient_and_not_the_loss():
    whole, cut = (evaluate(smdp.MultiStep((4,), gradient_cut=m)) for m in (None, 1))
    np.testing.assert_allclose(whole[0], cut[0], rtol=1e-5)
    assert abs(whole[1] / cut[1] - 1) > 0.05


def test_cut_of_a_shorter_window_is_no_cut():
    objectives = (smdp.MultiStep((2, 8), gradient_cut=4), smdp.MultiStep((2,)))
    results = [evaluate(objective, piece_of(0, 2)) for objective in objectives]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


def test_rematerialise_changes_neither_loss_nor_gradient():
    results = [evaluate(smdp.MultiStep((4,), rematerialise=r)) for r in (True, False)]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_other_solver_unrolls_its_own_step():
    """Heun on dx = -x dt, no score: each step back multiplies by 1 + dt + dt^2 / 2."""
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=2.0)
    piece = smdp.Trajectories(jnp.array([0.0, 0.5, 1.0]), jnp.array([[0.0], [0.0], [1.0]]))
    zero = lambda t, x, args: jnp.zeros_like(x)
    loss = smdp.MultiStep((2,), solver=diffrax.Heun()).loss(
        zero, sde, piece, None, jax.random.key(0)
    )
    factor = 1 + 0.5 + 0.125
    np.testing.assert_allclose(loss, (factor**2 + factor**4) / 2 / (4 * 0.5), rtol=1e-5)


# Noise in training -------------------------------------------------------------------------------


def growing(t):
    return 0.2 + 0.8 * t


@pytest.mark.parametrize("diffusion", [0.5, growing], ids=["constant", "growing"])
def test_training_noise_is_that_of_the_step(diffusion):
    """No physics, no score, a resting path: only the noise is left, level^2 per step walked.

    After k steps back the variance is level^2 times the sum over them of g(t)^2 dt, g at the
    time where the step starts. 4000 keys, 3 distances: relative error below
    sqrt(2 / 4000) sqrt(3) = 4 %; bound at 4.5 of these, false-alarm rate below 1e-5.
    """
    level, ts = 0.3, jnp.array([0.0, 0.5, 0.8, 1.0])
    sde = smdp.SDE(lambda t, x, args: jnp.zeros_like(x), diffusion=diffusion)
    piece = smdp.Trajectories(ts, jnp.ones((4, 1)))
    objective = smdp.MultiStep((3,), training_noise=level)

    def one(key):
        return objective.loss(lambda t, x, args: jnp.zeros_like(x), sde, piece, None, key)

    mean = jax.jit(lambda keys: jax.vmap(one)(keys).mean())(
        jax.random.split(jax.random.key(0), 4000)
    )
    times = np.asarray(ts, np.float64)
    g = np.array([diffusion(t) if callable(diffusion) else diffusion for t in times[1:]])
    step = g**2 * np.diff(times)
    walked = np.cumsum(step[::-1])[::-1]
    np.testing.assert_allclose(mean, level**2 * np.mean(walked / step), rtol=0.18)


def test_training_noise_follows_the_key():
    objective = smdp.MultiStep((4,), training_noise=0.5)

    @jax.jit
    def loss(key):
        return objective.loss(score_of(0.6), TREE, PIECE, None, key)

    first, again, other = (loss(jax.random.key(i)) for i in (0, 0, 1))
    assert first == again
    assert first != other


# What it is, and what it refuses -----------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_kind_and_noise_level(form):
    objective = smdp.MultiStep((1,), form=form)
    assert isinstance(objective, Objective)
    asked = smdp.MultiStep((1,), form=form, learns="score")
    for chosen, sde, kind in (
        (objective, TREE, "score"),
        (objective, FLOW, "correction"),
        (asked, FLOW, "score"),
    ):
        assert chosen.learned(sde, None, {}, None, TS).kind == kind
    assert objective.noise_level == (1.0 if form == "backward" else 0.0)
    assert objective.first_time == 0


def test_one_step_is_a_window_of_one():
    assert smdp.OneStep().windows == (1,)
    results = [evaluate(o, piece_of(2, 1)) for o in (smdp.OneStep(), smdp.MultiStep((1,)))]
    np.testing.assert_array_equal(results[0], results[1])
    with pytest.raises(TypeError):
        smdp.OneStep(windows=(2,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"windows": ()},
            "windows must be a tuple of ints of at least 1, got ()",
        ),
        ({"windows": (1, 0)}, "tuple of ints of at least 1, got (1, 0)"),
        ({"training_noise": -0.1}, "training_noise must be finite and not negative, got -0.1"),
        ({"training_noise": math.nan}, "training_noise must be finite and not negative, got nan"),
        ({"training_noise": math.inf}, "training_noise must be finite and not negative, got inf"),
        ({"windows": (True, 2)}, "ints of at least 1, got (True, 2)"),
        ({"gradient_cut": 0}, "gradient_cut=0 must divide every longer window"),
        ({"gradient_cut": 3}, "gradient_cut=3 must divide every longer window (1, 2, 4, 10)"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        smdp.MultiStep(**settings)


@pytest.mark.usefixtures("untyped")
def test_windows_of_numpy():
    given: Any = (np.int64(2), np.int32(3))
    windows = smdp.MultiStep(given).windows
    assert windows == (2, 3)
    assert all(type(w) is int for w in windows)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learns": "foo"}, "learns must be one of ['score', 'correction', None], got 'foo'"),
        ({"rematerialise": "no"}, "rematerialise must be one of [True, False, None], got 'no'"),
        ({"gradient_cut": 2.0, "windows": (4,)}, "gradient_cut=2.0 must divide"),
        ({"windows": (1.5,)}, "windows must be a tuple of ints of at least 1"),
        ({"windows": 4}, "windows must be a tuple of ints of at least 1"),
    ],
)
def test_settings_of_another_kind(settings, message):
    settings: Any
    with pytest.raises(ValueError, match=re.escape(message)):
        smdp.MultiStep(**settings)


@pytest.mark.usefixtures("untyped")
def test_unknown_form():
    form: Any = "forward"
    with pytest.raises(ValueError, match="'bidirectional', 'penalised'], got 'forward'"):
        smdp.MultiStep(form=form)


def test_window_longer_than_the_paths():
    data = smdp.Trajectories(TS, jnp.zeros((3, 5, 1)))
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.8)
    smdp.MultiStep((4,)).check(sde, data)
    message = "at least 6 stored times, for windows of 5 steps, got 5"
    with pytest.raises(ValueError, match=message):
        smdp.MultiStep((1, 5)).check(sde, data)

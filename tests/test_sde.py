"""The process, its noise amplitude and its time reversals, against the algebra by hand."""

import math
import re
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.physics import Affine
from smdp_jax.solve.process import check_process, check_time_grid

ALPHAS = (0.0, 0.5, 1.0)

X = {"a": jnp.array([0.3, -1.2]), "b": (jnp.array(0.7),)}
AMPLITUDES = {"a": 0.5, "b": (lambda t: 0.1 * (1 + t),)}
ARGS = {"rate": jnp.array(0.4)}


def drift(t, x, args):
    return jax.tree.map(lambda x: -args["rate"] * x + t, x)


def step(t0, t1, x, args):
    return jax.tree.map(lambda x: x * jnp.exp(-args["rate"] * (t1 - t0)) + t1 - t0, x)


def score(t, x, args):
    return jax.tree.map(lambda x: -jnp.sin(x) * (1 + t) + args["rate"], x)


def amplitude_at(t):
    return {"a": 0.5, "b": (0.1 * (1 + t),)}


def assert_trees_close(result, expected, rtol=1e-6):
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    jax.tree.map(
        lambda r, e: np.testing.assert_allclose(r, e, rtol=rtol, atol=1e-7), result, expected
    )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_reversed_drift(alpha):
    """-(P - (1 + alpha^2)/2 g^2 s), at t = -tau, leaf by leaf."""
    t = jnp.array(1.7)
    back = smdp.reverse_sde(smdp.SDE(drift, diffusion=AMPLITUDES), score, noise_level=alpha)
    expected = jax.tree.map(
        lambda p, g, s: -p + 0.5 * (1 + alpha**2) * g**2 * s,
        drift(t, X, ARGS),
        amplitude_at(1.7),
        score(t, X, ARGS),
    )
    assert_trees_close(back.drift(-t, X, ARGS), expected)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_reversed_amplitude(alpha):
    back = smdp.reverse_sde(smdp.SDE(drift, diffusion=AMPLITUDES), score, noise_level=alpha)
    assert back.deterministic == (alpha == 0)
    if alpha > 0:
        expected = jax.tree.map(lambda g: jnp.array(alpha * g), amplitude_at(1.7))
        assert_trees_close(back.g(-jnp.array(1.7), X), expected)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("walk", ["default", "negated", "integrated", "given"])
def test_reversed_flow_map(alpha, walk):
    """inverse(x) + (1 + alpha^2)/2 dt g(t0)^2 s(t1, x), at the state that the step starts from."""
    t0, t1 = jnp.array(1.2), jnp.array(1.7)
    given = {
        "default": None,
        "negated": smdp.negated(step),
        "integrated": smdp.integrated_backward(step),
        "given": lambda t1, t0, x, args: jax.tree.map(lambda x: x - (t1 - t0) * args["rate"], x),
    }[walk]
    walked = {
        "default": jax.tree.map(lambda x, y: 2 * x - y, X, step(t0, t1, X, ARGS)),
        "negated": jax.tree.map(lambda x, y: 2 * x - y, X, step(t0, t1, X, ARGS)),
        "integrated": step(t1, t0, X, ARGS),
        "given": jax.tree.map(lambda x: x - 0.5 * 0.4, X),
    }[walk]
    sde = smdp.SDE(step=step, diffusion=AMPLITUDES, inverse=given)
    back = smdp.reverse_sde(sde, score, noise_level=alpha)
    expected = jax.tree.map(
        lambda y, g, s: y + 0.5 * (1 + alpha**2) * 0.5 * g**2 * s,
        walked,
        amplitude_at(1.2),
        score(t1, X, ARGS),
    )
    assert back.drift is None
    assert_trees_close(back.step(-t1, -t0, X, ARGS), expected)


def test_probability_flow_is_noise_level_zero():
    sde = smdp.SDE(drift, diffusion=AMPLITUDES, interval=(0.0, 3.0))
    flow = smdp.probability_flow_sde(sde, score)
    other = smdp.reverse_sde(sde, score, noise_level=0.0)
    tau = jnp.array(-0.4)
    assert flow.deterministic
    assert flow.interval == (-3.0, 0.0)
    assert_trees_close(flow.drift(tau, X, ARGS), other.drift(tau, X, ARGS))


def test_affine_reversal_is_the_bridge_drift():
    """For one Ornstein-Uhlenbeck start the reversed drift is that of the bridge, in closed form."""
    rate, noise, t, x = 0.5, 0.04, jnp.array(2.0), jnp.array([0.3])
    decay = math.exp(-rate * 2.0)
    variance = noise**2 * (1 - decay**2) / (2 * rate)

    def one_start(t, x, args):
        return -(x - jnp.exp(-rate * t)) / (-jnp.expm1(-2 * rate * t) * noise**2 / (2 * rate))

    back = smdp.reverse_sde(Affine(rate, noise).sde(), one_start)
    expected = rate * 0.3 - noise**2 * (0.3 - decay) / variance
    np.testing.assert_allclose(back.drift(-t, x, None), [expected], rtol=1e-6)


def test_amplitude_keeps_the_dtype_of_each_leaf(x64):
    x = {"a": jnp.zeros(3, jnp.float32), "b": jnp.zeros((), jnp.float64)}
    g = smdp.SDE(drift, diffusion=lambda t: 0.1 * t).g(jnp.array(2.0), x)
    assert {name: leaf.dtype.name for name, leaf in g.items()} == {"a": "float32", "b": "float64"}
    assert {leaf.shape for leaf in g.values()} == {()}
    np.testing.assert_allclose([g["a"], g["b"]], 0.2, rtol=1e-6)


def test_negated_damps_and_integrated_amplifies():
    """A mode of rate r: 2 - exp(-r dt) and exp(r dt)."""

    def decay(t0, t1, x, args):
        return x * jnp.exp(-30.0 * (t1 - t0))

    t0, t1, x = jnp.array(0.0), jnp.array(0.1), jnp.array(1.0)
    np.testing.assert_allclose(smdp.negated(decay)(t1, t0, x, None), 2 - math.exp(-3), rtol=1e-6)
    walked = smdp.integrated_backward(decay)(t1, t0, x, None)
    np.testing.assert_allclose(walked, math.exp(3), rtol=1e-6)


def test_flow_map_of_a_solver_is_its_step_and_walks_back():
    sde = smdp.SDE(drift, diffusion=AMPLITUDES)
    t0, t1 = jnp.array(1.2), jnp.array(1.7)
    euler = smdp.flow_map_of(sde)
    expected = jax.tree.map(lambda x, p: x + 0.5 * p, X, drift(t0, X, ARGS))
    assert_trees_close(euler.step(t0, t1, X, ARGS), expected)
    expected = jax.tree.map(lambda x, p: x - 0.5 * p, X, drift(t1, X, ARGS))
    assert_trees_close(euler.inverse(t1, t0, X, ARGS), expected)
    heun = smdp.flow_map_of(sde, diffrax.Heun())
    first = drift(t0, X, ARGS)
    second = drift(t1, jax.tree.map(lambda x, p: x + 0.5 * p, X, first), ARGS)
    expected = jax.tree.map(lambda x, a, b: x + 0.25 * (a + b), X, first, second)
    assert_trees_close(heun.step(t0, t1, X, ARGS), expected)
    assert smdp.flow_map_of(euler) is euler


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: smdp.SDE(diffusion=1.0), "either drift or step, got neither"),
        (lambda: smdp.SDE(drift, step=step, diffusion=1.0), "either drift or step, got both"),
        (lambda: smdp.SDE(drift, inverse=smdp.negated(step), diffusion=1.0), "give step as well"),
        (lambda: smdp.SDE(drift, diffusion=-0.1), "a tree of these like the state, got -0.1"),
        (lambda: smdp.SDE(drift, diffusion=0), "SDE.diffusion must be positive, got 0: a process"),
        (lambda: smdp.SDE(drift, diffusion={"a": 0, "b": 0.0}), "a process without noise has None"),
        (lambda: smdp.SDE(drift, diffusion=math.nan), "a tree of these like the state, got nan"),
        (
            lambda: smdp.SDE(drift, diffusion={"a": 1.0, "b": -2.0}),
            "a tree of these like the state, got -2.0",
        ),
        (lambda: smdp.SDE(drift, diffusion=math.inf), "must be positive and finite: .* got inf"),
        (lambda: smdp.SDE(drift, diffusion="0.1"), "a number, a function .* got '0.1'"),
        (lambda: smdp.SDE(drift, diffusion=np.ones(2)), r"a number, .* got array\(\[1., 1.\]\)"),
        (lambda: smdp.SDE(drift, diffusion=1.0, interval=(1.0, 1.0)), r"increasing, got \(1.0, 1"),
    ],
)
def test_constructor_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"interval": (0, 1, 2)}, r"must be \(first, last\)"),
        ({"noise_at": "middle"}, r"'end'\], got 'mid"),
    ],
)
def test_settings_of_another_kind(setting, message):
    with pytest.raises(ValueError, match=message):
        smdp.SDE(drift, diffusion=1.0, **setting)


@pytest.mark.usefixtures("untyped")
def test_physics_that_is_no_function():
    number: Any = -0.5
    with pytest.raises(TypeError, match=r"SDE\.drift must be a function, got -0\.5"):
        smdp.SDE(number, diffusion=1.0)


@pytest.mark.parametrize("level", [-0.5, math.nan, math.inf])
def test_noise_level_errors(level):
    with pytest.raises(
        ValueError, match=f"noise_level must be finite and not negative, got {level}"
    ):
        smdp.reverse_sde(smdp.SDE(drift, diffusion=1.0), score, noise_level=level)


def test_no_noise_to_reverse():
    with pytest.raises(ValueError, match=re.escape("got SDE.diffusion=None")):
        smdp.reverse_sde(smdp.SDE(drift, diffusion=None), score)


@pytest.mark.parametrize(
    ("diffusion", "message"),
    [
        ({"a": 1.0}, "SDE.diffusion must match the state's tree"),
        (lambda t: jnp.ones(2) * t, r"one scalar per leaf, got \(2,\)"),
    ],
)
def test_amplitude_errors(diffusion, message):
    with pytest.raises(ValueError, match=message):
        smdp.SDE(drift, diffusion=diffusion).g(jnp.array(1.0), X)


SCALAR = jnp.array([1.0])
TS = jnp.array([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("sde", "message"),
    [
        (
            smdp.SDE(lambda t, x, args: x, diffusion=lambda t: jnp.where(t > 0.25, -0.1, 1.0)),
            "SDE.diffusion must be positive at t=0.3, got -0.1",
        ),
        (
            smdp.SDE(lambda t, x, args: x, diffusion=lambda t: jnp.log(t - 0.25)),
            "SDE.diffusion must be positive at t=0.1, got nan",
        ),
        (
            smdp.SDE(lambda t, x, args: x, diffusion=lambda t: 1 / (t - 0.2)),
            "SDE.diffusion must be positive at t=0.1, got -10",
        ),
        (
            smdp.SDE(lambda t, x, args: x, diffusion=lambda t: jnp.where(t > 0.25, jnp.inf, 1.0)),
            "SDE.diffusion must be finite at t=0.3, got inf",
        ),
        (
            smdp.SDE(lambda t, x, args: x, diffusion=None),
            "SDE.diffusion must be positive, got None (a process without noise)",
        ),
        (
            smdp.SDE(lambda t, x, args: {"x": x}, diffusion=1.0),
            "SDE.drift must return a state like float32[1], got {'x': 'float32[1]'}",
        ),
        (
            smdp.SDE(lambda t, x, args: x[0], diffusion=1.0),
            "SDE.drift must return a state like float32[1], got float32[]",
        ),
        (
            smdp.SDE(lambda t, x, args: x.astype(jnp.float16), diffusion=1.0),
            "SDE.drift must return a state like float32[1], got float16[1]",
        ),
        (
            smdp.SDE(step=lambda t0, t1, x, args: x[None], diffusion=1.0),
            "SDE.step must return a state like float32[1], got float32[1, 1]",
        ),
    ],
)
def test_process_errors(sde, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_process(sde, TS, SCALAR, None)


@pytest.mark.parametrize(
    ("ts", "x", "message"),
    [
        (
            TS,
            {"u": jnp.ones(2), "v": jnp.ones(2, jnp.float16)},
            "must have one dtype in all leaves, got float16 and float32; a flow map",
        ),
        (TS, {}, "a state must hold at least one array, got {}"),
    ],
)
def test_states_that_solvers_would_change(ts, x, message):
    def keep(t, x, args):
        return x

    with pytest.raises(ValueError, match=re.escape(message)):
        check_process(smdp.SDE(keep, diffusion=1.0), ts, x, None)


def test_inverse_is_checked_where_it_is_used():
    sde = smdp.SDE(
        step=lambda t0, t1, x, args: x,
        inverse=lambda t1, t0, x, args: x.astype(jnp.float16),
        diffusion=1.0,
    )
    check_process(sde, TS, SCALAR, None)
    message = "SDE.inverse must return a state like float32[1], got float16[1]"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_process(sde, TS, SCALAR, None, maps=("inverse",))


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        (jnp.zeros(()), "one-dimensional with at least 2 times, got ()"),
        (jnp.zeros((0,)), "one-dimensional with at least 2 times, got (0,)"),
        (jnp.zeros((1,)), "one-dimensional with at least 2 times, got (1,)"),
        (jnp.zeros((2, 2)), "one-dimensional with at least 2 times, got (2, 2)"),
        (jnp.arange(3), "ts must be floating point, got int32"),
        (jnp.array([0.0, 2.0, 1.0]), "ts must increase, got ts[1]=2.0 and ts[2]=1.0"),
        (jnp.array([0.0, 1.0, 1.0]), "ts must increase, got ts[1]=1.0 and ts[2]=1.0"),
        (jnp.array([0.0, jnp.nan]), "ts must increase, got ts[0]=0.0 and ts[1]=nan"),
        (jnp.array([0.0, jnp.inf]), "ts must be finite, got [0.0, inf]"),
        # Two float64 times that are one in float32.
        (np.array([1.0, 1.0 + 1e-12]), "ts must increase in float32, got ts[0]=1.0 and ts[1]=1.0"),
        ([0.0, 1.0], "ts must be a one-dimensional array of times, got [0.0, 1.0]"),
        (jnp.array([-0.5, 1.0]), "inside SDE.interval=[0.0, 2.0], got [-0.5, 1.0]"),
        (jnp.array([0.5, 2.5]), "inside SDE.interval=[0.0, 2.0], got [0.5, 2.5]"),
    ],
)
def test_time_grid_errors(ts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_time_grid(ts, smdp.SDE(drift, diffusion=1.0, interval=(0.0, 2.0)))


@pytest.mark.usefixtures("untyped")
def test_process_that_is_no_sde():
    function: Any = drift
    with pytest.raises(TypeError, match=r"sde must be an SDE\(drift, diffusion=g\), got <function"):
        check_time_grid(TS, function)

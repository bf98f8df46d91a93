"""What every simulator and its prior promise. A new simulator is one line in CASES."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax import physics
from smdp_jax.checks import check_positive
from tests.lowering import PLATFORMS, lowered, rounding_products
from tests.trees import assert_close, assert_like, distance, every_leaf, flat

# These tests spend their time in the compiler: half of it is spared by optimising less.
compiled = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    name: str
    system: Any  # has prior(key, n), and what `process` names
    dt: float  # a step, in the system's time
    conditions: Any = None  # args of three states, on a leading axis; first the system's own
    process: str = "sde"
    rough: float = 0.1  # white noise on draws of the prior, as paths have it
    order: int = 2  # of what a step and a step back miss, in dt
    random: bool = True  # the prior


@dataclasses.dataclass(frozen=True)
class FiniteVolumes:
    """A foreign solver as its user would wrap it."""

    size: int = 8

    def sde(self) -> smdp.SDE:
        settings = {"viscosity": 0.01, "drag": 0.1, "forcing": 0.2, "wavenumber": 2}
        drift = physics.finite_volume_drift(self.size, **settings)
        return smdp.SDE(drift, diffusion={"u": 0.05, "v": 0.1})

    def prior(self, key: Any, n: int) -> Any:
        check_positive(n=n)
        u, v = jax.random.normal(key, (2, n, self.size, self.size))
        return jax.vmap(physics.finite_volume_projection)({"u": u, "v": v})


MASKS = np.zeros((3, 16, 16), bool)
MASKS[1, 3:8, 6:12] = MASKS[2, 9:, 8:10] = True
VISCOSITY = {"viscosity": np.array([0.01, 0.03, 0.002])}
DRAGGED = VISCOSITY | {"drag": np.array([0.2, 0.0, 0.7])}
KOLMOGOROV = physics.Turbulence.stationary(size=10, viscosity=0.01, inner_steps=2)

CASES = [
    Case("affine", physics.Affine(), 0.1),
    Case("quadratic", physics.Quadratic(), 0.02),
    Case("heat", physics.Heat(size=8), 0.006),
    Case("heat_drift", physics.Heat(size=8), 0.006, None, "continuous_sde"),
    Case("burgers", physics.Burgers(size=16), 0.02, VISCOSITY),
    Case("burgers_drift", physics.Burgers(size=16), 0.005, VISCOSITY, "continuous_sde"),
    Case("smoke", physics.Smoke(size=16), 0.01, {"obstacles": MASKS}, order=1, random=False),
    Case("turbulence", KOLMOGOROV, 0.05, DRAGGED, rough=3.0),
    Case("finite_volumes", FiniteVolumes(), 0.01, VISCOSITY),
]
every_simulator = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_condition = pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in CASES for name in case.conditions or ()],
    ids=lambda part: getattr(part, "name", part),
)  # fmt: skip


@functools.cache
def process(case: Case) -> smdp.SDE:
    return getattr(case.system, case.process)()


def flow(case: Case, *, back: bool = False) -> Callable[..., Any]:
    """A step forward or back, noise-free: the system's own, or Euler's with its drift."""
    sde = process(case)
    if sde.drift is None:
        step = sde.inverse if back else sde.step
        assert step is not None
        return step
    drift = sde.drift

    def euler(t0: Any, t1: Any, x: Any, args: Any) -> Any:
        move = lambda x, v: x + jnp.asarray(t1 - t0, v.dtype) * v
        return jax.tree.map(move, x, drift(t0, x, args))

    return euler


@functools.cache
def stepper(case: Case, dtype: str = "float32") -> Callable[..., Any]:
    """The compiled step: one compilation for all times, states and conditions in this file."""
    traces = []

    @compiled
    def step(*inputs: Any) -> Any:
        traces.append(inputs)
        assert len(traces) == 1, "compiled again for other values"
        return flow(case)(*inputs)

    number = np.dtype(dtype).type
    return lambda t0, t1, x, args: step(number(t0), number(t1), x, args)


@functools.cache
def prior(case: Case) -> Callable[..., Any]:
    return compiled(lambda key: case.system.prior(key, 6))


@functools.cache
def rough_states(case: Case) -> Any:
    """Six states as noisy paths have them, numpy, float64."""
    random = np.random.default_rng(0)
    noisy = lambda x: np.float64(x) + case.rough * random.normal(size=x.shape)
    return jax.tree.map(noisy, prior(case)(jax.random.key(0)))


def state(case: Case, i: Any = 0, dtype: str = "float32") -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x[i], dtype), rough_states(case))


def conditions(case: Case, i: Any = 0, dtype: str = "float32") -> Any:
    kept = lambda a: dtype if a.dtype == float else a.dtype
    return jax.tree.map(lambda a: jnp.asarray(a[i], kept(a)), case.conditions)


def assert_noise(case: Case, x: Any) -> None:
    g = process(case).g(0.1, x)
    assert_like(g, jax.tree.map(jnp.sum, x))  # a number for each leaf
    assert np.all((flat(g) > 0) & (flat(g) < math.inf))


@every_simulator
def test_prior(case: Case) -> None:
    first, again, other = (prior(case)(jax.random.key(k)) for k in (0, 0, 1))
    with jax.enable_x64(True):
        fine = prior(case)(jax.random.key(0))
    for draws, dtype in ((first, "float32"), (fine, "float64")):
        assert every_leaf(lambda leaf, d=dtype: len(leaf) == 6 and leaf.dtype == d, draws)
        assert np.isfinite(flat(draws)).all()
    np.testing.assert_array_equal(flat(first), flat(again))
    if case.random:
        assert every_leaf(lambda p, q: (p != q).any(), first, other)
        assert every_leaf(lambda leaf: (leaf != leaf[:1]).any(), first)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        case.system.prior(jax.random.key(0), 0)


@every_simulator
def test_state_comes_back_as_it_went_in(case: Case) -> None:
    x, args = state(case), conditions(case)
    coarse = stepper(case)(0.1, 0.1 + case.dt, x, args)
    assert_like(coarse, x)
    assert every_leaf(lambda p, q: (p != q).any(), coarse, x)
    assert_noise(case, x)
    with jax.enable_x64(True):
        fine = state(case, 0, "float64")
        assert_noise(case, fine)
        for step in (flow(case), flow(case, back=True)):
            # Times may come in another precision than the state.
            for start, t in ((x, jnp.float64(0.1)), (fine, jnp.float32(0.1))):
                assert_like(jax.eval_shape(step, t, t, start, args), start)
        # The same numbers in both precisions agree to float32's rounding, and no further.
        args = conditions(case, 0, "float64")
        fine = stepper(case, "float64")(0.1, 0.1 + case.dt, fine, args)
    assert_close(fine, coarse)
    assert every_leaf(lambda p, q: (np.float64(p) != np.float64(q)).any(), coarse, fine)


@pytest.mark.slow
@every_simulator
def test_compiled_or_not(case: Case) -> None:
    times, x = np.array([0.1, 0.1 + case.dt], np.float32), state(case)
    first, again = (stepper(case)(*times, x, conditions(case)) for _ in range(2))
    np.testing.assert_array_equal(flat(first), flat(again))
    assert_close(flow(case)(*times, x, None), first)  # no conditions: the system's own


@every_simulator
def test_vmap_is_one_by_one(case: Case) -> None:
    """Over times, states and conditions, all of which one compiled step serves."""
    starts = np.array([0.1, 0.15, 0.3], np.float32)
    ends = starts + np.array([case.dt, case.dt / 2, -case.dt], np.float32)
    batch = state(case, slice(3)), conditions(case, slice(3))
    together = compiled(jax.vmap(flow(case)))(starts, ends, *batch)
    for i in range(3):
        alone = stepper(case)(starts[i], ends[i], state(case, i), conditions(case, i))
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone)


@every_condition
def test_every_condition_is_seen(case: Case, name: str) -> None:
    times, x, args = (0.1, 0.1 + case.dt), state(case), conditions(case)
    base = stepper(case)(*times, x, args)
    other = stepper(case)(*times, x, args | {name: conditions(case, 1)[name]})
    assert every_leaf(lambda p, q: (p != q).any(), base, other)


@pytest.mark.slow
@every_simulator
def test_derivatives(case: Case) -> None:
    """Of the step by its end time, its state, and numbers among its conditions.

    Forward against reverse mode, and against central differences; finite on draws of the prior
    too, where signs, limiters and roots may have no derivative.
    """
    with jax.enable_x64(True):
        x, direction, weights = (state(case, i, "float64") for i in range(3))
        args = conditions(case, 0, "float64") or {}
        numbers = {name: a for name, a in args.items() if a.dtype == jnp.float64}
        end = jnp.asarray(0.1 + case.dt)
        along = (0.3 * end, direction, jax.tree.map(lambda a: 0.7 * a, numbers))

        @compiled
        def derivatives(*at: Any) -> Any:
            move = lambda t1, x, free: flow(case)(jnp.asarray(0.1), t1, x, args | free)
            forward = jax.linearize(move, *at)[1]
            return forward(*along), jax.linear_transpose(forward, *at)(weights)

        pushed, pulled = derivatives(end, x, numbers)
        slope = flat(weights) @ flat(pushed)
        assert slope == pytest.approx(flat(along) @ flat(pulled), rel=1e-9)
        heights = []
        for eps in (1e-6, -1e-6):
            at = jax.tree.map(lambda p, q, e=eps: p + e * q, (end, x, numbers), along)
            moved = stepper(case, "float64")(0.1, *at[:2], (args | at[2]) or None)
            heights.append(flat(weights) @ flat(moved))
        assert slope == pytest.approx((heights[0] - heights[1]) / 2e-6, rel=1e-5)
        drawn = jax.tree.map(lambda leaf: leaf[0], prior(case)(jax.random.key(0)))
        assert np.isfinite(flat(derivatives(end, drawn, numbers))).all()


@every_simulator
def test_step_and_step_back(case: Case) -> None:
    t, misses = 0.1, []
    with jax.enable_x64(True):
        args, start = conditions(case, 0, "float64"), state(case, 0, "float64")
        step, back = stepper(case, "float64"), compiled(flow(case, back=True))
        x = step(t, t + case.dt, start, args)  # a smoke's step takes divergence away: not this one
        for dt in (case.dt / 8, case.dt / 64):
            y = step(t, t + dt, x, args)
            misses.append(distance(back(np.float64(t + dt), np.float64(t), y, args), x))
            assert misses[-1] < 0.5 * distance(y, x)
    assert math.log2(misses[0] / misses[1]) / 3 == pytest.approx(case.order, abs=0.1)


@pytest.mark.slow
@every_simulator
def test_solvers_take_it(case: Case) -> None:
    """Forward with noise; and backward without noise and score, which undoes the physics."""
    sde, key, other = process(case), *jax.random.split(jax.random.key(0))
    ts = jnp.float32(0.1 + case.dt / 4 * np.arange(3))

    @compiled
    def forward(xs: Any, key: Any, args: Any) -> Any:
        axes = None if args is None else 0
        return smdp.simulate(sde, xs, ts, key=key, args=args, args_axes=axes).xs

    @compiled
    def backward(x: Any, args: Any) -> Any:
        score = lambda t, x, args: jax.tree.map(jnp.zeros_like, x)
        settings = {"num_samples": 1, "key": key, "args": args, "noise_level": 0.0}
        return smdp.sample_posterior(sde, score, x, ts, **settings).samples

    xs, args = state(case, slice(3)), conditions(case, slice(3))
    paths, again, others = (forward(xs, k, args) for k in (key, key, other))
    assert every_leaf(lambda p, x: p.shape == (3, 3, *x.shape[1:]), paths, xs)
    assert every_leaf(lambda p, x: (p[:, 0] == x).all(), paths, xs)
    assert np.isfinite(flat(paths)).all()
    np.testing.assert_array_equal(flat(paths), flat(again))
    assert every_leaf(lambda p, q: (p[:, 1:] != q[:, 1:]).all(), paths, others)
    args = conditions(case)
    x = stepper(case)(ts[0] - case.dt, ts[0], state(case), args)
    end = stepper(case)(ts[1], ts[2], stepper(case)(ts[0], ts[1], x, args), args)
    past = jax.tree.map(lambda leaf: leaf[0], backward(end, args))
    assert distance(past, x) < 0.5 * distance(end, x)


@every_simulator
@pytest.mark.parametrize("platform", PLATFORMS)
def test_accelerators(case: Case, platform: str) -> None:
    """It lowers for them, and its matrix products ask for all digits, which they drop unasked."""

    def gradient(t0: Any, t1: Any, x: Any, args: Any) -> Any:
        there_and_back = lambda x: flow(case, back=True)(t1, t0, flow(case)(t0, t1, x, args), args)
        return jax.vjp(there_and_back, x)[1](x)

    times = jnp.float32(0.1), jnp.float32(0.1 + case.dt)
    program = lowered(gradient, *times, state(case), conditions(case), platform=platform)
    assert not rounding_products(program)


@every_simulator
@pytest.mark.usefixtures("untyped")
def test_state_that_does_not_fit(case: Case) -> None:
    x, t = state(case), jnp.float32(0.1)
    for wrong, message in (
        (state(case, slice(2)), "must (have|be) .* got"),  # a batch
        (jax.tree.map(lambda leaf: jnp.tile(leaf, 2), x), "must (have|be) .* got"),  # another grid
        ({"other": x}, "must (have|be) .* got"),
        (jax.tree.map(lambda leaf: leaf.astype(int), x), "must be floating point, got int32"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(flow(case), t, t, wrong, None)


@every_condition
@pytest.mark.usefixtures("untyped")
def test_conditions_that_do_not_fit(case: Case, name: str) -> None:
    t, number = jnp.float32(0.1), case.conditions[name].dtype == float
    wrong = [
        (1e-3, "args of .* must be .*, or None, got"),
        ({name: np.zeros(3)}, r"shape.* \(3,\)"),
    ]
    if number:
        wrong += [({name: -0.1}, "not negative, got -0.1"), ({"nu": 1.0}, r"got \['nu'\]")]
    for args, message in wrong:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda x, args=args: flow(case)(t, t, x, args), state(case))


@every_simulator
def test_numbers_that_are_refused(case: Case) -> None:
    for field in dataclasses.fields(case.system):
        values = (math.nan, math.inf) if isinstance(field.default, float) else ()
        for value in (*values, 0.0) if field.name == "noise" else values:
            message = f"{type(case.system).__name__}.{field.name} must be finite.* got {value}"
            with pytest.raises(ValueError, match=message):
                dataclasses.replace(case.system, **{field.name: value})

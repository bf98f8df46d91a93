"""From an end state back: posterior samples and the probability flow, against closed forms."""

import math
import re
import warnings

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.physics import Affine, Heat
from smdp_jax.solve.integrate import check_save

AFFINE = Affine()
SDE = AFFINE.sde()
KEY = jax.random.key(21)
END = jnp.array([0.05])
TS = smdp.linear_grid(1.0, 10.0, 60)


def sample(x_end=END, ts=TS, *, sde=SDE, score=AFFINE.score, key=KEY, num_samples=3, **settings):
    return smdp.sample_posterior(
        sde, score, x_end, ts, num_samples=num_samples, key=key, **settings
    )


# A linear process from N(0, 1) whose rate is the condition ---------------------------------------


def decay(t, x, args):
    return jax.tree.map(lambda x: -args * x, x)


def variance(rate, t):
    return np.exp(-2 * rate * t) + 0.25 * (1 - np.exp(-2 * rate * t)) / (2 * rate)


def linear_score(t, x, args):
    c = jnp.exp(-2 * args * t)
    c = c + 0.25 * (1 - c) / (2 * args)
    return jax.tree.map(lambda x: -x / c, x)


LINEAR = smdp.SDE(decay, diffusion=0.5)
SHORT = smdp.linear_grid(0.0, 1.0, 8)
RATE = jnp.array(0.7)


def linear(x_end, ts=SHORT, **settings):
    settings = {"args": RATE, "num_samples": 3, "key": KEY} | settings
    return smdp.sample_posterior(LINEAR, linear_score, x_end, ts, **settings)


# Samples against the exact posterior -------------------------------------------------------------


@pytest.mark.slow
def test_probability_of_the_start_for_many_end_states():
    """P(x_0 = +1 | x_T) of the affine process at five end states, 3000 samples each.

    Bounds at 4.5 standard errors and 0.01 for 150 Euler steps: false-alarm rate below 4e-5.
    """
    ends = jnp.linspace(-0.1, 0.1, 5)[:, None]
    ts = smdp.log_grid(0.0, 10.0, 150)
    past = sample(ends, ts, num_samples=3000, batch_axes=1)
    assert past.samples.shape == (5, 3000, 1)
    assert past.info.finite.all()
    exact = np.array([AFFINE.posterior_plus(10.0, x) for x in ends])
    share = np.mean(np.asarray(past.samples[..., 0]) > 0, axis=1)
    error = np.sqrt(exact * (1 - exact) / 3000)
    assert (np.abs(share - exact) < 4.5 * error + 0.01).all()
    np.testing.assert_allclose(np.abs(past.samples), 1, atol=0.2)


@pytest.mark.slow
def test_moments_of_the_bridge():
    """Mean and variance at t = 1 of 10 000 samples: 4.5 standard errors and 2 % for the steps."""
    count = 10_000
    x = np.asarray(sample(num_samples=count, solver=diffrax.ShARK()).samples, np.float64)[:, 0]
    mean, var = (float(v[0]) for v in AFFINE.bridge_moments(1.0, 10.0, END))
    fourth = np.mean((x - x.mean()) ** 4)
    assert abs(x.mean() - mean) < 4.5 * math.sqrt(var / count) + 0.02 * math.sqrt(var)
    assert abs(x.var() - var) < 4.5 * math.sqrt((fourth - var**2) / count) + 0.02 * var


@pytest.mark.slow
def test_fields_with_an_exact_score():
    """Heat on 8 x 8 points, Heun in 64 steps: mean and spread of 400 samples in all 64 modes.

    Squared errors over their variance average to 1 within 4.5 sqrt(2 / 64), the spread to 1 within
    4.5 sqrt(2 / (400 * 64)) and 1 %: false-alarm rate below 2e-5.
    """
    heat = Heat(size=8)
    k_start, k_end = jax.random.split(jax.random.key(2))
    x_end = heat.transition(k_end, 0.0, 0.2, heat.prior(k_start, 1)[0])
    past = smdp.sample_posterior(
        heat.continuous_sde(),
        heat.score,
        x_end,
        smdp.linear_grid(0.0, 0.2, 64),
        num_samples=400,
        key=KEY,
        solver=diffrax.Heun(),
    )
    exact = np.fft.fft2(np.asarray(heat.posterior_mean(x_end))) / 8
    modes = np.fft.fft2(np.asarray(past.samples)) / 8
    spread = np.asarray(heat.posterior_variance())
    known = spread > 0  # the prior leaves the mean of the field no freedom
    miss = np.abs(modes.mean(axis=0) - exact)[known] ** 2 / (spread[known] / 400)
    assert abs(miss.mean() - 1) < 4.5 * math.sqrt(2 / 64)
    ratio = (np.abs(modes - modes.mean(axis=0)) ** 2).mean(axis=0)[known] / spread[known]
    assert abs(ratio.mean() - 1) < 4.5 * math.sqrt(2 / (400 * 64)) + 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "stages", "tolerance"),
    [(None, 1, 2e-2), (diffrax.Heun(), 2, 1e-3), (diffrax.Tsit5(), 6, 1e-8)],
)
def test_probability_flow_of_a_gaussian(solver, stages, tolerance, x64):
    """x(t) = x_T sqrt(C(t) / C(T)); a pytree; ordered like ts."""
    ts = jnp.linspace(0.0, 1.0, 41)
    x_end = {"a": jnp.array([0.4, -1.0]), "b": jnp.array(2.0)}
    path = smdp.probability_flow(
        LINEAR, linear_score, x_end, ts, args=jnp.array(0.7), solver=solver
    )
    factor = np.sqrt(variance(0.7, np.asarray(ts)) / variance(0.7, 1.0))
    np.testing.assert_array_equal(path.ts, ts)
    np.testing.assert_array_equal(path.xs["a"][-1], x_end["a"])
    expected = factor[:, None] * np.asarray(x_end["a"])[None]
    np.testing.assert_allclose(path.xs["a"], expected, rtol=tolerance)
    np.testing.assert_allclose(path.xs["b"], factor * 2.0, rtol=tolerance)
    assert path.info.finite
    assert path.info.evaluations == 40 * stages


@pytest.mark.parametrize("settings", [{}, {"solver": diffrax.Tsit5()}])
def test_adaptive_probability_flow(settings, x64):
    ts = jnp.linspace(0.0, 1.0, 5)
    path = smdp.probability_flow(
        LINEAR,
        linear_score,
        jnp.array([2.0]),
        ts,
        args=jnp.array(0.7),
        controller=diffrax.PIDController(rtol=1e-8, atol=1e-8),
        **settings,
    )
    factor = np.sqrt(variance(0.7, np.asarray(ts)) / variance(0.7, 1.0))
    np.testing.assert_allclose(path.xs[:, 0], 2 * factor, rtol=1e-6)


@pytest.mark.slow
def test_noise_level_zero_is_the_flow_for_every_end_state_and_condition():
    """Two batch axes, conditions batched alike: each entry is the flow of its own end and rate."""
    ends = {"a": jnp.arange(1.0, 13.0).reshape(2, 3, 2), "b": jnp.linspace(-1, 1, 6).reshape(2, 3)}
    rates = jnp.linspace(0.2, 1.2, 6).reshape(2, 3)
    past = linear(ends, args=rates, args_axes=0, noise_level=0.0, num_samples=2, batch_axes=2)
    assert past.samples["a"].shape == (2, 3, 2, 2)
    assert past.info.finite.shape == past.info.evaluations.shape == (2, 3, 2)

    def flow(x_end, rate):
        return smdp.probability_flow(LINEAR, linear_score, x_end, SHORT, args=rate).xs

    paths = jax.vmap(jax.vmap(flow))(ends, rates)
    for name, path in paths.items():
        for j in range(2):
            np.testing.assert_allclose(past.samples[name][:, :, j], path[:, :, 0], rtol=1e-5)


def test_every_noise_level_has_the_same_marginals():
    """From x_T ~ p_T, x_0 ~ p_0 = N(0, 1): variance of 20 000, one each, 4.5 errors and 2 %."""
    count, ts = 20_000, smdp.linear_grid(0.0, 1.0, 40)
    ends = math.sqrt(variance(0.7, 1.0)) * jax.random.normal(jax.random.key(1), (count,))
    x = linear(
        ends,
        ts,
        args=0.7,
        batch_axes=1,
        num_samples=1,
        noise_level=0.5,
        solver=diffrax.Heun(),
    ).samples
    assert abs(float(np.var(x)) - 1) < 4.5 * math.sqrt(2 / count) + 0.02


def test_corrector_forgets_the_end_and_keeps_the_marginal():
    """Langevin moves of size 0.1 on a score of N(0, 1), with next to no dynamics besides.

    x -> 0.9 x + sqrt(0.2) z has the stationary variance 2 / (2 - 0.1). 5000 samples, mean and
    variance at 4.5 standard errors: false-alarm rate below 2e-5.
    """
    still = smdp.SDE(lambda t, x, args: jnp.zeros_like(x), diffusion=1e-4)
    past = sample(
        jnp.array(30.0),
        SHORT,
        sde=still,
        score=lambda t, x, args: -x,
        num_samples=5000,
        corrector=smdp.Langevin(0.1, 15),
    )
    x, stationary = np.asarray(past.samples), 2 / 1.9
    assert abs(x.mean()) < 4.5 * math.sqrt(stationary / 5000) + 30 * 0.9**105
    assert abs(x.var() / stationary - 1) < 4.5 * math.sqrt(2 / 5000)
    assert (past.info.evaluations == 8 + 7 * 15).all()


# Order, keys, chunks, transformations ------------------------------------------------------------


@pytest.mark.slow
def test_saved_states_are_ordered_like_ts():
    everything = linear(jnp.array([1.0, -2.0]), save="all").samples
    assert everything.shape == (3, 9, 2)
    np.testing.assert_array_equal(everything[:, -1], jnp.tile(jnp.array([[1.0, -2.0]]), (3, 1)))
    some = linear(jnp.array([1.0, -2.0]), save=(5, 0, -1)).samples
    np.testing.assert_allclose(some, everything[:, jnp.array([0, 5, 8])], rtol=1e-6)
    last = linear(jnp.array([1.0, -2.0])).samples
    np.testing.assert_allclose(last, everything[:, 0], rtol=1e-6)


CONTROLLER = diffrax.PIDController(rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_saved_states_of_adaptive_steps_are_ordered_like_ts():
    ends = jnp.array([1.0, -2.0])
    settings = {"controller": CONTROLLER, "noise_level": 0.0}
    everything = linear(ends, save="all", **settings).samples
    np.testing.assert_array_equal(everything[:, -1], jnp.tile(ends[None], (3, 1)))
    some = linear(ends, save=(5, 0, -1), **settings).samples
    np.testing.assert_allclose(some, everything[:, jnp.array([0, 5, 8])], rtol=1e-6)
    np.testing.assert_allclose(linear(ends, **settings).samples, everything[:, 0], rtol=1e-6)


def assert_same(result, expected):
    """Equal but for the last bits, which XLA may round otherwise in vectors of other lengths."""
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.slow
def test_samples_depend_on_neither_chunks_nor_other_samples():
    """Sample j of end state i draws from fold_in(key, i * num_samples + j)."""
    ends = jnp.array([[1.0], [-2.0], [0.5]])
    settings = {"args": jnp.full(3, 0.7), "args_axes": 0, "batch_axes": 1, "num_samples": 4}
    whole = linear(ends, **settings)
    part = linear(ends, chunk_size=5, **settings)
    assert_same(part.samples, whole.samples)
    np.testing.assert_array_equal(part.info.evaluations, whole.info.evaluations)
    fewer_ends = linear(ends[:2], **settings | {"args": jnp.full(2, 0.7)})
    assert_same(fewer_ends.samples, whole.samples[:2])
    assert_same(linear(ends[0], num_samples=2).samples, whole.samples[0, :2])
    assert len(np.unique(np.asarray(whole.samples))) == 12


@pytest.mark.slow
def test_inside_jit_and_vmap_of_the_caller():
    ends = jnp.array([[1.0], [-2.0]])
    keys = jax.random.split(KEY, 2)
    one_by_one = [linear(x, key=k).samples for x, k in zip(ends, keys, strict=True)]
    mapped = jax.vmap(lambda x, k: linear(x, key=k).samples)(ends, keys)
    assert_same(mapped, np.stack(one_by_one))
    jitted = jax.jit(lambda x, ts, k: linear(x, ts, key=k))(ends[0], SHORT, keys[0])
    assert_same(jitted.samples, one_by_one[0])
    assert jitted.info.finite.all()


def test_gradient_through_the_flow(x64):
    """d x(0) / d x_T = sqrt(C(0) / C(T)), through 40 steps of Heun."""

    def start(x_end):
        ts = jnp.linspace(0.0, 1.0, 41)
        return smdp.probability_flow(
            LINEAR, linear_score, x_end, ts, args=jnp.array(0.7), solver=diffrax.Heun()
        ).xs[0]

    slope = jax.grad(start)(jnp.array(0.4))
    np.testing.assert_allclose(slope, math.sqrt(1 / variance(0.7, 1.0)), rtol=1e-3)


def test_second_call_compiles_nothing():
    traces = []

    def score(t, x, args):
        traces.append(1)
        return linear_score(t, x, args)

    counts = []
    for i in range(3):
        end, rate = jnp.array([1.0 + i]), jnp.array(0.5 + 0.1 * i)
        smdp.sample_posterior(
            LINEAR, score, end, SHORT + i, num_samples=2, key=jax.random.key(i), args=rate
        )
        smdp.probability_flow(LINEAR, score, end, SHORT + i, args=rate)
        counts.append(len(traces))
    assert counts[0] > 0
    assert counts[1] == counts[2] == counts[0]


def test_new_values_of_a_learned_score_compile_nothing():
    model = smdp.models.MLP((4,))
    traces = []

    class Counted(type(model)):
        def __call__(self, t, x, args):
            traces.append(1)
            return super().__call__(t, x, args)

    counted = Counted((4,))
    counts = []
    for i in range(2):
        variables = counted.init(jax.random.key(i), jnp.array(0.0), END, None)
        traces.clear()
        sample(ts=SHORT + 1, score=smdp.LearnedScore(counted, variables))
        counts.append(len(traces))
    assert counts[0] > 0
    assert counts[1] == 0


# Diagnostics -------------------------------------------------------------------------------------


def test_largest_score_of_each_path():
    """Of 8 steps the first and the last are looked at: the larger |score| where they start."""
    ts = SHORT + 1.0
    past = linear(jnp.array([1.0, -2.0]), ts, save="all", num_samples=5)
    looked = jnp.array([1, -1])
    starts, times = past.samples[:, looked], ts[looked]
    sizes = jax.vmap(lambda path: jax.vmap(linear_score, (0, 0, None))(times, path, RATE))(starts)
    np.testing.assert_allclose(past.info.max_score, np.abs(sizes).max(axis=(1, 2)), rtol=1e-5)


def test_score_is_not_looked_at_where_no_step_starts():
    """A score of a start without spread, -x / t, has no value at ts[0] = 0, and needs none."""
    still = smdp.SDE(lambda t, x, args: jnp.zeros_like(x), diffusion=1.0)
    past = sample(jnp.array([1.0]), SHORT, sde=still, score=lambda t, x, args: -x / t)
    assert past.info.finite.all()
    assert np.isfinite(past.info.max_score).all()
    path = smdp.probability_flow(still, lambda t, x, args: -x / t, jnp.array([1.0]), SHORT)
    assert np.isfinite(path.info.max_score)


def test_finite_flags_name_the_paths():
    ends = jnp.array([[1.0], [-2.0]])

    def score(t, x, args):
        return jnp.where(x < -1.5, jnp.nan, -x)

    with pytest.warns(UserWarning, match="3 of 6 paths were lost: not finite from t=0.875 on"):
        past = sample(
            ends, SHORT, sde=LINEAR, score=score, args=jnp.full(2, 0.7), args_axes=0, batch_axes=1
        )
    np.testing.assert_array_equal(past.info.finite, [[True] * 3, [False] * 3])
    assert np.isfinite(past.samples[0]).all()


@pytest.mark.parametrize(
    ("settings", "per_path"),
    [
        ({"solver": diffrax.Heun(), "substeps": 3}, 48),
        ({"corrector": smdp.Langevin(1e-3, 2)}, 22),
    ],
)
def test_evaluations(settings, per_path):
    assert (linear(jnp.array([1.0]), **settings).info.evaluations == per_path).all()


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_evaluations_of_adaptive_steps_are_those_of_the_run(level):
    """Counted on the host; up to the saved states that are looked at and three calls to start."""
    calls = []

    def score(t, x, args):
        jax.debug.callback(lambda: calls.append(1))
        return linear_score(t, x, args)

    past = sample(
        jnp.array([1.0]),
        SHORT,
        sde=LINEAR,
        score=score,
        args=RATE,
        noise_level=level,
        num_samples=1,
        controller=diffrax.PIDController(rtol=1e-3, atol=1e-3, dtmin=0.01),
    )
    jax.effects_barrier()
    assert abs(int(past.info.evaluations[0]) - len(calls)) <= len(SHORT) + 3


def test_denoise_last_leaves_out_one_kick():
    """Euler: the samples differ by g sqrt(dt) z in the last step only. 4000, 4.5 errors."""
    noisy, clean = (
        np.asarray(linear(jnp.array([1.0]), denoise_last=d, num_samples=4000, save=(0, 1)).samples)
        for d in (False, True)
    )
    np.testing.assert_allclose(noisy[:, 1], clean[:, 1], rtol=1e-6)
    kick = (noisy - clean)[:, 0, 0]
    assert abs(kick.var() / (0.25 / 8) - 1) < 4.5 * math.sqrt(2 / 4000)


# Input of other kinds ----------------------------------------------------------------------------


def test_numpy_and_plain_numbers_are_states():
    settings = {"sde": LINEAR, "score": linear_score, "args": RATE, "ts": SHORT}
    from_jax = sample(jnp.array(1.5), **settings).samples
    for end in (np.array(1.5, np.float32), 1.5):
        assert_same(sample(end, **settings).samples, from_jax)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"noise_level": -1.0}, "noise_level must be finite and not negative, got -1.0"),
        ({"ts": SHORT[::-1]}, "backward solves also take the increasing grid"),
        ({"ts": SHORT[:1]}, "at least 2 times, got (1,)"),
        ({"args_axes": 1}, "args_axes must be None or 0, got 1"),
        (
            {"args_axes": 0, "args": jnp.ones(2), "batch_axes": 1},
            "must share 1 leading axes (batch_axes)",
        ),
        ({"solver": smdp.Splitting()}, "Splitting() solves flow maps"),
        ({"controller": CONTROLLER, "denoise_last": True}, "need fixed steps"),
        ({"controller": CONTROLLER, "substeps": 2}, "need fixed steps"),
        ({"controller": CONTROLLER, "corrector": smdp.Langevin(0.1)}, "need fixed steps"),
        ({"substeps": 0}, "substeps must be at least 1, got 0"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"x_end": jnp.array([1])}, "int32"),
        ({"score": lambda t, x, args: x[0]}, "score"),
        ({"score": lambda t, x, args: {"x": x}}, "score"),
        ({"x_end": jnp.array([jnp.nan])}, "x_end must be finite, got x_end[0]=nan"),
        ({"x_end": None}, "x_end must be one state or a batch of them, got None"),
        ({"x_end": jnp.ones((0, 1)), "batch_axes": 1}, "at least 1 end state, got leading axes (0"),
        ({"batch_axes": -1}, "batch_axes must be at least 0, got -1"),
        ({"save": ()}, "save must be 'last', 'all', or indices of the 9 times"),
        ({"save": (0, 9)}, "between -9 and 8, got (0, 9)"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(**{"x_end": jnp.ones(1), "ts": SHORT, "sde": LINEAR, "args": RATE} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": 0.0}, "Langevin.step_size must be positive and finite, got 0.0"),
        ({"step_size": math.nan}, "Langevin.step_size must be positive and finite, got nan"),
        ({"step_size": 0.1, "steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": 0.1, "steps": 1.5}, "steps must be an int of at least 1, got 1.5"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_langevin_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        smdp.Langevin(**settings)


@pytest.mark.parametrize("save", ["first", 3, (0.5,), np.array([0.0])])
def test_save_of_another_kind(save):
    assert check_save(np.array([0, -1]), 9) == (0, -1)
    with pytest.raises(ValueError, match="save must be 'last', 'all', or indices of the 9 times"):
        check_save(save, 9)


def test_end_state_of_the_probability_flow():
    with pytest.raises(ValueError, match=re.escape("x_end must be finite, got x_end[0]=inf")):
        smdp.probability_flow(LINEAR, linear_score, jnp.array([jnp.inf]), SHORT, args=RATE)


def test_inverse_that_returns_another_state():
    sde = smdp.SDE(
        step=lambda t0, t1, x, args: x, inverse=lambda t1, t0, x, args: x[None], diffusion=0.5
    )
    message = "SDE.inverse must return shape (1,) and dtype float32, got (1, 1) and float32"
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(jnp.ones(1), SHORT, sde=sde, score=linear_score, args=RATE)


def test_a_warning_points_at_the_line_that_asked():
    """However deep it is found, and through a function of the caller's own."""
    sde = smdp.SDE(lambda t, x, args: -(x**3), diffusion=0.1)
    blows_up = lambda t, x, args: -1e6 * x

    def ask(**how):
        ts, key = jnp.linspace(0.0, 1.0, 9), jax.random.key(0)
        return smdp.sample_posterior(sde, blows_up, jnp.ones(2), ts, num_samples=3, key=key, **how)

    for how in ({}, {"chunk_size": 2}):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            ask(**how)
        assert any("amplifies" in str(warning.message) for warning in seen)
        assert {warning.filename for warning in seen} == {__file__}

"""How backward solves are called: order, keys, chunks, transformations, diagnostics."""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from tests.linear_decay import (
    CONTROLLER,
    END,
    KEY,
    LINEAR,
    RATE,
    SHORT,
    linear,
    linear_score,
    sample,
)

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


@pytest.mark.parametrize("solver", [None, smdp.GaussianStep(), smdp.GaussianStep(1)], ids=str)
@pytest.mark.parametrize("stiff", [0.01, 30.0])
def test_second_call_on_fields_compiles_nothing(solver, stiff):
    """Also where the linear part of the physics is looked up, and where stable steps are chosen."""
    traces = []
    heat = lambda x: stiff * (jnp.roll(x, 1) - 2 * x + jnp.roll(x, -1))
    sde = smdp.SDE(lambda t, x, args: heat(x), diffusion=0.5)

    def score(t, x, args):
        traces.append(1)
        return -x

    def call(i):
        x, key = jnp.sin(jnp.arange(8.0) + i), jax.random.key(i)
        if isinstance(solver, smdp.GaussianStep):
            step = smdp.GaussianStep(solver.order, reference=one_everywhere)
        else:
            step = solver
        smdp.sample_posterior(sde, score, x, SHORT + 1.0, num_samples=2, key=key, solver=step)
        smdp.probability_flow(sde, score, x, SHORT + 1.0, solver=step)

    counts = []
    for i in range(3):
        traces.clear()
        call(i)
        counts.append(len(traces))
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def one_everywhere(t):
    return 1.0


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


@pytest.mark.parametrize("size", [4, 8192])
def test_largest_score_is_nan_where_a_score_is(size):
    """In the step that is last, and in one number of many."""

    def score(t, x, args):
        return jnp.where((t < SHORT[2]) & (jnp.arange(size) == size // 2), jnp.nan, -x)

    sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.5)
    with pytest.warns(UserWarning, match="lost"):
        past = sample(jnp.ones(size), SHORT, sde=sde, score=score)
    assert np.isnan(past.info.max_score).all()
    assert not past.info.finite.any()


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


def test_numpy_and_plain_numbers_are_states():
    settings = {"sde": LINEAR, "score": linear_score, "args": RATE, "ts": SHORT}
    from_jax = sample(jnp.array(1.5), **settings).samples
    for end in (np.array(1.5, np.float32), 1.5):
        assert_same(sample(end, **settings).samples, from_jax)

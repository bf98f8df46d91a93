"""Forward paths against the Ornstein-Uhlenbeck law, and what ``simulate`` refuses."""

import math
import re

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.checks import check_key, check_kind, check_positive

KEY = jax.random.key(4)
TS = jnp.array([0.0, 0.5, 1.0, 2.0])


def decay(t, x, args):
    return jax.tree.map(lambda x: -args * x, x)


def exact_step(t0, t1, x, args):
    return jax.tree.map(lambda x: x * jnp.exp(-args * (t1 - t0)), x)


SDE = smdp.SDE(decay, diffusion={"u": 0.5, "v": lambda t: 0.3 + 0.0 * t})
RATE = jnp.array(0.8)


def starts(count):
    return {"u": jnp.ones((count, 2)), "v": jnp.full((count,), -2.0)}


@pytest.mark.slow
def test_moments_with_conditions_of_every_sample():
    """Rates 0.8 and 2 per sample: mean and variance of 3 entries at 3 times, against OU.

    10 000 paths per rate, 36 numbers, bounds at 4.5 standard errors: false-alarm rate below 3e-4.
    """
    count = 20_000
    rates = jnp.where(jnp.arange(count) % 2 == 0, 0.8, 2.0)
    data = smdp.simulate(SDE, starts(count), TS, key=KEY, args=rates, args_axes=0, substeps=8)
    assert data.xs["u"].shape == (count, 4, 2)
    assert data.xs["v"].shape == (count, 4)
    assert data.score_targets is None
    np.testing.assert_array_equal(data.ts, TS)
    np.testing.assert_array_equal(data.args, rates)
    t, n = np.asarray(TS)[1:], count // 2
    for offset, rate in ((0, 0.8), (1, 2.0)):
        for x, g, x0 in (
            (data.xs["u"][..., 0], 0.5, 1.0),
            (data.xs["u"][..., 1], 0.5, 1.0),
            (data.xs["v"], 0.3, -2.0),
        ):
            path = np.asarray(x)[offset::2, 1:]
            variance = g**2 * (1 - np.exp(-2 * rate * t)) / (2 * rate)
            mean = x0 * np.exp(-rate * t)
            assert (np.abs(path.mean(axis=0) - mean) < 4.5 * np.sqrt(variance / n)).all()
            np.testing.assert_allclose(path.var(axis=0), variance, rtol=4.5 * math.sqrt(2 / n))


def test_neighbouring_paths_and_entries_are_independent():
    """Correlations of 4000 paths, 5 pairs at 4.5 standard errors: false-alarm rate 4e-5."""
    still = smdp.SDE(lambda t, x, args: jnp.zeros_like(x), diffusion=1.0)
    x = np.asarray(smdp.simulate(still, jnp.zeros((4000, 2)), TS, key=KEY).xs)
    steps = np.diff(x, axis=1)
    pairs = [
        (steps[:, 0, 0], steps[:, 0, 1]),
        (steps[:, 0, 0], steps[:, 1, 0]),
        (steps[:, 1, 0], steps[:, 2, 0]),
        (steps[:-1, 0, 0], steps[1:, 0, 0]),
        (steps[:-1, 0, 0], steps[1:, 1, 0]),
    ]
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / math.sqrt(4000)


def paths(count=7, seed=4, **settings):
    """A call that most tests share, and so its compilation."""
    settings = {"key": jax.random.key(seed), "args": RATE, "solver": diffrax.Euler()} | settings
    return smdp.simulate(SDE, starts(count), TS, **settings)


def assert_same(result, expected):
    """Equal but for the last bits, which XLA may round otherwise in vectors of other lengths."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), result, expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("score_targets", [False, smdp.PowerRamp(2.0)])
def test_path_depends_on_neither_chunks_nor_other_paths(score_targets):
    """Path i draws from fold_in(key, i): the same for any chunk and any number of others."""
    whole = paths(score_targets=score_targets)
    assert_same(paths(score_targets=score_targets, chunk_size=3), whole)
    if not score_targets:
        assert_same(paths(chunk_size=100), whole)
        assert_same(paths(5).xs, jax.tree.map(lambda x: x[:5], whole.xs))


def test_another_key_is_another_path():
    first, second = paths(seed=4).xs, paths(seed=5).xs
    assert not np.any(np.asarray(first["u"][:, 1:]) == np.asarray(second["u"][:, 1:]))
    np.testing.assert_array_equal(first["u"][:, 0], starts(7)["u"])


def test_flow_map_is_advanced_by_splitting():
    """An exact flow map: the mean is exact at any step, the noise is that of the last substep.

    10 000 paths: mean and variance at 4.5 standard errors, false-alarm rate below 2e-5. The chain
    has variance sum_j g^2 dt exp(-2 rate dt j).
    """
    sde = smdp.SDE(step=exact_step, diffusion=0.5)
    count, ts = 10_000, jnp.array([0.0, 0.5, 1.0])
    x = np.asarray(smdp.simulate(sde, jnp.ones((count,)), ts, key=KEY, args=RATE).xs[:, -1])
    variance = 0.25 * 0.5 * (1 + math.exp(-0.8))
    assert abs(x.mean() - math.exp(-0.8)) < 4.5 * math.sqrt(variance / count)
    assert abs(x.var() - variance) < 4.5 * variance * math.sqrt(2 / count)


def test_second_call_traces_nothing():
    traces = []

    def drift(t, x, args):
        traces.append(1)
        return -x

    sde = smdp.SDE(drift, diffusion=0.1)
    counts = []
    for seed in range(3):
        smdp.simulate(sde, jnp.ones((4, 1)) + seed, TS, key=jax.random.key(seed))
        counts.append(len(traces))
    checks = counts[2] - counts[1]  # the look at shapes calls the drift once, compiles nothing
    assert counts[1] - counts[0] == checks <= 1
    assert counts[0] > 1


def test_inside_a_jit_of_the_caller():
    assert_same(jax.jit(lambda rate: paths(args=rate))(RATE), paths())


@pytest.mark.parametrize("score_targets", [False, smdp.PowerRamp(2.0)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_kept(dtype, score_targets, x64):
    """Under x64 a float32 state stays float32, and a float64 one float64."""
    x0, ts, rate = jax.tree.map(lambda x: x.astype(dtype), (starts(2), TS, RATE))

    def run(x0):
        return smdp.simulate(SDE, x0, ts, key=KEY, args=rate, score_targets=score_targets)

    leaves = jax.tree.leaves(jax.eval_shape(run, x0))
    assert {x.dtype for x in leaves} == {jnp.dtype(dtype)}


# Bad input -------------------------------------------------------------------------------------


def scalar(drift, x0=None, diffusion=0.1, **settings):
    """Simulate a scalar process with one thing wrong."""
    sde = smdp.SDE(drift, diffusion=diffusion, interval=(0.0, 2.0))
    start = jnp.linspace(0.0, 1.0, 5) if x0 is None else x0
    return smdp.simulate(sde, start, **{"ts": TS, "key": KEY} | settings)


def test_nan_names_sample_and_time():
    def drift(t, x, args):
        return jnp.where((x > 0.7) & (t > 0.6), jnp.nan, 0.0)

    message = (
        "Trajectories.xs is not finite in 2 of 5 samples; first in sample 3 at t=2 (time index 3)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        scalar(drift, diffusion=1e-6, solver=diffrax.Euler())


def test_blow_up_names_sample_and_time():
    with pytest.raises(ValueError, match="not finite in 1 of 2 samples; first in sample 1 at t=1 "):
        scalar(
            lambda t, x, args: x**9, jnp.array([0.0, 1e4]), solver=diffrax.Euler(), diffusion=1e-6
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ts": jnp.array([0.0, 1.0, 0.5])}, "ts must increase, got ts[1]=1.0 and ts[2]=0.5"),
        ({"ts": jnp.array([0.0])}, "at least 2 times, got (1,)"),
        ({"ts": jnp.array([0.0, 3.0])}, "inside SDE.interval=[0.0, 2.0], got [0.0, 3.0]"),
        ({"substeps": 0}, "substeps must be at least 1, got 0"),
        ({"args": jnp.ones(3), "args_axes": 0}, "must have 5 entries like x0, got shape (3,)"),
        ({"args": 1.0, "args_axes": 0}, "must have 5 entries like x0, got shape ()"),
        ({"chunk_size": 0}, "chunk_size"),
        (
            {"diffusion": lambda t: jnp.where(t == 0.5, -0.1, 1.0)},
            "SDE.diffusion must be positive at t=0.5, got -0.1",
        ),
        ({"diffusion": None}, "SDE.diffusion must be positive, got None"),
        ({"solver": smdp.Splitting()}, "Splitting() solves flow maps"),
        (
            {"score_targets": smdp.PowerRamp(2.0), "solver": smdp.Splitting()},
            "Splitting",
        ),
        (
            {"score_targets": smdp.PowerRamp(2.0), "solver": diffrax.ShARK()},
            "ShARK",
        ),
        ({"x0": jnp.zeros((0,))}, "x0"),
        ({"x0": jnp.arange(5)}, "int32"),
        ({"x0": jnp.ones(())}, "one leading axis of samples, at least 1"),
        ({"x0": [1.0, 2.0]}, "x0 must be an array or a tree of arrays, got the list [1.0, 2.0]"),
        ({"x0": jnp.ones(5).at[3].set(jnp.nan)}, "x0 must be finite, got x0[3]=nan"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scalar(lambda t, x, args: -x, **settings)


def test_leaves_that_disagree_on_the_number_of_samples():
    x0 = {"u": jnp.ones((3, 2)), "v": jnp.ones((4,))}
    with pytest.raises(ValueError, match=r"3.*4"):
        smdp.simulate(SDE, x0, TS, key=KEY, args=RATE)


@pytest.mark.parametrize(
    ("drift", "message"),
    [
        (lambda t, x, args: {"x": x}, "SDE.drift must return a state like float32[], got {'x'"),
        (
            lambda t, x, args: x[None],
            "SDE.drift must return a state like float32[], got float32[1]",
        ),
        (
            lambda t, x, args: x.astype(jnp.bfloat16),
            "SDE.drift must return a state like float32[], got bfloat16[]",
        ),
    ],
)
def test_drift_errors(drift, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scalar(drift)


def test_flow_map_refuses_a_drift_solver():
    sde = smdp.SDE(step=exact_step, diffusion=0.5)
    for score_targets in (False, smdp.PowerRamp(2.0)):
        with pytest.raises(ValueError, match=re.escape("a flow map is solved by Splitting()")):
            smdp.simulate(
                sde,
                jnp.ones(3),
                TS,
                key=KEY,
                args=RATE,
                solver=diffrax.Heun(),
                score_targets=score_targets,
            )


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, "key must be one PRNG key, such as jax.random.key(0), got 0"),
        (None, "got None"),
        (jnp.zeros(2), "got an array of float32"),
        (jax.random.split(KEY, 3), "got keys of shape (3,): use jax.vmap over them"),
        (jax.random.split(jax.random.PRNGKey(0), 3), "got keys of shape (3, 2): use jax.vmap"),
    ],
)
def test_key_errors(key, message):
    check_key(KEY)
    check_key(jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=re.escape(message)):
        check_key(key)


def test_keys_of_the_old_style_are_taken():
    old, new = (
        scalar(lambda t, x, args: -x, key=k) for k in (jax.random.PRNGKey(3), jax.random.key(3))
    )
    np.testing.assert_array_equal(old.xs, new.xs)


@pytest.mark.parametrize("value", [2.5, 4.0, "3", jnp.array(3)])
def test_counts_are_whole_numbers(value):
    how = {"optional": "chunk_size", "substeps": np.int64(3)}
    assert check_positive(**how, chunk_size=None) == [3, None]
    with pytest.raises(ValueError, match="chunk_size must be an int of at least 1, got"):
        check_positive(**how, chunk_size=value)
    with pytest.raises(ValueError, match="substeps must be an int of at least 1, got None"):
        check_positive(optional="chunk_size", substeps=None, chunk_size=3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (smdp.PowerRamp, "score_targets must be a ramp, got the class PowerRamp: call it"),
        (3, "score_targets must be a ramp, got 3"),
        ("power", "score_targets must be a ramp, got 'power'"),
    ],
)
def test_kind_errors(value, message):
    check_kind("score_targets", smdp.PowerRamp(), "a ramp", "__call__")
    with pytest.raises(TypeError, match=message):
        check_kind("score_targets", value, "a ramp", "__call__")

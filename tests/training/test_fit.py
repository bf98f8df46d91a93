"""Training: averages, history, one compilation per window, and the kind of what was learned."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import smdp_jax as smdp
from smdp_jax.training import programs
from smdp_jax.training.pieces import _drawn
from tests.linear_fit import DATA, HELD_OUT, K_PATH, K_START, KEY, SDE, TS, Linear, fit


@pytest.fixture(scope="module")
def uninterrupted():
    return fit()


# Parameters, history, compilation ----------------------------------------------------------------


def counting(rate=1.0):
    """An optimiser that adds ``rate`` to every parameter, whatever the gradient."""
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(),
        lambda grads, state, params: (jax.tree.map(lambda g: 0 * g + rate, grads), state),
    )


@pytest.mark.usefixtures("no_step_miss")
@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_moving_average(decay):
    """e <- e + (1 - min(decay, (1 + k) / (10 + k))) (p - e), by hand over 30 updates."""
    result = fit(smdp.OneStep(), counting(), steps=30, ema=decay)
    p = e = 0.1
    for k in range(30):
        p += 1.0
        e += (1 - min(decay, (1 + k) / (10 + k))) * (p - e)
    np.testing.assert_allclose(result.learned.variables["params"]["a"], e, rtol=1e-5)


@pytest.mark.slow
def test_history_and_phases():
    result = fit(smdp.MultiStep((1, 3)), steps=33, validation=HELD_OUT)
    np.testing.assert_array_equal(result.history["step"], [10, 16, 26, 33])
    np.testing.assert_array_equal(result.history["window"], [1, 1, 3, 3])
    assert np.isfinite(result.history["loss"]).all()
    assert np.isfinite(result.history["validation_loss"]).all()
    assert result.step_miss.shape == (10,)


def test_no_validation_is_nan(uninterrupted):
    assert np.isnan(uninterrupted.history["validation_loss"]).all()
    np.testing.assert_array_equal(uninterrupted.history["step"], np.arange(10, 61, 10))


def test_validation_loss_is_that_of_the_average_on_the_other_paths():
    """Resting paths: with the score a x and one step from x, (dt g^2 a x)^2 / (g^2 dt) exactly."""
    resting = smdp.Trajectories(TS, jnp.full((4, 11, 1), 2.0))
    still = smdp.SDE(lambda t, x, args: jnp.zeros_like(x), diffusion=0.5)
    result = fit(
        smdp.OneStep(),
        counting(0.01),
        sde=still,
        data=resting,
        steps=10,
        ema=0.0,
        validation=resting,
    )
    a = 0.1 + 0.01 * 10
    b = 0.01 * 10
    expected = [0.1 * 0.25 * ((a + b * t) * 2.0) ** 2 for t in np.asarray(TS[1:])]
    assert min(expected) < result.history["validation_loss"][0] < max(expected)


@pytest.mark.usefixtures("no_step_miss")
def test_key_decides_and_epochs_do_not(uninterrupted):
    other_epochs = fit(epoch_steps=7)
    jax.tree.map(
        np.testing.assert_array_equal,
        other_epochs.learned.variables,
        uninterrupted.learned.variables,
    )
    other_key = fit(key=jax.random.key(32))
    assert other_key.history["loss"][0] != uninterrupted.history["loss"][0]


@pytest.mark.slow
@pytest.mark.usefixtures("no_step_miss")
def test_initial_parameters():
    first = fit(precondition=True)
    again = fit(initial=first.learned, optimizer=optax.sgd(0.0), steps=10)
    jax.tree.map(np.testing.assert_array_equal, again.learned.variables, first.learned.variables)
    x = jnp.array([0.3])
    np.testing.assert_array_equal(again.score(0.5, x, None), first.score(0.5, x, None))


@pytest.mark.slow
@pytest.mark.usefixtures("no_step_miss")
@pytest.mark.parametrize("windows", [(1,), (3,)])
def test_initial_kernel(windows):
    """Goes on with the parameters and the tables of the first, also by windows."""
    how = {"model": smdp.models.MLP((8,)), "steps": 10}
    first = fit(smdp.BackwardKernel(), **how).kernel
    still = how | {"initial": first, "optimizer": optax.sgd(0.0)}
    again = fit(smdp.BackwardKernel(windows), **still).kernel
    jax.tree.map(np.testing.assert_array_equal, again.variables, first.variables)
    jax.tree.map(np.testing.assert_array_equal, again.tables, first.tables)
    moved = fit(smdp.BackwardKernel(windows), initial=first, **how).history["loss"]
    assert np.isfinite(moved).all()


@pytest.mark.usefixtures("no_step_miss")
def test_one_compilation_per_window_length():
    traces = []

    class Counted(Linear):
        @nn.compact
        def __call__(self, t, x, args):
            traces.append(1)
            return super().__call__(t, x, args)

    counts = []
    for epochs in (1, 4):
        traces.clear()
        fit(smdp.MultiStep((1, 2)), model=Counted(), steps=20 * epochs, validation=HELD_OUT)
        counts.append(len(traces))
    assert 0 < counts[1] <= counts[0]  # what is equal in the second is not even traced


# Scores and corrections -------------------------------------------------------------------------


def test_windows_on_a_drift_learn_a_score(uninterrupted):
    assert isinstance(uninterrupted.score, smdp.LearnedScore)
    with pytest.raises(TypeError, match=r"learned a score: use fit\.score"):
        _ = uninterrupted.correction


@pytest.mark.slow
def test_windows_on_a_flow_map_learn_a_correction():
    flow = smdp.flow_map_of(SDE)
    result = fit(sde=flow)
    assert isinstance(result.correction, smdp.StepCorrection)
    np.testing.assert_array_equal(result.correction.ts, TS)
    with pytest.raises(TypeError, match=r"learned a step correction .* train with PathScore"):
        _ = result.score
    path = smdp.sample_posterior(
        flow, result.correction, jnp.array([0.2]), TS, num_samples=2, key=KEY
    )
    assert path.info.finite.all()
    with pytest.raises(ValueError, match="StepCorrection"):
        smdp.probability_flow(flow, result.correction, jnp.array([0.2]), TS)


def test_path_targets_on_a_flow_map_learn_a_score():
    flow = smdp.flow_map_of(SDE)
    data = smdp.simulate(
        flow, jax.random.normal(K_START, (64, 1)), TS, key=K_PATH, score_targets=smdp.PowerRamp()
    )
    assert isinstance(fit(smdp.PathScore(), sde=flow, data=data).score, smdp.LearnedScore)


# Progress, optimisers, callbacks, averages -------------------------------------------------------


@pytest.mark.usefixtures("no_step_miss")
def test_progress_bar_goes_to_stderr(capfd):
    fit(steps=10, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "loss=" in err
    assert "10/10" in err


@pytest.mark.usefixtures("no_step_miss")
def test_paths_in_arrays_of_numpy():
    """What is read from a file gives what the same paths on the device give."""
    paths = smdp.Trajectories(np.asarray(TS), np.asarray(DATA.xs))
    results = [fit(data=data, validation=data, steps=10) for data in (paths, DATA)]
    for name in ("loss", "validation_loss"):
        np.testing.assert_array_equal(*(result.history[name] for result in results))


@pytest.mark.slow
@pytest.mark.usefixtures("no_step_miss")
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lbfgs(),
        optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(0.5, patience=2)),
        optax.polyak_sgd(0.1),
    ],
    ids=["lbfgs", "plateau", "polyak"],
)
def test_optimisers_with_extra_arguments(optimizer):
    result = fit(None, optimizer, steps=20)
    assert np.isfinite(result.history["loss"]).all()
    assert result.history["loss"][-1] < 2


@pytest.mark.usefixtures("no_step_miss")
def test_callback_sees_every_epoch_and_stops(tmp_path):
    seen = []

    def callback(metrics, params):
        seen.append((metrics, params["a"]))
        return len(seen) == 3

    result = fit(callback=callback, validation=HELD_OUT, directory=tmp_path)
    assert [m["step"] for m, _ in seen] == [10, 20, 30]
    assert [m["loss"] for m, _ in seen] == list(result.history["loss"].astype(float))
    np.testing.assert_array_equal(result.score.variables["params"]["a"], seen[-1][1])
    # It goes on from there.
    assert fit(validation=HELD_OUT, directory=tmp_path).history["step"].tolist()[3:] == [40, 50, 60]


def test_nan_are_debugged_without_false_alarm():
    """Without validation nothing is NaN; jax_debug_nans stops at the first that is."""
    with jax.debug_nans(True):
        assert np.isfinite(fit(steps=20).history["loss"]).all()


@pytest.mark.usefixtures("no_step_miss")
def test_average_of_half_precision():
    """60 constant steps of 1/128 from 1: bfloat16 averages of decay .999 would not move at all."""

    class Half(nn.Module):
        @nn.compact
        def __call__(self, t, x, args):
            a = self.param("a", nn.initializers.ones, (), jnp.bfloat16)
            return a.astype(x.dtype) * x

    averages = []
    result = fit(
        None, counting(1 / 128), model=Half(), ema=0.99, callback=lambda m, p: averages.append(p)
    )
    p, e = np.float32(1), np.float32(1)
    for k in range(60):
        p += np.float32(1 / 128)
        e += np.float32(1 - min(0.99, (1 + k) / (10 + k))) * (p - e)
    assert averages[-1]["a"].dtype == jnp.float32
    np.testing.assert_allclose(averages[-1]["a"], e, rtol=1e-5)
    assert result.score.variables["params"]["a"].dtype == jnp.bfloat16


# Compiled once for all that compute the same -----------------------------------------------------


@pytest.mark.usefixtures("no_step_miss")
def test_equal_trainings_share_their_epochs(monkeypatch):
    """New objects that compute the same find the program, those with another number do not."""

    def run(rate=0.03, g=0.5, key=1, scale=1.0):
        sde = smdp.SDE(lambda t, x, args: -0.7 * x, diffusion=lambda t: g + 0.1 * t)
        data = smdp.Trajectories(TS, scale * DATA.xs)
        return fit(None, optax.adam(rate), sde=sde, data=data, key=jax.random.key(key))

    programs._programs.clear()
    _drawn.programs._values.clear()  # those of other tests may go at any time
    first, drawn = run(), len(_drawn.programs)
    assert len(programs._programs) == 1
    again, other = run(), run(key=2, scale=1.5)
    assert len(programs._programs) == 1
    assert len(_drawn.programs) == drawn > 0
    np.testing.assert_array_equal(first.history["loss"], again.history["loss"])
    assert other.history["loss"][0] != first.history["loss"][0]
    for number, change in enumerate(({"rate": 0.04}, {"g": 0.6}), 2):
        run(**change)
        assert len(programs._programs) == number
    monkeypatch.setattr(programs, "_KEPT", 3)
    run(rate=1e-3)
    assert len(programs._programs) == 3

"""What ``fit`` refuses, and what lies behind a loss that is not finite."""

import math
import re

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import smdp_jax as smdp
from smdp_jax.scores.step import StepScale
from smdp_jax.training.asked import check_kinds
from tests.linear_fit import DATA, HELD_OUT, KEY, SDE, TS, Linear, fit


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epoch_steps": 0}, "epoch_steps must be at least 1, got 0"),
        ({"ema": 1.0}, "ema must be in [0, 1), got 1.0"),
        ({"ema": -0.1}, "ema must be in [0, 1), got -0.1"),
        (
            {"objective": smdp.MultiStep((1, 11))},
            "at least 12 stored times, for windows",
        ),
        ({"objective": smdp.PathScore()}, "PathScore needs score targets"),
        (
            {"data": smdp.Trajectories(TS, DATA.xs.at[3, 4].set(jnp.nan))},
            "first in sample 3 at t=0.4 (time index 4)",
        ),
        ({"data": smdp.Trajectories(TS[::-1], DATA.xs)}, "ts must increase"),
        ({"data": smdp.Trajectories(TS, DATA.xs[:0])}, "=(1, 11), got shape (0, 11, 1)"),
        ({"data": smdp.Trajectories(TS, DATA.xs[0])}, "=(11, 11), got shape (11, 1)"),
        (
            {"data": smdp.Trajectories(TS, np.ones((2, 11, 1), int))},
            "Trajectories.xs must be floating point, got int32",
        ),
        (
            {"validation": smdp.Trajectories(TS, DATA.xs[..., 0])},
            (
                "validation must have states and args like the data's ('float32[1]', None), "
                "got ('float32[]', None)"
            ),
        ),
        (
            {"validation": smdp.Trajectories(TS, DATA.xs, jnp.ones(64), args_axes=0)},
            "got ('float32[1]', 'float32[]')",
        ),
        ({"data": smdp.Trajectories(TS - 1, DATA.xs)}, "inside SDE.interval=[0.0, 5.0]"),
        (
            {"validation": smdp.Trajectories(TS, DATA.xs.at[0, 0].set(jnp.inf))},
            "first in sample 0 at t=0 ",
        ),
        (
            {
                "objective": smdp.MultiStep((1, 2)),
                "validation": smdp.Trajectories(TS[:2], DATA.xs[:, :2]),
            },
            "at least 3 stored times, for windows of 2 steps",
        ),
    ],
)
def test_errors(settings, message):
    sde = smdp.SDE(SDE.drift, diffusion=0.5, interval=(0.0, 5.0))
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(sde=sde, **settings)


def test_network_that_returns_another_shape():
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, t, x, args):
            return self.param("a", nn.initializers.ones, ()) * x[0]

    with pytest.raises(ValueError, match=re.escape("a state like float32[1], got float32[]")):
        fit(model=Wrong())


def test_parameters_of_another_network():
    model = smdp.models.MLP((4,))
    variables = model.init(KEY, TS[0], DATA.at(0, 0), None)
    message = r"initial must have the parameters of the model, got \(4,\) where \(5,\) is wanted"
    with pytest.raises(ValueError, match=message):
        fit(model=smdp.models.MLP((5,)), initial=smdp.LearnedScore(model, variables))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data", DATA.xs, "data must be Trajectories(ts, xs) or what datasets.open_stream"),
        ("validation", DATA.xs, "validation must be Trajectories(ts, xs), got Array"),
        ("model", nn.Dense, "a flax.linen.Module, such as models.MLP(), got the class Dense: call"),
        ("objective", smdp.OneStep, "an objective, such as MultiStep(), got the class OneStep"),
        ("objective", "one_step", "got 'one_step'"),
        ("optimizer", 1e-3, "optimizer must be of optax, such as optax.adam(1e-3), got 0.001"),
        ("optimizer", optax.adam, "got <function "),
        ("callback", 3, "callback must be a function callback(metrics, params), got 3"),
        ("initial", abs, "initial must be fit.learned of another fit, got <built-in function abs>"),
    ],
)
def test_arguments_of_another_kind(name, value, message):
    given = {"model": Linear(), "data": DATA, "objective": smdp.OneStep()}
    given |= {"optimizer": optax.adam(1e-3), "validation": None, "initial": None, "callback": None}
    check_kinds(**given)
    with pytest.raises(TypeError, match=re.escape(message)):
        check_kinds(**given | {name: value})


# Settings and networks of another kind -----------------------------------------------------------


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema": None}, "ema must be a number, got None"),
        ({"ema": "0.9"}, "ema must be a number, got '0.9'"),
        ({"ema": math.nan}, "ema must be in [0, 1), got nan"),
        ({"checkpoint_seconds": math.nan}, "checkpoint_seconds must be at least 0, got nan"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds must be at least 0, got -1"),
        ({"steps": 2.5}, "steps must be an int of at least 1, got 2.5"),
        ({"batch_size": "8"}, "batch_size must be an int of at least 1, got '8'"),
        ({"precondition": "no"}, "precondition must be True or False, got 'no'"),
        ({"progress": 1}, "progress must be True or False, got 1"),
    ],
)
def test_settings_of_another_kind(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(**settings)


def test_initial_of_another_kind():
    step = smdp.LearnedStep(Linear(), {}, StepScale.of(DATA))
    with pytest.raises(TypeError, match=r"initial must be a score, as OneStep.* got a step"):
        fit(initial=step)
    score = smdp.LearnedScore(Linear(), {})
    with pytest.raises(TypeError, match=r"initial must be a step, as InverseStep.* got a score"):
        fit(smdp.InverseStep(), initial=score)
    with pytest.raises(TypeError, match=r"initial must be a kernel, as Backw.* got a score"):
        smdp.training.prepare(SDE, Linear(), DATA, smdp.BackwardKernel(), initial=score, key=KEY)


def test_initial_kernel_of_other_times_or_without_a_network():
    """Its gains belong to the steps of its own paths."""
    shorter = smdp.Trajectories(TS[:6], DATA.xs[:, :6])
    kernel = smdp.estimate_kernel(SDE, shorter, transform="joint")
    with pytest.raises(ValueError, match="initial must be a kernel of the times of the paths"):
        fit(smdp.BackwardKernel(transform="joint"), initial=kernel)
    late = smdp.Trajectories(shorter.ts + 0.3 * TS[1], shorter.xs)
    with pytest.raises(ValueError, match="initial must be a kernel of the times of the paths"):
        fit(smdp.BackwardKernel(transform="joint"), data=late, initial=kernel)
    with pytest.raises(ValueError, match=r"initial must have the parameters of the model"):
        fit(smdp.BackwardKernel(transform="joint"), data=shorter, initial=kernel)


class Dropping(Linear):
    @nn.compact
    def __call__(self, t, x, args):
        return nn.Dropout(0.3, deterministic=False)(super().__call__(t, x, args))


class Remembering(Linear):
    @nn.compact
    def __call__(self, t, x, args):
        return nn.BatchNorm(use_running_average=False)(super().__call__(t, x, args))


@pytest.mark.parametrize(
    ("model", "message"),
    [(Dropping(), "Dropping, which draws random"), (Remembering(), "Remembering, which changes")],
)
def test_networks_that_are_no_functions(model, message):
    with pytest.raises(ValueError, match="must be a function of t, x and args, got " + message):
        fit(model=model)


@pytest.mark.usefixtures("no_step_miss")
def test_validation_that_is_not_finite_is_said():
    far = smdp.Trajectories(TS, HELD_OUT.xs * 1e30)
    with pytest.warns(UserWarning, match="loss is not finite after 2 of 2 epochs, first"):
        result = fit(steps=20, validation=far)
    assert not np.isfinite(result.history["validation_loss"]).any()


# What lies behind a loss that is not finite ------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sde": smdp.SDE(lambda t, x, args: -x * jnp.where(x > 2, jnp.nan, 1), diffusion=0.5)},
            r"SDE\.drift is not finite on the training paths, first in sample .* not to blame",
        ),
        (
            {"data": smdp.Trajectories(TS, DATA.xs, jnp.full(64, jnp.nan), args_axes=0)},
            r"the conditions \(args\) are not finite, first in sample",
        ),
        ({"optimizer": optax.sgd(1e30)}, "the loss is not finite, first in .* learning rate"),
        (
            {"sde": smdp.SDE(SDE.drift, diffusion=1e-21)},
            r"the noise of a step, g sqrt\(dt\) = 3.16e-22, is too small for float32 states",
        ),
        ({"optimizer": optax.sgd(math.nan)}, "a parameter became NaN or infinite"),
    ],
)
def test_reasons_of_divergence(change, message):
    class Seeing(Linear):
        @nn.compact
        def __call__(self, t, x, args):
            return super().__call__(t, x, None) * (1 if args is None else args)

    with pytest.raises(smdp.TrainingDiverged, match=message):
        fit(model=Seeing(), **change)

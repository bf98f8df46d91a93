"""What callers hand in that is refused with a sentence."""

import re

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from tests.verbs import ENDS, TS, decay, fit, flow, sample, simulate, solve

pytestmark = pytest.mark.usefixtures("untyped")  # what users see

COUNTS = [0, -3, 2.5, "4", True, float("nan")]


@pytest.mark.parametrize("value", COUNTS)
def test_counts(value):
    for verb, name in [
        (simulate, "substeps"),
        (simulate, "chunk_size"),
        (sample, "num_samples"),
        (sample, "substeps"),
        (sample, "chunk_size"),
        (flow, "substeps"),
        (flow, "chunk_size"),
        (solve, "substeps"),
        (fit, "steps"),
        (fit, "batch_size"),
        (fit, "epoch_steps"),
        (lambda steps: smdp.linear_grid(0.0, 1.0, steps), "steps"),
        (lambda steps: smdp.log_grid(0.0, 1.0, steps), "steps"),
        (lambda steps: smdp.Langevin(0.1, steps), "steps"),
    ]:
        with pytest.raises(ValueError, match=rf"{name} must be .*got"):
            verb(**{name: value})


@pytest.mark.parametrize("value", [None, "much", [0.5]])
def test_numbers(value):
    for verb, name in [
        (sample, "noise_level"),
        (fit, "ema"),
        (fit, "checkpoint_seconds"),
    ]:
        with pytest.raises(ValueError, match=rf"{name} must be .*got"):
            verb(**{name: value})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample(num_samples=None), "num_samples must be an int of at least 1, got None"),
        (lambda: sample(num_samples=2**31 + 5), "num_samples must be at most 2147483647"),
        (lambda: sample(ENDS, batch_axes=1, num_samples=2**30), "num_samples must be at most"),
        (lambda: sample(noise_level=float("nan")), "noise_level must be finite"),
        (lambda: sample(noise_level=float("inf")), "noise_level must be finite"),
        (lambda: sample(denoise_last="no"), "denoise_last must be True or False, got 'no'"),
        (lambda: solve(denoise_last=1), "denoise_last must be True or False, got 1"),
        (lambda: flow(rematerialise="yes"), "rematerialise must be True or False, got 'yes'"),
        (lambda: sample(rematerialise=1), "rematerialise must be True or False, got 1"),
        (lambda: simulate(rematerialise=None), "rematerialise must be True or False, got None"),
        (lambda: sample([0.3, 0.4]), "x_end must be an array or a tree of arrays, got the list"),
        (lambda: solve([0.3, 0.4]), "x0 must be an array or a tree of arrays, got the list"),
        (lambda: simulate([0.3, 0.4]), "x0 must be an array or a tree of arrays, got the list"),
        (lambda: sample("there"), "x_end must be floating point, got 'there'"),
        (lambda: simulate("there"), "x0 must be"),
        (lambda: simulate(None), "x0 must be"),
        (lambda: sample(corrector=0.1), r"corrector must be Langevin(step_size), got 0.1"),
        (lambda: sample(controller="pid"), "controller must be a diffrax step size controller"),
        (lambda: flow(controller="pid"), "controller must be a diffrax step size controller"),
        (lambda: sample(score=None), "score must be a function"),
        (lambda: sample(ts=[0.0, 1.0]), "ts must be a one-dimensional array of times, got [0.0"),
        (lambda: solve(ts=TS[::-1]), "ts must increase"),
        (lambda: solve(save="first"), "save must be 'last', 'all', or indices"),
        (lambda: fit(ema=1.0), r"ema must be in [0, 1), got 1.0"),
        (lambda: fit(ema=-0.5), "ema must be in [0, 1), got -0.5"),
        (lambda: fit(checkpoint_seconds=float("nan")), "checkpoint_seconds must be at least 0"),
        (lambda: fit(initial=3), "initial must be fit.learned of another fit, got 3"),
        (lambda: smdp.Langevin("small"), "Langevin.step_size must be positive and finite"),
        (lambda: smdp.Langevin(None), "Langevin.step_size must be positive and finite"),
        (lambda: smdp.MultiStep(learns="foo"), "learns must be one of ['score', 'correction'"),
        (lambda: smdp.OneStep(learns="foo"), "learns must be one of ['score', 'correction'"),
        (lambda: smdp.MultiStep((1, 2), gradient_cut=1.5), "gradient_cut"),
        (lambda: smdp.MultiStep(training_noise="some"), "training_noise must be"),
        (lambda: smdp.MultiStep(training_noise=float("inf")), "training_noise must be"),
        (lambda: smdp.MultiStep((True,)), "windows must be"),
        (lambda: smdp.TableRamp(jnp.array([0.3, 0.2]), jnp.ones(2)), "TableRamp.ts must be"),
        (lambda: smdp.linear_grid(0.0, float("inf"), 4), "end must be in (0.0, inf), got inf"),
        (lambda: smdp.log_grid(0.0, float("nan"), 4), "end must be in (0.0, inf), got nan"),
        (
            lambda: smdp.log_grid(0.0, 1.0, 4, offset=float("inf")),
            "offset must be finite and",
        ),
        (lambda: smdp.linear_grid("0", 1.0, 4), "start must be a number, got '0'"),
        (lambda: smdp.SDE(decay, diffusion=0.5, interval=(0, 1, 2)), "interval must be (first"),
        (lambda: smdp.SDE(decay, diffusion=0.5, interval=None), "interval must be (first"),
        (lambda: smdp.SDE(decay, diffusion="large"), "SDE.diffusion must be positive and finite"),
        (lambda: smdp.PowerRamp("two"), "PowerRamp.power must be a number"),
        (lambda: smdp.SinhRamp("two"), "SinhRamp.rate must be numbers"),
    ],
)
def test_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        call()


@pytest.mark.slow
def test_conditions_that_are_not_finite():
    """It is the condition that is named, not the simulator."""
    sde = smdp.SDE(lambda t, x, args: -args["rate"][1] * x, diffusion=0.5)
    settings = {"sde": sde, "args": {"rate": jnp.array([0.2, jnp.nan])}}
    message = re.escape("args must be finite, got args['rate'][1]=nan")
    with pytest.raises(ValueError, match=message):
        simulate(**settings)
    for verb in (sample, flow):
        with pytest.warns(UserWarning, match=message):
            verb(**settings)


@pytest.mark.parametrize(("size", "which"), [(1e-25, "large"), (1e20, "small")])
def test_amplitude_without_a_square_in_single_precision(size, which):
    sde = smdp.SDE(decay, diffusion=lambda t: size + 0 * t)
    for verb in (simulate, sample, flow):
        with pytest.raises(ValueError, match=f"be {which} enough to square at t=0, got 1e"):
            verb(sde=sde)


@pytest.mark.parametrize("verb", [simulate, sample, flow, solve])
def test_times_that_single_precision_merges(verb):
    ts = 1e9 + np.linspace(0.0, 1.0, 4)
    with pytest.raises(ValueError, match="ts must increase in float32, got ts"):
        verb(ts=ts)


def test_paths_whose_times_single_precision_merges():
    data = smdp.Trajectories(3e8 + np.linspace(0.0, 2.0, 4), simulate())
    with pytest.raises(ValueError, match="ts must increase in float32, got ts"):
        fit(data)


@pytest.mark.parametrize(
    "solver", [diffrax.ItoMilstein(), diffrax.ALIGN(1.0), diffrax.SemiImplicitEuler()]
)
def test_solvers_of_other_equations(solver):
    for verb in (simulate, sample):
        with pytest.raises(ValueError, match=r"solver must be .*got"):
            verb(solver=solver)


@pytest.mark.parametrize("physics", ["drift", "step"])
def test_conditions_that_were_forgotten_are_named(physics):
    law = {
        "drift": lambda t, x, args: -args["rate"] * x,
        "step": lambda t0, t1, x, args: x * (1 - args["rate"]),
    }
    sde = smdp.SDE(**{physics: law[physics]}, diffusion=0.1)
    with pytest.raises(TypeError) as error:
        smdp.simulate(sde, jnp.ones((3, 2)), jnp.linspace(0.0, 1.0, 3), key=jax.random.key(0))
    assert f"SDE.{physics} was called with args=None" in "".join(error.value.__notes__)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("verb", "count"), [(sample, "num_samples"), (sample, "substeps"), (simulate, "substeps")]
)
def test_counts_that_have_no_default_are_not_none(verb, count):
    with pytest.raises(ValueError, match=f"{count} must be an int of at least 1, got None"):
        verb(**{count: None})

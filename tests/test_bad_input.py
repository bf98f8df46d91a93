"""What callers hand in beside the usual: it is taken, or refused with a sentence."""

import gc
import os
import re
import subprocess
import sys
import weakref

import diffrax
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import smdp_jax as smdp
from smdp_jax.posterior import _sample
from smdp_jax.solve.integrate import integrate
from tests.linear_fit import Linear

pytestmark = pytest.mark.usefixtures("untyped")  # what users see

TS = jnp.linspace(0.0, 0.6, 4)
KEY = jax.random.key(7)
ENDS = jnp.linspace(-1.0, 1.0, 3)[:, None]


def decay(t, x, args):
    return jax.tree.map(lambda x: -0.7 * x, x)


def score(t, x, args):
    return jax.tree.map(lambda x: -x, x)


SDE = smdp.SDE(decay, diffusion=0.5)


def simulate(x0=ENDS, ts=TS, *, sde=SDE, **settings):
    return smdp.simulate(sde, x0, ts, **{"key": KEY} | settings).xs


def sample(x_end=ENDS[0], ts=TS, *, sde=SDE, score=score, **settings):
    settings = {"num_samples": 2, "key": KEY} | settings
    return smdp.sample_posterior(sde, score, x_end, ts, **settings).samples


def flow(x_end=ENDS[0], ts=TS, *, sde=SDE, score=score, **settings):
    return smdp.probability_flow(sde, score, x_end, ts, **settings).xs


def solve(x0=ENDS[0], ts=TS, *, sde=SDE, **settings):
    return integrate(sde, x0, ts, **{"key": KEY} | settings)[0]


def fit(data=None, *, sde=SDE, **settings):
    data = smdp.simulate(sde, ENDS, TS, key=KEY) if data is None else data
    settings = {"steps": 2, "batch_size": 2, "key": KEY, "progress": False} | settings
    model, objective = settings.pop("model", Linear()), settings.pop("objective", smdp.OneStep())
    return smdp.fit(sde, model, data, objective, optax.adam(1e-2), **settings)


# What is taken -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_plain_numbers_are_states():
    number, array = 0.3, jnp.float32(0.3)
    for verb in (sample, flow, solve):
        np.testing.assert_array_equal(verb(number), verb(array))
    np.testing.assert_array_equal(simulate(np.array([0.3, 0.1], np.float32)).shape, (2, 4))


@pytest.mark.slow
def test_numbers_in_arrays_are_settings():
    level, size = np.float64(0.5), jnp.float32(0.01)
    np.testing.assert_array_equal(sample(noise_level=jnp.float32(level)), sample(noise_level=0.5))
    np.testing.assert_allclose(
        sample(corrector=smdp.Langevin(size)), sample(corrector=smdp.Langevin(0.01)), rtol=1e-6
    )


class Growing(eqx.Module):
    """An amplitude with parameters of its own."""

    scale: jax.Array

    def __call__(self, t):
        return self.scale * (1 + t)


@pytest.mark.slow
@pytest.mark.parametrize("x", [ENDS, {"a": ENDS, "b": ENDS[:, 0]}], ids=["array", "tree"])
@pytest.mark.parametrize(
    "g",
    [Growing(jnp.float32(0.4)), jax.tree_util.Partial(lambda c, t: c * (1 + t), 0.4)],
    ids=["module", "partial"],
)
def test_amplitudes_that_are_trees_of_their_own(g, x):
    plain = smdp.SDE(decay, diffusion=lambda t: 0.4 * (1 + t))
    sde = smdp.SDE(decay, diffusion=g)
    end = jax.tree.map(lambda x: x[0], x)
    for verb, state in ((simulate, x), (sample, end), (flow, end)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            verb(state, sde=sde),
            verb(state, sde=plain),
        )


def test_windows_and_counts_of_numpy():
    assert smdp.MultiStep((np.int64(2), np.int32(3))).windows == (2, 3)
    np.testing.assert_array_equal(sample(substeps=np.int64(2)), sample(substeps=2))


@pytest.mark.slow
def test_leaves_without_entries():
    state = {"x": ENDS, "none": jnp.zeros((3, 0))}
    end = jax.tree.map(lambda x: x[0], state)
    tree = smdp.Trajectories(TS, simulate(state))
    for xs in (tree.xs, sample(end), flow(end)):
        assert xs["none"].shape[-1] == 0
        assert np.isfinite(xs["x"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 5])
def test_ramp_in_a_transform_on_any_grid(size):
    """Backward of ``rfft2`` must be told an odd size, as ``SinhRamp`` says."""
    rate = jnp.ones((size, size // 2 + 1))
    told = smdp.SinhRamp(rate, (jnp.fft.rfft2, lambda y: jnp.fft.irfft2(y, (size, size))))
    x0 = jnp.ones((2, size, size))
    targets = smdp.simulate(SDE, x0, TS, key=KEY, score_targets=told).score_targets
    scalar = smdp.simulate(SDE, x0, TS, key=KEY, score_targets=smdp.SinhRamp(1.0)).score_targets
    np.testing.assert_allclose(targets, scalar, atol=2e-4)


def test_inside_shard_map():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))

    def one(x):
        return sample(x, batch_axes=1, corrector=smdp.Langevin(1e-3, 2), save="all")

    mapped = jax.shard_map(one, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    np.testing.assert_allclose(jax.jit(mapped)(ENDS), one(ENDS), rtol=1e-6)


@pytest.mark.slow
def test_data_on_an_explicit_mesh():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Explicit,))
    rows = jax.device_put(ENDS, NamedSharding(mesh, P("d")))
    whole = jax.device_put((TS, KEY), NamedSharding(mesh, P()))
    shared = {"batch_axes": 1, "chunk_size": 2}
    for verb, settings in ((simulate, {"chunk_size": 2}), (sample, shared), (flow, shared)):
        np.testing.assert_array_equal(verb(rows, **settings), verb(ENDS, **settings))
        np.testing.assert_array_equal(verb(rows, whole[0], **settings), verb(ENDS, **settings))
    np.testing.assert_array_equal(sample(key=whole[1]), sample())
    data = smdp.Trajectories(TS, simulate())
    placed = jax.device_put(data.xs, NamedSharding(mesh, P("d")))
    losses = [fit(smdp.Trajectories(TS, xs)).score(0.3, ENDS[0], None) for xs in (placed, data.xs)]
    np.testing.assert_array_equal(*losses)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [2, 3])
def test_batch_arguments_of_the_flow(chunk_size):
    """End states (2, 3, 1) with conditions of their own, against one solve each."""
    ends = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3, 1)
    rates = jnp.linspace(0.1, 2.0, 6).reshape(2, 3)
    sde = smdp.SDE(lambda t, x, args: -args * x, diffusion=0.5)
    got = flow(ends, sde=sde, args=rates, args_axes=0, batch_axes=2, chunk_size=chunk_size)
    assert got.shape == (2, 3, 4, 1)
    each = [
        [flow(x, sde=sde, args=r) for x, r in zip(*row, strict=True)]
        for row in zip(ends, rates, strict=True)
    ]
    np.testing.assert_allclose(got, np.array(each), rtol=1e-6)


@pytest.mark.slow
def test_gradients_do_not_depend_on_what_is_stored():
    verbs = {
        simulate: lambda **s: lambda x: simulate(x, **s).sum(),
        sample: lambda **s: lambda x: sample(x, batch_axes=1, **s).sum(),
        flow: lambda **s: lambda x: flow(x, batch_axes=1, **s).sum(),
    }
    for build in verbs.values():
        stored, again = (jax.grad(build(rematerialise=r))(ENDS) for r in (False, True))
        np.testing.assert_allclose(again, stored, rtol=1e-6)
        assert np.abs(stored).min() > 0


@pytest.mark.slow
def test_pilot_keeps_to_chunks():
    """Its batch is a chunk of paths, but never fewer than 16."""
    seen = []

    def watched(t, x, args):
        jax.debug.callback(seen.append, x)
        return -x

    sde, x0 = smdp.SDE(watched, diffusion=0.5), jnp.zeros(64)
    counts = {}
    for chunk in (32, 4):
        seen.clear()
        # Where a solver is named, no path is looked at before.
        smdp.simulate(
            sde, x0, TS, key=KEY, score_targets=True, chunk_size=chunk, solver=diffrax.Heun()
        )
        jax.effects_barrier()
        counts[chunk] = len(seen)
    # 64 paths and a pilot of the size of a chunk, the same evaluations for each.
    assert counts[32] * (64 + 16) == counts[4] * (64 + 32) > 0


# Leaves without noise ----------------------------------------------------------------------------

HALF = smdp.SDE(
    lambda t, x, args: {"q": x["p"], "p": -x["q"] - x["p"]}, diffusion={"q": 0.0, "p": 0.5}
)
PAIRS = {"q": ENDS, "p": -ENDS}


def test_posterior_where_a_leaf_has_no_noise():
    """What has no noise follows the physics back, whatever the score says of it."""
    end = jax.tree.map(lambda x: x[0], PAIRS)
    wild = lambda t, x, args: {"q": 1e6 * x["q"], "p": -x["p"]}
    samples = sample(end, TS[:2], sde=HALF, score=wild)
    np.testing.assert_allclose(samples["q"], jnp.broadcast_to(end["q"] - 0.2 * end["p"], (2, 1)))
    assert np.std(samples["p"]) > 0


class PerLeaf(nn.Module):
    """A score for every leaf."""

    @nn.compact
    def __call__(self, t, x, args):
        return {name: Linear()(t, leaf, args) for name, leaf in x.items()}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["backward", "bidirectional", "penalised"])
@pytest.mark.parametrize("precondition", [False, True])
def test_training_where_a_leaf_has_no_noise(form, precondition):
    """The loss and its gradient look at the leaves with noise alone, and are finite."""
    data = smdp.simulate(HALF, PAIRS, TS, key=KEY)
    objective = smdp.MultiStep((1, 2), form=form)
    result = fit(data, sde=HALF, model=PerLeaf(), objective=objective, precondition=precondition)
    learned = result.score(0.3, jax.tree.map(lambda x: x[0], PAIRS), None)
    numbers = jax.tree.leaves((learned, result.learned.variables))
    assert all(np.isfinite(leaf).all() for leaf in numbers)
    assert np.isfinite(
        sample({"q": ENDS[0], "p": ENDS[1]}, sde=HALF, score=result.score)["p"]
    ).all()


@pytest.mark.parametrize("targets", [True, smdp.PowerRamp(2.0)])
def test_score_targets_need_noise_everywhere(targets):
    with pytest.raises(ValueError, match=re.escape("positive on all leaves, got 0 at ['q']")):
        smdp.simulate(HALF, PAIRS, TS, key=KEY, score_targets=targets)


# What is refused ---------------------------------------------------------------------------------

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
        (lambda: smdp.MultiStep(learns="foo"), "learns must be 'score' or 'correction'"),
        (lambda: smdp.OneStep(learns="foo"), "learns must be 'score' or 'correction'"),
        (lambda: smdp.MultiStep((1, 2), gradient_cut=1.5), "gradient_cut"),
        (lambda: smdp.MultiStep(training_noise="some"), "training_noise must be"),
        (lambda: smdp.MultiStep(training_noise=float("inf")), "training_noise must be"),
        (lambda: smdp.MultiStep((True,)), "windows must be"),
        (lambda: smdp.TableRamp(jnp.array([0.3, 0.2]), jnp.ones(2)), "TableRamp.ts must be"),
        (lambda: smdp.linear_grid(0.0, float("inf"), 4), "must increase between finite times"),
        (lambda: smdp.log_grid(0.0, float("nan"), 4), "must increase between finite times"),
        (lambda: smdp.log_grid(0.0, 1.0, 4, offset=float("inf")), "offset must be positive"),
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


def test_amplitude_whose_square_underflows():
    tiny = smdp.SDE(decay, diffusion=lambda t: 1e-25 + 0 * t)
    for verb in (simulate, sample, flow):
        with pytest.raises(ValueError, match="must be large enough to square at t=0"):
            verb(sde=tiny)


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


# Memory ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_programs_go_with_their_scores():
    before, gone = len(_sample.programs), []
    for shift in (1.0, 2.0, 3.0):

        def own(t, x, args, shift=shift):
            return shift - x

        assert np.isfinite(sample(score=own, num_samples=1)).all()
        gone.append(weakref.ref(own))
        del own
    gc.collect()
    assert [score() for score in gone] == [None] * 3
    assert len(_sample.programs) == before


LEAK = """
import jax, jax.numpy as jnp
import smdp_jax as smdp

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

sde, ts = smdp.SDE(lambda t, x, args: -x, diffusion=0.5), jnp.linspace(0.0, 1.0, 4)

def call(i):
    shift = jnp.float32(i)
    score = lambda t, x, args: shift - x
    smdp.sample_posterior(sde, score, jnp.ones(()), ts, num_samples=1, key=jax.random.key(0))

for i in range(5):
    call(i)
before = resident()
for i in range(60):
    call(i)
print(resident() - before)
"""


@pytest.mark.slow
def test_sixty_scores_leave_nothing():
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", LEAK], capture_output=True, text=True, check=True, env=environment
    )
    assert float(done.stdout) < 50  # MiB


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

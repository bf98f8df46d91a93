"""What callers hand in beside the usual, and is taken; and what is left of it in memory."""

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
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import smdp_jax as smdp
from smdp_jax.posterior.sampling import _sample
from tests.linear_fit import Linear
from tests.verbs import ENDS, KEY, SDE, TS, decay, fit, flow, sample, simulate, solve

pytestmark = pytest.mark.usefixtures("untyped")  # what users see


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


def test_choices_of_numpy():
    assert smdp.MultiStep((1,), rematerialise=np.bool_(True)).rematerialise
    assert smdp.MultiStep((1,), form=np.str_("penalised")).form == "penalised"
    with pytest.raises(ValueError, match=r"rematerialise must be one of .*, got 1"):
        smdp.MultiStep((1,), rematerialise=1)


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


# Memory ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_programs_go_with_their_scores():
    _sample.programs._values.clear()  # what other tests have left
    gone = []
    for shift in (1.0, 2.0, 3.0):

        def own(t, x, args, shift=shift):
            return shift - x

        assert np.isfinite(sample(score=own, num_samples=1)).all()
        assert len(_sample.programs) > 0
        gone.append(weakref.ref(own))
        del own
    gc.collect()
    assert [score() for score in gone] == [None] * 3
    assert len(_sample.programs) == 0


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
for i in range(30):
    call(i)
print(resident() - before)
"""


@pytest.mark.slow
def test_thirty_scores_leave_nothing():
    """Without optimisations, which take time and change nothing that is kept."""
    quick = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": quick}
    done = subprocess.run(
        [sys.executable, "-c", LEAK], capture_output=True, text=True, check=True, env=environment
    )
    assert float(done.stdout) < 25  # MiB

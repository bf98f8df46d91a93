"""Tests on eight forced host devices, which ``tests/test_mesh.py`` runs in their own process."""

import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import smdp_jax as smdp
from smdp_jax import datasets
from smdp_jax.solve.batches import dealt_out, split_of
from smdp_jax.training import pieces
from smdp_jax.training.shares import Shares
from smdp_jax.training.updates import Fixed, Problem, TrainingState

AUTO = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
EXPLICIT = jax.make_mesh((8,), ("data",))
KEY = jax.random.key(0)
TS = smdp.linear_grid(0.0, 1.0, 4)
SDE = smdp.SDE(lambda t, x, args: -args * x, diffusion=0.5)
X0 = jax.random.normal(jax.random.key(1), (32, 3))
RATES = jnp.linspace(0.5, 1.5, 32)


def score(t, x, args):
    return -2 * x * (1 + t)


def simulate(x0=X0, args=RATES, **options):
    return smdp.simulate(SDE, x0, TS, key=KEY, args=args, args_axes=0, **options)


def sample(x_end=X0, args=RATES, **options):
    named = {"num_samples": 2, "key": KEY, "args_axes": 0, "batch_axes": 1} | options
    return smdp.sample_posterior(SDE, score, x_end, TS, args=args, **named)


def one_end(**options):
    return sample(X0[0], RATES[0], num_samples=40, args_axes=None, batch_axes=0, **options)


def flow(x_end=X0, args=RATES, **options):
    return smdp.probability_flow(
        SDE, score, x_end, TS, args=args, args_axes=0, batch_axes=1, **options
    )


def close(a, b, tolerance=2e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance)


def is_split(tree, mesh):
    for x in jax.tree.leaves(tree):
        assert x.sharding.mesh.axis_types == mesh.axis_types, x.sharding
        assert x.sharding.spec[0] == "data", x.sharding
        assert x.addressable_shards[0].data.shape[0] * 8 == x.shape[0]


def test_verbs_are_those_of_one_device():
    """Whatever kind of mesh, and whatever the chunks on each device."""
    data = simulate(chunk_size=3)
    for mesh in (AUTO, EXPLICIT):
        split = simulate(mesh=mesh, chunk_size=3)
        close(split, data)
        is_split(split.xs, mesh)
        for verb in (sample, one_end):
            past = verb(mesh=mesh, chunk_size=3)
            close(past, verb())
            is_split(past.samples, mesh)
            is_split(past.info.finite, mesh)
    path = flow(mesh=EXPLICIT)
    close(path, flow())
    is_split(path.xs, EXPLICIT)
    targets = simulate(mesh=AUTO, score_targets=smdp.PowerRamp())
    close(targets, simulate(score_targets=smdp.PowerRamp()), 1e-5)
    is_split(targets.score_targets, AUTO)


def test_split_states_come_back_split():
    for mesh in (AUTO, EXPLICIT):
        x, args = jax.device_put((X0, RATES), NamedSharding(mesh, PartitionSpec("data")))
        for verb, want in ((simulate, simulate()), (sample, sample()), (flow, flow())):
            got = verb(x, args)
            close(got, want)
            is_split(got.samples if verb is sample else got.xs, mesh)


def test_what_does_not_divide_is_filled_up_and_said():
    for verb, options in ((simulate, {}), (sample, {"num_samples": 1})):
        want = verb(X0[:13], RATES[:13], **options)
        with pytest.warns(UserWarning, match="13 do not divide over 8 devices"):
            close(verb(X0[:13], RATES[:13], mesh=AUTO, **options), want)


def conditioned(**options):
    seen = [smdp.LinearObservation(1.0, 0, 0.3, covariance=0.04)]
    seen.append(smdp.LinearObservation(0.5, 1, -0.1, covariance=0.09))
    named = {"num_particles": 8 * 37, "key": KEY, "data": paths_to_learn(), "args": jnp.ones(())}
    return smdp.condition(SDE, score, seen, TS, **named | options)


def paths_to_learn():
    x0 = jax.random.normal(KEY, (64, 3))
    return smdp.simulate(SDE, x0, TS, key=KEY, args=jnp.ones(()))


def test_particles_are_split():
    """Sums over particles round otherwise, so that now and then another one is resampled."""
    want = conditioned()
    for mesh in (AUTO, EXPLICIT):
        got = conditioned(mesh=mesh, chunk_size=5)
        is_split((got.samples, got.log_weights), mesh)
        close(got.log_evidence, want.log_evidence, 1e-4)
        same = np.isclose(np.asarray(got.samples), np.asarray(want.samples), atol=1e-4)
        assert same.all(axis=1).mean() > 0.95
        close(got.info.ess, want.info.ess, 1e-2)
    with pytest.raises(ValueError, match="num_particles must be a multiple of the mesh's 8"):
        conditioned(mesh=AUTO, num_particles=13)


def test_each_device_has_an_eighth():
    """Arrays of the compiled program: those of all paths are none of them."""

    def shapes(function, *inputs):
        text = jax.jit(function).lower(*inputs).compile().as_text()
        return {tuple(map(int, s.split(","))) for s in re.findall(r"\w+\[([\d,]+)\]", text)}

    x = jnp.ones((8 * 37, 3))
    rates = jnp.ones(8 * 37)
    for verb in (simulate, sample):
        here = jax.device_put((x, rates), NamedSharding(AUTO, PartitionSpec("data")))
        found = shapes(lambda x, a, verb=verb: verb(x, a, mesh=AUTO), *here)
        first = {s[0] for s in found}
        assert first & {37, 2 * 37}, first
        assert not first & {8 * 37, 16 * 37}, first


def test_stores_are_read_in_parts(tmp_path):
    """Each device holds whole chunks; what does not divide is refused."""

    def generate(key):
        args = jax.random.uniform(key, (3,))
        x0 = jax.random.normal(key, (3, 2))
        return smdp.simulate(SDE, x0, TS, key=key, args=args, args_axes=0)

    paths = [tmp_path / f"{n}.zarr" for n in (16, 12)]
    for path, chunks in zip(paths, (16, 12), strict=True):
        datasets.write(path, generate, chunks=chunks, key=KEY, progress=False)
    want = datasets.open_trajectories(paths[0])
    for mesh in (AUTO, EXPLICIT):
        got = datasets.open_trajectories(paths[0], mesh=mesh)
        is_split((got.xs, got.args), mesh)
        close(got, want, 0)
    stream = datasets.open_stream(paths[0], chunks_per_block=8, mesh=AUTO)
    block = next(stream.blocks(KEY))
    is_split(block.xs, AUTO)
    close(block, next(datasets.open_stream(paths[0], chunks_per_block=8).blocks(KEY)), 0)
    assert stream.fingerprint == datasets.open_stream(paths[0], chunks_per_block=8).fingerprint
    message = "must be a multiple of the mesh's 8 devices, each of which holds whole ones, but"
    with pytest.raises(ValueError, match=f"{message} .*12.zarr has 12: read it without mesh="):
        datasets.open_trajectories(paths[1], mesh=AUTO)
    with pytest.raises(ValueError, match=f"{message} a block has 4"):
        datasets.open_stream(paths[0], chunks_per_block=4, mesh=AUTO)


def test_verbs_in_a_block_are_dealt_out_and_come_back_whole():
    """What an experiment does with all devices that there are, without a mesh in its config."""
    plain = smdp.simulate(SDE, X0[:13], TS, key=KEY, args=RATES[:13], args_axes=0)
    fit = trained(plain, validation=None)
    past = smdp.sample_posterior(SDE, fit.score, X0[0], TS, args=RATES[0], num_samples=9, key=KEY)
    seen = conditioned(num_particles=64)
    with dealt_out(AUTO):
        simulated = smdp.simulate(SDE, X0[:13], TS, key=KEY, args=RATES[:13], args_axes=0)
        again = trained(plain, validation=None)
        drawn = smdp.sample_posterior(
            SDE, again.score, X0[0], TS, args=RATES[0], num_samples=9, key=KEY
        )
        inside = jax.jit(lambda x: flow(x, RATES).xs)(X0)
        few = [conditioned(num_particles=n) for n in (64, 61)]
    for x in jax.tree.leaves((simulated, again.score.variables, drawn, inside, few)):
        assert len(x.sharding.device_set) == 1
    close(simulated, plain)
    close(again.score.variables, fit.score.variables, 1e-5)
    close(again.step_miss, fit.step_miss, 1e-4)
    close(drawn.samples, past.samples, 1e-4)
    close(few[0].log_evidence, seen.log_evidence, 1e-4)


def test_users_may_shard_map():
    """The verbs inside of a caller's ``shard_map``, whose types are checked."""
    spec = PartitionSpec("data")
    verbs: dict[str, Callable] = {
        "simulate": lambda x, a: simulate(x, a).xs,
        "sample": lambda x, a: sample(x, a, substeps=2, corrector=smdp.Langevin(0.1)).samples,
        "saved": lambda x, a: sample(x, a, save=(0, 2), denoise_last=True).samples,
        "flow": lambda x, a: flow(x, a).xs,
        "targets": lambda x, a: simulate(x, a, score_targets=smdp.PowerRamp()).score_targets,
    }
    for verb in verbs.values():
        for mesh in (AUTO, EXPLICIT):
            here = jax.device_put((X0, RATES), NamedSharding(mesh, spec))
            out = jax.shard_map(verb, mesh=mesh, in_specs=spec, out_specs=spec)(*here)
            # On every device paths are counted from 0.
            close(np.asarray(out)[:4], verb(X0[:4], RATES[:4]))


def trained(data, mesh=None, optimizer=None, **options):
    named = {"steps": 100, "batch_size": 16, "progress": False, "precondition": True} | options
    return smdp.fit(
        SDE,
        smdp.models.MLP((8,)),
        data,
        smdp.MultiStep(windows=(2,)),
        optimizer or optax.adam(1e-3),
        key=KEY,
        mesh=mesh,
        **named,
    )


def test_training_is_that_of_one_device():
    """After 100 updates, whether the mesh is named or the paths are split already."""
    data, validation = simulate(), smdp.simulate(SDE, X0[:8], TS, key=KEY, args=jnp.ones(()))
    validation = smdp.Trajectories(TS, validation.xs, jnp.ones(8), args_axes=0)
    want = trained(data, validation=validation)
    got = trained(data, AUTO, validation=validation)
    close(got.score.variables, want.score.variables, 1e-5)
    close(got.history["loss"], want.history["loss"], 1e-5)
    close(got.history["validation_loss"], want.history["validation_loss"], 1e-5)
    close(got.step_miss, want.step_miss, 1e-4)
    named = {"args": jnp.ones(()), "num_samples": 16, "key": KEY}
    pasts = [
        smdp.sample_posterior(SDE, got.score, X0[0], TS, mesh=m, **named) for m in (AUTO, None)
    ]
    close(*(past.samples for past in pasts), 1e-5)
    got = trained(simulate(mesh=EXPLICIT))
    pasts.append(smdp.sample_posterior(SDE, got.score, X0[0], TS, mesh=EXPLICIT, **named))
    close(pasts[2].samples, pasts[1].samples, 1e-4)
    close(got.score.variables, want.score.variables, 1e-5)
    assert all(p.sharding.mesh == EXPLICIT for p in jax.tree.leaves(got.score.variables))


@pytest.mark.usefixtures("no_step_miss")
def test_training_with_what_does_not_divide():
    """Neither the paths nor the batch; and an optimiser that asks for the loss along a line."""
    odd = simulate(X0[:30], RATES[:30])
    with pytest.warns(UserWarning, match="a batch of 13 do not divide over 8 devices"):
        got = trained(odd, AUTO, batch_size=13)
    close(got.score.variables, trained(odd, batch_size=13).score.variables, 1e-5)
    named = {"optimizer": optax.lbfgs(), "steps": 3}
    got, want = (trained(odd, m, **named).score.variables for m in (AUTO, None))
    close(got, want, 1e-3)  # it looks along lines, and stops where roundings decide


def test_one_sum_of_the_gradients_per_update():
    split = split_of(AUTO)
    model, optimizer = smdp.models.MLP((8, 5)), optax.with_extra_args_support(optax.adam(1e-3))
    objective = smdp.MultiStep(windows=(2,))
    data = simulate(jnp.ones((8 * 37, 3)), jnp.ones(8 * 37))
    problem = Problem(SDE, model, objective, optimizer, 8 * 11, 0.99, split)
    params = model.init(KEY, 0.5, X0[0], RATES[0])["params"]
    averages, opt_state = pieces._initial(optimizer, params)
    state = TrainingState(params, averages, opt_state, jnp.array(0))
    fixed = Fixed({}, objective.scales(SDE, data, True), TS)
    source = problem.windows(data, None, KEY)
    inputs = split.put((state, fixed), whole=True)
    stop = jnp.asarray(5, jnp.int32)
    program = jax.jit(lambda *inputs: problem.epoch(*inputs, None, stop, steps=2))
    text = program.lower(*inputs, source).compile().as_text()
    collectives = re.findall(r"(\S+) = \S+ (all-\w+|reduce-scatter|collective-\w+)\(", text)
    assert [kind for _, kind in collectives] == ["all-reduce"], collectives
    numbers = sum(p.size for p in jax.tree.leaves(params)) + 1
    assert f"[{numbers}]" in text
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"\w+\[([\d,]+)\]", text)}
    first = {s[0] for s in shapes}
    assert {37, 11} <= first
    assert not first & {8 * 37, 8 * 11}, first


def test_shares_cover_all_paths_equally():
    """By counting; every part draws from its own rows alone, whatever divides and what does not."""
    words = jax.random.bits(KEY, (400, 8 * 3), jnp.uint32)
    for paths, batch in ((32, 16), (30, 16), (7, 16), (100, 13), (3, 2)):
        shares = Shares(paths, batch, 8)
        drawn = []
        for part in range(8):
            own = words[:, part * shares.each : (part + 1) * shares.each]
            local = np.asarray(jax.vmap(lambda w, s=shares, p=part: s.draw(w, p))(own))
            assert local.min() >= 0
            assert local.max() < shares.rows.shape[1]
            drawn.append(shares.rows[part][local])
        drawn = np.concatenate(drawn, axis=1)[:, :batch]
        whole = Shares(paths, batch)
        alone = np.asarray(jax.vmap(lambda w, s=whole: s.draw(w, 0))(words[:, :batch]))
        np.testing.assert_array_equal(drawn, alone)
        counts = np.bincount(drawn.ravel(), minlength=paths) / drawn.size * paths
        # A path is seen 400 batch / paths times at least, 50 or more, spread less than Poisson.
        assert np.abs(counts - 1).max() < 6 / np.sqrt(400 * batch / paths)


@pytest.mark.usefixtures("untyped")
def test_meshes_that_do_not_fit():
    data = simulate()
    for verb in (simulate, sample, flow, conditioned, partial(trained, data)):
        for wrong, kind, message in (
            (
                jax.make_mesh((8,), ("model",)),
                ValueError,
                r"an axis 'data' .*got \('model',\)",
            ),
            (8, TypeError, "must be a jax.sharding.Mesh"),
        ):
            with pytest.raises(kind, match=message):
                verb(mesh=wrong)

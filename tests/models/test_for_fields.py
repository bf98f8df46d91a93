"""The network that is chosen for a state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp


def paths(*shapes, number=400, change=lambda x: x):
    rng = np.random.default_rng(0)
    xs = {
        str(i): jnp.asarray(change(rng.normal(size=(number, 3, *shape))), jnp.float32)
        for i, shape in enumerate(shapes)
    }
    return smdp.Trajectories(jnp.arange(3.0), xs)


def ramp(x):
    return 0.1 * x + np.linspace(0, 5, x.shape[-1])


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (paths(()), {}),
        (paths((3,)), {}),
        (paths((64,), ()), {}),
        (paths((24,), (12,)), {}),
        (paths((6, 8), (12, 16)), {}),
        (paths((64,)), {"dims": 1, "channels": 32, "padding": "periodic", "coordinates": False}),
        (paths((64,), number=50), {"dims": 1, "channels": 16}),
        (paths((64,), change=ramp), {"dims": 1, "padding": "reflect", "coordinates": True}),
        (paths((40,), number=2000, change=ramp), {}),
        (paths((40,), number=2000), {"padding": "periodic"}),
        (paths((80,), number=2000, change=ramp), {"padding": "reflect"}),
        (paths((32, 32), (32, 32, 2)), {"dims": 2, "channels": 32}),
        (paths((8, 8, 8), (8, 8, 8)), {"dims": 3}),
        (paths((20, 30), (21, 30), number=20), {"dims": 2, "channels": 16}),
    ],
)
def test_choice(data, want):
    net = smdp.models.for_fields(data)
    assert isinstance(net, smdp.models.DilatedResNet if want else smdp.models.MLP)
    assert {name: getattr(net, name) for name in want} == want
    x = data.at(0, 0)
    out = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), jnp.ones(()), x, None)[0])
    assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, x)


def test_refused():
    with pytest.raises(ValueError, match="data must hold at least 1 path, got 0"):
        smdp.models.for_fields(smdp.Trajectories(jnp.arange(2.0), {}))
    with pytest.raises(ValueError, match="up to 3 axes, got 4"):
        smdp.models.for_fields(paths((5, 5, 5, 5), number=2))


@pytest.mark.parametrize("change", [lambda x: x, ramp])
def test_streams_and_gaps_are_looked_at_too(change, tmp_path):
    """The first block tells the grid, all of the stream how many paths there are."""
    data = paths((40,), number=2000, change=change)
    want = smdp.models.for_fields(data)
    np.savez(tmp_path / "a.npz", ts=np.arange(3, dtype="float32"), xs=data.xs["0"])
    foreign = smdp.datasets.open_foreign(tmp_path / "a.npz", paths_per_block=300)
    assert smdp.models.for_fields(foreign) == want
    blocks = smdp.models.for_fields([data[:300], data[300:600]])
    few = smdp.models.for_fields(data[:300])
    assert blocks == few  # nobody knows how many more there are
    mask = np.arange(3) < np.where(np.arange(2000) % 2, 3, 1)[:, None]
    gaps = {"0": jnp.where(mask[..., None], data.xs["0"], jnp.nan)}
    assert smdp.models.for_fields(smdp.Trajectories(data.ts, gaps, mask=mask)) == want


@pytest.mark.parametrize("unit", [1e-5, 1.0, 3e4])
def test_conditions_are_seen_in_whatever_unit(unit):
    """Also behind an offset, as entries of unlike sizes, and with states among the conditions."""
    rng = np.random.default_rng(1)
    known = {
        "a": rng.normal(size=400) + 1,
        "b": rng.uniform(1, 3, size=(400, 2)),
        "c": np.ones(400) > 0,
    }
    change = lambda a: {
        "a": unit * a["a"],
        "b": a["b"] * jnp.array([[1.0, unit]]) + jnp.array([[300.0, 0.0]]),
        "c": a["c"],
    }
    data = smdp.Trajectories(jnp.arange(3.0), jnp.zeros((400, 3, 2)), change(known), args_axes=0)
    net = smdp.models.for_fields(data)
    own = jax.tree.map(jnp.asarray, data.args)
    beside = lambda args: net.conditions((args, 0.0))[0]
    for shown in (jax.vmap(net.conditions)(own), jax.vmap(beside)(own)):
        for name in ("a", "b"):
            values = np.asarray(shown[name], float).reshape(400, -1)
            assert (abs(values.mean(axis=0)) < 3).all()
            assert ((values.std(axis=0) > 0.15) & (values.std(axis=0) < 3)).all()
        np.testing.assert_array_equal(shown["c"], own["c"])
    # Another draw of paths makes the same network, which saved parameters ask for.
    again = dataclasses.replace(
        data, args=jax.tree.map(lambda v: v[::-1][:300], data.args), xs=data.xs[:300]
    )
    assert smdp.models.for_fields(again) == net
    plain = smdp.Trajectories(
        jnp.arange(3.0), data.xs, {"a": jnp.asarray(known["a"], jnp.float32)}, args_axes=0
    )
    assert smdp.models.for_fields(plain) == smdp.models.for_fields(paths((2,)))

"""The network that is chosen for a state."""

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
    with pytest.raises(ValueError, match="for_fields needs paths"):
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

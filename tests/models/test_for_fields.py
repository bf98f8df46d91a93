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

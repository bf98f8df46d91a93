"""Programs that run once: compiled for that, and inside of other programs as any function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax import compiled
from smdp_jax.models.layers import Dense


@compiled.once
def spread(x, shift, name):
    assert name == "spread"
    return jnp.std(x) + shift


@pytest.mark.parametrize("count", [7, compiled.FEW + 1])
def test_few_numbers_and_many(count):
    x = np.linspace(-1, 1, count, dtype=np.float32)
    np.testing.assert_allclose(spread(jnp.asarray(x), 2.0, "spread"), x.std() + 2, rtol=1e-4)


def test_once_within_other_programs():
    """Compiler options belong to the outermost program: within one there are none."""
    x = jnp.arange(5.0)
    inside = jax.jit(lambda x: spread(x, 1.0, "spread"))(x)
    np.testing.assert_allclose(inside, spread(x, 1.0, "spread"), rtol=1e-6)
    each = jax.vmap(lambda x: spread(x, 1.0, "spread"))(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(each, [inside, 2 * inside - 1], rtol=1e-6)


def test_step_miss_within_a_program():
    """As a callback that is jitted asks for it."""
    sde = smdp.SDE(lambda t, x, args: -0.6 * x, diffusion=0.4)
    ts, key = smdp.linear_grid(0.0, 0.4, 4), jax.random.key(3)
    data = smdp.simulate(sde, jnp.ones((40, 2)), ts, key=key)

    def miss(data):
        return smdp.step_miss(sde, lambda t, x, args: -x, data, key=key)

    np.testing.assert_allclose(jax.jit(miss)(data), miss(data), rtol=1e-4)


def test_mapped_vectors_are_rows():
    """One product per layer, no transposition of what lies between; the same as on a grid."""
    layer, h = Dense(3, jnp.float32), jax.random.normal(jax.random.key(0), (6, 4))
    variables = layer.init(jax.random.key(1), h[0])
    twice = Dense(3, jnp.float32)
    again = twice.init(jax.random.key(2), jnp.ones(3))

    def both(h: Any) -> Any:
        first: Any = layer.apply(variables, h)
        return twice.apply(again, jnp.tanh(first))

    p: Any = variables["params"]
    q: Any = again["params"]
    want = np.tanh(h @ p["kernel"] + p["bias"][None]) @ q["kernel"] + q["bias"][None]
    np.testing.assert_allclose(jax.vmap(both)(h), want, atol=1e-5)
    np.testing.assert_allclose(both(h), want, atol=1e-5)  # as a grid of six points
    mapped = jax.make_jaxpr(jax.vmap(both))(h).jaxpr
    moved = [e for e in mapped.eqns if e.primitive.name == "transpose"]
    assert [e.outvars[0] for e in moved] == mapped.outvars
    assert [v.aval.shape for e in mapped.eqns if e.primitive.name == "tanh" for v in e.outvars] == [
        (3, 6)
    ]

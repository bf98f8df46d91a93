import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import models
from smdp_jax.models.layers import elu


def by_hand(params, inputs):
    h = np.asarray(inputs)
    names = sorted(params, key=lambda name: int(name.split("_")[1]))
    for name in names:
        h = h @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
        if name != names[-1]:
            h = np.where(h > 0, h, np.expm1(h))
    return h


def test_agrees_with_the_formula():
    # Inputs in the documented order: state leaves, log(t + 1e-5), conditions.
    x = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array(0.5)}
    args = {"nu": jnp.array(3.0)}
    model = models.MLP(widths=(7, 5))
    variables = jax.jit(model.init)(jax.random.key(0), 0.2, x, args)
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    draws = [jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
    variables = jax.tree.unflatten(treedef, draws)
    out = jax.jit(model.apply)(variables, 0.2, x, args)
    expected = by_hand(variables["params"], [1.0, -2.0, 0.5, np.log(0.2 + 1e-5), 3.0])
    np.testing.assert_allclose(out["a"], expected[None, :2], rtol=1e-5)
    np.testing.assert_allclose(out["b"], expected[2], rtol=1e-5)


def test_elu_and_its_derivatives():
    """Against the definition in float64, also where exp would overflow, and at 0."""
    h = np.concatenate([np.linspace(-30.0, 30.0, 60), [0.0, 1e-9, -1e-9, 1e4]])
    below = np.minimum(h, 0)
    with jax.enable_x64(True):
        slope = jax.grad(elu)
        for found, exact in (
            (elu(jnp.asarray(h)), np.maximum(h, 0) + np.expm1(below)),
            (jax.vmap(slope)(jnp.asarray(h)), np.exp(below)),
            (
                jax.vmap(jax.grad(slope))(jnp.asarray(h[:60])),
                np.where(h < 0, np.exp(below), 0)[:60],
            ),
        ):
            np.testing.assert_allclose(found, exact, rtol=0, atol=1e-15)
    assert np.isnan(elu(jnp.float32(jnp.nan)))


@pytest.mark.slow
def test_conditions_can_be_chosen():
    x, args = jnp.ones(1), {"nu": jnp.array(3.0), "key": jax.random.key(0)}
    with pytest.raises(TypeError, match="conditions="):
        jax.eval_shape(models.MLP().init, jax.random.key(0), 0.2, x, args)
    seen = models.MLP(conditions=lambda args: args["nu"])
    variables = seen.init(jax.random.key(0), 0.2, x, args)
    assert variables["params"]["Dense_0"]["kernel"].shape == (3, 30)
    blind = models.MLP(conditions=lambda _: None)
    variables = jax.jit(blind.init)(jax.random.key(0), 0.2, x, args)
    assert variables["params"]["Dense_0"]["kernel"].shape == (2, 30)


def test_leaves_of_different_precision_keep_theirs():
    with jax.enable_x64(True):
        x = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float64)}
        variables = jax.jit(models.MLP().init)(jax.random.key(0), 0.2, x, None)
        out = jax.jit(models.MLP().apply)(variables, 0.2, x, None)
        assert {k: v.dtype.name for k, v in out.items()} == {"a": "float32", "b": "float64"}
        assert variables["params"]["Dense_0"]["kernel"].dtype == jnp.float64


def test_state_without_leaves():
    with pytest.raises(ValueError, match="at least 1 array leaf, got 0"):
        jax.eval_shape(models.MLP().init, jax.random.key(0), 0.2, {}, None)

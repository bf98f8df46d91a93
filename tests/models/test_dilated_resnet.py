import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.models import DilatedResNet


@pytest.mark.parametrize(
    ("dilations", "blocks"), [((1, 2, 2, 1), 1), ((1, 2, 4, 8, 4, 2, 1), 1), ((1, 2), 3)]
)
def test_sees_as_far_as_its_dilations_reach(trained, dilations, blocks):
    # First and last convolution add one cell to either side.
    model = DilatedResNet(channels=4, blocks=blocks, dilations=dilations, dims=1)
    x = jax.random.normal(jax.random.key(0), (64,))
    variables = trained(model, 0.3, x, None)
    # Without biases ReLUs are as often on as off: no connection is closed by chance.
    jacobian = jax.jit(jax.jacobian(lambda x: model.apply(variables, 0.3, x, None)))(x)
    seen = np.flatnonzero(np.abs(jacobian[32]) > 0) - 32
    reach = 2 + blocks * sum(dilations)
    assert (seen.min(), seen.max()) == (-reach, reach)


@pytest.mark.slow
@pytest.mark.parametrize("embedding", [0, 5])
@pytest.mark.parametrize(("dims", "grid"), [(1, (17,)), (2, (7, 10))])
def test_periodic_commutes_with_every_shift(trained, dims, grid, embedding):
    model = DilatedResNet(channels=4, blocks=2, dims=dims, embedding=embedding)
    x = jax.random.normal(jax.random.key(0), grid)
    variables = trained(model, 0.3, x, None)
    apply = jax.jit(lambda x: model.apply(variables, 0.3, x, None))
    shift, axes = (1, 3)[:dims], tuple(range(dims))
    expected = jnp.roll(apply(x), shift, axes)
    np.testing.assert_allclose(apply(jnp.roll(x, shift, axes)), expected, rtol=1e-4, atol=1e-4)
    walled = DilatedResNet(channels=4, blocks=2, dims=dims, embedding=embedding, padding="zero")
    outside = jax.jit(lambda x: walled.apply(variables, 0.3, x, None))
    assert np.abs(outside(jnp.roll(x, shift, axes)) - jnp.roll(outside(x), shift, axes)).max() > 0.1


def test_agrees_with_the_formula(trained):
    # One block of one dense layer per cell: h + relu(h W + b) between two affine maps.
    model = DilatedResNet(3, 1, (1,), kernel=1, dims=1, time_features="raw")
    x, t = jax.random.normal(jax.random.key(0), (5,)), 0.7
    variables = trained(model, t, x, None)
    weights = [
        (variables["params"][f"Conv_{i}"]["kernel"][0], variables["params"][f"Conv_{i}"]["bias"])
        for i in range(3)
    ]
    h = np.stack([x, np.full(5, t)], axis=-1) @ weights[0][0] + weights[0][1]
    h = h + np.maximum(h @ weights[1][0] + weights[1][1], 0)
    expected = (h @ weights[2][0] + weights[2][1])[:, 0]
    out = jax.jit(model.apply)(variables, t, x, None)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "mirror"}, "padding must be one of"),
        ({"kernel": 2}, "kernel must be odd, got 2"),
        ({"dilations": ()}, "dilations must be a tuple of ints of at least 1"),
        ({"dilations": (1, 0)}, "dilations must be a tuple of ints of at least 1"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"embedding": -1}, "embedding must be at least 0, got -1"),
    ],
)
def test_bad_options(options, message):
    model = DilatedResNet(**options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), 0.3, jnp.zeros((8, 8)), None)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.models import UNet
from smdp_jax.models.unet import coarsen, refine


@pytest.mark.parametrize(
    ("dims", "grid", "channels"),
    [(1, (32,), (3, 4, 5)), (2, (8, 12), (3, 4)), (2, (5, 7), (4,))],
)
def test_periodic_commutes_with_shifts_of_the_coarsest_cell(trained, dims, grid, channels):
    model = UNet(channels=channels, embedding=8, dims=dims)
    x = jax.random.normal(jax.random.key(0), grid)
    variables = trained(model, 0.3, x, None)
    apply = jax.jit(lambda x: model.apply(variables, 0.3, x, None))
    factor, axes = 2 ** (len(channels) - 1), tuple(range(dims))
    out = apply(x)
    for shift in (factor, 3 * factor):
        np.testing.assert_allclose(
            apply(jnp.roll(x, shift, axes)), jnp.roll(out, shift, axes), atol=1e-5
        )
    if factor > 1:  # and with no others: the coarse levels are there
        assert np.abs(apply(jnp.roll(x, 1, axes)) - jnp.roll(out, 1, axes)).max() > 1e-3


def test_coordinates_break_the_symmetry(trained):
    model = UNet(channels=(4,), embedding=8, coordinates=True)
    x = jnp.ones((8, 8))
    variables = trained(model, 0.3, x, None)
    assert np.std(jax.jit(model.apply)(variables, 0.3, x, None)) > 1e-3
    plain = UNet(channels=(4,), embedding=8)
    variables = trained(plain, 0.3, x, None)
    np.testing.assert_allclose(np.std(jax.jit(plain.apply)(variables, 0.3, x, None)), 0, atol=1e-6)


def test_coarsen_and_refine():
    h = jax.random.normal(jax.random.key(0), (4, 6, 2))
    coarse = coarsen(h)
    np.testing.assert_allclose(coarse[1, 2], h[2:4, 4:6].mean((0, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(coarsen(refine(coarse)), coarse, rtol=1e-6)
    assert refine(coarse).shape == h.shape


@pytest.mark.slow
def test_a_batch_is_one_batched_convolution():
    # Fast on every device only if vmap does not turn one convolution into many.
    model = UNet()
    x = jnp.zeros((5, 8, 8))
    variables = jax.jit(model.init)(jax.random.key(0), 0.3, x[0], None)
    jaxpr = jax.make_jaxpr(jax.vmap(lambda x: model.apply(variables, 0.3, x, None)))(x)

    def convolutions(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                yield eqn
            for value in eqn.params.values():
                for part in value if isinstance(value, tuple) else (value,):
                    if hasattr(part, "jaxpr"):
                        yield from convolutions(part.jaxpr)

    found = list(convolutions(jaxpr.jaxpr))
    assert len(found) == 16
    assert all(eqn.params["feature_group_count"] == 1 for eqn in found)
    assert all(eqn.invars[0].aval.shape[0] == 5 for eqn in found)


def test_number_of_parameters():
    x = jnp.zeros((4, 4))
    variables = jax.jit(UNet().init)(jax.random.key(0), 0.3, x, None)

    def conv(a, b, k=9):
        return a * b * k + b

    def block(a, b):
        shortcut = conv(a, b, 1) if a != b else 0
        return conv(a, b) + conv(b, b) + conv(64, 2 * b, 1) + shortcut

    expected = conv(8, 64, 1) + conv(64, 64, 1) + conv(1, 16) + conv(16, 1)
    expected += block(16, 16) + block(16, 32) + block(32, 48) + block(32, 32) + block(16, 16)
    expected += conv(48, 32, 1) + conv(32, 16, 1)
    assert sum(p.size for p in jax.tree.leaves(variables)) == expected == 104305


@pytest.mark.parametrize(
    ("options", "args", "message"),
    [
        ({"padding": "mirror"}, None, "padding must be one of"),
        ({"kernel": 4}, None, "kernel must be odd, got 4"),
        ({"channels": ()}, None, "channels must be a tuple of ints of at least 1"),
        ({"blocks": 0}, None, "blocks must be at least 1, got 0"),
        ({"channels": (4, 4, 4, 4, 4)}, None, "multiple of 16"),
        ({"time_features": "sqrt"}, None, "time_features must be one of"),
        ({}, {"mask": np.zeros((4, 8, 3))}, "conditions must be fields on the grid"),
    ],
)
def test_bad_input(options, args, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(UNet(**options).init, jax.random.key(0), 0.3, jnp.zeros((8, 8)), args)

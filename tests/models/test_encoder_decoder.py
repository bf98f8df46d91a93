import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.models import EncoderDecoder


@pytest.mark.parametrize("kernel", [3, 4])
def test_sees_as_far_up_as_down(trained, kernel):
    # Every convolution but the last has a mirrored partner, so that even kernels stay centred.
    model = EncoderDecoder(4, 1, kernel=kernel, dims=1)
    x = jax.random.normal(jax.random.key(0), (64,))
    variables = trained(model, 0.3, x, None)
    jacobian = jax.jit(jax.jacobian(lambda x: model.apply(variables, 0.3, x, None)))(x)
    seen = np.flatnonzero(np.abs(jacobian[32]) > 0) - 32
    reach = 3 * (kernel - 1) + 2  # three pairs, and a last one of five cells
    assert (seen.min(), seen.max()) == (-reach, reach)


def test_periodic_commutes_with_every_shift(trained):
    model = EncoderDecoder(4, 2)
    x = jax.random.normal(jax.random.key(0), (7, 10))
    variables = trained(model, 0.3, x, None)
    apply = jax.jit(lambda x: model.apply(variables, 0.3, x, None))
    expected = jnp.roll(apply(x), (1, 3), (0, 1))
    np.testing.assert_allclose(
        apply(jnp.roll(x, (1, 3), (0, 1))), expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "mirror"}, "padding must be one of"),
        ({"latent": 0}, "latent must be at least 1, got 0"),
        ({"kernel": 0}, "kernel must be at least 1, got 0"),
    ],
)
def test_bad_options(options, message):
    model = EncoderDecoder(**options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), 0.3, jnp.zeros((8, 8)), None)

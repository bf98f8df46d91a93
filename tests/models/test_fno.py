import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.models import FNO
from smdp_jax.models.fno import SpectralConv


def circulant(grid, modes, weights):
    """Dense matrix of a spectral convolution of one channel, from its definition."""
    points = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, len(grid))
    both = np.r_[0:modes, -modes:0]
    axes = [both] * (len(grid) - 1) + [np.arange(modes)]
    waves = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(grid))
    # A wave number and its negative belong to one real field: half of the real part each.
    factors = weights.reshape(-1) * np.where(waves[:, -1] == 0, 1, 2)
    phase = 2j * np.pi * (points[:, None] - points[None]) / np.array(grid)
    return (np.exp(phase @ waves.T) @ factors).real / len(points)


@pytest.mark.parametrize(("grid", "modes"), [((12,), 3), ((7,), 3), ((6, 10), 2), ((4, 5, 6), 2)])
def test_is_the_convolution_that_its_modes_say(grid, modes):
    layer = SpectralConv(1, modes)
    h = jax.random.normal(jax.random.key(0), (*grid, 1))
    variables = jax.jit(layer.init)(jax.random.key(1), h)
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    weights = (kernel[0] + 1j * kernel[1])[..., 0, 0]
    if len(grid) > 1:
        # On the plane k = 0 of the last axis, only the Hermitian part makes a real field: the
        # real part in `circulant` takes care of it.
        assert weights.shape == (*(2 * modes,) * (len(grid) - 1), modes)
    expected = circulant(grid, modes, weights) @ np.asarray(h, np.float64).ravel()
    out = jax.jit(layer.apply)(variables, h)[..., 0]
    np.testing.assert_allclose(out, expected.reshape(grid), atol=1e-5)


def test_weights_serve_any_grid(trained):
    # A smooth field, finer: the same function at the shared points.
    model = FNO(3, 4, 2, 5, time_features="raw", dims=1)

    def field(n):
        angle = 2 * np.pi * np.arange(n) / n
        return jnp.asarray(np.cos(angle) + 0.3 * np.sin(2 * angle), jnp.float32)

    variables = trained(model, 0.3, field(64), None)
    apply = jax.jit(lambda x: model.apply(variables, 0.3, x, None))
    coarse, fine = apply(field(64)), apply(field(128))
    np.testing.assert_allclose(fine[::2], coarse, atol=1e-4 * np.abs(coarse).max())


def test_commutes_with_every_shift_without_margin(trained):
    x = jax.random.normal(jax.random.key(0), (8, 9))
    for margin in (0, 2):
        model = FNO(2, 4, 2, 5, margin=margin)
        variables = trained(model, 0.3, x, None)
        apply = jax.jit(lambda x, m=model, v=variables: m.apply(v, 0.3, x, None))
        miss = apply(jnp.roll(x, (1, 3), (0, 1))) - jnp.roll(apply(x), (1, 3), (0, 1))
        assert (np.abs(miss).max() < 1e-4 * np.abs(apply(x)).max()) == (margin == 0)


def test_new_layers_keep_the_size_of_smooth_fields():
    # Variance out over variance in, over 200 draws of 16 channels: within 10 %, five of its
    # standard errors of 2 %.
    angle = 2 * np.pi * np.arange(32) / 32
    waves = np.stack([np.cos(k * angle + k) for k in range(1, 17)], axis=-1)
    layer = SpectralConv(16, 17)
    keys = jax.random.split(jax.random.key(0), 200)
    h = jnp.asarray(waves, jnp.float32)
    out = jax.jit(jax.vmap(lambda k: layer.init_with_output(k, h)[0]))(keys)
    np.testing.assert_allclose(out.var() / h.var(), 1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": 0}, "modes must be at least 1, got 0"),
        ({"margin": -1}, "margin must be at least 0, got -1"),
        ({"modes": 5}, "modes must be at most 4"),
        ({"modes": 6, "margin": 2}, "modes must be at most 5"),
    ],
)
def test_bad_options(options, message):
    model = FNO(**options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), 0.3, jnp.zeros((8, 8)), None)

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.models.layers import Conv, by_convolution, by_matmul, check_padding

WAYS = (by_matmul, by_convolution)


@pytest.mark.parametrize("side", [3, 5])
def test_walls_are_what_they_say(side, trained):
    # A mirror at the wall: the same as the periodic convolution of the even extension. Zero: the
    # same as that of the field in a box of zeros.
    x = jax.random.normal(jax.random.key(0), (6, 8, 2))
    variables = trained(Conv(3, side, "zero"), x)
    even = jnp.concatenate([x, x[::-1]], axis=0)
    even = jnp.concatenate([even, even[:, ::-1]], axis=1)
    boxed = jnp.pad(x, ((2, 2), (2, 2), (0, 0)))
    periodic = Conv(3, side, "periodic")
    expected = jax.jit(periodic.apply)(variables, even)[:6, :8]
    out = jax.jit(Conv(3, side, "reflect").apply)(variables, x)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    expected = jax.jit(periodic.apply)(variables, boxed)[2:-2, 2:-2]
    np.testing.assert_allclose(
        jax.jit(Conv(3, side, "zero").apply)(variables, x), expected, atol=1e-5
    )


def test_periodic_convolution_in_fourier_space():
    x = jax.random.normal(jax.random.key(0), (6, 8, 1))
    variables = jax.jit(Conv(1, 3, "periodic").init)(jax.random.key(1), x)
    kernel = np.zeros((6, 8))
    stencil = np.asarray(variables["params"]["kernel"])[:, :, 0, 0]
    for i in range(3):
        for j in range(3):
            kernel[-(i - 1) % 6, -(j - 1) % 8] = stencil[i, j]
    expected = np.fft.ifft2(np.fft.fft2(x[..., 0]) * np.fft.fft2(kernel)).real
    out = jax.jit(Conv(1, 3, "periodic").apply)(variables, x)[..., 0]
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "dilation", "mirrored", "offsets"),
    [
        (3, 2, False, [-2, 0, 2]),
        (3, 4, False, [-4, 0, 4]),
        (4, 1, False, [-1, 0, 1, 2]),
        (4, 1, True, [-2, -1, 0, 1]),
        (2, 3, False, [-1, 2]),
    ],
)
def test_which_cells_a_kernel_sees(kernel, dilation, mirrored, offsets):
    layer = Conv(1, kernel, "periodic", dilation=dilation, mirrored=mirrored)
    point = jnp.zeros((16, 16, 1)).at[8, 8].set(1.0)
    stencil = 1 + jnp.arange(float(kernel**2)).reshape(kernel, kernel, 1, 1)
    variables = {"params": {"kernel": stencil, "bias": jnp.zeros(1)}}
    out = np.asarray(jax.jit(layer.apply)(variables, point)[..., 0])
    expected = np.zeros((16, 16))
    for (i, a), (j, b) in itertools.product(enumerate(offsets), repeat=2):
        # The cell that lies `a` below the point sees it at offset `a`.
        expected[8 - a, 8 - b] = stencil[i, j, 0, 0]
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_reach_beyond_the_grid():
    # Wider than the field: a periodic field goes on, seen here on four copies of it.
    x = jax.random.normal(jax.random.key(0), (3, 1))
    variables = {"params": {"kernel": jnp.ones((3, 1, 1)), "bias": jnp.zeros(1)}}
    once = jax.jit(Conv(1, 3, "periodic", dilation=4).apply)(variables, x)
    copies = jax.jit(Conv(1, 3, "periodic", dilation=4).apply)(variables, jnp.tile(x, (4, 1)))
    np.testing.assert_allclose(jnp.tile(once, (4, 1)), copies, atol=1e-6)
    np.testing.assert_allclose(once[:, 0], np.full(3, x.sum()), atol=1e-6)


@pytest.mark.parametrize(("dims", "kernel", "dilation"), [(1, 4, 2), (2, 3, 2), (3, 2, 1)])
def test_both_ways_of_computing_it_agree(dims, kernel, dilation):
    k_field, k_kernel = jax.random.split(jax.random.key(0))
    h = jax.random.normal(k_field, (*(9,) * dims, 2))
    weights = jax.random.normal(k_kernel, (*(kernel,) * dims, 2, 3))
    results = [jax.jit(f, static_argnums=0)(dilation, h, weights) for f in WAYS]
    np.testing.assert_allclose(*results, atol=1e-4)


def test_unknown_padding():
    with pytest.raises(ValueError, match="padding must be one of"):
        check_padding("mirror")

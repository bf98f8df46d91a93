"""Random fields on a periodic square, one Fourier mode at a time.

The transform is unitary (``norm="ortho"``): white noise of unit variance per point has unit
variance per mode, and a field's sum of squares is the same in both spaces. Arrays over modes have
the layout of ``numpy.fft.fft2``, integer wavenumbers, the zero mode first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from smdp_jax.physics.spectral.periodic import modes_shape, multiplicity, squared_wavenumbers
from smdp_jax.sde import State


def power_law(size: int, exponent: float | int) -> Float[np.ndarray, "size size"]:
    """Variance per unitary mode proportional to ``|k|^exponent``, unit variance per point.

    The zero mode has variance 0: fields have zero mean.
    """
    k2 = squared_wavenumbers((size, size), full=True)
    spectrum = np.where(k2 > 0, np.where(k2 > 0, k2, 1) ** (exponent / 2), 0)
    return spectrum * size**2 / spectrum.sum()


def filter_modes(
    multipliers: Float[Array, "size size"], x: Float[Array, "size size"]
) -> Float[Array, "size size"]:
    """Multiply every Fourier mode of a real field by a real number."""
    size = x.shape[0]
    spectrum = jnp.fft.rfft2(x)
    half = multipliers[:, : size // 2 + 1].astype(spectrum.dtype)
    return jnp.fft.irfft2(half * spectrum, s=(size, size))


def draw_fields(
    key: PRNGKeyArray, n: int, variance: Float[Array, "size size"]
) -> Float[Array, "n size size"]:
    """Draw Gaussian fields of zero mean, from the variance of each unitary mode."""
    white = jax.random.normal(key, (n, *variance.shape))
    return jax.vmap(filter_modes, (None, 0))(jnp.sqrt(variance), white)


def spectral_modes(x: Float[Array, "size size"]) -> Complex[Array, "size size"]:
    """Unitary Fourier transform of a field.

    Parameters
    ----------
    x : array, shape (size, size)
        Field.

    Returns
    -------
    complex array, shape (size, size)
        Amplitudes in units of the field.
    """
    return jnp.fft.fft2(x, norm="ortho")


def _average_shells(
    variance: Float[Array, "*modes"], grid: tuple[int, ...]
) -> Float[Array, "*modes"]:
    _, shell = np.unique(squared_wavenumbers(grid).ravel(), return_inverse=True)
    weight = multiplicity(grid).ravel()
    count = np.bincount(shell, weight)
    share = jnp.asarray(weight / count[shell], variance.dtype)
    means = jnp.zeros(count.shape, variance.dtype).at[shell].add(share * variance.ravel())
    return means[shell].reshape(variance.shape)


def mode_variance(xs: State, *, radial: bool = False) -> State:
    """Second moment E|x_k|² of every Fourier mode over a sample of fields.

    Parameters
    ----------
    xs : pytree
        Real fields, leaves (n, *grid); any number of grid axes.
    radial : bool
        Average over modes of equal |k|², in periods per box: less estimation noise where
        statistics are isotropic on a box of equal sides. The relative error of an entry is about
        sqrt(2 / (n m)), m the number of modes in its shell (1 without averaging).

    Returns
    -------
    pytree
        Leaves (*grid[:-1], grid[-1] // 2 + 1), in the units of x².
    """

    def of_leaf(leaf: ArrayLike) -> Array:
        leaf = jnp.asarray(leaf)
        if leaf.ndim < 2 or leaf.shape[0] == 0:
            raise ValueError(f"xs must be fields (n, *grid), n at least 1, got {leaf.shape}")
        grid = leaf.shape[1:]

        # One field at a time: the modes of all of them need not fit in memory.
        def add(total: Array, field: Array) -> tuple[Array, None]:
            modes = jnp.fft.rfftn(field, norm="ortho")
            return total + modes.real**2 + modes.imag**2, None

        total, _ = jax.lax.scan(add, jnp.zeros(modes_shape(grid), leaf.dtype), leaf)
        variance = total / leaf.shape[0]
        return _average_shells(variance, grid) if radial else variance

    return jax.tree.map(of_leaf, xs)

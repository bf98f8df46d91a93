"""Random fields on a periodic square, one Fourier mode at a time.

The transform is unitary (``norm="ortho"``): white noise of unit variance per point has unit
variance per mode, and a field's sum of squares is the same in both spaces. Arrays over modes have
the layout of ``numpy.fft.fft2``, integer wavenumbers, the zero mode first.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

__all__ = ["filter_modes", "mode_variance", "power_law", "spectral_modes", "squared_wavenumbers"]


def squared_wavenumbers(size: int) -> Float[np.ndarray, "size size"]:
    """Squared integer wavenumbers ``|k|^2`` of a periodic square of side 2 pi."""
    k = np.fft.fftfreq(size) * size
    return k[:, None] ** 2 + k[None, :] ** 2


def power_law(size: int, exponent: float | int) -> Float[np.ndarray, "size size"]:
    """Variance per unitary mode proportional to ``|k|^exponent``, unit variance per point.

    The zero mode has variance 0: fields have zero mean.
    """
    k2 = squared_wavenumbers(size)
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


def mode_variance(xs: Float[Array, "samples size size"]) -> Float[Array, "size size"]:
    """Mean squared amplitude per unitary mode of a batch of fields.

    Parameters
    ----------
    xs : array, shape (samples, size, size)
        Fields; their mean is taken to be zero.

    Returns
    -------
    array, shape (size, size)
        Its mean over modes is the mean variance per point.
    """
    modes = jnp.fft.fft2(xs, norm="ortho")
    return jnp.mean(jnp.real(modes) ** 2 + jnp.imag(modes) ** 2, axis=0)

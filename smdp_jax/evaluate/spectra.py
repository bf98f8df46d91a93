"""Spectra of periodic fields over shells of integer wavenumber, and the error between two.

    shell k = {wave vectors q : k - 1/2 <= |q| < k + 1/2},    A(k) = mean over shell k of |FFT u|
    E(k) = sum over shell k of |FFT u|^2 / N^2,               sum over k of E(k) = mean of u^2

q counts periods over the box along each axis and N is the number of grid points. Every axis of a
field is an axis of the grid (one, two or three of them); use ``jax.vmap`` for channels and batches.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax.checks import check_holds, check_positive, check_within
from smdp_jax.evaluate.arrays import (
    AnyArray,
    Grid,
    Number,
    as_float,
    check_same_shape,
    check_varying,
)


def shell_indices(shape: tuple[int, ...]) -> np.ndarray:
    """Shell that each entry of an FFT belongs to.

    Parameters
    ----------
    shape : tuple of int
        Grid points along each axis.

    Returns
    -------
    np.ndarray
        Integers of shape ``shape``, in the order of ``jnp.fft.fftn``: |q| rounded to the nearest
        integer.
    """
    axes = [np.fft.fftfreq(points, d=1 / points) for points in shape]
    squares = sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij"))
    return np.rint(np.sqrt(squares)).astype(np.int32)


def _shells(field: AnyArray, kmax: int | None) -> tuple[np.ndarray, int]:
    """Shell of every entry, with those beyond kmax in an extra last one; and kmax itself."""
    check_holds("field", field.size if field.ndim else 0, 1, "point along an axis or more")
    indices = shell_indices(field.shape)
    if kmax is None:
        kmax = min(field.shape) // 2
    check_within(f"[0, {indices.max()}]", kmax=kmax)  # shells of the grid
    return np.minimum(indices, kmax + 1).ravel(), kmax


def _shell_sums(values: Float[Array, "*grid"], shells: np.ndarray, kmax: int) -> Float[Array, " k"]:
    """Sum over every shell 0 ... kmax."""
    return jax.ops.segment_sum(values.ravel(), shells, num_segments=kmax + 2)[: kmax + 1]


def amplitude_spectrum(field: Grid, kmax: int | None = None) -> Float[Array, " shells"]:
    """Radial mean of the Fourier amplitude: A(k) = mean over shell k of |FFT u|.

    Parameters
    ----------
    field, kmax : array, int or None
        Values on a periodic grid, shape (*grid); last shell, by default half the shortest axis,
        beyond which shells are incomplete.

    Returns
    -------
    Float[Array, " shells"]
        A(0) ... A(kmax), in units of the field times grid points (unnormalised FFT). A pure mode
        u = a cos(q.x) puts |FFT u| = a N / 2 on each of the two entries +-q.
    """
    return _radial_mean(field, kmax, jnp.abs)


def _radial_mean(field: AnyArray, kmax: int | None, size: Callable) -> Float[Array, " shells"]:
    """Mean over every shell of the size of the FFT's entries."""
    shells, kmax = _shells(field, kmax)
    amplitudes = size(jnp.fft.fftn(as_float("field", field)))
    counts = np.bincount(shells, minlength=kmax + 2)[: kmax + 1]
    return _shell_sums(amplitudes, shells, kmax) / jnp.asarray(counts, amplitudes.dtype)


def power_spectrum(field: Grid, kmax: int | None = None) -> Float[Array, " shells"]:
    """Power in every shell: E(k) = sum over shell k of |FFT u|^2 / N^2.

    By Parseval's theorem the sum over all shells is the mean of u^2 over the grid. A field in two
    dimensions with power |q|^-p per mode has E(k) ~ k^(1 - p).

    Parameters
    ----------
    field, kmax
        As for `amplitude_spectrum`.

    Returns
    -------
    Float[Array, " shells"]
        E(0) ... E(kmax), in units of the field squared.
    """
    shells, kmax = _shells(field, kmax)
    modes = jnp.abs(jnp.fft.fftn(as_float("field", field), norm="forward"))
    return _shell_sums(jnp.square(modes), shells, kmax)


def spectral_error(x: Grid, y: Grid, kmax: int = 10) -> Number:
    """Mean over k = 1 ... kmax of |log A_x(k) - log A_y(k)| (Holzschuh et al. 2023).

    Symmetric in x and y, blind to where things are and to a shift of the mean; multiplying a field
    by c gives |log c|. Two independent draws of one random field do not have error 0 but a floor
    that depends on the number of modes per shell: log 2 for one mode, about 0.17 for 32 x 32 and
    kmax = 10. State the floor beside the figure. Figures of the paper's code do not compare with
    these: `published_spectral_error`.

    Parameters
    ----------
    x, y, kmax : array, array, int
        Two fields on the same periodic grid, shape (*grid), in the same units; last shell that
        counts, at least 1.

    Returns
    -------
    Float[Array, ""]
        The error in natural logarithms, dimensionless; inf if one field is empty in a shell in
        which the other is not.
    """
    return _log_distance(x, y, kmax, jnp.abs)


def published_spectral_error(x: Grid, y: Grid, kmax: int = 10) -> Number:
    """Mean over k = 1 ... kmax of |log B_x(k) - log B_y(k)|, B the radial mean of |Re IFFT u|.

    What the code published with Holzschuh et al. (2023) measures, to stand beside its figures. The
    real part moves when a field is shifted, so a field and its shifted copy differ, and the floor
    of two independent draws is higher: about 0.24 for 32 x 32 and kmax = 10. Prefer
    `spectral_error` elsewhere.

    Parameters
    ----------
    x, y, kmax
        As for `spectral_error`.

    Returns
    -------
    Float[Array, ""]
        The error in natural logarithms, dimensionless.
    """
    return _log_distance(x, y, kmax, lambda modes: jnp.abs(jnp.real(modes)))


def _log_distance(x: AnyArray, y: AnyArray, kmax: int, size: Callable) -> Number:
    """Mean absolute difference of the logarithms of two radial spectra; factors cancel."""
    check_same_shape(x=x, y=y)
    check_positive(optional="kmax", kmax=kmax)
    check_varying(x=x, y=y)
    logs = [jnp.log(_radial_mean(field, kmax, size)[1:]) for field in (x, y)]
    return jnp.mean(jnp.abs(logs[0] - logs[1]))

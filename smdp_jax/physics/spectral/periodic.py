"""Spectral helpers on the unit torus: wavenumbers, the 2/3 rule, coarser and finer grids.

A field holds its values at the points ``j / size`` along every axis, ``size`` even. Half spectra
have the layout of ``numpy.fft.rfftn``.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from smdp_jax.checks import check_floating, check_shape
from smdp_jax.physics.conditions import check_even


def _wavenumbers(shape: tuple[int, ...], *, full: bool = False) -> Sequence[np.ndarray]:
    """Integer wavenumbers along each axis, as a mesh over the half spectrum or the full one."""
    axes = [np.fft.fftfreq(n, 1 / n) for n in shape]
    if not full:
        axes[-1] = np.fft.rfftfreq(shape[-1], 1 / shape[-1])
    return np.meshgrid(*axes, indexing="ij")


def squared_wavenumbers(shape: tuple[int, ...], *, full: bool = False) -> np.ndarray:
    """|k|² per mode, k integer (periods per box)."""
    return np.rint(sum(k**2 for k in _wavenumbers(shape, full=full))).astype(int)


def modes_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the half spectrum."""
    return (*shape[:-1], shape[-1] // 2 + 1)


def multiplicity(shape: tuple[int, ...]) -> np.ndarray:
    """How many modes of the full spectrum each mode of the half one stands for."""
    last = np.arange(shape[-1] // 2 + 1)
    own_conjugate = (2 * last) % shape[-1] == 0
    return np.broadcast_to(np.where(own_conjugate, 1, 2), modes_shape(shape)).copy()


def angular_wavenumbers(shape: tuple[int, ...]) -> tuple[Float[np.ndarray, "*_half"], ...]:
    """Angular wavenumbers ``2 pi k`` along each axis."""
    return tuple(2 * math.pi * k for k in _wavenumbers(shape))


def dealiased(shape: tuple[int, ...]) -> Bool[np.ndarray, "*_half"]:
    """Modes that a product of two of them does not alias into: ``3 |k| < size`` on every axis."""
    axes = zip(_wavenumbers(shape), shape, strict=True)
    return np.all([3 * np.abs(k) < n for k, n in axes], axis=0)


def coarsen(x: Float[Array, "*_fine"], size: int) -> Float[Array, "*_coarse"]:
    """Truncate the spectrum of a field to that of a coarser grid.

    White noise of variance v per point of the fine grid has the variance
    ``v (size / fine size)^axes`` per point after it.

    Parameters
    ----------
    x, size : array, int
        One field, the same number of points along every axis; points per side of the coarse grid,
        even, from 2 to those of ``x``.

    Returns
    -------
    array
        ``size`` points per side, in units of the field; without the coarse grid's Nyquist modes.

    Raises
    ------
    ValueError
        If ``size`` is odd, below 2, or larger than that of ``x``.
    """
    check_even("size", size, 2, x.shape[0])
    return _resample(x, size)


def refine(x: Float[Array, "*_coarse"], size: int) -> Float[Array, "*_fine"]:
    """Evaluate the trigonometric interpolant of a field on a finer grid.

    Parameters
    ----------
    x, size
        As for `coarsen`, with at least the points of ``x``.

    Returns
    -------
    array
        ``size`` points per side, in units of the field; without the Nyquist modes of ``x``.

    Raises
    ------
    ValueError
        If ``size`` is odd or smaller than that of ``x``.
    """
    check_even("size", size, x.shape[0])
    return _resample(x, size)


def waves(size: int, modes: int) -> Float[np.ndarray, "coefficients size"]:
    """Cosines, then sines, of wavenumbers 1 ... modes on the unit interval."""
    phase = 2 * math.pi * np.outer(np.arange(1, modes + 1), np.arange(size) / size)
    return np.concatenate([np.cos(phase), np.sin(phase)])


def check_grid(x: Any, shape: tuple[int, ...], owner: str) -> None:
    """Check that a state lives on the grid of its system."""
    check_shape(f"the state of {owner}", x, shape, " (use jax.vmap over batches)")
    check_floating(f"the state of {owner}", x)


def _resample(x: Array, size: int) -> Array:
    """Copy the modes below the Nyquist mode of the coarser grid; the others are 0."""
    old, axes = x.shape[0], tuple(range(x.ndim))
    kept = min(old, size) // 2
    spectrum = jnp.fft.rfftn(x)
    new_shape = (*[size] * (x.ndim - 1), size // 2 + 1)
    # Wavenumbers 0 ... kept - 1 on the last axis, and their negatives too on the others.
    low = np.r_[0:kept, -kept + 1 : 0]
    source = np.ix_(*[low % old] * (x.ndim - 1), np.arange(kept))
    target = np.ix_(*[low % size] * (x.ndim - 1), np.arange(kept))
    moved = jnp.zeros(new_shape, spectrum.dtype).at[target].set(spectrum[source])
    return jnp.fft.irfftn(moved, s=[size] * x.ndim, axes=axes) * (size / old) ** x.ndim

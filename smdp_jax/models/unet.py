"""Convolutional encoder-decoder with skips (U-Net) for fields on a regular grid.

Level l works on the grid coarsened 2^l times, with channels[l] channels; on the way up a level is
added to what its own resolution knew on the way down. Time and global conditions modulate every
block: h ← (1 + a(t)) h + b(t) per channel.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PyTree

from smdp_jax.models.layers import dense, lecun_normal
from smdp_jax.models.layout import (
    Conditions,
    common_grid,
    everything,
    from_channels,
    split_conditions,
    state_dtype,
    to_channels,
)
from smdp_jax.models.time_features import TimeFeatures, time_vector

# "reflect" mirrors at the face of the last cell, where a wall stands for cell-centred fields.
_PAD_MODES = {"periodic": "wrap", "zero": "constant", "reflect": "symmetric"}


class Conv(nn.Module):
    """Convolution that keeps the grid, with a choice of what lies outside it.

    Parameters
    ----------
    features : int
        Number of output channels.
    kernel : int
        Width of the kernel along each grid axis, odd.
    padding : str
        "periodic", "zero" or "reflect".
    zero_init : bool
        Start at zero instead of LeCun's normal initialisation.
    """

    features: int
    kernel: int
    padding: str
    zero_init: bool = False

    @nn.compact
    def __call__(self, h: Float[Array, "*grid c"]) -> Float[Array, "*grid features"]:
        """Convolve one field of shape (*grid, c)."""
        dims, side = h.ndim - 1, self.kernel // 2
        if side:
            h = jnp.pad(h, [(side, side)] * dims + [(0, 0)], mode=_PAD_MODES[self.padding])
        init = nn.initializers.zeros if self.zero_init else lecun_normal
        shape = (*(self.kernel,) * dims, h.shape[-1], self.features)
        kernel = self.param("kernel", init, shape, h.dtype).astype(h.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), h.dtype).astype(h.dtype)
        # Inside a loop, XLA's gradient of a convolution is ten times slower on CPU than this.
        out = jax.lax.platform_dependent(h, kernel, cpu=_by_matmul, default=_by_convolution)
        return out + bias.reshape((1,) * dims + (-1,))


def _by_convolution(h: Array, kernel: Array) -> Array:
    spatial = "DHW"[-(h.ndim - 1) :]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    strides = (1,) * (h.ndim - 1)
    return jax.lax.conv_general_dilated(
        h[None], kernel, strides, "VALID", dimension_numbers=layout
    )[0]


def _by_matmul(h: Array, kernel: Array) -> Array:
    *width, _, features = kernel.shape
    grid = [n - w + 1 for n, w in zip(h.shape, width, strict=False)]
    shifts = itertools.product(*(range(w) for w in width))
    seen = [h[tuple(slice(s, s + n) for s, n in zip(at, grid, strict=True))] for at in shifts]
    return jnp.concatenate(seen, axis=-1) @ kernel.reshape(-1, features)


class ResidualBlock(nn.Module):
    """Two convolutions with modulation between, beside a shortcut: (shortcut(h) + r(h)) / √2.

    Parameters
    ----------
    features : int
        Number of output channels.
    kernel, padding
        As in `Conv`.
    """

    features: int
    kernel: int
    padding: str

    @nn.compact
    def __call__(
        self, h: Float[Array, "*grid c"], embedding: Float[Array, " e"]
    ) -> Float[Array, "*grid features"]:
        """Transform one field of shape (*grid, c), given the embedding of time and conditions."""
        r = Conv(self.features, self.kernel, self.padding)(nn.silu(h))
        film = dense(2 * self.features, h.dtype)(embedding)
        gain, shift = jnp.split(film.reshape((1,) * (h.ndim - 1) + (-1,)), 2, axis=-1)
        r = Conv(self.features, self.kernel, self.padding)(nn.silu((1 + gain) * r + shift))
        if h.shape[-1] != self.features:
            h = Conv(self.features, 1, self.padding)(h)
        # No normalisation layers: a score depends on the amplitude of the field.
        return (h + r) / np.sqrt(2).item()


def coarsen(h: Float[Array, "*fine c"]) -> Float[Array, "*coarse c"]:
    """Mean over blocks of 2 cells along each grid axis.

    Parameters
    ----------
    h : array (*grid, c)
        Field with even sides.

    Returns
    -------
    array (*grid / 2, c)
        The means.
    """
    *grid, channels = h.shape
    blocks = h.reshape(*(n for side in grid for n in (side // 2, 2)), channels)
    return blocks.mean(axis=tuple(range(1, 2 * len(grid), 2)))


def refine(h: Float[Array, "*coarse c"]) -> Float[Array, "*fine c"]:
    """Repeat each cell twice along each grid axis.

    Parameters
    ----------
    h : array (*grid, c)
        Field.

    Returns
    -------
    array (2 *grid, c)
        Piecewise constant field on the finer grid.
    """
    for axis in range(h.ndim - 1):
        h = jnp.repeat(h, 2, axis=axis)
    return h


def cell_centres(grid: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "*grid dims"]:
    """Coordinates of the cell centres, from -1 to 1 along each axis.

    Parameters
    ----------
    grid : tuple of int
        Number of cells along each axis.
    dtype : dtype
        Floating dtype.

    Returns
    -------
    array (*grid, dims)
        One channel per axis.
    """
    axes = [(2 * np.arange(side) + 1) / side - 1 for side in grid]
    return jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1), dtype)


class UNet(nn.Module):
    """U-Net over a state of fields that share one grid; time enters by modulation.

    Leaves of the state are (*grid,) or (*grid, channels) arrays; all become channels of one field.
    With periodic padding and no coordinates it commutes with shifts by 2^levels cells, levels =
    len(channels) - 1. The last convolution starts at zero, so an untrained score is 0.

    Parameters
    ----------
    channels : sequence of int
        Channels at each resolution, finest first. Good values: (16, 32, 48) on a CPU, (32, 64, 96,
        128) on a GPU. Each grid side must be a multiple of 2^(len(channels) - 1).
    kernel : int
        Width of the convolutions in cells, odd.
    padding : str
        What lies outside the grid: "periodic", "zero", or "reflect" (mirror at the wall).
    blocks : int
        Residual blocks per resolution, on the way down and up each.
    dims : int
        Number of grid axes: 1, 2 or 3.
    coordinates : bool
        Also show the network where a cell is (channels from -1 to 1); for walls, not for
        periodic boxes.
    embedding : int
        Size of the vector that carries time and global conditions to the blocks.
    time_features : str or callable
        What is seen of time: "log_fourier" (default), "log", "raw", a `Fourier(...)`, or a
        function of t.
    conditions : callable
        Which part of `args` is seen (default: all of it). Leaves on the state's grid become
        channels (obstacle masks); scalars and vectors join the embedding (viscosities).

    References
    ----------
    Ronneberger, Fischer, Brox, "U-Net", 2015; Perez et al., "FiLM", 2018, eq. 2.
    """

    channels: Sequence[int] = (16, 32, 48)
    kernel: int = 3
    padding: str = "periodic"
    blocks: int = 1
    dims: int = 2
    coordinates: bool = False
    embedding: int = 64
    time_features: TimeFeatures = "log_fourier"
    conditions: Conditions = everything

    @nn.compact
    def __call__(self, t: ArrayLike, x: PyTree, args: Any) -> PyTree:
        """Score at one time and state.

        Parameters
        ----------
        t : float or scalar array
            Time, in the units of the process.
        x : pytree
            State, a pytree of (*grid,) or (*grid, channels) floating-point arrays, unbatched.
        args : pytree
            Conditions, a pytree of fields on the same grid, scalars or vectors.

        Returns
        -------
        pytree
            Same structure, shapes and dtypes as x.

        Raises
        ------
        ValueError, TypeError
            If leaves have another rank or different grids, a side is not a multiple of 2^levels,
            a condition fits nowhere, or an option of the network is out of range.
        """
        dtype = state_dtype(x)
        grid = common_grid(x, self.dims)
        self._check(grid)
        fields, numbers = split_conditions(self.conditions(args), grid, dtype)
        state = to_channels(x, grid, dtype)
        seen = [state, fields]
        if self.coordinates:
            seen.append(cell_centres(grid, dtype))
        embedding = jnp.concatenate([time_vector(self.time_features, t, dtype), numbers])
        for _ in range(2):
            embedding = nn.silu(dense(self.embedding, dtype)(embedding))

        h = self._conv(self.channels[0])(jnp.concatenate(seen, axis=-1))
        h = self._down_and_up(h, embedding)
        out = self._conv(state.shape[-1], zero_init=True)(nn.silu(h))
        return from_channels(out, x)

    def _down_and_up(
        self, h: Float[Array, "*grid c"], embedding: Float[Array, " e"]
    ) -> Float[Array, "*grid c"]:
        finer = []
        for level, width in enumerate(self.channels):
            h = coarsen(h) if level else h
            h = self._residual(h, embedding, width)
            finer.append(h)
        finer.pop()
        for width, skip in zip(reversed(self.channels[:-1]), reversed(finer), strict=True):
            # Narrowed before it is refined, and added rather than stacked: half the arithmetic.
            h = refine(Conv(width, 1, self.padding)(h)) + skip
            h = self._residual(h, embedding, width)
        return h

    def _residual(
        self, h: Float[Array, "*grid c"], embedding: Float[Array, " e"], width: int
    ) -> Float[Array, "*grid width"]:
        for _ in range(self.blocks):
            h = ResidualBlock(width, self.kernel, self.padding)(h, embedding)
        return h

    def _conv(self, features: int, zero_init: bool = False) -> Conv:
        return Conv(features, self.kernel, self.padding, zero_init)

    def _check(self, grid: tuple[int, ...]) -> None:
        if self.padding not in _PAD_MODES:
            raise ValueError(f"padding must be one of {list(_PAD_MODES)}, got {self.padding!r}")
        if min(self.channels, default=0) < 1 or self.blocks < 1:
            raise ValueError(
                f"channels and blocks must be positive, got {self.channels} and {self.blocks}"
            )
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        factor = 2 ** (len(self.channels) - 1)
        if any(side % factor for side in grid):
            raise ValueError(
                f"grid {grid} cannot be halved {len(self.channels) - 1} times: each side must be a "
                f"multiple of {factor}; give fewer channels, or pad or resample the state"
            )

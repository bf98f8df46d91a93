"""Fourier neural operator: layers that mix channels per Fourier mode, for the lowest modes only.

h ← σ(W h + F⁻¹[R_k (F h)_k]),  R_k = 0 for |k_a| above the number of modes kept along an axis a,
with W and each R_k matrices over the channels. The weights do not depend on the grid, so a trained
operator can be called on a finer one.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax.checks import check_positive
from smdp_jax.models.field_network import FieldNetwork, as_channels
from smdp_jax.models.layers import dense, lecun_normal
from smdp_jax.models.layout import at_least_float32


class SpectralConv(nn.Module):
    """Convolution with a kernel of few Fourier modes, on a periodic grid."""

    features: int
    modes: int

    @nn.compact
    def __call__(self, h: Float[Array, "*grid c"]) -> Float[Array, "*grid features"]:
        """Convolve one field of shape (*grid, c)."""
        given, h = h.dtype, h.astype(at_least_float32(h.dtype))  # there is no narrower FFT
        *grid, channels = h.shape
        axes = tuple(range(len(grid)))
        both = np.r_[0 : self.modes, -self.modes : 0]
        kept = np.ix_(*[both] * (len(grid) - 1), np.arange(self.modes))
        low = jnp.fft.rfftn(h, axes=axes, norm="forward")[kept]
        # Real and imaginary part: an optimiser need not know of complex numbers.
        shape = (2, *low.shape[:-1], channels, self.features)
        parts = self.param("kernel", _mode_init, shape, h.dtype).astype(h.dtype)
        mixed = jnp.einsum("...i,...io->...o", low, jax.lax.complex(parts[0], parts[1]))
        full = jnp.zeros((*grid[:-1], grid[-1] // 2 + 1, self.features), mixed.dtype)
        out = jnp.fft.irfftn(full.at[kept].set(mixed), s=grid, axes=axes, norm="forward")
        return out.astype(given)


def _mode_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, "..."]:
    """Complex entries of variance 1 / channels, which keep the variance of every mode."""
    channels = shape[-2]
    draws = lecun_normal(key, (channels, math.prod(shape) // channels), dtype)
    return draws.reshape(shape) / math.sqrt(2)


class FNO(FieldNetwork):
    """Fourier neural operator over a state of fields that share one grid.

    With `margin=0` and no coordinates it commutes with every shift of the periodic grid. The last
    layer starts at zero, so an untrained score is 0. Time and global conditions are constant
    channels of the input.

    Parameters
    ----------
    modes, width, layers : int
        Modes kept along each axis, at most half the side of the grid; channels of every hidden
        field; number of Fourier layers.
    projection, margin : int
        Size of the hidden layer that turns channels into the score, point by point; cells of zeros
        beyond the end of each axis, cut off again, for fields that are not periodic: good values
        are 0, or an eighth of the side.
    dims, coordinates, time_features, conditions, dtype
        As for `FieldNetwork`.

    References
    ----------
    Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR 2021,
    eqs. 2 to 5.
    """

    modes: int = 12
    width: int = 20
    layers: int = 4
    projection: int = 128
    margin: int = 0

    def transform(
        self, h: Float[Array, "*grid c"], vector: Float[Array, " n"], features: int
    ) -> Float[Array, "*grid features"]:
        *grid, _ = h.shape
        h = self.narrow(dense(self.width, h.dtype)(as_channels(vector, h)))
        h = jnp.pad(h, [(0, self.margin)] * len(grid) + [(0, 0)])
        for layer in range(self.layers):
            h = dense(self.width, h.dtype)(h) + SpectralConv(self.width, self.modes)(h)
            h = nn.gelu(h) if layer < self.layers - 1 else h
        h = h[tuple(slice(side) for side in grid)]
        h = nn.gelu(dense(self.projection, h.dtype)(h))
        return dense(features, h.dtype, zero_init=True)(h)

    def check(self, grid: tuple[int, ...]) -> None:
        check_positive(modes=self.modes, width=self.width, layers=self.layers)
        check_positive(projection=self.projection)
        check_positive(least=0, margin=self.margin)
        if 2 * self.modes > (side := min(grid) + self.margin):
            said = f"modes must be at most {side // 2}, half the grid {grid} and its margin"
            raise ValueError(f"{said}, got {self.modes}")

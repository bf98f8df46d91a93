"""Convolutional encoder-decoder with skips (U-Net) for fields on a regular grid.

Level l works on the grid coarsened 2^l times, with channels[l] channels; on the way up a level is
added to what its own resolution knew on the way down. Time and global conditions modulate every
block: h ← (1 + a(t)) h + b(t) per channel.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax.checks import check_counts, check_positive
from smdp_jax.models.field_network import FieldNetwork
from smdp_jax.models.layers import Conv, check_odd, check_padding, embed, modulate


class ResidualBlock(nn.Module):
    """Two convolutions with modulation between, beside a shortcut: (shortcut(h) + r(h)) / √2."""

    features: int
    kernel: int
    padding: str

    @nn.compact
    def __call__(
        self, h: Float[Array, "*grid c"], embedding: Float[Array, " e"]
    ) -> Float[Array, "*grid features"]:
        """Transform one field of shape (*grid, c), given the embedding of time and conditions."""
        r = Conv(self.features, self.kernel, self.padding)(nn.silu(h))
        r = nn.silu(modulate(r, embedding))
        r = Conv(self.features, self.kernel, self.padding)(r)
        if h.shape[-1] != self.features:
            h = Conv(self.features, 1, self.padding)(h)
        # No normalisation layers: a score depends on the amplitude of the field.
        return (h + r) / np.sqrt(2).item()


def coarsen(h: Float[Array, "*fine c"]) -> Float[Array, "*coarse c"]:
    """Mean over blocks of 2 cells along each grid axis."""
    *grid, channels = h.shape
    blocks = h.reshape(*(n for side in grid for n in (side // 2, 2)), channels)
    return blocks.mean(axis=tuple(range(1, 2 * len(grid), 2)))


def refine(h: Float[Array, "*coarse c"]) -> Float[Array, "*fine c"]:
    """Repeat each cell twice along each grid axis."""
    for axis in range(h.ndim - 1):
        h = jnp.repeat(h, 2, axis=axis)
    return h


class UNet(FieldNetwork):
    """U-Net over a state of fields that share one grid; time enters by modulation.

    With periodic padding and no coordinates it commutes with shifts by 2^levels cells, levels =
    len(channels) - 1. The last convolution starts at zero, so an untrained score is 0.

    Parameters
    ----------
    channels : sequence of int
        Channels at each resolution, finest first. Good values: (16, 32, 48) on a CPU, (32, 64, 96,
        128) on a GPU. Each grid side must be a multiple of 2^(len(channels) - 1).
    kernel, padding : int, str
        Width of the convolutions in cells, odd; what lies outside the grid: "periodic", "zero", or
        "reflect" (mirror at the wall).
    blocks, embedding : int
        Residual blocks per resolution, on the way down and up each; size of the vector that carries
        time and global conditions to them.
    dims, coordinates, time_features, conditions, dtype
        As for `FieldNetwork`.

    References
    ----------
    Ronneberger, Fischer, Brox, "U-Net", 2015; Perez et al., "FiLM", 2018, eq. 2.
    """

    channels: Sequence[int] = (16, 32, 48)
    kernel: int = 3
    padding: str = "periodic"
    blocks: int = 1
    embedding: int = 64

    def transform(
        self, h: Float[Array, "*grid c"], vector: Float[Array, " n"], features: int
    ) -> Float[Array, "*grid features"]:
        embedding = embed(vector, self.embedding)
        h = self._conv(self.channels[0])(self.narrow(h))
        h = self._down_and_up(h, embedding)
        return self._conv(features, zero_init=True)(nn.silu(h))

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

    def check(self, grid: tuple[int, ...]) -> None:
        check_padding(self.padding)
        check_counts(channels=self.channels)
        check_positive(blocks=self.blocks)
        check_odd(self.kernel)
        halvings = len(self.channels) - 1
        if any(side % 2**halvings for side in grid):
            said = f"each side of the grid must be a multiple of {2**halvings}, got {grid}"
            raise ValueError(f"{said}: give fewer channels, or pad the state")

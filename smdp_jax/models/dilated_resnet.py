"""Residual network of dilated convolutions at one resolution: sees far without coarsening.

h ← h + r_b(h) for every block b, r_b convolutions of growing and shrinking dilation with ReLU
between. A block of dilations d_j and width-3 kernels sees Σ d_j cells to every side.
"""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from smdp_jax.checks import check_counts, check_positive
from smdp_jax.models.field_network import FieldNetwork, as_channels
from smdp_jax.models.layers import Conv, check_odd, check_padding, embed, modulate


class DilatedResNet(FieldNetwork):
    """Dilated residual network over a state of fields that share one grid of any size.

    With periodic padding and no coordinates it commutes with every shift. The last convolution
    starts at zero, so an untrained score is 0.

    Parameters
    ----------
    channels, blocks : int
        Channels of every hidden field (good values: 32 to 48); number of residual blocks.
    dilations : sequence of int
        Dilations of the convolutions of each block. Good values: (1, 2, 2, 1) (Holzschuh et al.),
        (1, 2, 4, 8, 4, 2, 1) to see farther (Stachenfeld et al.).
    kernel, padding : int, str
        Width of the convolutions in cells, odd; what lies outside the grid: "periodic", "zero", or
        "reflect" (mirror at the wall).
    embedding : int
        0: time and global conditions are constant channels of the input. Otherwise the size of the
        vector that carries them to every block, which it modulates.
    dims, coordinates, time_features, conditions, dtype
        As for `FieldNetwork`.

    References
    ----------
    Stachenfeld et al., "Learned Coarse Models for Efficient Turbulence Simulation", 2022,
    section 3.1; Holzschuh, Vegetti, Thuerey, 2023, appendix on buoyancy-driven flow.
    """

    channels: int = 48
    blocks: int = 4
    dilations: Sequence[int] = (1, 2, 2, 1)
    kernel: int = 3
    padding: str = "periodic"
    embedding: int = 0

    def transform(
        self, h: Float[Array, "*grid c"], vector: Float[Array, " n"], features: int
    ) -> Float[Array, "*grid features"]:
        embedding = embed(vector, self.embedding) if self.embedding else None
        h = as_channels(vector, h) if embedding is None else h
        h = self.narrow(self._conv(self.channels)(h))
        for _ in range(self.blocks):
            h = self._block(h, embedding)
        return self._conv(features, zero_init=True)(h)

    def _block(self, h: Float[Array, "*grid c"], embedding: Array | None) -> Array:
        """Add what a block finds."""
        r = h if embedding is None else modulate(h, embedding)
        for dilation in self.dilations:
            r = nn.relu(self._conv(self.channels, dilation=dilation)(r))
        return h + r

    def _conv(self, features: int, *, dilation: int = 1, zero_init: bool = False) -> Conv:
        return Conv(features, self.kernel, self.padding, zero_init, dilation)

    def check(self, grid: tuple[int, ...]) -> None:
        check_padding(self.padding)
        check_positive(channels=self.channels, blocks=self.blocks)
        check_positive(least=0, embedding=self.embedding)
        check_counts(dilations=self.dilations)
        check_odd(self.kernel)

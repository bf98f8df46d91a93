"""Encoder and decoder of residual blocks at one resolution, with skips between.

The encoder's field passes through a few channels, `latent`, and every block of the decoder also
gets what its mirror image in the encoder put out.
"""

import flax.linen as nn
from jaxtyping import Array, Float

from smdp_jax.checks import check_positive
from smdp_jax.models.field_network import FieldNetwork, as_channels
from smdp_jax.models.layers import Conv, check_padding


class PairBlock(nn.Module):
    """Two convolutions beside a shortcut, h + r(h), leaky ReLU after each.

    The second one is mirrored, so that the pair is centred also where the kernel's width is even.
    """

    kernel: int
    padding: str

    @nn.compact
    def __call__(self, h: Float[Array, "*grid c"]) -> Float[Array, "*grid c"]:
        """Transform one field of shape (*grid, c)."""
        r = nn.leaky_relu(Conv(h.shape[-1], self.kernel, self.padding)(h))
        r = nn.leaky_relu(Conv(h.shape[-1], self.kernel, self.padding, mirrored=True)(r))
        return h + r


class EncoderDecoder(FieldNetwork):
    """Encoder-decoder over a state of fields that share one grid of any size.

    The network of the paper's heat experiment, with skips from every block of the encoder. Time and
    global conditions are constant channels of the input. With periodic padding and no coordinates
    it commutes with every shift. The last convolution starts at zero, so an untrained score is 0.

    Parameters
    ----------
    channels, blocks : int
        Channels of every hidden field; residual blocks of the encoder, and of the decoder.
    latent, kernel, padding : int, int, str
        Channels between the two; width of the convolutions in cells, also even; as for `UNet`.
    dims, coordinates, time_features, conditions, dtype
        As for `FieldNetwork`.

    References
    ----------
    Holzschuh, Vegetti, Thuerey, "Solving Inverse Physics Problems with Score Matching", 2023,
    appendix on the heat equation.
    """

    channels: int = 32
    blocks: int = 5
    latent: int = 1
    kernel: int = 4
    padding: str = "periodic"

    def transform(
        self, h: Float[Array, "*grid c"], vector: Float[Array, " n"], features: int
    ) -> Float[Array, "*grid features"]:
        h = self.narrow(self._conv(self.channels)(as_channels(vector, h)))
        encoded = []
        for _ in range(self.blocks):
            h = PairBlock(self.kernel, self.padding)(h)
            encoded.append(h)
        h = Conv(self.latent, 1, self.padding)(h)
        h = self._conv(self.channels, mirrored=True)(h)
        for skip in reversed(encoded):
            h = PairBlock(self.kernel, self.padding)(h + skip)
        return Conv(features, 5, self.padding, zero_init=True)(h)

    def _conv(self, features: int, *, mirrored: bool = False) -> Conv:
        return Conv(features, self.kernel, self.padding, mirrored=mirrored)

    def check(self, grid: tuple[int, ...]) -> None:
        check_padding(self.padding)
        check_positive(channels=self.channels, blocks=self.blocks)
        check_positive(latent=self.latent, kernel=self.kernel)

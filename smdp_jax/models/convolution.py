"""Convolutions that keep the grid, fast in loops on every device."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smdp_jax.models.layers import lecun_normal
from smdp_jax.models.layout import at_least_float32

# "reflect" mirrors at the face of the last cell, where a wall stands for cell-centred fields.
_PAD_MODES = {"periodic": "wrap", "zero": "constant", "reflect": "symmetric"}


def check_padding(padding: str) -> None:
    """Check that a kind of padding is known."""
    if padding not in _PAD_MODES:
        raise ValueError(f"padding must be one of {list(_PAD_MODES)}, got {padding!r}")


class Conv(nn.Module):
    """Convolution that keeps the grid, with a choice of what lies outside it."""

    features: int
    kernel: int
    padding: str
    zero_init: bool = False
    dilation: int = 1
    mirrored: bool = False

    @nn.compact
    def __call__(self, h: Float[Array, "*grid c"]) -> Float[Array, "*grid features"]:
        """Convolve one field of shape (*grid, c)."""
        dims, reach = h.ndim - 1, (self.kernel - 1) * self.dilation
        sides = (reach // 2, reach - reach // 2)
        if reach:
            sides = sides[::-1] if self.mirrored else sides
            h = jnp.pad(h, [sides] * dims + [(0, 0)], mode=_PAD_MODES[self.padding])
        init = nn.initializers.zeros if self.zero_init else lecun_normal
        shape = (*(self.kernel,) * dims, h.shape[-1], self.features)
        kept = at_least_float32(h.dtype)
        kernel = self.param("kernel", init, shape, kept).astype(h.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), kept).astype(h.dtype)
        # Inside a loop, XLA's gradient of a convolution is ten times slower on CPU than this.
        out = jax.lax.platform_dependent(
            h,
            kernel,
            cpu=functools.partial(by_matmul, self.dilation),
            default=functools.partial(by_convolution, self.dilation),
        )
        return out + bias.reshape((1,) * dims + (-1,))


def by_convolution(dilation: int, h: Array, kernel: Array) -> Array:
    """Convolve without padding, by XLA's convolution."""
    dims = h.ndim - 1
    spatial = "DHW"[-dims:]
    return jax.lax.conv_general_dilated(
        h[None],
        kernel,
        window_strides=(1,) * dims,
        padding="VALID",
        rhs_dilation=(dilation,) * dims,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )[0]


def by_matmul(dilation: int, h: Array, kernel: Array) -> Array:
    """Convolve without padding, by one product of shifted copies with the weights."""
    *width, _, features = kernel.shape
    grid = [n - (w - 1) * dilation for n, w in zip(h.shape, width, strict=False)]
    shifts = itertools.product(*(range(0, w * dilation, dilation) for w in width))
    seen = [h[tuple(slice(s, s + n) for s, n in zip(at, grid, strict=True))] for at in shifts]
    return jnp.concatenate(seen, axis=-1) @ kernel.reshape(-1, features)

"""Layers as all networks here use them: weights of variance 1 / fan_in, or zero.

Weights are drawn as one flat array and then shaped: XLA compiles the random bits of a four-axis
kernel ten times longer on CPU (over a second each), and a network has dozens. Convolutions keep
the grid, and are fast in loops on every device.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import check_choice, check_positive
from smdp_jax.models.layout import at_least_float32


def lecun_normal(
    key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike = float
) -> Float[Array, "..."]:
    """Kernel with independent entries from N(0, 1 / fan_in), which keeps a signal's variance."""
    draws = jax.random.normal(key, (math.prod(shape),), dtype)
    return draws.reshape(shape) / math.sqrt(math.prod(shape[:-1]))


@jax.custom_jvp
def elu(h: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exponential linear unit: h where it is positive, exp(h) - 1 elsewhere.

    Twice as fast on CPU as by XLA's expm1. Near 0 it is exact to the rounding of 1, not of h.
    """
    # exp(h) - 1 is above h wherever h is not 0.
    return jnp.maximum(h, jnp.exp(jnp.minimum(h, 0)) - 1)


@elu.defjvp
def _elu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (h,), (tangent,) = primals, tangents
    out = elu(h)
    # The slope is exp(h), which is there already: a second exponential would cost as much again.
    return out, (jnp.minimum(out, 0) + 1) * tangent


class Dense(nn.Module):
    """Affine layer over the last axis.

    Mapped vectors (in) are arrays (in, batch), not (batch, in): ``vmap`` moves a batch to the front
    where only one operand has it, but not in a product of matrices, so the bias is one, too. With
    whole rows of the batch an update of a small network takes two thirds of the time on a CPU.
    """

    features: int
    dtype: DTypeLike
    kernel_init: Callable[..., Array] = lecun_normal

    @nn.compact
    def __call__(self, h: Float[Array, "*grid c"]) -> Float[Array, "*grid d"]:
        shape, kept = (h.shape[-1], self.features), at_least_float32(self.dtype)
        kernel = jnp.asarray(self.param("kernel", self.kernel_init, shape, kept), self.dtype)
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, shape[1:], kept), self.dtype)
        h = h.astype(self.dtype)
        if h.ndim > 1:
            return jnp.tensordot(h, kernel, 1) + bias.reshape((1,) * (h.ndim - 1) + (-1,))
        one = jax.lax.pad(h[:0], jnp.ones((), h.dtype), [(0, 1, 0)])
        return _product(kernel, h) + _product(bias[None], one)


def _product(matrix: Float[Array, "c d"], vector: Float[Array, " c"]) -> Float[Array, " d"]:
    return jax.lax.dot_general(matrix, vector, (((0,), (0,)), ((), ())))


def dense(features: int, dtype: DTypeLike, *, zero_init: bool = False) -> Dense:
    """Affine layer that computes in a dtype, and keeps its parameters at least in float32."""
    return Dense(features, dtype, nn.initializers.zeros if zero_init else lecun_normal)


def embed(vector: Float[Array, "*grid n"], size: int) -> Float[Array, "*grid size"]:
    """Embedding of time and global conditions: two dense layers, to be called in a module."""
    for _ in range(2):
        vector = nn.silu(dense(size, vector.dtype)(vector))
    return vector


def modulate(h: Float[Array, "*grid c"], embedding: Float[Array, " e"]) -> Float[Array, "*grid c"]:
    """Scale and shift every channel, (1 + a) h + b, a and b linear in an embedding."""
    channels = h.shape[-1]
    film = dense(2 * channels, embedding.dtype)(embedding).reshape((1,) * (h.ndim - 1) + (-1,))
    gain, shift = jnp.split(film.astype(h.dtype), 2, axis=-1)
    return (1 + gain) * h + shift


# "reflect" mirrors at the face of the last cell, where a wall stands for cell-centred fields.
_PAD_MODES = {"periodic": "wrap", "zero": "constant", "reflect": "symmetric"}


def check_padding(padding: str) -> None:
    """Check that a kind of padding is known."""
    check_choice("padding", padding, *_PAD_MODES)


def check_odd(kernel: int) -> None:
    """Check that a kernel has a middle."""
    if check_positive(kernel=kernel)[0] % 2 == 0:
        raise ValueError(f"kernel must be odd, got {kernel}")


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
        apart = self.dilation
        ways = {"cpu": partial(by_matmul, apart), "default": partial(by_convolution, apart)}
        out = jax.lax.platform_dependent(h, kernel, **ways)
        return out + bias.reshape((1,) * dims + (-1,))


def by_convolution(dilation: int, h: Array, kernel: Array) -> Array:
    """Convolve without padding, by XLA's convolution."""
    dims = h.ndim - 1
    axes = "DHW"[-dims:]
    names, apart = (f"N{axes}C", f"{axes}IO", f"N{axes}C"), (dilation,) * dims
    how = {"rhs_dilation": apart, "dimension_numbers": names}
    return jax.lax.conv_general_dilated(h[None], kernel, (1,) * dims, "VALID", **how)[0]


def by_matmul(dilation: int, h: Array, kernel: Array) -> Array:
    """Convolve without padding, by one product of shifted copies with the weights."""
    *width, _, features = kernel.shape
    grid = [n - (w - 1) * dilation for n, w in zip(h.shape, width, strict=False)]
    shifts = itertools.product(*(range(0, w * dilation, dilation) for w in width))
    seen = [h[tuple(slice(s, s + n) for s, n in zip(at, grid, strict=True))] for at in shifts]
    return jnp.concatenate(seen, axis=-1) @ kernel.reshape(-1, features)

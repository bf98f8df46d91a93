"""Score networks that start at the Gaussian with the data's spectrum (periodic fields).

s(t, x) = -C^{-1/2} (m(|k|, t) y + N(t, y, x, args)),  y = C^{-1/2} x,  C(t, k) = E|x_k|²,

where the variance C and the factor m may also depend on scalars in args,

with C^{-1/2} and m acting on Fourier modes. A score's size runs over orders of magnitude between
wavenumbers; y and N do not. With N = 0 and m = 1 it is the score of N(0, C): exact for Gaussian
fields, so that the network N learns only what is not Gaussian. (Karras et al. 2022, section 5, do
so for white noise, one number for all modes.)
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float

from smdp_jax.checks import check_holds, check_shape
from smdp_jax.models.field_network import as_channels
from smdp_jax.models.layers import dense, embed
from smdp_jax.models.layout import as_time, at_least_float32, working_dtype
from smdp_jax.models.time_features import TimeFeatures, time_vector
from smdp_jax.physics.spectral.periodic import modes_shape, multiplicity, squared_wavenumbers
from smdp_jax.sde import State
from smdp_jax.solve.condition_splines import with_conditions
from smdp_jax.solve.linear import times


def _to_modes(field: Float[Array, "*grid"]) -> Complex[Array, "*modes"]:
    return jnp.fft.rfftn(field, norm="ortho")


def _to_field(modes: Complex[Array, "*modes"], grid: tuple[int, ...]) -> Float[Array, "*grid"]:
    return jnp.fft.irfftn(modes, s=grid, norm="ortho")


class SpectralGain(nn.Module):
    """Factor m(|k|, t) per mode, a small MLP of (log(1 + |k|²), time features); starts at 1.

    Features of conditions, if there are any, are seen beside those of time.

    Parameters
    ----------
    width, time_features : int, str or callable
        Size of its two hidden layers; what it sees of time, see `MLP`.
    """

    width: int = 16
    time_features: TimeFeatures = "log_fourier"

    @nn.compact
    def __call__(
        self, t: Float[Array, ""], grid: tuple[int, ...], conditions: Array | None = None
    ) -> Float[Array, "*modes"]:
        """Factors at a scalar time for the modes of a field of shape `grid`."""
        log_k2 = jnp.log1p(jnp.asarray(squared_wavenumbers(grid), t.dtype))[..., None]
        seen = time_vector(self.time_features, t, t.dtype)
        if conditions is not None:
            seen = jnp.concatenate([seen, conditions.astype(t.dtype)])
        h = as_channels(seen, log_k2)
        h = embed(h, self.width)  # before the last layer is made, as layers are named in that order
        return 1 + dense(1, t.dtype, zero_init=True)(h)[..., 0]


class SpectralPreconditioned(nn.Module):
    """Wrap a network for periodic fields so that it starts at the Gaussian score.

    Leaves of the state are real (*grid,) fields, any number of grid axes; each has its own
    spectrum, and modes of different leaves are treated as uncorrelated.

    Parameters
    ----------
    net : flax module
        Network N for fields of the same shapes, starting at zero (as `UNet` and `MLP` do).
    variance : callable
        C: a `Spectrum`, or any hashable function of a scalar t, or of (t, args), that returns a
        pytree like the state with leaves (*grid[:-1], grid[-1] // 2 + 1), positive, in the units of
        x². Where the process is linear and Gaussian the closed form can be given.
    spectral_gain, see_state : bool
        Learn the factor m(|k|, t) as well (one per leaf; also of the conditions that a `Spectrum`
        knows), else m = 1: it lets a correction per
        wavenumber be found quickly, as training on windows with finite steps asks for. Show x to
        the network beside y, which is white and hides the large scales: N is then called with
        conditions `(args, x / rms)`, rms that of x at that time.

    References
    ----------
    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022.
    """

    net: nn.Module
    variance: Callable[..., State]
    spectral_gain: bool = False
    see_state: bool = True

    @nn.compact
    def __call__(self, t: ArrayLike, x: State, args: Any) -> State:
        """Score at one time and state."""
        given, t = jax.tree.map(jnp.asarray, x), as_time(t, working_dtype(x))
        x = jax.tree.map(lambda field: field.astype(at_least_float32(field.dtype)), given)
        variance = self._variance(t, x, args)
        known = getattr(self.variance, "conditions", None)
        features = None if known is None else known(args, t.dtype)[1]
        inverse_root = jax.tree.map(jax.lax.rsqrt, variance)
        whiten = lambda field, c: times(c.astype(field.dtype), _to_modes(field))
        white = jax.tree.map(whiten, x, inverse_root)
        y = jax.tree.map(lambda modes, field: _to_field(modes, field.shape), white, x)
        seen = (args, jax.tree.map(_over_rms, x, variance)) if self.see_state else args
        correction = self.net(t, y, seen)

        def score(field: Array, like: Array, modes: Array, n: Array, c: Array) -> Array:
            c = c.astype(field.dtype)
            if self.spectral_gain:
                modes = times(SpectralGain()(t, field.shape, features).astype(field.dtype), modes)
            return -_to_field(times(c, modes + _to_modes(n)), field.shape).astype(like.dtype)

        return jax.tree.map(score, x, given, white, correction, inverse_root)

    def _variance(self, t: Float[Array, ""], x: State, args: Any) -> State:
        variance = with_conditions(self.variance, t, args)
        if (got := jax.tree.structure(variance)) != (want := jax.tree.structure(x)):
            raise ValueError(f"the variances must have the state's tree {want}, got {got}")
        for field, table in zip(jax.tree.leaves(x), jax.tree.leaves(variance), strict=True):
            check_holds("a field", field.ndim, 1, "axis")
            hint = f", the modes of a field of shape {field.shape} (jax.vmap for batches)"
            check_shape("variances", table, modes_shape(field.shape), hint)
        return jax.tree.map(lambda table: jnp.asarray(table, t.dtype), variance)


def _over_rms(field: Float[Array, "*grid"], variance: Float[Array, "*modes"]) -> Array:
    weight = jnp.asarray(multiplicity(field.shape) / field.size, variance.dtype)
    return field * jax.lax.rsqrt(jnp.sum(weight * variance)).astype(field.dtype)

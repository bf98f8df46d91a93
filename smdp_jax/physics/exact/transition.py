"""A tabulated density of a scalar process from one starting point, smooth in time and state."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from smdp_jax.physics.exact.law import ScalarLaw, ScalarState
from smdp_jax.sde import Args, Scalar


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transition(ScalarLaw):
    r"""Density of x_t given one starting point, as a table in a moving frame.

    In ``z = (x - m(t)) / s(t)`` the density is close to the standard normal, so the table holds
    only what differs, the tilt h::

        log p(x, t) = h(log t, z) - z^2 / 2 - log s(t) - log(2 pi) / 2

    interpolated by cubics in log t and z; the score is the exact derivative of the interpolant.
    Beyond the table in z the tilt goes on as a straight line (a Gaussian tail); before its first
    time the density is the short-time Gaussian, and after its last time it stays as it is there.
    ``fokker_planck`` beside it computes such tables. A pytree: pass it through jit freely.

    Parameters
    ----------
    start, ts : scalar, array, shape (times,)
        Starting point, in units of state; table times, uniform in log t.
    means, stds, mean_slopes, std_slopes : arrays, shape (times,)
        Frame m(t), s(t), in units of state; their derivatives by log t.
    zs, tilts : array, shape (cells,), array, shape (times, cells)
        Places in the frame, uniform; h, in nats.
    """

    start: Float[Array, ""]
    ts: Float[Array, " times"]
    means: Float[Array, " times"]
    stds: Float[Array, " times"]
    mean_slopes: Float[Array, " times"]
    std_slopes: Float[Array, " times"]
    zs: Float[Array, " cells"]
    tilts: Float[Array, "times cells"]

    def log_density(self, t: Scalar, x: ScalarState) -> Float[Array, ""]:
        """Log density of x_t at ``x``, in nats."""
        x = jnp.asarray(x)[0]
        atom = jnp.where(x == self.start.astype(x.dtype), jnp.inf, -jnp.inf)
        return jnp.where(jnp.asarray(t) > 0, self._log_density(t, x), atom)

    def score(self, t: Scalar, x: ScalarState, args: Args = None) -> Float[Array, "1"]:
        """Gradient of the log density at ``x``; 0 at t = 0."""
        gradient = jax.grad(self._log_density, argnums=1)(t, jnp.asarray(x)[0])
        return jnp.where(jnp.asarray(t) > 0, gradient, 0)[None]

    def tables(self) -> tuple[Float[Array, "times cells"], Float[Array, "times cells"]]:
        """Return the table itself, for plots and integrals.

        Returns
        -------
        xs : array, shape (times, cells)
            States, uniform along each row.
        densities : array, shape (times, cells)
            p(x, t) there, per unit of state.
        """
        xs = self.means[:, None] + self.stds[:, None] * self.zs[None, :]
        norms = self.stds[:, None] * math.sqrt(2 * math.pi)
        return xs, jnp.exp(self.tilts - self.zs[None, :] ** 2 / 2) / norms

    def _log_density(self, t: Scalar, x: Float[Array, ""]) -> Float[Array, ""]:
        """Log density, finite at any t and x."""
        table = jax.tree.map(lambda leaf: leaf.astype(x.dtype), self)
        log_ts = jnp.log(table.ts)
        row_width = (log_ts[-1] - log_ts[0]) / (len(table.ts) - 1)
        cell_width = (table.zs[-1] - table.zs[0]) / (len(table.zs) - 1)
        t = jnp.asarray(t, x.dtype)
        row = (jnp.log(jnp.clip(t, table.ts[0], table.ts[-1])) - log_ts[0]) / row_width

        mean = _hermite(row, table.means, table.mean_slopes * row_width)
        std = _hermite(row, table.stds, table.std_slopes * row_width)
        # Before the table mean and variance shrink as t; the floor keeps z^2 in range at t = 0.
        young = jnp.clip(t / table.ts[0], 1e-12, 1)
        mean, std = table.start + young * (mean - table.start), std * jnp.sqrt(young)
        z = (x - mean) / std

        def tilt(z: Float[Array, ""]) -> Float[Array, ""]:
            rows, row_weights = _lagrange(row, len(table.ts))
            cells, cell_weights = _lagrange((z - table.zs[0]) / cell_width, len(table.zs))
            values = table.tilts[rows[:, None], cells[None, :]]
            # Accelerators would round the factors, and their differences make the slope.
            by_row = jnp.matmul(values, cell_weights, precision="highest")
            return jnp.matmul(row_weights, by_row, precision="highest")

        edge = jnp.clip(z, table.zs[0], table.zs[-1])
        value, slope = jax.value_and_grad(tilt)(edge)
        normal = -(z**2) / 2 - jnp.log(std) - math.log(2 * math.pi) / 2
        return value + slope * (z - edge) + normal


def _lagrange(place: Float[Array, ""], size: int) -> tuple[Int[Array, "4"], Float[Array, "4"]]:
    """Return the four table entries around a fractional index and their cubic weights."""
    first = jnp.clip(jnp.floor(place).astype(int) - 1, 0, size - 4)
    u = place - first.astype(place.dtype)
    outer = -(u - 1) * (u - 2) * (u - 3) / 6, u * (u - 1) * (u - 2) / 6
    inner = u * (u - 2) * (u - 3) / 2, -u * (u - 1) * (u - 3) / 2
    return first + jnp.arange(4), jnp.stack([outer[0], *inner, outer[1]])


def _hermite(
    place: Float[Array, ""], values: Float[Array, " times"], slopes: Float[Array, " times"]
) -> Float[Array, ""]:
    """Interpolate at a fractional index by cubics through values and slopes per index."""
    i = jnp.clip(jnp.floor(place).astype(int), 0, len(values) - 2)
    u = place - i.astype(place.dtype)
    left = (1 + 2 * u) * (1 - u) ** 2 * values[i] + u * (1 - u) ** 2 * slopes[i]
    right = u**2 * (3 - 2 * u) * values[i + 1] + u**2 * (u - 1) * slopes[i + 1]
    return left + right

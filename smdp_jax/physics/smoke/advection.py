"""Semi-Lagrangian and MacCormack transport on the staggered grid.

``f(x) <- f(x - h u(x))`` with bilinear interpolation (Courant, Isaacson, Rees 1952; Robert 1981):
first order in h, stable for every h. MacCormack's form of it walks back once more and takes away
half of the error found, which makes it second order for smooth fields; its result is clipped to
the range of the four values it came from, so a non-negative marker stays non-negative (Selle,
Fedkiw, Kim, Liu, Rossignac 2008, "An unconditionally stable MacCormack method").

Fields continue beyond the walls with zero gradient, except the velocity through a wall, which is
zero there. Positions are in units of cells, counted from the first stored value.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smdp_jax.physics.smoke.grid import Field, Mask, Velocity
from smdp_jax.sde import Scalar

Grid = Float[Array, "rows columns"]


class Corners(NamedTuple):
    """The four values around each position, and where the position lies between them."""

    values: tuple[Field, Field, Field, Field]
    along: tuple[Field, Field]


def _corners(field: Grid, x: Field, y: Field) -> Corners:
    def cell(position: Field, points: int) -> tuple[Array, Field]:
        position = jnp.clip(position, 0, points - 1)
        # The index is clipped again as a whole number, so that NaN cannot read elsewhere.
        index = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, points - 2)
        return index, position - index.astype(position.dtype)

    (i, a), (j, b) = cell(x, field.shape[0]), cell(y, field.shape[1])
    at = lambda p, q: field.at[i + p, j + q].get(mode="promise_in_bounds")
    return Corners((at(0, 0), at(0, 1), at(1, 0), at(1, 1)), (a, b))


def sample(field: Grid, x: Field, y: Field) -> Field:
    """Interpolate a field bilinearly; outside it, take the nearest value on its edge."""
    (near, above, beside, across), (a, b) = _corners(field, x, y)
    return (1 - a) * ((1 - b) * near + b * above) + a * ((1 - b) * beside + b * across)


def advect_marker(marker: Field, velocity: Velocity, courant: Scalar) -> Field:
    """Carry a field at centres along, by MacCormack."""
    vx, vy = velocity
    shift_x = courant * (vx + jnp.pad(vx[1:], ((0, 1), (0, 0)))) / 2
    shift_y = courant * (vy + jnp.pad(vy[:, 1:], ((0, 0), (0, 1)))) / 2
    x, y = _positions(marker)

    def walk(field: Field, direction: Scalar) -> tuple[Field, Field]:
        walked = sample(field, x + direction * shift_x, y + direction * shift_y)
        return walked, walked

    # A loop, because XLA would otherwise merge both walks and compute the first four times over,
    # at each of the values that the second one reads: 10 times slower on CPU.
    _, (carried, returned) = jax.lax.scan(walk, marker, jnp.array([-1, 1], marker.dtype))
    corrected = carried + (marker - returned) / 2
    around = _corners(marker, x - shift_x, y - shift_y).values
    lowest, highest = functools.reduce(jnp.minimum, around), functools.reduce(jnp.maximum, around)
    # Not by clip: where nothing exceeds the range, as in air without smoke, derivatives are to be
    # those of the unlimited scheme, and not shared among equal values.
    corrected = jnp.where(corrected < lowest, lowest, corrected)
    return jnp.where(corrected > highest, highest, corrected)


def advect_velocity(velocity: Velocity, courant: Scalar) -> Velocity:
    """Carry the velocity along with itself, semi-Lagrangian."""
    vx, vy = velocity
    walled_x, walled_y = jnp.pad(vx, ((0, 1), (0, 0))), jnp.pad(vy, ((0, 0), (0, 1)))
    # The other component, averaged over the four faces around; rows in the wall do not matter.
    y_sum = walled_y[:, :-1] + walled_y[:, 1:]
    x_sum = walled_x[:-1] + walled_x[1:]
    vy_at_x = (y_sum + jnp.pad(y_sum[:-1], ((1, 0), (0, 0)))) / 4
    vx_at_y = (x_sum + jnp.pad(x_sum[:, :-1], ((0, 0), (1, 0)))) / 4
    x, y = _positions(vx)
    return (
        sample(walled_x, x - courant * vx, y - courant * vy_at_x),
        sample(walled_y, x - courant * vx_at_y, y - courant * vy),
    )


def fill_solid(marker: Field, solid: Mask) -> Field:
    """Give solid cells the mean of their fluid neighbours: zero gradient at obstacles."""
    fluid = (~solid).astype(marker.dtype)
    total, count = _neighbour_sum(fluid * marker), _neighbour_sum(fluid)
    return jnp.where(solid, total / jnp.maximum(count, 1), marker)


def _neighbour_sum(field: Field) -> Field:
    padded = jnp.pad(field, 1)
    return padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]


def _positions(field: Field) -> tuple[Field, Field]:
    rows, columns = (jnp.arange(points, dtype=field.dtype) for points in field.shape)
    x, y = jnp.meshgrid(rows, columns, indexing="ij")
    return x, y

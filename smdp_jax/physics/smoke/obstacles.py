"""Obstacles as masks: boxes and discs on the grid, and random arrangements of them.

A cell is solid if its centre is covered. Lengths are shares of the side of the box here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.physics.smoke.grid import Field, Mask
from smdp_jax.sde import Scalar

Point = Float[Array, "2"]


def centres(size: int) -> tuple[Field, Field]:
    """Coordinates of the cells' centres."""
    along = (jnp.arange(size, dtype=float) + 0.5) / size
    x, y = jnp.meshgrid(along, along, indexing="ij")
    return x, y


def box_mask(size: int, lower: Point, upper: Point) -> Mask:
    """Cells covered by a box."""
    x, y = centres(size)
    return (x >= lower[0]) & (x <= upper[0]) & (y >= lower[1]) & (y <= upper[1])


def disc_mask(size: int, centre: Point, radius: Scalar) -> Mask:
    """Cells covered by a disc."""
    x, y = centres(size)
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def random_obstacles(key: PRNGKeyArray, size: int, start: Point) -> Mask:
    """Draw one or two boxes and one or two discs in the upper part of the box.

    Uniform and independent: corners of boxes and centres of discs in [0.01, 1] x [0.5, 1], boxes
    of length 0.1 to 1 and thickness 0.05 to 0.12 in four orientations, cut off below y = 0.2;
    radii of discs 0.05 to 0.12. Cells that these cut off from ``start`` become solid as well: no
    smoke gets there, and the fluid in them would stay at rest, so the flow is the same. Nothing is
    drawn again, so one key is one geometry, under ``jit`` and ``vmap`` too.

    Parameters
    ----------
    key, size, start
        Consumed; cells per side; a point (x, y), shape (2,), that is never covered and below
        y = 0.2: the inflow, as shares of the side.

    Returns
    -------
    bool array, shape (size, size)
        True in solid cells.

    References
    ----------
    Holzschuh, Vegetti, Thuerey (2023), "Solving Inverse Physics Problems with Score Matching",
    section 3.3; its published code draws whole percentages.
    """
    k_boxes, k_discs, k_two_boxes, k_two_discs = jax.random.split(key, 4)
    boxes = jax.vmap(lambda k: _random_box(k, size))(jax.random.split(k_boxes, 2))
    discs = jax.vmap(lambda k: _random_disc(k, size))(jax.random.split(k_discs, 2))
    two_boxes, two_discs = jax.random.bernoulli(k_two_boxes), jax.random.bernoulli(k_two_discs)
    solid = boxes[0] | (boxes[1] & two_boxes) | discs[0] | (discs[1] & two_discs)
    return fill_enclosed(solid, start)


def _random_point(key: PRNGKeyArray) -> Point:
    return jax.random.uniform(key, (2,), minval=jnp.array([0.01, 0.5]), maxval=jnp.ones(2))


def _random_box(key: PRNGKeyArray, size: int) -> Mask:
    k_corner, k_length, k_thickness, k_orientation = jax.random.split(key, 4)
    corner = _random_point(k_corner)
    length = jax.random.uniform(k_length, minval=0.1, maxval=1.0)
    thickness = jax.random.uniform(k_thickness, minval=0.05, maxval=0.12)
    along_x = jnp.stack([length, thickness])
    extents = jnp.stack([along_x, along_x[::-1], -along_x, -along_x[::-1]])
    other = corner + extents[jax.random.randint(k_orientation, (), 0, 4)]
    lower = jnp.maximum(jnp.minimum(corner, other), jnp.array([0.0, 0.2]))
    return box_mask(size, lower, jnp.maximum(corner, other))


def _random_disc(key: PRNGKeyArray, size: int) -> Mask:
    k_centre, k_radius = jax.random.split(key)
    radius = jax.random.uniform(k_radius, minval=0.05, maxval=0.12)
    return disc_mask(size, _random_point(k_centre), radius)


def fill_enclosed(solid: Mask, start: Point) -> Mask:
    """Make every cell solid that no path through fluid cells connects to a point.

    Parameters
    ----------
    solid, start : bool array, shape (size, size), array, shape (2,)
        Cells covered by obstacles; the point (x, y), as shares of the side, in a fluid cell.

    Returns
    -------
    bool array, shape (size, size)
        ``solid``, and the cells cut off from ``start``.
    """
    size = solid.shape[0]
    i, j = jnp.clip((start * size).astype(jnp.int32), 0, size - 1)
    seed = jnp.zeros_like(solid).at[i, j].set(True) & ~solid

    def grow(carry: tuple[Mask, Mask]) -> tuple[Mask, Mask]:
        reached, _ = carry
        padded = jnp.pad(reached, 1)
        along_x = padded[2:, 1:-1] | padded[:-2, 1:-1]
        along_y = padded[1:-1, 2:] | padded[1:-1, :-2]
        return (reached | along_x | along_y) & ~solid, reached

    growing = lambda carry: jnp.any(carry[0] != carry[1])
    return ~jax.lax.while_loop(growing, grow, (seed, jnp.zeros_like(seed)))[0]

"""Staggered grid on a closed square box: what stands where, and differences between the two.

The first index is x, the second y (up). Cell ``(i, j)`` has its centre at
``((i + 1/2) dx, (j + 1/2) dx)``. A state stores velocities on inner faces only, ``velocity_x`` as
``(size - 1, size)`` and ``velocity_y`` as ``(size, size - 1)``: nothing flows through a wall, so
there is nothing to store there, to add noise to, or to learn.

Inside the simulator both have the shape ``(size, size)``: ``vx[i, j]`` on the lower-x face of cell
``(i, j)``, at ``(i dx, (j + 1/2) dx)``, and ``vy[i, j]`` on its lower-y face. Row 0 of ``vx`` and
column 0 of ``vy`` are the walls, and zero; the far walls are left out.

Differences here are undivided: divide by the spacing ``dx`` for physical units.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = [
    "Faces",
    "Field",
    "Mask",
    "Velocity",
    "closed_to",
    "divergence",
    "from_inner",
    "gradient",
    "open_faces",
    "to_inner",
]

Field = Float[Array, "size size"]
Mask = Bool[Array, "size size"]
Velocity = tuple[Field, Field]
"""``(velocity_x, velocity_y)``, on faces."""
Faces = tuple[Mask, Mask]
"""Which faces let fluid through, for each component."""


def from_inner(inner_x: Float[Array, "less size"], inner_y: Float[Array, "size less"]) -> Velocity:
    """Put the walls beside the inner faces."""
    return jnp.pad(inner_x, ((1, 0), (0, 0))), jnp.pad(inner_y, ((0, 0), (1, 0)))


def to_inner(
    velocity: Velocity,
) -> tuple[Float[Array, "less size"], Float[Array, "size less"]]:
    """Leave the walls out; the inverse of ``from_inner``."""
    return velocity[0][1:], velocity[1][:, 1:]


def open_faces(solid: Mask) -> Faces:
    """Find the faces with fluid on both sides."""
    fluid = ~solid
    open_x = fluid & jnp.pad(fluid[:-1], ((1, 0), (0, 0)))
    open_y = fluid & jnp.pad(fluid[:, :-1], ((0, 0), (1, 0)))
    return open_x, open_y


def divergence(velocity: Velocity) -> Field:
    """Net flow out of each cell."""
    vx, vy = velocity
    return jnp.pad(vx[1:], ((0, 1), (0, 0))) - vx + (jnp.pad(vy[:, 1:], ((0, 0), (0, 1))) - vy)


def gradient(pressure: Field) -> Velocity:
    """Difference across each face; the negative transpose of ``divergence`` on open faces."""
    return (
        jnp.pad(pressure[1:] - pressure[:-1], ((1, 0), (0, 0))),
        jnp.pad(pressure[:, 1:] - pressure[:, :-1], ((0, 0), (1, 0))),
    )


def closed_to(velocity: Velocity, faces: Faces) -> Velocity:
    """Stop the flow through closed faces."""
    (vx, vy), (open_x, open_y) = velocity, faces
    return jnp.where(open_x, vx, 0), jnp.where(open_y, vy, 0)

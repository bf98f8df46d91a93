"""Staggered grid on a closed square box: what stands where, differences, and the projection.

The first index is x, the second y (up). Cell ``(i, j)`` has its centre at
``((i + 1/2) dx, (j + 1/2) dx)``. A state stores velocities on inner faces only, ``velocity_x`` as
``(size - 1, size)`` and ``velocity_y`` as ``(size, size - 1)``: nothing flows through a wall, so
there is nothing to store there, to add noise to, or to learn.

Inside the simulator both have the shape ``(size, size)``: ``vx[i, j]`` on the lower-x face of cell
``(i, j)``, at ``(i dx, (j + 1/2) dx)``, and ``vy[i, j]`` on its lower-y face. Row 0 of ``vx`` and
column 0 of ``vy`` are the walls, and zero; the far walls are left out.

Differences here are undivided: divide by the spacing ``dx`` for physical units.

With G the differences of a pressure across open faces and D the sum over the faces of a cell,
``D = -G^T``, the projected velocity is ``v - G p`` with ``D G p = D v`` (Chorin 1968). The system
is solved by conjugate gradients, preconditioned with the exact inverse of the box without
obstacles, which the cosine transform diagonalises: 1 iteration without obstacles, and 9 to 26 with
random ones on 64 x 64 cells.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from smdp_jax.sde import Scalar
from smdp_jax.solve.linear import cosines

Field = Float[Array, "size size"]
Mask = Bool[Array, "size size"]
Velocity = tuple[Field, Field]
"""``(velocity_x, velocity_y)``, on faces."""
Faces = tuple[Mask, Mask]
"""Which faces let fluid through, for each component."""


def from_inner(inner_x: Float[Array, "less size"], inner_y: Float[Array, "size less"]) -> Velocity:
    """Put the walls beside the inner faces."""
    return jnp.pad(inner_x, ((1, 0), (0, 0))), jnp.pad(inner_y, ((0, 0), (1, 0)))


def to_inner(velocity: Velocity) -> tuple[Float[Array, "less size"], Float[Array, "size less"]]:
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


_MOST_ITERATIONS = 200


def project(velocity: Velocity, faces: Faces, spacing: Scalar = 1.0) -> Velocity:
    """Remove the divergence, and the flow through closed faces.

    Linear, symmetric and idempotent; derivatives in both directions are projections themselves,
    so nothing is unrolled. What is left of the divergence is at most 5e-6 per unit time in single
    and 5e-11 in double precision; for velocities below 1 less in proportion, and for fast flows
    what the precision allows, about 4 rounding errors of the largest velocity over the spacing.

    Parameters
    ----------
    velocity, faces, spacing : tuples of two arrays, shape (size, size), scalar
        On faces, in length / time; which faces are open (bool); side of a cell.

    Returns
    -------
    tuple of two arrays, shape (size, size)
        The projected velocity.
    """
    dtype = velocity[0].dtype
    tolerance = jnp.asarray(5e-11 if dtype == jnp.float64 else 5e-6, dtype) * spacing

    def solve(_: Any, stacked: Array) -> Array:
        stopped = closed_to((stacked[0], stacked[1]), faces)
        return jnp.stack(_conjugate_gradients(stopped, faces, tolerance))

    # A projection is its own pseudo-inverse and symmetric, so it counts as the solution of a linear
    # system with itself as the matrix: that gives JAX its derivatives, forward and reverse. One
    # array, because JAX fails where only one of several has a derivative.
    stacked = jnp.stack(velocity)
    itself = functools.partial(solve, None)
    vx, vy = jax.lax.custom_linear_solve(itself, stacked, solve, symmetric=True)
    return vx, vy


def _conjugate_gradients(velocity: Velocity, faces: Faces, tolerance: Scalar) -> Velocity:
    """Iterate on the velocity itself, not on a pressure.

    A pressure spans the box, a hundred times larger than the differences that matter, and single
    precision would be spent on it. The residual is the divergence itself at every iteration.
    """
    dtype = velocity[0].dtype
    largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(v)) for v in velocity])
    floor = 4 * float(jnp.finfo(dtype).eps) * largest
    tolerance = jnp.maximum(floor, tolerance * jnp.minimum(largest, 1))

    def unfinished(carry: tuple) -> jax.Array:
        _, residual, _, _, count = carry
        return (jnp.max(jnp.abs(residual)) > tolerance) & (count < _MOST_ITERATIONS)

    def iterate(carry: tuple) -> tuple:
        v, residual, direction, previous, count = carry
        improved = _without_obstacles(residual)
        power = jnp.sum(residual * improved)
        direction = improved + power / previous * direction
        along = closed_to(gradient(direction), faces)
        length = power / sum(jnp.sum(g * g) for g in along)
        v = jax.tree.map(lambda was, g: was - length * g, v, along)
        return v, -divergence(v), direction, power, count + 1

    # An infinite previous power makes the first direction the preconditioned residual alone.
    start = (velocity, -divergence(velocity), jnp.zeros_like(velocity[0]))
    start = (*start, jnp.full((), jnp.inf, dtype), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, iterate, start)[0]


def _without_obstacles(residual: Field) -> Field:
    """Solve ``-D G p = residual`` in the box without obstacles; p has zero mean."""
    tables = _cosine_transform(residual.shape[0], residual.dtype)
    transform, inverse = (jnp.asarray(table) for table in tables)
    with jax.default_matmul_precision("highest"):
        return transform.T @ ((transform @ residual @ transform.T) * inverse) @ transform


@functools.cache
def _cosine_transform(size: int, dtype: DTypeLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the orthogonal cosine transform (DCT-II) and the inverse eigenvalues."""
    along = 2 - 2 * np.cos(np.pi * np.arange(size) / size)
    eigenvalues = along[:, None] + along[None, :]
    eigenvalues[0, 0] = np.inf
    return cosines(size).astype(dtype), (1 / eigenvalues).astype(dtype)

"""The box that the smoke rises in: its grid, its inflow, and the obstacles a user puts there.

Obstacles are conditions, ``args = {"obstacles": mask}``, a mask of the solid cells. They are data:
one compiled simulator serves every geometry. Masks of several shapes are joined by ``|``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, PRNGKeyArray

from smdp_jax.checks import check_positive, check_shape, check_within
from smdp_jax.physics.conditions import check_coefficients
from smdp_jax.physics.smoke.grid import Field, Mask
from smdp_jax.physics.smoke.obstacles import (
    box_mask,
    centres,
    disc_mask,
    fill_enclosed,
    random_obstacles,
)
from smdp_jax.sde import Args

_INFLOW_CENTRE, _INFLOW_RADIUS = (0.5, 0.1), 0.05  # as shares of the side

Pair = Sequence[float | int] | np.ndarray


@dataclass(frozen=True)
class ClosedBox:
    """A square box with closed walls, and an inflow near its floor.

    Parameters
    ----------
    size, length
        Cells per side, at least 16; side of the box, in units of length.
    """

    size: int = 64
    length: float | int = 100.0

    def __post_init__(self) -> None:
        check_positive(least=16, owner=self, size=self.size)
        check_coefficients(self, "length")

    @property
    def spacing(self) -> float:
        """Side of a cell, in units of length."""
        return self.length / self.size

    def inflow(self, dtype: DTypeLike = float) -> Field:
        """Share of each cell that the inflow covers, a disc with a soft edge.

        Parameters
        ----------
        dtype : dtype
            Floating dtype.

        Returns
        -------
        array, shape (size, size)
            Between 0 and 1. Centre (0.5, 0.1) and radius 0.05, as shares of the side.
        """
        x, y = centres(self.size)
        outside = jnp.hypot(x - _INFLOW_CENTRE[0], y - _INFLOW_CENTRE[1]) - _INFLOW_RADIUS
        # From 1 to 0 over the radius of the circle around a cell.
        return jnp.clip(0.5 - outside * math.sqrt(2) * self.size, 0, 1).astype(dtype)

    def box(self, lower: Pair, upper: Pair) -> Mask:
        """Return the cells that a box covers.

        Parameters
        ----------
        lower, upper : pair of float
            Its corners (x, y), in units of length. It may reach into the walls.

        Returns
        -------
        bool array, shape (size, size)
            True in cells whose centre it covers, at least one, or it is refused (ValueError).

        Raises
        ------
        ValueError
            If it covers no cell: outside, empty, or thinner than a cell.
        """
        mask = box_mask(self.size, self._shares(lower), self._shares(upper))
        return self._not_empty(mask, f"the obstacle from {_text(lower)} to {_text(upper)}")

    def disc(self, centre: Pair, radius: float | int) -> Mask:
        """Return the cells that a disc covers.

        Parameters
        ----------
        centre, radius : pair of float, float
            Its centre (x, y) and radius, in units of length. It may reach into the walls.

        Returns
        -------
        bool array, shape (size, size)
            True in cells whose centre it covers, at least one, or it is refused (ValueError).

        Raises
        ------
        ValueError
            If the radius is not positive, or it covers no cell: outside, or smaller than a cell.
        """
        check_within("(0, inf)", **{"the radius of a disc": radius})
        mask = disc_mask(self.size, self._shares(centre), radius / self.length)
        return self._not_empty(mask, f"the disc of radius {radius:g} at {_text(centre)}")

    def random_obstacles(self, key: PRNGKeyArray) -> Mask:
        """Draw one or two boxes and one or two discs, as ``obstacles.random_obstacles`` says.

        Parameters
        ----------
        key : PRNG key
            Consumed; the same key gives the same obstacles.

        Returns
        -------
        bool array, shape (size, size)
            True in solid cells. They leave the inflow free and enclose no fluid.
        """
        return random_obstacles(key, self.size, jnp.array(_INFLOW_CENTRE))

    def geometries(self, key: PRNGKeyArray, n: int) -> dict[str, Bool[Array, "n size size"]]:
        """Draw conditions: obstacles for each of n simulations.

        Parameters
        ----------
        key, n
            Consumed, and the number of geometries.

        Returns
        -------
        dict
            ``{"obstacles": masks}``, shape (n, size, size): ``args`` of ``simulate`` with
            ``args_axes=0``.
        """
        check_positive(n=n)
        return {"obstacles": jax.vmap(self.random_obstacles)(jax.random.split(key, n))}

    def fill_enclosed(self, mask: Mask) -> Mask:
        """Make cells solid that no path connects to the inflow.

        Parameters
        ----------
        mask : bool array, shape (size, size)
            Solid cells.

        Returns
        -------
        bool array, shape (size, size)
            With the enclosed cells.
        """
        return fill_enclosed(mask, jnp.array(_INFLOW_CENTRE))

    def check_obstacles(self, mask: Any) -> None:
        """Check one mask of obstacles before it is used; looks at values, so not under ``jit``.

        Parameters
        ----------
        mask : array, shape (size, size)
            True or not 0 in solid cells.

        Raises
        ------
        ValueError
            If the mask has another shape, covers part of the inflow, or encloses fluid cells.
        """
        solid = np.asarray(self.solid({"obstacles": mask}))
        if covered := int(np.sum(solid & (np.asarray(self.inflow()) > 0))):
            centre = _text([share * self.length for share in _INFLOW_CENTRE])
            inflow = f"a disc of radius {_INFLOW_RADIUS * self.length:g} at {centre}"
            said = f"the obstacles must leave the inflow free, {inflow}"
            raise ValueError(f"{said}, got {covered} of its cells covered")
        enclosed = np.argwhere(np.asarray(self.fill_enclosed(jnp.asarray(solid))) & ~solid)
        if len(enclosed):
            at = _text((enclosed[0] + 0.5) * self.spacing)
            got = f"{len(enclosed)} fluid cells, one of them at {at}: use fill_enclosed(mask)"
            raise ValueError(f"the obstacles must cut nothing off from the inflow, got {got}")

    def solid(self, args: Args = None) -> Mask:
        """Read the obstacles from the conditions.

        Parameters
        ----------
        args : dict, optional
            ``{"obstacles": mask}``; other entries are ignored. None or no entry: no obstacles.

        Returns
        -------
        bool array, shape (size, size)
            Solid cells.

        Raises
        ------
        ValueError
            If ``args`` is no dict, or the mask has another shape.
        """
        if not isinstance(args, Mapping | None):
            said = f'args of {type(self).__name__} must be {{"obstacles": mask}}, or None'
            raise ValueError(f"{said}, got {type(args).__name__}")
        if args is None or "obstacles" not in args:
            return jnp.zeros((self.size, self.size), bool)
        mask = jnp.asarray(args["obstacles"])
        check_shape("the mask of obstacles", mask, (self.size, self.size), " of the grid")
        return mask.astype(bool)

    def _shares(self, point: Pair) -> jax.Array:
        return jnp.asarray([coordinate / self.length for coordinate in point], float)

    def _not_empty(self, mask: Mask, what: str) -> Mask:
        if not bool(jnp.any(mask)):
            box = f"the box of side {self.length:g} in cells of {self.spacing:g}"
            raise ValueError(f"{what} must cover a cell of {box}, got none: outside, or too thin")
        return mask


def _text(point: Pair) -> str:
    return "(" + ", ".join(f"{coordinate:g}" for coordinate in point) + ")"

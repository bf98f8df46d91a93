"""Smoke that rises through a closed box with obstacles: transport, buoyancy, projection."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import check_positive
from smdp_jax.physics.conditions import check_coefficients, check_fields
from smdp_jax.physics.smoke.advection import advect_marker, advect_velocity, fill_solid
from smdp_jax.physics.smoke.geometry import ClosedBox
from smdp_jax.physics.smoke.grid import (
    Faces,
    Field,
    Velocity,
    closed_to,
    divergence,
    from_inner,
    open_faces,
    project,
    to_inner,
)
from smdp_jax.physics.system import AdvectingSystem
from smdp_jax.sde import SDE, Args, FlowMap, Scalar, integrated_backward

State = Mapping[str, Any]

_MOST_CELLS = 4


@dataclass(frozen=True)
class Smoke(ClosedBox, AdvectingSystem):
    r"""Buoyant smoke in a closed box, with noise on smoke and air.

    The marker m (smoke) is carried along by the velocity v of the air, which it drives upward::

        dm/ds + v . grad m = inflow,    dv/ds + v . grad v = -grad p + (0, buoyancy m),
        div v = 0,    no flow through walls and obstacles

    in the time s = t / ``time_unit`` of the fluid. A state is a dict of ``marker``, shape
    (size, size), at the centres of the cells, and ``velocity_x``, (size - 1, size), and
    ``velocity_y``, (size, size - 1), on the inner faces: see ``grid``. The first index is x.

    Each step carries the marker by MacCormack and adds the inflow; carries the velocity
    semi-Lagrangian and adds the force; and projects. All three are what PhiFlow does in the
    published code. It holds that

    - the flow is free of divergence and stops at walls and obstacles after every step;
    - solid cells hold no marker, and a marker that was nowhere negative stays so, forward in time;
    - transport does not conserve the total marker exactly. In the standard setting it grows by
      40 % after the inflow has ended, as PhiFlow's does.

    The noise g dW is added to all entries after a step, so noisy states are neither free of
    divergence nor of negative marker, and there is noise in obstacles too. The next step stops the
    flow through closed faces first, and projects at its end; it empties solid cells. It does not
    clip the marker, which would add smoke everywhere (about ``0.8 g sqrt(t)`` per cell).

    Parameters
    ----------
    size, length
        See ``ClosedBox``.
    buoyancy, noise : float
        Upward acceleration per unit of marker, in length / s^2, may be negative, not zero; g > 0
        for marker and velocities, in units of these per square root of time.
    inflow_end, end_time, time_unit : float
        The inflow adds 1 per unit of s until this time t; T > 0, when the end state is observed;
        time t in which one unit of s passes.

    References
    ----------
    Holzschuh, Vegetti, Thuerey (2023), "Solving Inverse Physics Problems with Score Matching",
    section 3.3; good values there: the defaults, with 65 steps of 0.01.
    """

    buoyancy: float | int = 0.1
    noise: float | int = 0.1
    inflow_end: float | int = 0.2
    end_time: float | int = 0.65
    time_unit: float | int = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_coefficients(self, "noise", "inflow_end", "end_time", "time_unit")
        if not math.isfinite(self.buoyancy) or self.buoyancy == 0:
            raise ValueError(f"Smoke.buoyancy must be finite and not 0, got {self.buoyancy}")

    def sde(self, inverse: FlowMap | None = None) -> SDE:
        """Return the process as a flow map, walked back by the same step with negative time."""
        noise = dict.fromkeys(self._shapes(), self.noise)
        inverse = inverse or integrated_backward(self.step)
        return SDE(step=self.step, diffusion=noise, inverse=inverse)

    def step(self, t0: Scalar, t1: Scalar, x: State, args: Args = None) -> dict[str, Array]:
        """Advance the smoke in one step; ``args`` may hold ``obstacles``, a mask of solid cells.

        With ``t1 < t0`` the state is carried back, force and inflow are taken away and the velocity
        is projected; the marker may then become negative where the inflow was.
        """
        velocity, faces, marker = self._read(x, args)
        dtype, solid = marker.dtype, self.solid(args)
        t0, t1 = jnp.asarray(t0, dtype), jnp.asarray(t1, dtype)
        elapsed = (t1 - t0) / self.time_unit
        emitting = jnp.minimum(t1, self.inflow_end) - jnp.minimum(t0, self.inflow_end)
        courant = elapsed / self.spacing
        velocity = closed_to(velocity, faces)
        marker = advect_marker(fill_solid(marker, solid), velocity, courant)
        marker = jnp.where(solid, 0, marker + emitting / self.time_unit * self.inflow(dtype))
        vx, vy = advect_velocity(velocity, courant)
        marker_at_y = (marker + jnp.pad(marker[:, :-1], ((0, 0), (1, 0)))) / 2
        vy = vy + elapsed * self.buoyancy * marker_at_y
        return self._write(marker, project((vx, vy), faces, self.spacing))

    def prior(self, key: PRNGKeyArray, n: int) -> dict[str, Array]:
        """Return states at rest and without smoke: all randomness is in obstacles and noise."""
        check_positive(n=n)
        return {name: jnp.zeros((n, *shape)) for name, shape in self._shapes().items()}

    def project(self, x: State, args: Args = None) -> dict[str, Array]:
        """Return the nearest state without divergence, or flow or smoke in obstacles.

        Parameters
        ----------
        x, args
            A state and its conditions, as for ``step``.

        Returns
        -------
        dict
            A state; what ``step`` returns, it leaves as it is.
        """
        velocity, faces, marker = self._read(x, args)
        marker = jnp.where(self.solid(args), 0, marker)
        return self._write(marker, project(velocity, faces, self.spacing))

    def divergence(self, x: State, args: Args = None) -> Field:
        """Measure the divergence of the velocity.

        Parameters
        ----------
        x, args
            A state and its conditions, as for ``step``.

        Returns
        -------
        array, shape (size, size)
            In 1 / s; 0 in solid cells.
        """
        velocity, _, _ = self._read(x, args)
        return jnp.where(self.solid(args), 0, divergence(velocity) / self.spacing)

    def obstacle_flow(self, x: State, args: Args = None) -> Float[Array, ""]:
        """Measure the flow through faces that obstacles close.

        Parameters
        ----------
        x, args
            A state and its conditions, as for ``step``.

        Returns
        -------
        scalar
            Largest velocity there, in length / s; 0 without obstacles.
        """
        velocity, faces, _ = self._read(x, args)
        kept = closed_to(velocity, faces)
        lost = jax.tree.map(lambda v, k: jnp.max(jnp.abs(v - k)), velocity, kept)
        return jnp.maximum(*lost)

    def stable_step(self, x: State) -> Float[Array, ""]:
        """Longest time step for flows as fast as these; infinite at rest.

        Semi-Lagrangian transport is stable for any step, but in the standard setting smoke is lost
        where a step crosses more than 4 cells: at t = 0.65 and 64 x 64 cells the total marker is
        2200, 1920, 1650, 1350 for steps that cross up to 3.4 (the published one), 3.9, 4.2, 4.6.
        """
        fastest = jnp.maximum(jnp.max(jnp.abs(x["velocity_x"])), jnp.max(jnp.abs(x["velocity_y"])))
        return _MOST_CELLS * self.spacing * self.time_unit / fastest

    def _shapes(self) -> dict[str, tuple[int, int]]:
        n = self.size
        return {"marker": (n, n), "velocity_x": (n - 1, n), "velocity_y": (n, n - 1)}

    def _read(self, x: State, args: Args) -> tuple[Velocity, Faces, Field]:
        """Return velocity on lower faces, open faces and marker."""
        check_fields("Smoke", x, self._shapes())
        velocity = from_inner(x["velocity_x"], x["velocity_y"])
        return velocity, open_faces(self.solid(args)), jnp.asarray(x["marker"])

    def _write(self, marker: Field, velocity: Velocity) -> dict[str, Array]:
        return dict(zip(self._shapes(), (marker, *to_inner(velocity)), strict=True))

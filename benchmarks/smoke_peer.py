"""The same smoke step by PhiFlow on its JAX backend, for ``benchmarks/smoke.py``."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from smdp_jax.physics import Smoke

Step = Callable[[dict[str, Any]], dict[str, Any]]


def load_phiflow() -> Any:
    """Import PhiFlow, and leave JAX's default precision as it was.

    Returns
    -------
    module
        ``phi.jax.flow``.

    Raises
    ------
    SystemExit
        If it is not installed, with the command that installs it.
    """
    before = jax.config.read("jax_enable_x64")
    try:
        return importlib.import_module("phi.jax.flow")
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in ("phi", "phiml"):
            raise
        raise SystemExit(
            "this benchmark compares with PhiFlow, which is not installed: `pip install phiflow`, "
            "or leave the comparison out with `--no-peer`"
        ) from error
    finally:
        jax.config.update("jax_enable_x64", before)  # PhiFlow turns it on


class PhiFlowSmoke:
    """PhiFlow's fields on the grid of a ``Smoke``, and steps of length 1 in its own time.

    Parameters
    ----------
    smoke : Smoke
        The system; its box is the standard one.
    """

    def __init__(self, smoke: Smoke) -> None:
        self.flow = load_phiflow()
        self.smoke = smoke
        self.box = self.flow.Box(x=smoke.length, y=smoke.length)
        with jax.enable_x64(True):  # which it expects; its numbers are still in single precision
            # Its grids keep what was first computed of them, which must not happen inside of jit.
            _ = self._marker(0).geometry.center
            disc = self.flow.Sphere(x=50, y=10, radius=5)
            self.inflow = self.flow.resample(disc, to=self._marker(0), soft=True)

    def stepper(self, boxes: np.ndarray, discs: np.ndarray, inflow: bool) -> Step:
        """Compile one step of a batch, each simulation with a box and a disc (or none at all).

        Parameters
        ----------
        boxes : array, shape (batch, 2, 2)
            Lower and upper corners; an empty batch is one without obstacles.
        discs : array, shape (batch, 3)
            Centres and radii.
        inflow : bool
            Whether smoke flows in.

        Returns
        -------
        callable
            Takes states with a leading batch axis to the next ones.
        """
        flow = self.flow
        obstacles = []
        if len(boxes):
            corners = [self._points(boxes[:, side]) for side in (0, 1)]
            radii = flow.math.tensor(discs[:, 2].astype(np.float32), flow.batch("b"))
            disc = flow.Sphere(self._points(discs[:, :2]), radius=radii)
            obstacles = [flow.Obstacle(flow.Box(*corners)), flow.Obstacle(disc)]

        def step(x: dict[str, Any]) -> dict[str, Any]:
            batched = lambda a: flow.math.tensor(a, flow.batch("b"), flow.spatial("x,y"))
            marker = self._marker(batched(x["marker"]))
            components = [batched(x["velocity_x"]), batched(x["velocity_y"])]
            stacked = flow.math.stack(components, flow.math.dual(vector="x,y"))
            velocity = flow.StaggeredGrid(stacked, 0, **self._grid())
            marker = flow.advect.mac_cormack(marker, velocity, 1) + inflow * self.inflow
            force = flow.resample(marker * (0, self.smoke.buoyancy), to=velocity)
            velocity = flow.advect.semi_lagrangian(velocity, velocity, 1) + force
            # It looks at the obstacles' positions, which it may have transposed first (in some
            # processes): of what is constant, that must not be traced.
            with jax.ensure_compile_time_eval():
                velocity, _ = flow.fluid.make_incompressible(velocity, obstacles, self._solve())
            return {
                "marker": marker.values.native("b,x,y"),
                "velocity_x": velocity.vector["x"].values.native("b,x,y"),
                "velocity_y": velocity.vector["y"].values.native("b,x,y"),
            }

        compiled = jax.jit(step)

        def quietly(x: dict[str, Any]) -> dict[str, Any]:
            with warnings.catch_warnings(), jax.enable_x64(True):
                # Of the singular matrix, which is meant.
                warnings.simplefilter("ignore")
                return compiled(x)

        return quietly

    def _solve(self) -> Any:
        # The published tolerance. Left to itself PhiFlow 3.4 adds a row to the singular matrix,
        # with which its conjugate gradients break down in single precision.
        return self.flow.Solve(
            "CG",
            1e-5,
            0,
            max_iterations=2000,
            rank_deficiency=0,
            suppress=[self.flow.math.NotConverged, self.flow.math.Diverged],
        )

    def _points(self, array: np.ndarray) -> Any:
        channel = self.flow.channel(vector="x,y")
        return self.flow.math.tensor(array.astype(np.float32), self.flow.batch("b"), channel)

    def _marker(self, values: Any) -> Any:
        return self.flow.CenteredGrid(values, self.flow.extrapolation.BOUNDARY, **self._grid())

    def _grid(self) -> dict[str, Any]:
        return {"x": self.smoke.size, "y": self.smoke.size, "bounds": self.box}

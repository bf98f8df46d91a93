"""The one door to jax-cfd: its spectral step, and the pieces that ``finite_volume`` is made of.

jax-cfd 0.2.1 (Kochkov et al. 2021) is no longer maintained. What is used of it is looked up by
name, on first use, in ``library``; ``canary`` tries every such call and names those that broke.
States go in and come out as plain arrays on the unit torus; axis 0 is x, axis 1 is y.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from smdp_jax.sde import Scalar

__all__ = [
    "canary",
    "face_velocity",
    "lenient",
    "library",
    "projected",
    "spectral_navier_stokes",
]

Field = Float[Array, "size size"]
Spectrum = Complex[Array, "size half"]


@functools.cache
def library(name: str) -> Any:
    """Look up a public name of jax-cfd."""
    module, _, attribute = f"jax_cfd.{name}".rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"jax_cfd.{name} cannot be had ({error}); this adapter is written for jax-cfd 0.2.1"
        ) from error


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Trace as JAX does by default: jax-cfd mixes real and complex arrays, and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@dataclass(frozen=True)
class _Dealiased:
    """jax-cfd's Navier-Stokes terms, with our 2/3 rule on both sides and a vorticity source.

    Its own filter (``smooth``) is not symmetric in k, -k and leaves the modes that go in alone.
    """

    equation: Any
    kept: Array
    source: Spectrum

    def explicit_terms(self, w: Spectrum) -> Spectrum:
        return self.kept * self.equation.explicit_terms(self.kept * w) + self.source

    def implicit_terms(self, w: Spectrum) -> Spectrum:
        return self.equation.implicit_terms(w)

    def implicit_solve(self, w: Spectrum, step: Any) -> Spectrum:
        return self.equation.implicit_solve(w, step)


def spectral_navier_stokes(
    w: Spectrum,
    dt: Scalar,
    *,
    steps: int,
    viscosity: Scalar,
    drag: Scalar,
    source: Spectrum,
    kept: Float[Array, "size half"],
) -> Spectrum:
    """Advance two-dimensional Navier-Stokes, ``w_t + u . grad w = nu Laplace w - mu w + F``.

    ``NavierStokes2D`` in ``crank_nicolson_rk4``: Crank-Nicolson for the linear terms (second
    order), a fourth-order low-storage Runge-Kutta scheme for the others.
    """
    with lenient():
        equation = library("spectral.equations.NavierStokes2D")(
            viscosity, _torus(w.shape[0], axes=2), drag=drag, smooth=None
        )
        flow = _Dealiased(equation, kept, source)
        advance = library("spectral.time_stepping.crank_nicolson_rk4")(flow, dt)
        body = lambda w, _: (advance(w).astype(w.dtype), None)
        return jax.lax.scan(body, w, length=steps)[0]


def face_velocity(u: Field, v: Field) -> tuple[Any, Any]:
    """Dress plain arrays as jax-cfd's periodic velocity on the faces of a staggered grid."""
    periodic = library("base.boundaries.periodic_boundary_conditions")(2)
    dress = library("base.grids.GridVariable")
    right, upper = _torus(u.shape[0], axes=2).stagger((u, v))
    return dress(right, periodic), dress(upper, periodic)


def projected(u: Field, v: Field) -> tuple[Field, Field]:
    """Subtract the pressure gradient that leaves face velocities without divergence."""
    with lenient():
        solve = library("base.pressure.solve_fast_diag")
        right, upper = library("base.pressure.projection")(face_velocity(u, v), solve)
        return right.data.astype(u.dtype), upper.data.astype(v.dtype)


def canary() -> dict[str, str]:
    """Try every call of jax-cfd that the adapter makes."""
    square = jnp.ones((4, 4))
    flow = lambda: library("spectral.equations.NavierStokes2D")(0.1, _torus(4, 2), smooth=None)
    trials: dict[str, Callable[[Any], Any]] = {
        "base.grids.Grid": lambda f: f((4, 4), domain=((0.0, 1.0),) * 2),
        "base.boundaries.periodic_boundary_conditions": lambda f: f(2),
        "base.grids.GridVariable": lambda f: face_velocity(square, square),
        "base.advection.convect_linear": lambda f: f(face_velocity(square, square)),
        "base.diffusion.diffuse": lambda f: f(face_velocity(square, square)[0], 0.1),
        "base.pressure.solve_fast_diag": lambda f: f(face_velocity(square, square)),
        "base.pressure.projection": lambda f: f(face_velocity(square, square)),
        "spectral.equations.NavierStokes2D": lambda f: flow().explicit_terms(jnp.fft.rfft2(square)),
        "spectral.time_stepping.crank_nicolson_rk4": lambda f: f(flow(), 0.1)(
            jnp.fft.rfft2(square)
        ),
    }
    broken = {}
    for name, trial in trials.items():
        try:
            with lenient():
                trial(library(name))
        except Exception as error:  # whatever a foreign library raises is the report
            broken[f"jax_cfd.{name}"] = f"{type(error).__name__}: {error}"
    return broken


def _torus(size: int, axes: int) -> Any:
    return library("base.grids.Grid")((size,) * axes, domain=((0.0, 1.0),) * axes)

"""The one door to jax-cfd: its spectral step, and its finite-volume solver wrapped as a drift.

    dv/dt = P[-div(v v) + nu Laplace v - mu v + f],    f = (A sin(2 pi k y), 0)

on a staggered grid of the unit torus, P the pressure projection. jax-cfd 0.2.1 (Kochkov et al.
2021) is no longer maintained. What is used of it is public, and looked up by name, on first use, in
``library`` (a test tries every such call). Its helper for adding a forcing calls ``jax.tree_map``,
which JAX removed, so the terms are added here. States go in and come out as plain arrays on the
unit torus; axis 0 is x, axis 1 is y.
"""

import contextlib
import functools
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from smdp_jax.checks import check_within
from smdp_jax.physics.conditions import check_even, check_fields, coefficients
from smdp_jax.sde import Args, Drift, Scalar

Field = Float[Array, "size size"]
Spectrum = Complex[Array, "size half"]


@functools.cache
def library(name: str) -> Any:
    """Look up a public name of jax-cfd."""
    module, _, attribute = f"jax_cfd.{name}".rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        said = f"jax_cfd.{name} cannot be had ({error})"
        raise ImportError(f"{said}; this adapter is written for jax-cfd 0.2.1") from error


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
    """Advance ``w_t + u . grad w = nu Laplace w - mu w + F``, two-dimensional Navier-Stokes.

    Crank-Nicolson for the linear terms, fourth-order low-storage Runge-Kutta for the others.
    """
    with lenient():
        terms = library("spectral.equations.NavierStokes2D")
        equation = terms(viscosity, _torus(w.shape[0], axes=2), drag=drag, smooth=None)
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


def _torus(size: int, axes: int) -> Any:
    return library("base.grids.Grid")((size,) * axes, domain=((0.0, 1.0),) * axes)


Faces = dict[str, Float[Array, "size size"]]


def finite_volume_drift(
    size: int,
    *,
    viscosity: float | int,
    drag: float | int = 0.0,
    forcing: float | int = 0.0,
    wavenumber: int = 4,
) -> Drift:
    """Build the drift of incompressible flow on ``size x size`` cells of the unit torus.

    Second-order central differences, which neither create nor destroy the energy of velocities
    without divergence; start from such velocities (``finite_volume_projection``). Explicit steps
    need ``dt < 1 / (4 nu size^2)``, and ``dt max |v| size < 1`` with a scheme that suits advection.

    Parameters
    ----------
    size : int
        Cells per side, even, at least 4.
    viscosity, drag : float
        nu >= 0, in length^2 / time; mu >= 0, in 1 / time.
    forcing, wavenumber : float, int
        A of Kolmogorov's forcing, in length / time^2; its k, periods per side, from 1 to below
        size / 2.

    Returns
    -------
    callable
        ``drift(t, x, args)`` of ``x = {"u": (size, size), "v": (size, size)}``: velocity along x
        on the right faces, at (i + 1, j + 1/2) / size, and along y on the upper faces, at
        (i + 1/2, j + 1) / size, in length / time. ``args = {"viscosity": nu}`` replaces nu.

    Raises
    ------
    ValueError
        If ``size`` is odd or below 4, or another number is out of range; the drift raises it for a
        state of another grid.

    References
    ----------
    Kochkov et al. (2021), "Machine learning-accelerated computational fluid dynamics", PNAS 118.
    """
    check_even("size", size)
    check_within("[0, inf)", viscosity=viscosity, drag=drag)
    check_within("(-inf, inf)", forcing=forcing)
    if forcing:
        check_within(f"(0, {size / 2})", wavenumber=wavenumber)
    push = forcing * np.sin(2 * math.pi * wavenumber * (np.arange(size) + 0.5) / size)

    def drift(t: Scalar, x: Faces, args: Args = None) -> Faces:
        check_fields("finite_volume_drift", x, dict.fromkeys("uv", (size, size)))
        nu = coefficients(args, "finite_volume_drift", viscosity=viscosity)["viscosity"]
        with lenient():
            faces = face_velocity(x["u"], x["v"])
            convection = library("base.advection.convect_linear")(faces)
            diffuse = library("base.diffusion.diffuse")
            u, v = (
                (c.data + diffuse(w, nu).data - drag * w.data).astype(w.dtype)
                for c, w in zip(convection, faces, strict=True)
            )
            u, v = projected(u + jnp.asarray(push, u.dtype)[None, :], v)
        return {"u": u, "v": v}

    return drift


def finite_volume_projection(x: Faces) -> Faces:
    """Remove the divergence of face velocities.

    Parameters
    ----------
    x : dict of two arrays, shape (size, size)
        ``{"u": ..., "v": ...}``, placed as in ``finite_volume_drift``; size even.

    Returns
    -------
    dict of two arrays, shape (size, size)
        The nearest velocities whose discrete divergence is 0 in every cell.
    """
    size = jax.tree.leaves(x)[0].shape[0]
    check_even("size", size)
    check_fields("finite_volume_projection", x, dict.fromkeys("uv", (size, size)))
    u, v = projected(x["u"], x["v"])
    return {"u": u, "v": v}

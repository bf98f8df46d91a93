"""jax-cfd's finite-volume solver, wrapped as a drift: how a foreign simulator is brought in.

    dv/dt = P[-div(v v) + nu Laplace v - mu v + f],    f = (A sin(2 pi k y), 0)

on a staggered grid of the unit torus, P the pressure projection. States are plain arrays; the
library's own grid types live inside the drift only. The pieces are its public ones: its helper for
adding a forcing calls ``jax.tree_map``, which JAX removed, so the terms are added here.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax.physics.adapters.jax_cfd import face_velocity, lenient, library, projected
from smdp_jax.physics.conditions import check_even, coefficients
from smdp_jax.physics.spectral.periodic import check_grid
from smdp_jax.sde import Args, Drift, Scalar

__all__ = ["finite_volume_drift", "finite_volume_projection"]

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
        Cells per side, even.
    viscosity : float
        nu >= 0, in length^2 / time.
    drag : float
        mu >= 0, in 1 / time.
    forcing : float
        A of Kolmogorov's forcing, in length / time^2.
    wavenumber : int
        Its k, periods per side; from 1 to below size / 2, if there is a forcing.

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
    for name, value in (("viscosity", viscosity), ("drag", drag)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value}")
    if not math.isfinite(forcing):
        raise ValueError(f"forcing must be finite, got {forcing}")
    if forcing != 0 and not 0 < 2 * wavenumber < size:
        raise ValueError(
            f"wavenumber must be from 1 to below {size // 2}, half the size, got {wavenumber}"
        )
    push = forcing * np.sin(2 * math.pi * wavenumber * (np.arange(size) + 0.5) / size)

    def drift(t: Scalar, x: Faces, args: Args = None) -> Faces:
        _check_faces(x, size)
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

    Raises
    ------
    ValueError
        If the size is odd or below 4, or the arrays are not squares of one size.
    """
    size = jax.tree.leaves(x)[0].shape[0]
    check_even("size", size)
    _check_faces(x, size)
    u, v = projected(x["u"], x["v"])
    return {"u": u, "v": v}


def _check_faces(x: Faces, size: int) -> None:
    if not isinstance(x, Mapping) or set(x) != {"u", "v"}:
        given = sorted(x) if isinstance(x, Mapping) else type(x).__name__
        raise ValueError(
            f'the state of finite_volume_drift must be {{"u": ..., "v": ...}}, got {given}'
        )
    for name in ("u", "v"):
        check_grid(x[name], (size, size), f'finite_volume_drift, x["{name}"],')

r"""Closed form of Burgers' equation: the Cole-Hopf transformation, by quadrature.

``u = -2 nu d/dx log phi`` turns ``u_t + u u_x = nu u_xx`` into the heat equation for phi. Solved
with the heat kernel and integrated by parts once, u is a weighted mean of initial velocities::

    u(x, t) = sum_y w(y) u_0(y),   w ~ exp(-[Phi_0(y) + (x - y)^2 / (2 t)] / (2 nu)),  Phi_0' = u_0
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax.checks import check_positive, check_within, concrete
from smdp_jax.physics.spectral.periodic import angular_wavenumbers, refine
from smdp_jax.sde import Scalar


def cole_hopf(
    x0: Float[Array, " size"],
    t: Scalar,
    *,
    viscosity: float | int = 0.01,
    points: int = 4096,
    reach: int = 4,
) -> Float[Array, " size"]:
    r"""Solve Burgers' equation without time steps, from any band-limited initial velocity.

    The quadrature is a sum over a uniform grid, whose error falls faster than any power of its
    spacing. All weights are positive: nothing cancels, however small the viscosity. A mean
    velocity is allowed. For the reference it is meant to be, compute in float64.

    Parameters
    ----------
    x0 : array, shape (size,)
        Velocity at t = 0 at the points j / size of the unit interval, in length / time; the
        trigonometric polynomial through it is the initial velocity.
    t, viscosity
        Time > 0; nu > 0, in length^2 / time.
    points, reach : int
        Quadrature points per period, a multiple of ``size``; periods on either side that are summed
        over.

    Returns
    -------
    array, shape (size,)
        Velocity at ``t`` at the same points.

    Raises
    ------
    ValueError
        If ``points`` is no multiple of ``size``, or if ``t`` (where its value can be seen) is not
        positive, too short for the spacing of the points, or too long for the reach.

    References
    ----------
    Hopf (1950), "The partial differential equation u_t + u u_x = mu u_xx", Comm. Pure Appl. Math.
    3, eq. (6); Cole (1951), Quart. Appl. Math. 9.
    """
    size = x0.shape[0]
    if points % size:
        raise ValueError(f"points must be a multiple of the size {size} of x0, got {points}")
    if concrete(x0, t):
        (time,) = check_within("(0, inf)", t=t)
        width = math.sqrt(2 * viscosity * time)
        check_positive(least=math.ceil(2 / width), points=points)
        most = float(np.max(np.abs(x0))) * time + 8 * width
        check_positive(least=math.ceil(most), reach=reach)
    velocity = refine(x0, points)
    (k,) = angular_wavenumbers((points,))
    spectrum = jnp.fft.rfft(velocity)
    integral = np.divide(1, 1j * k, out=np.zeros(k.shape, complex), where=k > 0)
    potential = jnp.fft.irfft(jnp.asarray(integral, spectrum.dtype) * spectrum)
    mean = jnp.mean(velocity)

    offsets = np.arange(-reach * points, reach * points + 1)
    distance = jnp.asarray(offsets / points, x0.dtype)
    time = jnp.asarray(t).astype(x0.dtype)

    def at(start: Array) -> Array:
        source = (start + offsets) % points
        # The potential up to a constant: the mean velocity adds a slope to its periodic part.
        action = potential[source] + mean * distance + distance**2 / (2 * time)
        return jnp.sum(jax.nn.softmax(-action / (2 * viscosity)) * velocity[source])

    return jax.lax.map(at, jnp.arange(0, points, points // size))

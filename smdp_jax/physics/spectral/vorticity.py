"""What a vorticity field on the unit torus says: velocity, energy, enstrophy, palinstrophy.

    w = dv/dx - du/dy = -Laplace psi,    (u, v) = (dpsi/dy, -dpsi/dx)

Axis 0 is x, axis 1 is y; every mean ``< >`` is over the torus. The zero mode of the vorticity,
which no periodic velocity has, is ignored.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax.physics.spectral.periodic import angular_wavenumbers

Field = Float[Array, "size size"]


def stream_function(w: Field) -> Field:
    """Solve ``-Laplace psi = w``."""
    return _multiplied(w, _inverse(_wavenumbers(w)[2]))


def velocity(w: Field) -> tuple[Field, Field]:
    """Velocity of zero mean that has this vorticity and no divergence."""
    kx, ky, square = _wavenumbers(w)
    inverse = _inverse(square)
    return _multiplied(w, 1j * ky * inverse), _multiplied(w, -1j * kx * inverse)


def energy(w: Field) -> Float[Array, ""]:
    """Kinetic energy ``<u^2 + v^2> / 2 = <psi w> / 2``."""
    return jnp.mean(stream_function(w) * w) / 2


def enstrophy(w: Field) -> Float[Array, ""]:
    """Enstrophy ``Z = <w^2> / 2``; viscosity takes ``2 nu Z`` of energy per time."""
    return jnp.mean(w**2) / 2


def palinstrophy(w: Field) -> Float[Array, ""]:
    """Palinstrophy ``P = <|grad w|^2> / 2``; viscosity takes ``2 nu P`` of enstrophy per time."""
    return jnp.mean(w * _multiplied(w, _wavenumbers(w)[2])) / 2


def _wavenumbers(w: Field) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kx, ky = angular_wavenumbers(w.shape)
    return kx, ky, kx**2 + ky**2


def _inverse(square: np.ndarray) -> np.ndarray:
    return np.divide(1, square, out=np.zeros_like(square), where=square > 0)


def _multiplied(w: Field, multipliers: np.ndarray) -> Field:
    spectrum = jnp.fft.rfft2(w)
    return jnp.fft.irfft2(jnp.asarray(multipliers, spectrum.dtype) * spectrum, s=w.shape)

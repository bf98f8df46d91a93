"""Two-dimensional turbulence on the unit torus, in vorticity form.

    dw = (-u . grad w + nu Laplace w - mu w + F) dt + g dW,    w = -Laplace psi

Energy flows to large scales and enstrophy to small ones; with a forcing and a drag mu on the large
scales the flow becomes statistically stationary.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import check_choice, check_positive, check_within
from smdp_jax.physics.conditions import check_coefficients, check_even, coefficients
from smdp_jax.physics.jax_cfd import spectral_navier_stokes
from smdp_jax.physics.spectral.gaussian_field import draw_fields
from smdp_jax.physics.spectral.periodic import check_grid, dealiased, squared_wavenumbers
from smdp_jax.physics.spectral.vorticity import stream_function, velocity
from smdp_jax.physics.system import AdvectingSystem
from smdp_jax.sde import Args, Scalar

Field = Float[Array, "size size"]
COURANT = 3.0  # (|u| + |v|) k dt; the scheme is stable for advection up to 3.3


@dataclass(frozen=True)
class Turbulence(AdvectingSystem):
    r"""Decaying, steadily forced or Kolmogorov-forced turbulence on ``size x size`` points.

        forcing "none":        F = 0
        forcing "diagonal":    F = A (sin 2 pi k (x + y) + cos 2 pi k (x + y))
        forcing "kolmogorov":  F = curl (A sin 2 pi k y, 0) = -2 pi k A cos 2 pi k y

    Without noise ``dE/dt = -2 nu Z - 2 mu E + <psi F>`` and, for F = 0,
    ``dZ/dt = -2 nu P - 2 mu Z`` (energy E, enstrophy Z, palinstrophy P; see ``vorticity``). The
    steps are jax-cfd's, dealiased by the 2/3 rule: modes with ``3 |k| < size`` on both axes
    exchange energy and enstrophy, conserving both, and the others only decay.

    Conditions: ``args = {"viscosity": nu, "drag": mu}``, or one of them, replaces the system's own.

    Parameters
    ----------
    size : int
        Points per side, even, at least 4.
    viscosity, drag : float
        nu > 0, in length^2 / time; mu >= 0, in 1 / time; the side is the unit of length.
    forcing : {"none", "diagonal", "kolmogorov"}
        Kind of forcing.
    forcing_amplitude, forcing_wavenumber : float, int
        A, in 1 / time^2 ("diagonal") or length / time^2 ("kolmogorov"); k, periods per side, from 1
        to below size / 2, if there is a forcing.
    noise, end_time : float
        g > 0 per grid point, in units of vorticity per square root of time; T > 0, when the end
        state is observed.
    inner_steps : int
        Time steps per call of ``step``; ``check_step`` says whether they are enough.

    References
    ----------
    Li et al. (2021), "Fourier Neural Operator for Parametric Partial Differential Equations",
    ICLR, section 5.3: the defaults, with steps of 1 in time, simulated on 256 x 256 points
    (``coarsen`` brings them to 64 x 64).
    """

    size: int = 64
    viscosity: float | int = 1e-5
    drag: float | int = 0.0
    forcing: Literal["none", "diagonal", "kolmogorov"] = "diagonal"
    forcing_amplitude: float | int = 0.1
    forcing_wavenumber: int = 1
    noise: float | int = 0.1
    end_time: float | int = 20.0
    inner_steps: int = 32

    def __post_init__(self) -> None:
        check_even("Turbulence.size", self.size)
        names = ("viscosity", "noise", "end_time", "inner_steps", "forcing_wavenumber")
        check_coefficients(self, *names)
        check_within("[0, inf)", owner=self, drag=self.drag)
        check_choice("Turbulence.forcing", self.forcing, "none", "diagonal", "kolmogorov")
        check_within("(-inf, inf)", owner=self, forcing_amplitude=self.forcing_amplitude)
        if self.forcing != "none":
            below = f"(0, {self.size / 2})"
            check_within(below, owner=self, forcing_wavenumber=self.forcing_wavenumber)

    @classmethod
    def stationary(cls, **changes: Any) -> "Turbulence":
        """Kolmogorov flow whose energy and spectrum are stationary from t = 20 on.

        Forced at k = 4 with drag: energy 0.022, enstrophy 10, speeds up to 0.7, turnover time
        1 / sqrt(2 Z) = 0.2; the spectrum falls like k^-5.1 over k = 5 ... 14. Let draws of the
        prior run until then (``spin_up``) with inner steps of at most 0.02.

        Parameters
        ----------
        **changes : Any
            Fields to be set otherwise.

        Returns
        -------
        Turbulence
            With nu = 1e-4, mu = 0.2, A = 0.2; 10 inner steps suit calls of length 0.2.
        """
        flow = {"viscosity": 1e-4, "drag": 0.2, "end_time": 2.0, "inner_steps": 10}
        push = {"forcing": "kolmogorov", "forcing_amplitude": 0.2, "forcing_wavenumber": 4}
        setting: dict[str, Any] = flow | push | changes
        return cls(**setting)

    def step(self, t0: Scalar, t1: Scalar, x: Field, args: Args = None) -> Field:
        """Solve the noise-free equation; ``args`` may hold ``viscosity`` and ``drag``.

        Backward, the small scales grow: good for spans short against ``1 / (nu (pi size)^2)``.
        """
        shape = (self.size, self.size)
        check_grid(x, shape, "Turbulence")
        given = coefficients(args, "Turbulence", viscosity=self.viscosity, drag=self.drag)
        length = (jnp.asarray(t1, float) - jnp.asarray(t0, float)).astype(x.dtype)
        w = spectral_navier_stokes(
            jnp.fft.rfft2(x),
            length / self.inner_steps,
            steps=self.inner_steps,
            **{name: jnp.asarray(value).astype(x.dtype) for name, value in given.items()},
            source=jnp.fft.rfft2(self.source().astype(x.dtype)),
            kept=jnp.asarray(dealiased(shape), x.dtype),
        )
        return jnp.fft.irfft2(w, s=shape)

    def source(self) -> Field:
        """Rate at which the forcing makes vorticity.

        Returns
        -------
        array, shape (size, size)
            F, in 1 / time^2.
        """
        phase = 2 * math.pi * self.forcing_wavenumber * np.arange(self.size) / self.size
        x, y = np.meshgrid(phase, phase, indexing="ij")
        a = self.forcing_amplitude
        sources = {
            "none": np.zeros_like(x),
            "diagonal": a * (np.sin(x + y) + np.cos(x + y)),
            "kolmogorov": -2 * math.pi * self.forcing_wavenumber * a * np.cos(y),
        }
        return jnp.asarray(sources[self.forcing], float)

    def prior(self, key: PRNGKeyArray, n: int) -> Float[Array, "n size size"]:
        """Draw vorticities, in 1 / time, from ``N(0, 7^(3/2) (-Laplace + 49)^(-5/2))``."""
        check_positive(n=n)
        return draw_fields(key, n, self.prior_variance())

    def prior_variance(self) -> Float[Array, "size size"]:
        """Variance of each unitary mode of the initial vorticity.

        Returns
        -------
        array, shape (size, size)
            ``size^2 7^(3/2) (4 pi^2 |k|^2 + 49)^(-5/2)``, 0 for the zero mode, which a vorticity
            on the torus does not have; its mean is the variance per point, 1.85e-3.
        """
        k2 = squared_wavenumbers((self.size, self.size), full=True)
        variance = self.size**2 * 7**1.5 * (4 * math.pi**2 * k2 + 49) ** -2.5
        return jnp.asarray(np.where(k2 > 0, variance, 0), float)

    def energy_input(self, x: Field) -> Float[Array, ""]:
        """Energy that the forcing adds per time, ``<psi F>``.

        Parameters
        ----------
        x : array, shape (size, size)
            Vorticity.

        Returns
        -------
        scalar
            In length^2 / time^3.
        """
        return jnp.mean(stream_function(x) * self.source().astype(x.dtype))

    def stable_step(self, x: Float[Array, "*batch size size"]) -> Float[Array, ""]:
        """Longest stable inner step: ``3 / (2 pi k max(|u| + |v|))``, k the last advected mode."""
        u, v = jax.vmap(velocity)(x.reshape(-1, self.size, self.size))
        return COURANT / (2 * math.pi * ((self.size - 1) // 3) * jnp.max(jnp.abs(u) + jnp.abs(v)))

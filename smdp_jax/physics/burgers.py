"""Viscous Burgers' equation ``du = (-u u_x + nu u_xx) dt + g dW``, periodic on the unit interval.

Pseudo-spectral in space, exponential Runge-Kutta steps in time. Smooth fields steepen into shocks
of width nu / |u|, which forget where they came from.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import check_positive
from smdp_jax.physics.conditions import check_coefficients, check_even, coefficients
from smdp_jax.physics.spectral.exponential import etdrk4, phi_functions
from smdp_jax.physics.spectral.periodic import angular_wavenumbers, check_grid, dealiased, waves
from smdp_jax.physics.system import AdvectingSystem, DriftSystem
from smdp_jax.sde import Args, Scalar

Field = Float[Array, " size"]
COURANT = 2.8  # |u| k dt up to which a fourth-order Runge-Kutta scheme is stable for advection


@dataclass(frozen=True)
class Burgers(AdvectingSystem, DriftSystem):
    r"""Burgers' equation with white noise on ``size`` points of the unit interval.

        u_t + (u^2 / 2)_x = nu u_xx,   E = <u^2> / 2,   dE/dt = -nu <u_x^2>

    Products are dealiased by the 2/3 rule: modes with ``3 |k| < size`` exchange energy, exactly
    conserving it, and those above only decay. Momentum is conserved to rounding.

    Conditions: ``args = {"viscosity": nu}`` replaces the viscosity of the system; None keeps it.

    Parameters
    ----------
    size, viscosity : int, float
        Points, even; nu > 0, in length^2 / time. A shock of jump J is well resolved by
        ``size >= J / nu``.
    noise, end_time : float
        g > 0 per grid point, in units of u per square root of time; T > 0, when the end state is
        observed.
    amplitude, modes : float, int
        Root mean square of the initial velocity, in length / time, > 0; it is made up of the
        wavenumbers 1 ... modes, below size / 2.
    inner_steps : int
        Fourth-order exponential steps per call of ``step``.

    References
    ----------
    Burgers (1948), Adv. Appl. Mech. 1. Good values: the defaults, and 64 to 128 stored times.
    """

    size: int = 128
    viscosity: float | int = 0.01
    noise: float | int = 0.05
    end_time: float | int = 1.0
    amplitude: float | int = 1.0
    modes: int = 5
    inner_steps: int = 2

    def __post_init__(self) -> None:
        names = ("viscosity", "noise", "end_time", "amplitude", "modes", "inner_steps")
        check_coefficients(self, *names)
        check_even("Burgers.size", self.size, least=2 * self.modes + 2)

    def drift(self, t: Scalar, x: Field, args: Args = None) -> Field:
        """Right-hand side ``-(u^2 / 2)_x + nu u_xx``; ``args`` may hold the viscosity."""
        check_grid(x, (self.size,), "Burgers")
        v = jnp.fft.rfft(x)
        linear = -self.decay_rates(args).astype(x.dtype)
        return jnp.fft.irfft(linear.astype(v.dtype) * v + self._advection(v.dtype)(v))

    def step(self, t0: Scalar, t1: Scalar, x: Field, args: Args = None) -> Field:
        """Solve the noise-free equation; ``args`` may hold the viscosity.

        Backward, advection is exact as long as no shock has formed, while mode k grows by
        ``exp(4 pi^2 nu k^2 (t0 - t1))``: stay within ``(t0 - t1) << 1 / (nu (pi size)^2)`` unless
        the high modes are empty.
        """
        check_grid(x, (self.size,), "Burgers")
        length = (jnp.asarray(t1, float) - jnp.asarray(t0, float)).astype(x.dtype)
        v = jnp.fft.rfft(x)
        linear = -self.decay_rates(args).astype(x.dtype)
        inner = etdrk4(linear, self._advection(v.dtype), length / self.inner_steps)
        v, _ = jax.lax.scan(lambda v, _: (inner(v), None), v, length=self.inner_steps)
        return jnp.fft.irfft(v)

    def prior(self, key: PRNGKeyArray, n: int) -> Float[Array, "n size"]:
        """Draw smooth initial velocities of zero mean.

        ``sum_k a_k cos(2 pi k x) + b_k sin(2 pi k x)`` over k = 1 ... modes, all coefficients
        independent and normal with variance ``amplitude^2 / modes``.
        """
        check_positive(n=n)
        spread = self.amplitude / math.sqrt(self.modes)
        coefficients = spread * jax.random.normal(key, (n, 2 * self.modes))
        basis = jnp.asarray(waves(self.size, self.modes), coefficients.dtype)
        return jnp.matmul(coefficients, basis, precision="highest")

    def leading_modes(self, x: Field) -> Float[Array, " coefficients"]:
        """Coefficients of the modes that make up the initial velocity.

        Parameters
        ----------
        x : array, shape (size,)
            Velocity field.

        Returns
        -------
        array, shape (2 * modes,)
            ``a_1 ... a_modes, b_1 ... b_modes`` of cosines and sines, in units of u.
        """
        basis = jnp.asarray(waves(self.size, self.modes) * 2 / self.size, x.dtype)
        return jnp.matmul(basis, x, precision="highest")

    def decay_rates(self, args: Args = None) -> Float[Array, " half"]:
        """Rate at which each mode decays, as ``SinhRamp`` takes it together with ``transform``.

        Parameters
        ----------
        args : dict, optional
            ``{"viscosity": nu}``.

        Returns
        -------
        array, shape (size // 2 + 1,)
            ``kappa = 4 pi^2 nu k^2``, in 1 / time. For score targets about 4 / time more suits the
            shearing of the low modes.
        """
        given = coefficients(args, "Burgers", viscosity=self.viscosity)
        viscosity = jnp.asarray(given["viscosity"], float)
        (k,) = angular_wavenumbers((self.size,))
        return viscosity * jnp.asarray(k**2, viscosity.dtype)

    def noise_gain(self, dt: Scalar, args: Args = None) -> Float[Array, " half"]:
        """How much more noise a mode seems to get when it is added after steps, undamped within.

        ``Splitting`` does that: its steps ``x' = exp(-kappa dt) x + g sqrt(dt) z`` lie on exact
        paths of ``dx = -kappa x dt + g sqrt(r) dW``, not on those of the noise g. The probability
        flow, in which decay and noise of stiff modes cancel, is that of the paths with ``g^2 r``.

        Parameters
        ----------
        dt, args
            Length of the simulator's steps, in time; ``{"viscosity": nu}`` or None.

        Returns
        -------
        array, shape (size // 2 + 1,)
            ``r = 2 kappa dt / (1 - exp(-2 kappa dt))``, at least 1.
        """
        return 1 / phi_functions(-2 * dt * self.decay_rates(args))[0]

    @property
    def transform(self) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        """Forward and backward Fourier transform in which ``decay_rates`` are diagonal."""
        return jnp.fft.rfft, jnp.fft.irfft

    def energy(self, x: Field) -> Float[Array, ""]:
        """Kinetic energy ``<u^2> / 2`` per unit length.

        Parameters
        ----------
        x : array, shape (size,)
            Velocity field.

        Returns
        -------
        scalar
            In units of u squared.
        """
        return jnp.mean(x**2) / 2

    def dissipation(self, x: Field, args: Args = None) -> Float[Array, ""]:
        """Energy lost per time without noise, ``nu <u_x^2>``.

        Parameters
        ----------
        x, args
            Velocity field (size,); ``{"viscosity": nu}`` or None.

        Returns
        -------
        scalar
            In units of u squared / time. Noise adds ``g^2 / 2``.
        """
        v = jnp.fft.rfft(x)
        rates = self.decay_rates(args).astype(v.dtype)
        return -jnp.mean(x * jnp.fft.irfft(-rates * v))

    def stable_step(self, x: Float[Array, "*batch size"]) -> Float[Array, ""]:
        """Longest stable inner step: ``2.8 / (2 pi k max |u|)``, k the last advected mode."""
        return COURANT / (2 * math.pi * ((self.size - 1) // 3) * jnp.max(jnp.abs(x)))

    def _advection(self, dtype: Any) -> Callable[[Array], Array]:
        """Return ``v -> -(u^2 / 2)_x`` in Fourier space, dealiased."""
        (k,), kept = angular_wavenumbers((self.size,)), dealiased((self.size,))
        mask, derivative = jnp.asarray(kept, dtype), jnp.asarray(-0.5j * k * kept, dtype)
        return lambda v: derivative * jnp.fft.rfft(jnp.fft.irfft(mask * v) ** 2)

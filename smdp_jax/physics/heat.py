"""Stochastic heat equation ``du = alpha Laplace(u) dt + g dW`` on a periodic square.

With a Gaussian random field as prior everything is Gaussian and diagonal in Fourier space: the
score, the posterior of the initial field and the evidence are exact.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import check_positive
from smdp_jax.physics.conditions import check_coefficients, check_even
from smdp_jax.physics.exact.gaussian_modes import GaussianModes
from smdp_jax.physics.exact.law import decay
from smdp_jax.physics.spectral.gaussian_field import draw_fields, filter_modes, power_law
from smdp_jax.physics.spectral.periodic import check_grid, squared_wavenumbers
from smdp_jax.physics.system import DriftSystem, StepSystem
from smdp_jax.sde import Args, Scalar

Field = Float[Array, "size size"]


@dataclass(frozen=True)
class Heat(GaussianModes, StepSystem, DriftSystem):
    r"""Heat equation with white noise on ``size x size`` points of a periodic square, side 2 pi.

    Mode k (integer wavenumbers) decays at the rate ``kappa = alpha |k|^2``; the initial field is
    Gaussian with spectrum ``|k|^-4``, zero mean and unit variance per point. The closed forms of
    ``GaussianModes`` belong to the continuous process. Noise added once per step of length dt
    after the exact flow map has a variance larger by the factor
    ``2 kappa dt / (1 - exp(-2 kappa dt))``: 3.3 at ``kappa = 256`` for 32 steps over 0.2. Draw
    with ``transition`` where that matters.

    The zero mode has no variance at t = 0, so no score there: ``score`` returns 0 for it at t = 0
    and ``-x_0 / (g^2 t)`` later.

    Parameters
    ----------
    size, diffusivity : int, float
        Points per side, even, at least 4; alpha > 0, in length^2 / time.
    noise, end_time : float
        g > 0 per grid point, in units of u per square root of time; T > 0, when the end state is
        observed.

    References
    ----------
    Holzschuh, Vegetti, Thuerey (2023), "Solving Inverse Physics Problems with Score Matching",
    section 3.2; good values there: size 32, alpha = 1, g = 0.1, T = 0.2, 32 steps.
    """

    size: int = 32
    diffusivity: float | int = 1.0
    noise: float | int = 0.1
    end_time: float | int = 0.2

    def __post_init__(self) -> None:
        check_even("Heat.size", self.size)
        check_coefficients(self, "diffusivity", "noise", "end_time")

    def drift(self, t: Scalar, x: Field, args: Args = None) -> Field:
        """Velocity ``alpha Laplace(x)``, in Fourier space; ``t`` and ``args`` are ignored."""
        check_grid(x, (self.size, self.size), "Heat")
        return filter_modes(-self.decay_rates(), x)

    def step(self, t0: Scalar, t1: Scalar, x: Field, args: Args = None) -> Field:
        """Solve the noise-free equation, exactly; back, modes grow by ``exp(kappa (t0 - t1))``."""
        check_grid(x, (self.size, self.size), "Heat")
        length = jnp.asarray(t1, float) - jnp.asarray(t0, float)
        return filter_modes(decay(self.decay_rates(), length), x)

    def transition(
        self, key: PRNGKeyArray, t0: Scalar, t1: Scalar, x: Field, args: Args = None
    ) -> Field:
        """Draw the noisy field at ``t1`` given the field at ``t0``, without time steps.

        Parameters
        ----------
        key, t0, t1, x, args
            Consumed; times, ``t1 >= t0``; field (size, size) at ``t0``; ignored.

        Returns
        -------
        array, shape (size, size)
            A sample of the field at ``t1``.
        """
        length = jnp.asarray(t1, float) - jnp.asarray(t0, float)
        spread = jnp.sqrt(self.noise_variance(length))
        white = jax.random.normal(key, x.shape, x.dtype)
        return self.step(t0, t1, x) + filter_modes(spread, white)

    def prior(self, key: PRNGKeyArray, n: int) -> Float[Array, "n size size"]:
        """Draw Gaussian fields: zero mean, unit variance per point, spectrum ``|k|^-4``."""
        check_positive(n=n)
        return draw_fields(key, n, self.prior_variance())

    def decay_rates(self) -> Float[Array, "size size"]:
        """Rate ``kappa = alpha |k|^2`` at which each mode decays, in 1 / time."""
        k2 = squared_wavenumbers((self.size, self.size), full=True)
        return jnp.asarray(self.diffusivity * k2, float)

    def prior_variance(self) -> Float[Array, "size size"]:
        """Variance of each unitary mode at t = 0: as ``|k|^-4``, 0 for the zero mode, mean 1."""
        return jnp.asarray(power_law(self.size, -4), float)

"""What a physical system offers: a prior, a process, a drift or a flow map, its longest step."""

import abc
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.physics.courant import warn_step
from smdp_jax.sde import SDE, Args, FlowMap, Scalar, negated

__all__ = ["AdvectingSystem", "DriftSystem", "StepSystem", "System"]


class System(abc.ABC):
    """A prior and a process."""

    noise: float | int

    @abc.abstractmethod
    def sde(self) -> SDE:
        """Return the forward process, with the drift or the flow map of the system."""

    @abc.abstractmethod
    def prior(self, key: PRNGKeyArray, n: int) -> Any:
        """Draw states at t = 0, leaves (n, *state), n at least 1."""


class DriftSystem(System):
    """A system given by its drift."""

    @abc.abstractmethod
    def drift(self, t: Scalar, x: Any, args: Args = None) -> Any:
        """Velocity ``dx/dt`` without noise, in units of the state / time."""

    def sde(self) -> SDE:
        """Return the process with its continuous drift."""
        return self.continuous_sde()

    def continuous_sde(self) -> SDE:
        """Return the process with its drift; where it is stiff, explicit steps are tiny."""
        return SDE(self.drift, diffusion=self.noise)


class StepSystem(System):
    """A system given by the flow map of its noise-free equation."""

    @abc.abstractmethod
    def step(self, t0: Scalar, t1: Scalar, x: Any, args: Args = None) -> Any:
        """Solve the noise-free equation from ``t0`` to ``t1``; back, what decays is amplified."""

    def sde(self, inverse: FlowMap | None = None) -> SDE:
        """Return the process as a flow map; default ``inverse(t1, t0, x, args)``: ``negated``."""
        return SDE(step=self.step, diffusion=self.noise, inverse=inverse or negated(self.step))


class AdvectingSystem(StepSystem):
    """A system whose explicit inner steps must not outrun what flows."""

    inner_steps: int

    @abc.abstractmethod
    def stable_step(self, x: Any) -> Float[Array, ""]:
        """Longest stable inner step, in units of t, for states (..., *state) as fast as these."""

    def check_step(self, dt: float | int, x: Any) -> None:
        """Warn (``CourantWarning``) if ``step`` over dt is too long for states as fast as these.

        Looks at values, so not under ``jit``; ``x`` may have leading axes.
        """
        name = type(self).__name__
        warn_step(float(dt), float(self.stable_step(x)), name, self.inner_steps)

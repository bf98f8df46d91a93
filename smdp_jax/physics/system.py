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
        """Return the forward process.

        Returns
        -------
        SDE
            With the drift or the flow map of the system, and its noise.
        """

    @abc.abstractmethod
    def prior(self, key: PRNGKeyArray, n: int) -> Any:
        """Draw initial states.

        Parameters
        ----------
        key : PRNG key
            Consumed.
        n : int
            Number of states, at least 1.

        Returns
        -------
        pytree, leaves of shape (n, *state)
            States at t = 0; how they are distributed stands with the system.

        Raises
        ------
        ValueError
            If ``n`` is smaller than 1.
        """


class DriftSystem(System):
    """A system given by its drift."""

    @abc.abstractmethod
    def drift(self, t: Scalar, x: Any, args: Args = None) -> Any:
        """Velocity ``dx/dt`` without noise.

        Parameters
        ----------
        t : scalar
            Time.
        x : pytree
            State.
        args : Any
            Conditions, where the system takes any.

        Returns
        -------
        pytree
            As ``x``, in units of the state / time.

        Raises
        ------
        ValueError
            If ``x`` is not a state of the system, or ``args`` are not its conditions.
        """

    def sde(self) -> SDE:
        """Return the process with its continuous drift."""
        return self.continuous_sde()

    def continuous_sde(self) -> SDE:
        """Return the process with its continuous drift; where it is stiff, explicit steps are tiny.

        Returns
        -------
        SDE
            With ``drift``.
        """
        return SDE(self.drift, diffusion=self.noise)


class StepSystem(System):
    """A system given by the flow map of its noise-free equation."""

    @abc.abstractmethod
    def step(self, t0: Scalar, t1: Scalar, x: Any, args: Args = None) -> Any:
        """Solve the noise-free equation from ``t0`` to ``t1``.

        Parameters
        ----------
        t0, t1 : scalar
            Times; ``t1 < t0`` integrates backward, which amplifies what decays.
        x : pytree
            State at ``t0``.
        args : Any
            Conditions, where the system takes any.

        Returns
        -------
        pytree
            State at ``t1``.

        Raises
        ------
        ValueError
            If ``x`` is not a state of the system, or ``args`` are not its conditions.
        """

    def sde(self, inverse: FlowMap | None = None) -> SDE:
        """Return the process as a flow map.

        Parameters
        ----------
        inverse : callable, optional
            ``inverse(t1, t0, x, args)``, for example a learned surrogate; by default the negated
            increment.

        Returns
        -------
        SDE
            With ``step`` and ``inverse``.
        """
        return SDE(step=self.step, diffusion=self.noise, inverse=inverse or negated(self.step))


class AdvectingSystem(StepSystem):
    """A system whose explicit inner steps must not outrun what flows."""

    inner_steps: int

    @abc.abstractmethod
    def stable_step(self, x: Any) -> Float[Array, ""]:
        """Longest stable inner step for states as fast as these.

        Parameters
        ----------
        x : pytree
            States; leading axes allowed.

        Returns
        -------
        scalar
            In units of t.
        """

    def check_step(self, dt: float | int, x: Any) -> None:
        """Warn, naming the step that would do, if calls of this length break the CFL condition.

        Looks at values, so not under ``jit``.

        Parameters
        ----------
        dt : float
            Length of one call of ``step``, in units of t.
        x : pytree
            States as fast as those to come; leading axes allowed.

        Raises
        ------
        ValueError
            If the states are not finite.

        Warns
        -----
        CourantWarning
            Naming the step that would do.
        """
        name = type(self).__name__
        warn_step(float(dt), float(self.stable_step(x)), name, self.inner_steps)

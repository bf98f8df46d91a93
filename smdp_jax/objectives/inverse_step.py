r"""Regression on pairs of neighbouring states: a learned step back in place of the inverse physics.

The minimiser of ``E |f(x_{i+1}) - x_i|^2`` is ``E[x_i | x_{i+1}]``. Where the paths have no noise
it is the inverse of the physics, as far as that exists; with noise it holds, beside, what of the
score's term ``g^2 dt s`` is the same at all times.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from smdp_jax.objectives.base import mean_square
from smdp_jax.scores.step import LearnedStep, StepScale
from smdp_jax.sde import SDE, Scalar
from smdp_jax.solve.integrate import integrate
from smdp_jax.trajectories import Trajectories

__all__ = ["InverseStep"]


@dataclass(frozen=True)
class InverseStep:
    """Squared miss of one learned step back over the mean square of the true one.

    The loss is 1 for a network that changes nothing and 0 for the exact inverse. ``fit`` returns
    the step as ``fit.step``, a flow map for ``SDE(step=..., inverse=fit.step)``, with which the
    score is then learned; together with a finite step's score it is a step correction.

    Parameters
    ----------
    noise_free : bool
        Take the simulator's own step from ``x_i`` as the later state of the pair, in place of the
        noisy ``x_{i+1}``: the physics alone is learned, on states as the noise leaves them.

    References
    ----------
    Holzschuh, Vegetti, Thuerey (2023), "Solving Inverse Physics Problems with Score Matching",
    section 4.4.
    """

    noise_free: bool = False

    @property
    def windows(self) -> tuple[int, ...]:
        """Pairs of neighbours."""
        return (1,)

    @property
    def first_time(self) -> int:
        """Pairs reach the first stored time."""
        return 0

    @property
    def noise_level(self) -> float:
        """Any: the step knows no noise."""
        return 1.0

    def kind(self, sde: SDE) -> Literal["step"]:
        """Tell what the minimiser is: always a step.

        Parameters
        ----------
        sde : SDE
            The process.

        Returns
        -------
        "step"
            Whatever the process.
        """
        return "step"

    def prepare(self, sde: SDE, data: Trajectories) -> StepScale:
        """Measure states and increments.

        Parameters
        ----------
        sde : SDE
            The process.
        data : Trajectories
            Paths at evenly spaced times.

        Returns
        -------
        StepScale
            Scales of the network and of the loss.

        Raises
        ------
        ValueError
            If the times are not evenly spaced, or if a leaf of the state never changes.
        """
        return StepScale.of(data)

    def loss(
        self,
        step: LearnedStep,
        sde: SDE,
        window: Trajectories,
        constants: StepScale,
        key: PRNGKeyArray,
    ) -> Scalar:
        """Compute the loss of one pair.

        Parameters
        ----------
        step : callable
            ``step(t1, t0, x, args)``, back from t1 to t0.
        sde : SDE
            The process; its simulator is called where ``noise_free``.
        window : Trajectories
            Two states, leaves (2, *state).
        constants : StepScale
            From ``prepare``.
        key : PRNG key
            Unused.

        Returns
        -------
        scalar
            Mean over entries of squared distance over mean squared increment.
        """
        earlier, later = (jax.tree.map(lambda x, i=i: x[i], window.xs) for i in range(2))
        if self.noise_free:
            physics = replace(sde, diffusion=None)
            later, _ = integrate(physics, earlier, window.ts, args=window.args, save="last")
        reached = step(window.ts[1], window.ts[0], later, window.args)
        return mean_square(jax.tree.map(jnp.subtract, reached, earlier), constants.increment)

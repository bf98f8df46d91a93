r"""Regression on pairs of neighbouring states: a learned step back in place of the inverse physics.

The minimiser of ``E |f(x_{i+1}) - x_i|^2`` is ``E[x_i | x_{i+1}]``. Where the paths have no noise
it is the inverse of the physics, as far as that exists; with noise it holds, beside, what of the
score's term ``g^2 dt s`` is the same at all times.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.objectives.base import Objective
from smdp_jax.objectives.step_miss import learned_step_miss, mean_square
from smdp_jax.scores.step import LearnedStep, StepScale, check_steps
from smdp_jax.sde import SDE, Scalar
from smdp_jax.solve.integrate import advance
from smdp_jax.trajectories import Trajectories


@dataclass(frozen=True)
class InverseStep(Objective):
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

    windows = (1,)

    def kind(self, sde: SDE) -> str:
        """A step, whatever the process."""
        return "step"

    def scales(self, sde: SDE, data: Trajectories, precondition: bool) -> StepScale:
        """Sizes of states and increments, whether asked for or not."""
        return StepScale.of(data)

    def prepare(self, sde: SDE, data: Trajectories) -> Any:
        """Mean square of the increments, which the loss is divided by."""
        return StepScale.of(data).increment

    def check(self, sde: SDE, data: Trajectories) -> None:
        """The times are evenly spaced, and no leaf of the state rests."""
        check_steps(data)

    def learned(
        self, sde: SDE, model: Any, variables: Any, scales: StepScale, ts: Any
    ) -> LearnedStep:
        """A step back, whatever the process."""
        return LearnedStep(model, variables, scales)

    def miss(self, sde: SDE, learned: Any, data: Trajectories, key: PRNGKeyArray) -> Array:
        """Over the mean squared increment."""
        return learned_step_miss(learned, data, key)

    def loss(
        self, learned: LearnedStep, sde: SDE, window: Trajectories, constants: Any, key: Any
    ) -> Scalar:
        """Mean over entries of squared distance over mean squared increment, of one pair."""
        earlier, later = (jax.tree.map(lambda x, i=i: x[i], window.xs) for i in range(2))
        if self.noise_free:
            physics = replace(sde, diffusion=None)
            later, _ = advance(physics, earlier, window.ts, args=window.args, save="last")
        reached = learned(window.ts[1], window.ts[0], later, window.args)
        return mean_square(jax.tree.map(jnp.subtract, reached, earlier), constants)

r"""Path score matching: regression of the score on targets accumulated along simulated paths.

``simulate(..., score_targets=True)`` gives T with E[T_i | x_i] = grad log p_{t_i}(x_i), so the
minimiser of ``E |s(t_i, x_i) - T_i|^2`` is the score, whatever the stored step; the simulator is
not called in training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from smdp_jax.objectives.base import Kind, mean_square
from smdp_jax.sde import SDE, Scalar, ScoreFn
from smdp_jax.trajectories import Trajectories

__all__ = ["PathScore"]


@dataclass(frozen=True)
class PathScore:
    """Regression on score targets, each time divided by the targets' mean square there.

    Parameters
    ----------
    transform : callable, optional
        Linear transform of one state, for example ``jnp.fft.rfft2``: the loss is then taken in
        its entries, each divided by its own mean square (per Fourier mode). Several leaves are
        passed as one tree.
    """

    transform: Callable[[Any], Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        """Single states."""
        return (0,)

    @property
    def first_time(self) -> int:
        """There is no target at the first time, where the prior decides."""
        return 1

    @property
    def noise_level(self) -> float:
        """Any: the score does not depend on it."""
        return 1.0

    def kind(self, sde: SDE) -> Kind:
        """Tell what the minimiser is: always a score.

        Parameters
        ----------
        sde : SDE
            The process.

        Returns
        -------
        "score"
            Whatever the process.
        """
        return "score"

    def prepare(self, sde: SDE, data: Trajectories) -> Any:
        """Compute the root mean square of the targets at every time.

        Parameters
        ----------
        sde : SDE
            The process.
        data : Trajectories
            Paths with score targets.

        Returns
        -------
        pytree
            Times, and per leaf (times, 1, ...) or (times, *transformed state).

        Raises
        ------
        ValueError
            If the paths have no score targets.
        """
        if data.score_targets is None:
            raise ValueError(
                "PathScore needs score targets: simulate(..., score_targets=True), got none"
            )
        transform = self.transform

        def size(target: Any) -> Any:
            t = target if transform is None else transform(target)
            return jax.tree.map(lambda t: jnp.abs(t) ** 2, t)

        def one_time(targets: Any) -> Any:
            square = jax.tree.map(lambda s: s.mean(axis=0), jax.vmap(size)(targets))
            if transform is None:
                square = jax.tree.map(lambda s: s.mean(keepdims=True), square)
            return jax.tree.map(lambda s: jnp.sqrt(jnp.where(s > 0, s, 1.0)), square)

        by_time = jax.tree.map(lambda t: jnp.moveaxis(t, 1, 0), data.score_targets)
        return data.ts, jax.lax.map(one_time, by_time)

    def loss(
        self, score: ScoreFn, sde: SDE, window: Trajectories, constants: Any, key: PRNGKeyArray
    ) -> Scalar:
        """Compute the loss of one state.

        Parameters
        ----------
        score : callable
            ``score(t, x, args)``.
        sde : SDE
            The process (unused: the simulator is not called).
        window : Trajectories
            One state, leaves (1, *state).
        constants : pytree
            From ``prepare``.
        key : PRNG key
            Unused.

        Returns
        -------
        scalar
            Mean over entries of |s - T|^2 / E|T|^2.
        """
        ts, scales = constants
        t = window.ts[0]
        x, target = jax.tree.map(lambda v: v[0], (window.xs, window.score_targets))
        i = jnp.searchsorted(ts, t)
        miss = jax.tree.map(jnp.subtract, score(t, x, window.args), target)
        return mean_square(miss, jax.tree.map(lambda s: s[i], scales), self.transform)

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

from smdp_jax.checks import check_within
from smdp_jax.objectives.base import Objective
from smdp_jax.objectives.step_miss import mean_square
from smdp_jax.sde import SDE, Scalar, ScoreFn, State
from smdp_jax.solve.terms import white_noise
from smdp_jax.trajectories import Trajectories


@dataclass(frozen=True)
class PathScore(Objective):
    """Regression on score targets, each time divided by the targets' mean square there.

    Parameters
    ----------
    transform : callable, optional
        Linear transform of one state, for example ``jnp.fft.rfft2``: the loss is then taken in
        its entries, each divided by its own mean square (per Fourier mode). Several leaves are
        passed as one tree.
    input_noise : float
        Sigma of normal noise on the states, in units of g sqrt(dt) of the step that ends there.
        The score learned is that of p_t convolved with it: smoother, and known farther from the
        data, but weaker than that of the process.

    Raises
    ------
    ValueError
        If ``input_noise`` is negative or not finite.
    """

    transform: Callable[[Any], Any] | None = None
    input_noise: float = 0.0

    windows = (0,)
    first_time = 1  # at the first one, where the prior decides, there is no target

    def __post_init__(self) -> None:
        check_within("[0, inf)", owner=self, input_noise=self.input_noise)

    def check(self, sde: SDE, data: Trajectories) -> None:
        """The paths have score targets."""
        if data.score_targets is None:
            said = "PathScore needs score targets: simulate(..., score_targets=True)"
            raise ValueError(f"{said}, got none")

    def prepare(self, sde: SDE, data: Trajectories) -> Any:
        """Times, and root mean squares of the targets: (times, 1, ...) or (times, *transformed)."""
        transform = self.transform

        def size(target: Any) -> Any:
            t = target if transform is None else transform(target)
            return jax.tree.map(lambda t: jnp.abs(t) ** 2, t)

        def at(i: Any) -> Any:
            seen = None if data.mask is None else data.mask[:, i]

            def root(s: Any) -> Any:
                which = None if seen is None else seen.reshape((-1,) + (1,) * (s.ndim - 1))
                square = s.mean(axis=0, where=which)
                square = square.mean(keepdims=True) if transform is None else square
                return jnp.sqrt(jnp.where(square > 0, square, 1.0))

            return jax.tree.map(root, jax.vmap(size)(self._targets(data, i)))

        return data.ts, jax.lax.map(at, jnp.arange(data.num_times))

    def loss(
        self, learned: ScoreFn, sde: SDE, window: Trajectories, constants: Any, key: Any
    ) -> Scalar:
        """Mean over entries of |s - T|^2 / E|T|^2, of one state."""
        ts, scales = constants
        t, x, target = self._seen(window)
        i = jnp.searchsorted(ts, t)
        if self.input_noise > 0:
            x = self._blurred(sde, key, ts[i - 1], t, x)
        miss = jax.tree.map(jnp.subtract, learned(t, x, window.args), target)
        return mean_square(miss, jax.tree.map(lambda s: s[i], scales), self.transform)

    def _blurred(self, sde: SDE, key: Any, t0: Scalar, t1: Scalar, x: State) -> State:
        """A state with noise; E[grad log p(x) | x + n] is the gradient of log (p * n) there."""

        def noisy(x: Any, g: Any, white: Any) -> Any:
            return x + (self.input_noise * g * jnp.sqrt(t1 - t0)).astype(x.dtype) * white

        return jax.tree.map(noisy, x, sde.g_of_step(t0, t1, x), white_noise(key, x))

    def _targets(self, data: Trajectories, i: Any) -> State:
        """Targets of all paths at one time."""
        return jax.tree.map(lambda t: t[:, i], data.score_targets)

    def _seen(self, window: Trajectories) -> tuple[Scalar, State, State]:
        """Time, state and target of one window."""
        x, target = jax.tree.map(lambda v: v[0], (window.xs, window.score_targets))
        return window.ts[0], x, target

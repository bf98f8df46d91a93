r"""Denoising score matching, where the transition kernel from the first stored time is known.

``E |s(t_i, x_i) - grad log p(x_i | x_0)|^2``: the target's mean given ``x_i`` is the score at
``x_i`` (Vincent 2011, eq. 11), so the score is the minimiser, whatever the stored step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from smdp_jax.checks import check_alike
from smdp_jax.objectives.path_score import PathScore
from smdp_jax.sde import SDE, Args, Scalar, State
from smdp_jax.trajectories import Trajectories

KernelScore = Callable[[Any, Any, Any, Any], Any]


@dataclass(frozen=True, kw_only=True)
class DenoisingScore(PathScore):
    """Regression on the score of the transition kernel, each time divided by its mean square.

    Parameters
    ----------
    transform, input_noise : callable, float, optional
        As for ``PathScore``.
    kernel_score : callable
        ``kernel_score(t, x, x0, args)``, the gradient in x of ``log p(x(t) = x | x(ts[0]) = x0)``,
        a tree like x in 1 / state. See ``DenoisingScore.gaussian``.
    """

    kernel_score: KernelScore

    @classmethod
    def gaussian(
        cls,
        mean: Callable[[Any, Any, Any], Any],
        variance: Callable[[Any], Any],
        *,
        modes: tuple[Callable, Callable] | None = None,
    ) -> "DenoisingScore":
        """Take the kernel as Gaussian, ``N(mean(t, x0, args), variance(t))``.

        Parameters
        ----------
        mean, variance : callable
            ``mean(t, x0, args)``, a state; ``variance(t)`` at times after the first stored one,
            > 0: an array that divides the state, or its modes.
        modes : tuple of two callables, optional
            A unitary transform in which the covariance is diagonal, and its inverse: for a field
            ``(jnp.fft.fft2, lambda x: jnp.fft.ifft2(x).real)``. The loss is taken in it, too.

        Returns
        -------
        DenoisingScore
            With that kernel.
        """
        to_modes, back = modes or (lambda x: x, lambda x: x)

        def kernel_score(t: Any, x: Any, x0: Any, args: Args) -> Any:
            miss = to_modes(jax.tree.map(jnp.subtract, mean(t, x0, args), x))
            return back(jax.tree.map(lambda m: m / jnp.asarray(variance(t)).astype(m.dtype), miss))

        return cls(kernel_score=kernel_score, transform=modes[0] if modes else None)

    def check(self, sde: SDE, data: Trajectories) -> None:
        """The kernel's score is a state."""
        x0, x = data.at(0, 0), data.at(0, -1)
        found = jax.eval_shape(self.kernel_score, data.ts[-1], x, x0, data.args_of(0))
        check_alike("kernel_score must return a tree like the state", x, found)

    def cut(self, data: Trajectories, sample: Any, start: Any, steps: int) -> Trajectories:
        """The path's first state and the one at ``start``."""
        pair = jnp.stack([jnp.zeros_like(start), start])
        xs = jax.tree.map(lambda x: x[sample][pair], data.xs)
        mask = None if data.mask is None else data.mask[sample][pair]
        return Trajectories(data.ts[pair], xs, data.args_of(sample), mask=mask)

    def _targets(self, data: Trajectories, i: Any) -> State:
        first, now = (jax.tree.map(lambda x, i=i: x[:, i], data.xs) for i in (0, i))
        axes = (None, 0, 0, data.args_axes)
        found = jax.vmap(self.kernel_score, axes)(data.ts[i], now, first, data.args)
        return jax.tree.map(lambda v: jnp.where(i > 0, v, jnp.zeros_like(v)), found)

    def _seen(self, window: Trajectories) -> tuple[Scalar, State, State]:
        first, x = (jax.tree.map(lambda v, i=i: v[i], window.xs) for i in range(2))
        t = window.ts[1]
        return t, x, self.kernel_score(t, x, first, window.args)

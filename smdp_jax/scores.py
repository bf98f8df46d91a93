r"""The two kinds of learned term: a score, and a correction tied to one step.

A *score* is grad_x log p_t(x), independent of any step: every solver, likelihood and guidance may
use it. A *step correction* minimises a loss at one finite step of one inverse simulator: it has
absorbed the error of that step and is right only together with it.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax._types import Args, Scalar, ScoreFn, State
from smdp_jax.checks import concrete
from smdp_jax.sde import SDE

__all__ = ["LearnedScore", "NoiseScale", "StepCorrection", "check_score"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoiseScale:
    """Standard deviation of the noise gathered since the start, ``sqrt(int_0^t g^2)``.

    A network's output divided by it has the size of the score of a path that starts at a point;
    its parameters then need not span the decades that the score does.

    Parameters
    ----------
    ts : array (times,)
        Increasing times.
    variance : pytree
        The integral of g^2 from ``ts[0]`` to ``ts``; leaves (times,), one per leaf of the state.
    """

    ts: Float[Array, "times"]
    variance: State

    @classmethod
    def of(cls, sde: SDE, x: State, ts: Float[Array, "times"]) -> "NoiseScale":
        """Integrate g^2 over a time grid (trapezoidal rule).

        Parameters
        ----------
        sde : SDE
            The forward process.
        x : pytree
            One state, for its structure.
        ts : array (times,)
            Increasing times.

        Returns
        -------
        NoiseScale
            The table.
        """
        constant = not any(callable(g) for g in jax.tree.leaves(sde.diffusion))
        # Between the first step and the end a constant g needs no table.
        ts = ts[jnp.array([0, 1, -1])] if constant else ts
        g = jax.vmap(lambda t: sde.g(t, x))(ts)

        def integral(g: Array) -> Array:
            pieces = 0.5 * (g[1:] ** 2 + g[:-1] ** 2) * jnp.diff(ts).astype(g.dtype)
            return jnp.concatenate([jnp.zeros_like(g[:1]), jnp.cumsum(pieces)])

        return cls(ts, jax.tree.map(integral, g))

    def __call__(self, t: Scalar) -> State:
        """Interpolate; before the first step its first value holds."""
        t = jnp.clip(t, self.ts[1], self.ts[-1])

        def root(variance: Array) -> Array:
            return jnp.sqrt(jnp.interp(t.astype(variance.dtype), self.ts, variance))

        return jax.tree.map(root, self.variance)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Learned:
    model: Any = field(metadata={"static": True})
    variables: Any
    scale: NoiseScale | None = None

    def __call__(self, t: Scalar, x: State, args: Args) -> State:
        """Evaluate at one time and one unbatched state."""
        out = self.model.apply(self.variables, t, x, args)
        if self.scale is None:
            return out
        return jax.tree.map(lambda o, sigma: o / sigma.astype(o.dtype), out, self.scale(t))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LearnedScore(_Learned):
    """A learned ``score(t, x, args)`` at true scale.

    Parameters
    ----------
    model : flax.linen.Module
        Network, called as ``model.apply(variables, t, x, args)``.
    variables : pytree
        Its parameters.
    scale : NoiseScale, optional
        Divides the network's output.
    """


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepCorrection(_Learned):
    """A learned correction ``c(t, x, args)``, right only for the step it was trained with.

    One backward step is ``inverse(x) + (1 + alpha^2)/2 dt g^2 c``.

    Parameters
    ----------
    model, variables, scale
        As for ``LearnedScore``.
    ts : array (times,)
        The time grid whose steps it belongs to.
    noise_level : float
        The alpha it was trained at.
    """

    ts: Float[Array, "times"] = field(kw_only=True)
    noise_level: float = field(kw_only=True, metadata={"static": True})


def check_score(score: ScoreFn, sde: SDE, ts: Any, noise_level: float, use: str) -> None:
    """Refuse a step correction where a score is needed, or on other steps than its own.

    Parameters
    ----------
    score : callable
        A score or a ``StepCorrection``.
    sde : SDE
        The forward process.
    ts : array (times,)
        The grid it is to be used on.
    noise_level : float
        The alpha it is to be used at.
    use : str
        What it is used for, for the message.

    Raises
    ------
    ValueError
        If ``score`` is a ``StepCorrection`` and the steps, the noise level, or the kind of
        process differ from those of its training.
    """
    if not isinstance(score, StepCorrection):
        return
    if sde.step is None:
        raise ValueError(f"{use} on a drift needs a score, got a StepCorrection of a flow map")
    if noise_level != score.noise_level:
        raise ValueError(
            f"{use} at noise level {noise_level:g} needs a score; this StepCorrection was trained "
            f"at noise level {score.noise_level:g}. PathScore() learns a score for any level"
        )
    if not concrete(ts, score.ts):
        return
    own, asked = np.asarray(score.ts), np.asarray(ts)
    nearest = np.abs(asked[:, None] - own[None]).argmin(axis=1)
    tolerance = 1e-3 * np.diff(own).min()
    same = np.abs(own[nearest] - asked).max() <= tolerance and (np.diff(nearest) == 1).all()
    if not same:
        raise ValueError(
            f"{use} needs the steps that this StepCorrection was trained on ({len(own) - 1} steps "
            f"of {np.diff(own).min():g} to {np.diff(own).max():g} in [{own[0]:g}, {own[-1]:g}]), "
            f"got {len(asked) - 1} steps in [{asked[0]:g}, {asked[-1]:g}]. PathScore() learns a "
            "score for any steps"
        )

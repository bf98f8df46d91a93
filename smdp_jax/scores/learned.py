r"""The two kinds of learned term: a score, and a correction tied to one step.

A *score* is grad_x log p_t(x), independent of any step: every solver, likelihood and guidance may
use it. A *step correction* minimises a loss at one finite step of one inverse simulator: it has
absorbed the error of that step and is right only together with it.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError

from smdp_jax.checks import concrete
from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State


def apply_network(model: Any, variables: Any, t: Scalar, x: State, args: Args) -> State:
    """Evaluate a network, with a message of our own where its parameters do not fit."""
    try:
        return model.apply(variables, t, x, args)
    except (ScopeParamShapeError, ScopeParamNotFoundError) as error:
        shapes = jax.tree.map(jnp.shape, (x, args))
        raise ValueError(
            f"the parameters of {type(model).__name__} are those of another network, or of a state "
            f"and args of other shapes than {shapes[0]} and {shapes[1]}; several states need "
            f"batch_axes or jax.vmap ({error})"
        ) from error


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Learned:
    model: Any = field(metadata={"static": True})
    variables: Any
    preconditioner: Any = None

    def __call__(self, t: Scalar, x: State, args: Args) -> State:
        """Evaluate at one time and one unbatched state."""

        def network(t: Scalar, x: State, args: Args) -> State:
            return apply_network(self.model, self.variables, t, x, args)

        if self.preconditioner is None:
            return network(t, x, args)
        want, got = jax.tree.structure(self.preconditioner.mean), jax.tree.structure(x)
        if want != got:
            raise ValueError(f"the network was trained on states of the tree {want}, got {got}")
        return self.preconditioner(network, jnp.asarray(t), x, args)


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
    preconditioner : Preconditioner, optional
        Scales inputs and output; None: the network is the score.
    """


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepCorrection(_Learned):
    """A learned correction ``c(t, x, args)``, right only for the step it was trained with.

    One backward step is ``inverse(x) + (1 + alpha^2)/2 dt g^2 c``.

    Parameters
    ----------
    model, variables, preconditioner
        As for ``LearnedScore``.
    ts : array (times,)
        The time grid whose steps it belongs to.
    noise_level : float
        The alpha it was trained at.
    """

    ts: Any = field(kw_only=True)
    noise_level: float = field(kw_only=True, metadata={"static": True})


def check_score(score: ScoreFn, sde: SDE, ts: Any, noise_level: float, use: str) -> None:
    """Refuse a step correction where it is none, and warn of a score at times it has not seen."""
    if isinstance(score, LearnedScore) and score.preconditioner is not None:
        _warn_of_times(score.preconditioner.ts, ts, use)
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


def _warn_of_times(own: Any, ts: Any, use: str) -> None:
    if not concrete(own, ts):
        return
    own, asked = np.asarray(own), np.asarray(ts)
    slack = 1e-3 * (own[-1] - own[0])
    if asked[0] < own[0] - slack or asked[-1] > own[-1] + slack:
        warnings.warn(
            f"{use} in [{asked[0]:g}, {asked[-1]:g}] goes beyond the times [{own[0]:g}, "
            f"{own[-1]:g}] that the score was trained on: it extrapolates there",
            stacklevel=4,
        )

r"""The two kinds of learned term: a score, and a correction tied to one step.

A *score* is grad_x log p_t(x), independent of any step: every solver, likelihood and guidance may
use it. A *step correction* minimises a loss at one finite step of one inverse simulator: it has
absorbed the error of that step and is right only together with it.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import (
    InvalidRngError,
    ModifyScopeVariableError,
    ScopeParamNotFoundError,
    ScopeParamShapeError,
)

from smdp_jax.checks import check_kind, check_like, check_that, concrete, warn
from smdp_jax.scores.own_steps import first_of, steps_of
from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State
from smdp_jax.solve.process import check_process, check_time_grid

_LEARN = ". PathScore() learns a score for any steps and level"


def apply_network(model: Any, variables: Any, t: Scalar, x: State, args: Args) -> State:
    """Evaluate a network, with a message of our own where it can't be."""
    with readable_errors(model, x, args):
        return model.apply(variables, t, x, args)


@contextlib.contextmanager
def readable_errors(model: Any, x: State, args: Args) -> Iterator[None]:
    """Say what a network needs in place of flax's account of it."""
    name = type(model).__name__
    try:
        yield
    except (ScopeParamShapeError, ScopeParamNotFoundError) as error:
        shapes = "state {} and args {}".format(*jax.tree.map(jnp.shape, (x, args)))
        said = f"the parameters of {name} must be those of this network, for {shapes}"
        raise ValueError(f"{said}; several states need batch_axes or jax.vmap ({error})") from error
    except (InvalidRngError, ModifyScopeVariableError) as error:
        which = {
            InvalidRngError: "draws random numbers: switch dropout off (deterministic=True)",
            ModifyScopeVariableError: "changes variables when called: use LayerNorm or GroupNorm",
        }[type(error)]
        said = f"the network must be a function of t, x and args, got {name}"
        raise ValueError(f"{said}, which {which} ({error})") from error


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Learned:
    kind: ClassVar[str]
    what: ClassVar[str]

    model: Any = field(metadata={"static": True})
    variables: Any
    preconditioner: Any = None
    ts: Any = field(default=None, kw_only=True)
    shapes: tuple[Any, ...] | None = field(default=None, kw_only=True, metadata={"static": True})

    def __call__(self, t: Scalar, x: State, args: Args) -> State:
        """Evaluate at one time and one unbatched state."""

        def network(t: Scalar, x: State, args: Args) -> State:
            return apply_network(self.model, self.variables, t, x, args)

        if self.preconditioner is None:
            return network(t, x, args)
        want, got = jax.tree.structure(self.preconditioner.mean), jax.tree.structure(x)
        check_that(want == got, f"the network was trained on states of the tree {want}", got)
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
    ts : array (2,), optional
        First and last time that it was trained on.
    shapes : tuple of tuples of int, optional
        Shapes of the leaves of the states it was trained on, which tell a state from a batch.
    seen : SeenRange, optional
        Range of the training paths over time; ``info.left_range_at`` says where a path left it.
    """

    kind: ClassVar[str] = "score"
    what: ClassVar[str] = "a score: use fit.score"

    seen: Any = field(default=None, kw_only=True)

    def check_use(
        self, sde: SDE, ts: Any, noise_level: float, *, whole_steps: bool, use: str
    ) -> None:
        """Warn of times beyond those that it has seen.

        Parameters
        ----------
        sde, ts, noise_level, whole_steps, use
            Process, times (times,) and alpha of the solve; whether every step of ``ts`` is one of
            the solver, and nothing else; and the verb that asks.
        """
        own = self.preconditioner.ts if self.ts is None and self.preconditioner else self.ts
        if own is None or not concrete(own, ts):
            return
        own, asked = np.asarray(own), np.asarray(ts)
        slack = 1e-3 * (own[-1] - own[0])
        if asked[0] < own[0] - slack or asked[-1] > own[-1] + slack:
            said = f"goes beyond the times [{own[0]:g}, {own[-1]:g}] that the score was trained on"
            warn(f"{use} in [{asked[0]:g}, {asked[-1]:g}] {said}: it extrapolates there")


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
    shapes : tuple of tuples of int, optional
        As for ``LearnedScore``.
    noise_level : float
        The alpha it was trained at.
    inverse : str, optional
        "integrated_backward" if it was trained with that way back along the step, which processes
        that name none then take.
    """

    kind: ClassVar[str] = "correction"
    what: ClassVar[str] = (
        "a step correction (windows on a flow map), not a score: use fit.correction on its own "
        "time grid, or train with PathScore()"
    )

    ts: Any = field(kw_only=True)
    noise_level: float = field(kw_only=True, metadata={"static": True})
    inverse: str | None = field(default=None, kw_only=True, metadata={"static": True})

    def check_use(
        self, sde: SDE, ts: Any, noise_level: float, *, whole_steps: bool, use: str
    ) -> None:
        """Refuse other steps than its own.

        Parameters
        ----------
        sde, ts, noise_level, whole_steps, use
            As for ``LearnedScore.check_use``.

        Raises
        ------
        ValueError
            On a drift, at another noise level, or on other steps.
        """
        said = f"{use} on a drift needs a score, got a StepCorrection of a flow map"
        check_that(sde.step is not None, said)
        check_that(whole_steps, "substeps and corrector need a score, got a StepCorrection")
        own = f"this StepCorrection was trained at noise level {self.noise_level:g}{_LEARN}"
        said = f"{use} at noise level {noise_level:g} needs a score; {own}"
        check_that(noise_level == self.noise_level, said)
        if concrete(ts, self.ts) and first_of(self.ts, ts) is None:
            own = f"the steps that this StepCorrection was trained on {steps_of(self.ts, ts)}"
            raise ValueError(f"{use} needs {own}{_LEARN}")


def check_is_score(score: ScoreFn, use: str) -> None:
    """Refuse what is learned for one step where the mathematics asks for grad log p itself."""
    got = f"{type(score).__name__}, which is right for its own steps of one backward solve{_LEARN}"
    check_that(getattr(score, "kind", "score") == "score", f"{use} must have a score, got a {got}")


def check_evaluates(sde: SDE, score: ScoreFn, ts: Any, x: State, args: Args) -> None:
    """Check grid and process, and that the score is a function that returns states."""
    check_time_grid(ts, sde)
    check_kind("score", score, "a function score(t, x, args), such as fit.score", "__call__")
    check_process(sde, ts, x, args, maps=("drift", "inverse"))
    t = jax.ShapeDtypeStruct((), jnp.result_type(ts))
    check_like(x, jax.eval_shape(score, t, x, args), "score")

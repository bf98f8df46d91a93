"""``GaussianStep``: backward steps that are exact for the linear part and a Gaussian near p_t.

What users name and what they get of one step; ``gaussian_solver`` has the mathematics.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_choice, check_that
from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State
from smdp_jax.solve.condition_splines import takes_conditions
from smdp_jax.solve.covariance import Modes, Spread, counts_of
from smdp_jax.solve.gaussian_solver import GaussianSolver, is_mode
from smdp_jax.solve.linear import LinearPart, Transform, check_transform
from smdp_jax.solve.linearise import Linearised, waves_of
from smdp_jax.solve.process import noise_table
from smdp_jax.solve.terms import white_noise


class GaussianStep(eqx.Module):
    r"""Backward step that is exact for linear physics and Gaussian states, at every step size.

    A ``solver=`` of the backward verbs and of window objectives, at any noise level. The physics'
    linear part and a Gaussian near p_t are solved exactly; the rest of the drift and of the score,
    which the network learns, is stepped explicitly. What is linear can't blow up, and the spread
    of few steps is right. As the steps shorten it becomes Euler's step of the reverse-time SDE.

    Parameters
    ----------
    order : int
        1: one evaluation of score and physics a step. 2: predictor and corrector, two each (three
        simulator calls for a flow map). The score is never asked at the first time of the grid.
    linear : LinearPart, optional
        Default: ``SDE.linear``; without either the backward verbs look up that of fields whose
        physics is linear, and else there is none: stiff physics then needs short steps.
    reference : Spectrum, Preconditioner, GaussianReference, optional
        The Gaussian: what has ``moments(t)`` (mean and variance per mode), or is called at t for
        the variances alone; at ``(t, args)`` where they depend on conditions (without a linear
        part per mode of ``rfftn``). Default: what the learned score starts from.

    Raises
    ------
    ValueError
        If ``order`` is neither 1 nor 2.
    """

    order: int = eqx.field(static=True, default=2)
    linear: LinearPart | Linearised | None = None
    reference: Any = None
    serves: ClassVar[str] = "drifts and flow maps"

    def __check_init__(self) -> None:
        check_choice("GaussianStep.order", self.order, 1, 2)

    @property
    def evaluations(self) -> int:
        """Score evaluations of one step."""
        return self.order

    def transition(
        self, sde: SDE, score: ScoreFn, t1: Scalar, t0: Scalar, x1: State, args: Args = None
    ) -> "GaussianTransition":
        """Gaussian law of one backward step of the reverse-time SDE.

        Parameters
        ----------
        sde, score, t1, t0, x1, args
            Process, score, two times ``t0 < t1``, one unbatched state at ``t1``, and conditions.

        Returns
        -------
        GaussianTransition
            Its mean and variances. At order 2 the corrector looks at the predictor's mean, not at
            its sample as the solver does: second order in the mean, first in the variance.
        """
        solver = bind(self, sde, score, x1)
        coefficients = solver.coefficients(t0, t1, x1, args)
        mean = solver.advance(t0, t1, x1, args, jax.tree.map(jnp.zeros_like, x1))
        variance = jax.tree.map(lambda c: c.variance, coefficients, is_leaf=is_mode)
        return GaussianTransition(mean, variance, solver.linear.transform)


def bind(
    step: GaussianStep,
    sde: SDE,
    score: ScoreFn,
    x: State,
    noise_level: float = 1.0,
    first: Any = -jnp.inf,
) -> "GaussianSolver":
    """Solver of the reversed process for states like x, its score not asked at ``first``."""
    linear = step.linear if step.linear is not None else sde.linear
    reference = step.reference if step.reference is not None else _reference_of(score)
    said = "GaussianStep must know a Gaussian near p_t, got a score that brings none: give"
    check_that(reference is not None, f"{said} reference=GaussianReference.of(paths)")
    if linear is None:
        linear = LinearPart(0.0, _transform_of(reference, x))
    return GaussianSolver(sde, score, linear, reference, step.order, noise_level, first)


def bound(solver: Any, sde: SDE, score: ScoreFn, x: State, noise_level: float) -> Any:
    """Bind a ``GaussianStep``; any other solver steps by the terms that it is given."""
    return bind(solver, sde, score, x, noise_level) if isinstance(solver, GaussianStep) else solver


def spread_of(
    reference: Any, sde: SDE, score: ScoreFn, t: Scalar, x: State, args: Args = None
) -> Spread:
    """Covariance of a reference at t, for states like x."""
    solver = _of_reference(reference, sde, score, x)
    return Spread(solver.variances(t, x, args), Modes(solver.linear.transform))


def check_metric(reference: Any, sde: SDE, score: ScoreFn, ts: Array, x: State, args: Args) -> None:
    """Refuse a reference that is no covariance of states like x."""
    good = callable(reference) or hasattr(reference, "moments")
    said = "must have moments(t), as GaussianReference.of(paths), or give variances when called"
    check_that(good, f"Langevin.metric {said}", reference)
    solver = _of_reference(reference, sde, score, x)
    check_transform(solver.linear.transform, x)
    solver.check_reference(ts, x, args)


def _of_reference(reference: Any, sde: SDE, score: ScoreFn, x: State) -> "GaussianSolver":
    linear = LinearPart(0.0, _transform_of(reference, x))
    return GaussianSolver(sde, score, linear, reference, 1, 1.0, -jnp.inf)


def check_gaussian(
    step: GaussianStep, sde: SDE, score: ScoreFn, ts: Array, x: State, args: Args
) -> None:
    """Refuse what can't be stepped: no reference, a transform or variances that do not fit."""
    solver = bind(step, sde, score, x)
    noisy = all(g.all() for g in noise_table(sde, ts, x))
    check_that(noisy, "GaussianStep must have noise on every leaf, got SDE.diffusion of 0")
    check_transform(solver.linear.transform, x)
    solver.check_reference(ts, x, args)
    jax.eval_shape(lambda t0, t1: solver.coefficients(t0, t1, x, args), ts[0], ts[1])


class GaussianTransition(eqx.Module):
    """The law N(mean, variance) of one backward step, variances per mode.

    Parameters
    ----------
    mean : pytree
        A state.
    variance : pytree
        Like the modes of the transform (or scalars), in squared units of the state.
    transform : tuple of callables, optional
        Where the variances are diagonal.
    """

    mean: State
    variance: State
    transform: Any = eqx.field(static=True, default=None)

    def sample(self, key: PRNGKeyArray) -> State:
        """Draw a state.

        Parameters
        ----------
        key : PRNG key
            Consumed.

        Returns
        -------
        pytree
            Like ``mean``.
        """
        kick = self._spread().power(0.5, white_noise(key, self.mean))
        return jax.tree.map(jnp.add, self.mean, kick)

    def log_density(self, x: State) -> Scalar:
        """Log density of a state.

        Parameters
        ----------
        x : pytree
            Like ``mean``.

        Returns
        -------
        scalar
            In nats.
        """
        spread = self._spread(counts_of(self.transform, x))
        return spread.log_density(jax.tree.map(jnp.subtract, x, self.mean))

    def _spread(self, counts: State = None) -> Spread:
        return Spread(self.variance, Modes(self.transform), counts)


def _transform_of(reference: Any, x: State) -> Transform | None:
    """Where a reference is diagonal; a table like the modes of ``rfftn`` does not say so itself."""
    own = getattr(reference, "transform", None)
    if own is not None or hasattr(reference, "moments"):
        return own
    waves = waves_of(x)
    shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
    if waves is None or shapes(modes := jax.eval_shape(waves[0], x)) == shapes(x):
        return None
    if takes_conditions(reference):  # which are not known here
        return waves
    return waves if shapes(jax.eval_shape(reference, jnp.zeros(()))) == shapes(modes) else None


def _reference_of(score: Any) -> Any:
    """What a learned score starts from: its preconditioner, or its network's spectrum."""
    preconditioner = getattr(score, "preconditioner", None)
    if preconditioner is not None:
        return preconditioner
    return getattr(getattr(score, "model", None), "variance", None)

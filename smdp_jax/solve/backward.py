"""One path back in time: solver, corrector, and what there is to tell of it."""

import math
from dataclasses import dataclass, field
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_positive, check_that, finite_rows, is_number
from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State
from smdp_jax.solve.adaptive import advance_adaptively
from smdp_jax.solve.covariance import Spread
from smdp_jax.solve.gaussian import GaussianStep, bind, spread_of
from smdp_jax.solve.integrate import Save, advance, chosen_times
from smdp_jax.solve.reversal import reverse_sde
from smdp_jax.solve.solvers import default_adaptive_solver, default_solver, evaluations_per_step
from smdp_jax.solve.terms import white_noise


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SolveInfo:
    """Diagnostics of a backward solve.

    Parameters
    ----------
    evaluations, finite : int array, bool array
        Score evaluations per path; whether all its states were finite, saved or not.
    max_score : array
        Largest absolute entry of the score, at the start of the last and of one in 32 other steps;
        NaN where one is.
    lost_at : array
        Time at which a path that is not finite was first found so; -inf for finite ones.
    left_range_at : array or None
        Time at which a path was first found outside of the range of the training paths, widened by
        half of its width; -inf for those that stay. None for a score that knows no range.
    """

    evaluations: Any
    finite: Any
    max_score: Any
    lost_at: Any = None
    left_range_at: Any = None


_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Langevin:
    """Corrector: after each step but the last, ``steps`` moves ``x + eps M s + sqrt(2 eps M) z``.

    Each leaves p_t invariant as eps falls, and so mends the marginal; but it also forgets the
    observed end state, at the rate of eps M. Keep that far below the variance of the posterior at
    that time (Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential
    Equations", algorithm 1).

    Parameters
    ----------
    step_size, steps : float, int
        eps, and moves after each solver step. In squared units of the state; with a metric,
        without units.
    metric : Spectrum, Preconditioner, GaussianReference, optional
        M is its covariance at the time, as for ``GaussianStep.reference``: where modes differ in
        variance, one eps serves all. Default: the identity.

    Raises
    ------
    ValueError
        If ``step_size`` or ``steps`` is not positive.
    """

    step_size: Any
    steps: int = field(default=1, metadata=_STATIC)
    metric: Any = None

    def __post_init__(self) -> None:
        (steps,) = check_positive(steps=self.steps)
        object.__setattr__(self, "steps", steps)
        size = self.step_size
        good = 0 < size < math.inf if is_number(size) else hasattr(size, "dtype")
        check_that(good, "Langevin.step_size must be positive and finite", size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BackwardSolve:
    """One backward solve of one path, with everything that is decided before it starts."""

    sde: SDE
    ts: Any
    solver: diffrax.AbstractSolver[Any] | GaussianStep | None
    substeps: int = field(metadata=_STATIC)
    noise_level: Any = field(metadata=_STATIC)
    denoise_last: bool = field(metadata=_STATIC)
    corrector: Langevin | None
    controller: diffrax.AbstractAdaptiveStepSizeController[Any, Any] | None
    save: Any = field(metadata=_STATIC)
    rematerialise: bool = field(metadata=_STATIC)

    def __call__(
        self, score: ScoreFn, x_end: State, key: PRNGKeyArray | None, args: Args
    ) -> tuple[State, SolveInfo]:
        """Solve."""
        process = reverse_sde(self.sde, score, noise_level=self.noise_level)
        if self.controller is not None:
            return self._adaptive(process, score, x_end, key, args)
        solver = default_solver(process) if self.solver is None else self.solver
        per_step = evaluations_per_step(solver)
        if isinstance(solver, GaussianStep):
            solver = bind(solver, self.sde, score, x_end, self.noise_level, self.ts[0])
        last, seen = self.ts.shape[0] - 1, getattr(score, "seen", None)

        def correct(key: PRNGKeyArray, tau: Scalar, x: State) -> State:
            assert self.corrector is not None
            return _langevin(self.corrector, self.sde, score, key, -tau, x, args)

        save: Save = self.save
        if not isinstance(save, str):
            save = [last - i for i in chosen_times(save, last + 1)]
        xs, watched = advance(
            process,
            x_end,
            -self.ts[::-1],
            key=key,
            args=args,
            solver=solver,
            substeps=self.substeps,
            save=save,
            denoise_last=self.denoise_last,
            after_step=None if self.corrector is None else correct,
            monitor=lambda tau, x: _largest(score(-tau, x, args)),
            outside=None if seen is None else lambda tau, x: seen.outside(-tau, x),
            rematerialise=self.rematerialise,
        )
        if save != "last":
            xs = jax.tree.map(lambda x: x[::-1], xs)
        evaluations = last * self.substeps * per_step
        if self.corrector is not None:
            evaluations += (last * self.substeps - 1) * self.corrector.steps
        left_at = None if seen is None else -watched.left_at
        return xs, _info(evaluations, watched.largest, -watched.lost_at, left_at)

    def _adaptive(
        self, process: SDE, score: ScoreFn, x_end: State, key: PRNGKeyArray | None, args: Args
    ) -> tuple[State, SolveInfo]:
        assert self.controller is not None
        solver = default_adaptive_solver(process) if self.solver is None else self.solver
        assert not isinstance(solver, GaussianStep)
        xs, steps = advance_adaptively(
            process, x_end, -self.ts[::-1], self.controller, key, args, solver
        )
        xs = jax.tree.map(lambda x: x[::-1], xs)
        sizes = jax.vmap(lambda t, x: _largest(score(t, x, args)))(self.ts, xs)
        lost_at = jnp.max(jnp.where(finite_rows(xs), -jnp.inf, self.ts))
        if self.save == "last":
            xs = jax.tree.map(lambda x: x[0], xs)
        elif self.save != "all":
            chosen = jnp.array(chosen_times(self.save, self.ts.shape[0]))
            xs = jax.tree.map(lambda x: x[chosen], xs)
        return xs, _info(steps * evaluations_per_step(solver), _maximum(sizes[1:]), lost_at)


def _largest(score: State) -> Scalar:
    leaves = [_maximum(jnp.abs(s)) for s in jax.tree.leaves(score)]
    return _maximum(jnp.stack([leaf.astype(leaves[0].dtype) for leaf in leaves]))


def _maximum(sizes: Array) -> Scalar:
    """NaN where there is one: XLA's own maximum of many numbers forgets it on CPU."""
    return jnp.where(jnp.isnan(sizes).any(), jnp.nan, jnp.max(sizes, initial=0))


def _info(
    evaluations: Any, largest: Scalar, lost_at: Scalar, left_at: Scalar | None = None
) -> SolveInfo:
    finite = lost_at == -jnp.inf
    return SolveInfo(jnp.asarray(evaluations), finite, largest, lost_at, left_at)


def _langevin(
    corrector: Langevin,
    sde: SDE,
    score: ScoreFn,
    key: PRNGKeyArray,
    t: Scalar,
    x: State,
    args: Args,
) -> State:
    metric = Spread(jax.tree.map(lambda _: jnp.ones(()), x))
    if corrector.metric is not None:
        metric = spread_of(corrector.metric, sde, score, t, x, args)

    def move(x: State, i: Array) -> tuple[State, None]:
        def one(x: Array, drift: Array, noise: Array) -> Array:
            size = jnp.asarray(corrector.step_size, x.dtype)
            return x + size * drift + jnp.sqrt(2 * size) * noise

        white = white_noise(jax.random.fold_in(key, i), x)
        drift, noise = metric.power(1.0, score(t, x, args)), metric.power(0.5, white)
        return jax.tree.map(one, x, drift, noise), None

    return jax.lax.scan(move, x, jnp.arange(corrector.steps))[0]

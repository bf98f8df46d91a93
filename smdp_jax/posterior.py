"""From an observed end state back to its past: posterior samples and most likely paths."""

import math
from dataclasses import dataclass
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax._types import Args, Scalar, ScoreFn, State
from smdp_jax.checks import check_like, check_positive, check_process, check_time_grid
from smdp_jax.integrate import (
    Save,
    default_adaptive_solver,
    default_solver,
    evaluations_per_step,
    integrate,
    solve_adaptive,
)
from smdp_jax.scores import LearnedScore, StepCorrection, check_score
from smdp_jax.sde import SDE, reverse_sde

__all__ = ["Langevin", "Path", "Posterior", "SolveInfo", "probability_flow", "sample_posterior"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SolveInfo:
    """Diagnostics of a backward solve.

    Parameters
    ----------
    evaluations : int array
        Score evaluations per path.
    finite : bool array
        Whether each path ended finite.
    max_score : array
        Largest absolute entry of the score, looked at where the last and one
        in 32 or more of the other steps start.
    """

    evaluations: Any
    finite: Any
    max_score: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Posterior:
    """Posterior samples of a past state.

    Parameters
    ----------
    samples : pytree
        Leaves (*batch, num_samples, *state) at ``ts[0]``; with ``save``, (*batch, num_samples,
        saved times, *state), ordered like ``ts``.
    info : SolveInfo
        Diagnostics, leaves (*batch, num_samples).
    """

    samples: Any
    info: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Path:
    """A deterministic path.

    Parameters
    ----------
    ts : array (times,)
        Increasing times.
    xs : pytree
        Leaves (times, *state), ordered like ``ts``: ``xs[0]`` is the estimate at ``ts[0]``.
    info : SolveInfo
        Diagnostics.
    """

    ts: Any
    xs: Any
    info: Any


@dataclass(frozen=True)
class Langevin:
    """Corrector: after each step, ``steps`` moves ``x + eps s + sqrt(2 eps) z``.

    Each leaves p_t invariant, and so mends the marginal; but it also forgets the observed end
    state, at the rate of eps. Keep eps far below the variance of the posterior at that time.

    Parameters
    ----------
    step_size : float
        eps, in squared units of the state.
    steps : int
        Moves after each solver step.

    Raises
    ------
    ValueError
        If ``step_size`` or ``steps`` is not positive.

    References
    ----------
    Song et al. (2021), "Score-Based Generative Modeling through Stochastic Differential
    Equations", algorithm 1.
    """

    step_size: float
    steps: int = 1

    def __post_init__(self) -> None:
        if not self.step_size > 0 or self.steps < 1:
            raise ValueError(f"Langevin needs positive step_size and steps, got {self}")


def sample_posterior(
    sde: SDE,
    score: ScoreFn,
    x_end: State,
    ts: Float[Array, "times"],
    *,
    num_samples: int,
    key: PRNGKeyArray,
    args: Args = None,
    solver: diffrax.AbstractSolver | None = None,
    substeps: int = 1,
    noise_level: float = 1.0,
    denoise_last: bool = False,
    corrector: Langevin | None = None,
    controller: diffrax.AbstractAdaptiveStepSizeController | None = None,
    save: Save = "last",
    batch_axes: int = 0,
    chunk_size: int | None = None,
) -> Posterior:
    """Sample what led to an observed end state.

    Solves the reverse-time SDE ``dx = -[P - (1 + alpha^2)/2 g^2 s] dtau + alpha g dW`` from
    ``x_end`` at ``ts[-1]`` back to ``ts[0]``, tau = -t (Anderson 1982; Holzschuh et al. 2023,
    eq. 6). At alpha = 1 the samples are those of p(x(ts[0]) | x(ts[-1]) = x_end).

    Parameters
    ----------
    sde : SDE
        The forward process.
    score : callable
        ``score(t, x, args)``: learned (``fit.score``) or in closed form; or a ``StepCorrection``
        on its own steps.
    x_end : pytree
        Observed state at ``ts[-1]``: unbatched, or with ``batch_axes`` leading axes.
    ts : array (times,)
        Increasing times; the solve walks them from the end.
    num_samples : int
        Samples per end state.
    key : PRNG key
        Path i of end state j draws from ``fold_in(key, j * num_samples + i)``: the same samples
        however the work is split, up to rounding.
    args : pytree, optional
        Conditions; with ``batch_axes``, one entry per end state on the same leading axes.
    solver : diffrax.AbstractSolver, optional
        Default ``diffrax.Euler()``, or ``Splitting()`` for flow maps.
    substeps : int
        Solver steps per interval of ``ts``.
    noise_level : float
        alpha. Only 1 samples the posterior.
    denoise_last : bool
        Add no noise in the last step.
    corrector : Langevin, optional
        Predictor-corrector sampling.
    controller : diffrax.AbstractAdaptiveStepSizeController, optional
        Adaptive steps, for drifts.
    save : "last", "all" or sequence of int
        "last": samples at ``ts[0]``; else the states at those indices of ``ts``.
    batch_axes : int
        Number of leading axes of ``x_end`` (and ``args``) that index end states.
    chunk_size : int, optional
        Paths solved at once, to bound memory; default all.

    Returns
    -------
    Posterior
        Samples and diagnostics.

    Raises
    ------
    ValueError
        For a grid, process, solver or score that does not fit (see the message).
    """
    batch = _check(sde, score, x_end, ts, args, batch_axes, noise_level, "sample_posterior")
    check_positive(num_samples=num_samples, substeps=substeps, chunk_size=chunk_size)
    if isinstance(score, StepCorrection) and (substeps != 1 or corrector is not None):
        raise ValueError(
            "substeps and corrector need a score, got a StepCorrection: it is right for its own "
            "whole steps only. PathScore() learns a score"
        )
    solve = _Solve(
        sde, ts, solver, substeps, noise_level, denoise_last, corrector, controller, save
    )
    return _sample(solve, score, x_end, key, args, batch, num_samples, chunk_size)


def probability_flow(
    sde: SDE,
    score: ScoreFn,
    x_end: State,
    ts: Float[Array, "times"],
    *,
    args: Args = None,
    solver: diffrax.AbstractSolver | None = None,
    substeps: int = 1,
    controller: diffrax.AbstractAdaptiveStepSizeController | None = None,
) -> Path:
    """Follow the probability-flow ODE from an observed end state back.

    Solves ``dx = -[P - g^2 s / 2] dtau``, tau = -t (Song et al. 2021, eq. 13): one deterministic
    path of high likelihood, not a posterior sample. Use ``jax.vmap`` for many end states.

    Parameters
    ----------
    sde : SDE
        The forward process.
    score : callable
        ``score(t, x, args)``.
    x_end : pytree
        Observed state at ``ts[-1]``, unbatched.
    ts : array (times,)
        Increasing times; the solve walks them from the end.
    args : pytree, optional
        Conditions.
    solver : diffrax.AbstractSolver, optional
        Default ``diffrax.Euler()``, or ``Splitting()`` for flow maps.
    substeps : int
        Solver steps per interval of ``ts``.
    controller : diffrax.AbstractAdaptiveStepSizeController, optional
        Adaptive steps, for drifts.

    Returns
    -------
    Path
        States at all of ``ts``, and diagnostics.

    Raises
    ------
    ValueError
        For a grid, process, solver or score that does not fit (see the message).
    """
    _check(sde, score, x_end, ts, args, 0, 0.0, "probability_flow")
    check_positive(substeps=substeps)
    solve = _Solve(sde, ts, solver, substeps, 0.0, False, None, controller, "all")
    xs, info = _flow(solve, score, x_end, args)
    return Path(ts, xs, info)


def _check(
    sde: SDE,
    score: ScoreFn,
    x_end: State,
    ts: Any,
    args: Args,
    batch_axes: int,
    noise_level: float,
    use: str,
) -> tuple[int, ...]:
    """Check what a backward solve is given; return the shape of its batch."""
    check_time_grid(ts, sde)
    shapes = {jnp.shape(leaf)[:batch_axes] for leaf in jax.tree.leaves((x_end, args))}
    if batch_axes and (len(shapes) != 1 or len(next(iter(shapes))) != batch_axes):
        raise ValueError(
            f"x_end and args must share {batch_axes} leading axes (batch_axes), got {shapes}"
        )
    batch = next(iter(shapes)) if batch_axes else ()
    one, own = jax.tree.map(lambda x: jnp.asarray(x)[(0,) * batch_axes], (x_end, args))
    for leaf in jax.tree.leaves(one):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"x_end must be floating point, got {leaf.dtype}")
    check_process(sde, ts, one, own)
    if not isinstance(score, (LearnedScore, StepCorrection)):
        t = jax.ShapeDtypeStruct((), jnp.result_type(ts))
        check_like(one, jax.eval_shape(score, t, one, own), "score")
    check_score(score, sde, ts, noise_level, use)
    return batch


class _Solve(eqx.Module):
    """One backward solve of one path, with everything that is decided before it starts."""

    sde: SDE = eqx.field(static=True)
    ts: Array
    solver: diffrax.AbstractSolver | None
    substeps: int = eqx.field(static=True)
    noise_level: float = eqx.field(static=True)
    denoise_last: bool = eqx.field(static=True)
    corrector: Langevin | None = eqx.field(static=True)
    controller: diffrax.AbstractAdaptiveStepSizeController | None
    save: Any = eqx.field(static=True, converter=lambda s: s if isinstance(s, str) else tuple(s))

    def __call__(
        self, score: ScoreFn, x_end: State, key: PRNGKeyArray | None, args: Args
    ) -> tuple[State, SolveInfo]:
        process = reverse_sde(self.sde, score, noise_level=self.noise_level)
        if self.controller is not None:
            return self._adaptive(process, score, x_end, key, args)
        solver = default_solver(process) if self.solver is None else self.solver
        grid = -self.ts[::-1]

        def correct(key: PRNGKeyArray, tau: Scalar, x: State) -> State:
            assert self.corrector is not None
            return _langevin(self.corrector, score, key, -tau, x, args)

        last = grid.shape[0] - 1
        save: Save = self.save
        if not isinstance(save, str):
            save = [last - range(last + 1)[i] for i in save]
        xs, largest = integrate(
            process,
            x_end,
            grid,
            key=key,
            args=args,
            solver=solver,
            substeps=self.substeps,
            save=save,
            denoise_last=self.denoise_last,
            after_step=None if self.corrector is None else correct,
            monitor=lambda tau, x: _largest(score(-tau, x, args)),
        )
        if save != "last":
            xs = jax.tree.map(lambda x: x[::-1], xs)
        per_step = evaluations_per_step(solver)
        if self.corrector is not None:
            per_step += self.corrector.steps
        return xs, _info(xs, last * self.substeps * per_step, largest)

    def _adaptive(
        self, process: SDE, score: ScoreFn, x_end: State, key: PRNGKeyArray | None, args: Args
    ) -> tuple[State, SolveInfo]:
        if self.corrector is not None or self.denoise_last or self.substeps != 1:
            raise ValueError("corrector, denoise_last and substeps need fixed steps")
        assert self.controller is not None
        solver = default_adaptive_solver(process) if self.solver is None else self.solver
        xs, steps = solve_adaptive(
            process,
            x_end,
            -self.ts[::-1],
            controller=self.controller,
            key=key,
            args=args,
            solver=solver,
        )
        xs = jax.tree.map(lambda x: x[::-1], xs)
        sizes = jax.vmap(lambda t, x: _largest(score(t, x, args)))(self.ts, xs)
        largest = jnp.max(sizes[1:])
        per_step = evaluations_per_step(solver)
        if self.save == "last":
            xs = jax.tree.map(lambda x: x[0], xs)
        elif self.save != "all":
            chosen = jnp.array(sorted(range(self.ts.shape[0])[i] for i in self.save))
            xs = jax.tree.map(lambda x: x[chosen], xs)
        return xs, _info(xs, steps * per_step, largest)


def _largest(score: State) -> Scalar:
    leaves = [jnp.max(jnp.abs(s)) for s in jax.tree.leaves(score)]
    return jnp.max(jnp.stack([leaf.astype(leaves[0].dtype) for leaf in leaves]))


def _info(xs: State, evaluations: Any, largest: Scalar) -> SolveInfo:
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(xs)]).all()
    return SolveInfo(jnp.asarray(evaluations), finite, jnp.asarray(largest))


def _langevin(
    corrector: Langevin, score: ScoreFn, key: PRNGKeyArray, t: Scalar, x: State, args: Args
) -> State:
    leaves, tree = jax.tree.flatten(x)

    def move(x: State, i: Array) -> tuple[State, None]:
        keys = jax.random.split(jax.random.fold_in(key, i), len(leaves))
        size, kick = corrector.step_size, math.sqrt(2 * corrector.step_size)

        def one(x: Array, s: Array, key: PRNGKeyArray) -> Array:
            return x + size * s + kick * jax.random.normal(key, x.shape, x.dtype)

        keys_tree = jax.tree.unflatten(tree, list(keys))
        return jax.tree.map(one, x, score(t, x, args), keys_tree), None

    return jax.lax.scan(move, x, jnp.arange(corrector.steps))[0]


@eqx.filter_jit
def _flow(solve: _Solve, score: ScoreFn, x_end: State, args: Args) -> tuple[State, SolveInfo]:
    return solve(score, x_end, None, args)


@eqx.filter_jit
def _sample(
    solve: _Solve,
    score: ScoreFn,
    x_end: State,
    key: PRNGKeyArray,
    args: Args,
    batch: tuple[int, ...],
    num_samples: int,
    chunk_size: int | None,
) -> Posterior:
    def flat(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jnp.reshape(x, (math.prod(batch), *jnp.shape(x)[len(batch) :])), tree
        )

    ends = flat((x_end, args)) if batch else None

    def one(i: Array) -> tuple[State, SolveInfo]:
        if ends is None:
            x, own = x_end, args
        else:
            x, own = jax.tree.map(lambda e: e[i // num_samples], ends)
        return solve(score, x, jax.random.fold_in(key, i), own)

    total = math.prod(batch) * num_samples
    paths = jax.lax.map(one, jnp.arange(total), batch_size=min(chunk_size or total, total))
    shape = (*batch, num_samples)
    samples, info = jax.tree.map(lambda x: jnp.reshape(x, shape + x.shape[1:]), paths)
    return Posterior(samples, info)

"""From an observed end state back to its past: posterior samples and most likely paths."""

import math
from dataclasses import dataclass
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import (
    check_args_axes,
    check_finite,
    check_key,
    check_kind,
    check_like,
    check_positive,
    check_process,
    check_save,
    check_time_grid,
)
from smdp_jax.sde import SDE, Args, ScoreFn, State
from smdp_jax.solve.backward import BackwardSolve, Langevin, SolveInfo
from smdp_jax.solve.integrate import Save

__all__ = ["Path", "Posterior", "probability_flow", "sample_posterior"]


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


def sample_posterior(
    sde: SDE,
    score: ScoreFn,
    x_end: State,
    ts: Float[Array, "times"],
    *,
    num_samples: int,
    key: PRNGKeyArray,
    args: Args = None,
    args_axes: int | None = None,
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
        Conditions.
    args_axes : int or None
        None: the same ``args`` for all end states; 0: one entry per end state, on the same
        ``batch_axes`` leading axes.
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
        Number of leading axes of ``x_end`` that index end states.
    chunk_size : int, optional
        Paths solved at once, to bound memory; default all.

    Returns
    -------
    Posterior
        Samples and diagnostics.

    Raises
    ------
    ValueError
        For a grid, process, solver, score, end state or key that does not fit (see the message).
    TypeError
        If the score is no function, or the solver no solver.
    """
    check_args_axes(args_axes)
    mapped = args if args_axes == 0 else None
    batch = _batch_shape(x_end, mapped, batch_axes)
    first, own = jax.tree.map(lambda x: jnp.asarray(x)[(0,) * batch_axes], (x_end, mapped))
    own = own if args_axes == 0 else args
    num_samples, substeps, chunk_size = check_positive(
        num_samples=num_samples, substeps=substeps, chunk_size=chunk_size
    )
    whole_steps = substeps == 1 and corrector is None
    _check(sde, score, first, ts, own, noise_level, whole_steps, "sample_posterior")
    check_finite(x_end, "x_end")
    check_key(key)
    save = check_save(save, len(ts))
    solve = BackwardSolve(
        sde, ts, solver, substeps, noise_level, denoise_last, corrector, controller, save
    )
    return _sample(solve, score, x_end, key, args, args_axes, batch, num_samples, chunk_size)


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
        For a grid, process, solver, score or end state that does not fit (see the message).
    TypeError
        If the score is no function, or the solver no solver.
    """
    (substeps,) = check_positive(substeps=substeps)
    x = jax.tree.map(jnp.asarray, x_end)
    _check(sde, score, x, ts, args, 0.0, substeps == 1, "probability_flow")
    check_finite(x, "x_end")
    solve = BackwardSolve(sde, ts, solver, substeps, 0.0, False, None, controller, "all")
    xs, info = _flow(solve, score, x_end, args)
    return Path(ts, xs, info)


def _batch_shape(x_end: State, mapped_args: Args, batch_axes: int) -> tuple[int, ...]:
    if not jax.tree.leaves(x_end):
        raise ValueError(f"x_end must be one state or a batch of them, got {x_end}")
    if not isinstance(batch_axes, int) or batch_axes < 0:
        raise ValueError(f"batch_axes must be an int of at least 0, got {batch_axes}")
    shapes = {jnp.shape(leaf)[:batch_axes] for leaf in jax.tree.leaves((x_end, mapped_args))}
    batch = next(iter(shapes))
    if len(shapes) != 1 or len(batch) != batch_axes:
        raise ValueError(
            f"x_end, and args mapped over end states, must share {batch_axes} leading axes "
            f"(batch_axes), got {shapes}"
        )
    if 0 in batch:
        raise ValueError(f"x_end must hold at least 1 end state, got leading axes {batch}")
    return batch


def _check(
    sde: SDE,
    score: ScoreFn,
    x: State,
    ts: Any,
    args: Args,
    noise_level: float,
    whole_steps: bool,
    use: str,
) -> None:
    """Check what the backward solve of one state is given."""
    check_time_grid(ts, sde)
    check_kind("score", score, "a function score(t, x, args), such as fit.score", "__call__")
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"x_end must be floating point, got {leaf.dtype}")
    check_process(sde, ts, x, args, maps=("drift", "inverse"))
    if hasattr(score, "check_use"):
        learned: Any = score
        learned.check_use(sde, ts, noise_level, whole_steps=whole_steps, use=use)
    else:
        t = jax.ShapeDtypeStruct((), jnp.result_type(ts))
        check_like(x, jax.eval_shape(score, t, x, args), "score")


@eqx.filter_jit
def _flow(
    solve: BackwardSolve, score: ScoreFn, x_end: State, args: Args
) -> tuple[State, SolveInfo]:
    return solve(score, x_end, None, args)


@eqx.filter_jit
def _sample(
    solve: BackwardSolve,
    score: ScoreFn,
    x_end: State,
    key: PRNGKeyArray,
    args: Args,
    args_axes: int | None,
    batch: tuple[int, ...],
    num_samples: int,
    chunk_size: int | None,
) -> Posterior:
    def flat(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jnp.reshape(x, (math.prod(batch), *jnp.shape(x)[len(batch) :])), tree
        )

    ends, mapped = flat(x_end), flat(args) if args_axes == 0 else None

    def one(i: Array) -> tuple[State, SolveInfo]:
        x, own = jax.tree.map(lambda e: e[i // num_samples], (ends, mapped))
        own = own if args_axes == 0 else args
        return solve(score, x, jax.random.fold_in(key, i), own)

    total = math.prod(batch) * num_samples
    paths = jax.lax.map(one, jnp.arange(total), batch_size=min(chunk_size or total, total))
    shape = (*batch, num_samples)
    samples, info = jax.tree.map(lambda x: jnp.reshape(x, shape + x.shape[1:]), paths)
    return Posterior(samples, info)

"""From an observed end state back to its past: posterior samples and most likely paths."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import Backward, check_backward, concrete
from smdp_jax.compiled import compiled
from smdp_jax.scores.chain import kernel_walk
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.sde import SDE, Args, ScoreFn, State
from smdp_jax.solve.backward import BackwardSolve, Langevin, SolveInfo
from smdp_jax.solve.batches import in_chunks, on_auto_mesh
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
    """A deterministic path, or one per end state.

    Parameters
    ----------
    ts : array (times,)
        Increasing times.
    xs : pytree
        Leaves (*batch, times, *state), ordered like ``ts``: without a batch, ``xs[0]`` is the
        estimate at ``ts[0]``.
    info : SolveInfo
        Diagnostics, leaves (*batch,).
    """

    ts: Any
    xs: Any
    info: Any


def sample_posterior(
    sde: SDE,
    score: ScoreFn | LearnedKernel,
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
    input_noise: float = 0.0,
    controller: diffrax.AbstractAdaptiveStepSizeController | None = None,
    save: Save = "last",
    batch_axes: int | None = None,
    chunk_size: int | None = None,
    rematerialise: bool = False,
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
        or a ``LearnedKernel`` on its own steps.
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
        alpha, a number that is known when the call is compiled. Only 1 samples the posterior.
    denoise_last : bool
        Add no noise in the last step.
    corrector : Langevin, optional
        Predictor-corrector sampling.
    input_noise : float
        For a kernel: noise added to the state before each of its steps, in units of g sqrt(dt).
        Good values: 0 to 0.5 for one that was trained with more.
    controller : diffrax.AbstractAdaptiveStepSizeController, optional
        Adaptive steps, for drifts.
    save : "last", "all" or sequence of int
        "last": samples at ``ts[0]``; else the states at those indices of ``ts``.
    batch_axes : int, optional
        Number of leading axes of ``x_end`` that index end states. Default 0; refused where process
        and score would take the parts of ``x_end`` for states as well.
    chunk_size : int, optional
        Paths solved at once, to bound memory; default all.
    rematerialise : bool
        Recompute each step where gradients are taken through the paths, instead of storing it.

    Returns
    -------
    Posterior
        Samples and diagnostics. Outside of ``jit`` a warning tells how many paths were lost.

    Raises
    ------
    ValueError
        For a grid, process, solver, score, end state or key that does not fit (see the message).
    TypeError
        If the score is no function, or the solver no solver.
    """
    ts, x_end, score, args = on_auto_mesh((ts, x_end, score, args))
    given = check_backward(
        "sample_posterior",
        sde,
        score,
        x_end,
        ts,
        args=args,
        args_axes=args_axes,
        solver=solver,
        substeps=substeps,
        noise_level=noise_level,
        corrector=corrector,
        controller=controller,
        save=save,
        batch_axes=batch_axes,
        num_samples=num_samples,
        chunk_size=chunk_size,
        key=key,
        denoise_last=denoise_last,
        rematerialise=rematerialise,
    )
    if isinstance(score, LearnedKernel):
        options = {"solver": solver, "controller": controller}
        solve = kernel_walk(score, given, ts, input_noise, bool(denoise_last), options)
    elif input_noise != 0:
        raise ValueError(f"input_noise needs a LearnedKernel, got a score and {input_noise}")
    else:
        solve = BackwardSolve(
            sde,
            jnp.asarray(ts),
            solver,
            given.substeps,
            given.noise_level,
            bool(denoise_last),
            corrector,
            controller,
            given.save,
            bool(rematerialise),
        )
    samples, info = _solve(solve, score, given, key, args, args_axes)
    return Posterior(samples, info)


def probability_flow(
    sde: SDE,
    score: ScoreFn,
    x_end: State,
    ts: Float[Array, "times"],
    *,
    args: Args = None,
    args_axes: int | None = None,
    solver: diffrax.AbstractSolver | None = None,
    substeps: int = 1,
    controller: diffrax.AbstractAdaptiveStepSizeController | None = None,
    batch_axes: int | None = None,
    chunk_size: int | None = None,
    rematerialise: bool = False,
) -> Path:
    """Follow the probability-flow ODE from an observed end state back.

    Solves ``dx = -[P - g^2 s / 2] dtau``, tau = -t (Song et al. 2021, eq. 13): one deterministic
    path of high likelihood, not a posterior sample.

    Parameters
    ----------
    sde : SDE
        The forward process.
    score : callable
        ``score(t, x, args)``.
    x_end : pytree
        Observed state at ``ts[-1]``: unbatched, or with ``batch_axes`` leading axes.
    ts : array (times,)
        Increasing times; the solve walks them from the end.
    args : pytree, optional
        Conditions.
    args_axes : int or None
        None: the same ``args`` for all end states; 0: one entry per end state.
    solver : diffrax.AbstractSolver, optional
        Default ``diffrax.Euler()``, or ``Splitting()`` for flow maps.
    substeps : int
        Solver steps per interval of ``ts``.
    controller : diffrax.AbstractAdaptiveStepSizeController, optional
        Adaptive steps, for drifts.
    batch_axes : int, optional
        Number of leading axes of ``x_end`` that index end states. Default 0; refused where process
        and score would take the parts of ``x_end`` for states as well.
    chunk_size : int, optional
        Paths solved at once, to bound memory; default all.
    rematerialise : bool
        Recompute each step where gradients are taken through the paths, instead of storing it.

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
    ts, x_end, score, args = on_auto_mesh((ts, x_end, score, args))
    given = check_backward(
        "probability_flow",
        sde,
        score,
        x_end,
        ts,
        args=args,
        args_axes=args_axes,
        solver=solver,
        substeps=substeps,
        noise_level=0.0,
        corrector=None,
        controller=controller,
        save="all",
        batch_axes=batch_axes,
        num_samples=1,
        chunk_size=chunk_size,
        rematerialise=rematerialise,
    )
    ts = jnp.asarray(ts)
    solve = BackwardSolve(
        sde, ts, solver, given.substeps, 0.0, False, None, controller, "all", bool(rematerialise)
    )
    xs, info = jax.tree.map(
        lambda x: x.reshape(given.batch + x.shape[len(given.batch) + 1 :]),
        _solve(solve, score, given, jax.random.key(0), args, args_axes),
    )
    return Path(ts, xs, info)


def _solve(
    solve: Callable[..., tuple[State, SolveInfo]],
    score: ScoreFn | LearnedKernel,
    given: Backward,
    key: PRNGKeyArray,
    args: Args,
    args_axes: int | None,
) -> tuple[State, SolveInfo]:
    """Solve for every end state and sample, and say how many were lost."""
    work = (args_axes, given.batch, given.num_samples, given.chunk_size)
    xs, info = _sample(solve, score, given.x_end, key, args, *work)
    lost_at: Any = info.lost_at
    if concrete(lost_at) and lost_at.is_fully_addressable and not info.finite.all():
        lost = np.asarray(lost_at)[~np.asarray(info.finite)]
        warnings.warn(
            f"{lost.size} of {lost_at.size} paths were lost: not finite from t={lost.max():g} on "
            f"the way back (half of them at t={np.median(lost):g}). Try more steps or substeps "
            "there, another solver, or a score trained for longer; info.finite tells them apart",
            stacklevel=3,
        )
    return xs, info


@compiled
def _sample(
    solve: Callable[..., tuple[State, SolveInfo]],
    score: ScoreFn | LearnedKernel,
    x_end: State,
    key: PRNGKeyArray,
    args: Args,
    args_axes: int | None,
    batch: tuple[int, ...],
    num_samples: int,
    chunk_size: int | None,
) -> tuple[State, SolveInfo]:
    def flat(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jnp.reshape(x, (math.prod(batch), *jnp.shape(x)[len(batch) :])), tree
        )

    ends, mapped = flat(x_end), flat(args) if args_axes == 0 else None

    def one(i: Array) -> tuple[State, SolveInfo]:
        x, own = jax.tree.map(lambda e: e[i // num_samples], (ends, mapped))
        own = own if args_axes == 0 else args
        return solve(score, x, jax.random.fold_in(key, i), own)

    paths = in_chunks(one, jnp.arange(math.prod(batch) * num_samples), chunk_size)
    shape = (*batch, num_samples)
    return jax.tree.map(lambda x: jnp.reshape(x, shape + x.shape[1:]), paths)

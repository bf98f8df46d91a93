"""From an observed end state back to its past: posterior samples and most likely paths."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.compiled import compiled
from smdp_jax.scores.chain import kernel_walk
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.sde import SDE, Args, ScoreFn, State
from smdp_jax.solve.asked import Work, prepared
from smdp_jax.solve.backward import BackwardSolve, Langevin, SolveInfo
from smdp_jax.solve.batches import (
    Split,
    filled_up,
    in_chunks,
    on_auto_mesh,
    say_filled_up,
    split_of,
)
from smdp_jax.solve.choice import way_back
from smdp_jax.solve.gaussian import GaussianStep
from smdp_jax.solve.integrate import Save
from smdp_jax.solve.looked import Ends
from smdp_jax.solve.lost import warn_of_lost


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
    solver: diffrax.AbstractSolver[Any] | GaussianStep | None = None,
    substeps: int = 1,
    noise_level: float = 1.0,
    denoise_last: bool = False,
    corrector: Langevin | None = None,
    input_noise: float = 0.0,
    controller: diffrax.AbstractAdaptiveStepSizeController[Any, Any] | None = None,
    save: Save = "last",
    batch_axes: int | None = None,
    chunk_size: int | None = None,
    rematerialise: bool = False,
    mesh: Mesh | None = None,
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
    num_samples, key
        Samples per end state; path i of end state j draws from ``fold_in(key, j * num_samples +
        i)``: the same samples however the work is split, up to rounding.
    args, args_axes
        Conditions: the same for all end states, or, with 0, one entry for each, on the same
        ``batch_axes`` leading axes.
    solver : diffrax.AbstractSolver or GaussianStep, optional
        Default ``diffrax.Euler()``, or ``Splitting()`` for flow maps, unless a look at one path
        finds that they amplify errors, or one at a few that long steps spread them wrongly: then
        ``GaussianStep()`` for fields with linear physics, or ``diffrax.ShARK()`` in substeps, or
        ``integrated_backward``. Nothing is looked at inside of ``jit``.
    substeps : int
        Solver steps per interval of ``ts``.
    noise_level : float
        alpha, a number that is known when the call is compiled. Only 1 samples the posterior.
    denoise_last, corrector : bool, Langevin
        Add no noise in the last step; predictor-corrector sampling.
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
    mesh : jax.sharding.Mesh, optional
        Devices that share the paths along its axis ``data``, ``chunk_size`` of them at once on
        each; the result comes back split. Default: that over whose axis ``x_end`` is split along
        its first batch axis, if it is.

    Returns
    -------
    Posterior
        Samples and diagnostics. Outside of ``jit`` a warning tells how many paths were lost.

    Raises
    ------
    ValueError, TypeError
        For a grid, process, solver, score, end state or key that does not fit (see the message).
    """
    split = split_of(mesh, x_end if batch_axes else None)
    ts, x_end, score, args, key = on_auto_mesh((ts, x_end, score, args, key))
    how = (noise_level, denoise_last, corrector, controller, save, rematerialise)
    asked = BackwardSolve(sde, ts, solver, substeps, *how)
    work = Work(x_end, args_axes, (), num_samples, chunk_size)
    solve, work = prepared("sample_posterior", asked, score, work, batch_axes, args, key)
    walk: Any = solve
    grows = False
    if isinstance(score, LearnedKernel):
        walk = kernel_walk(score, solve, _ends(work, args), input_noise)
    elif input_noise != 0:
        raise ValueError(f"input_noise needs a LearnedKernel, got a score and {input_noise}")
    else:
        walk, score, grows = way_back("sample_posterior", solve, score, _ends(work, args))
    samples, info = _solve(walk, score, work, args, key, split, grows)
    return Posterior(samples, info)


def probability_flow(
    sde: SDE,
    score: ScoreFn,
    x_end: State,
    ts: Float[Array, "times"],
    *,
    args: Args = None,
    args_axes: int | None = None,
    solver: diffrax.AbstractSolver[Any] | GaussianStep | None = None,
    substeps: int = 1,
    controller: diffrax.AbstractAdaptiveStepSizeController[Any, Any] | None = None,
    batch_axes: int | None = None,
    chunk_size: int | None = None,
    rematerialise: bool = False,
    mesh: Mesh | None = None,
) -> Path:
    """Follow the probability-flow ODE from an observed end state back.

    Solves ``dx = -[P - g^2 s / 2] dtau``, tau = -t (Song et al. 2021, eq. 13): one deterministic
    path of high likelihood, not a posterior sample.

    Parameters
    ----------
    sde, score, x_end, ts, args, args_axes
        As for `sample_posterior`; a score, no correction and no kernel.
    solver : diffrax.AbstractSolver or GaussianStep, optional
        As for `sample_posterior`, with ``diffrax.Ralston()`` for ``ShARK``.
    substeps, controller, batch_axes, chunk_size, rematerialise, mesh
        As for `sample_posterior`.

    Returns
    -------
    Path
        States at all of ``ts``, and diagnostics.
    """
    split = split_of(mesh, x_end if batch_axes else None)
    ts, x_end, score, args = on_auto_mesh((ts, x_end, score, args))
    asked = BackwardSolve(
        sde, ts, solver, substeps, 0.0, False, None, controller, "all", rematerialise
    )
    work, key = Work(x_end, args_axes, (), 1, chunk_size), jax.random.key(0)
    solve, work = prepared("probability_flow", asked, score, work, batch_axes, args, key)
    solve, score, grows = way_back("probability_flow", solve, score, _ends(work, args))
    xs, info = _solve(solve, score, work, args, key, split, grows)
    axis = info.finite.ndim - 1
    return Path(jnp.asarray(ts), *jax.tree.map(lambda x: x.squeeze(axis), (xs, info)))


def _solve(
    solve: Callable[..., tuple[State, SolveInfo]],
    score: ScoreFn | LearnedKernel,
    work: Work,
    args: Args,
    key: PRNGKeyArray,
    split: Split | None,
    grows: bool,
) -> tuple[State, SolveInfo]:
    """Solve for every end state and sample, and say how many were lost or left the data."""
    say_filled_up("paths:", math.prod(work.batch) * work.num_samples, split)
    if split is not None:
        solve, score, args, key, x_end = split.known((solve, score, args, key, work.x_end))
        work = work._replace(x_end=x_end)
    xs, info = _sample(solve, score, work.x_end, key, args, *work[1:], split)
    if split is not None and split.gathered:
        xs, info = split.returned((xs, info))
    kernel = isinstance(score, LearnedKernel)
    warn_of_lost(info, args, getattr(solve, "ts", None), grows, kernel)
    return (xs, info) if split is None else split.returned((xs, info))


def _flat(tree: Any, batch: tuple[int, ...]) -> Any:
    """End states, or what belongs to them, on one axis."""
    number, axes = math.prod(batch), len(batch)
    return jax.tree.map(lambda x: jnp.reshape(x, (number, *jnp.shape(x)[axes:])), tree)


def _ends(work: Work, args: Args) -> Ends:
    mapped = work.args_axes == 0
    own = _flat(args, work.batch) if mapped else args
    return Ends(_flat(work.x_end, work.batch), own, mapped)


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
    split: Split | None,
) -> tuple[State, SolveInfo]:
    number = math.prod(batch)
    # Where every device has end states of its own, a path is with them.
    dealt = split is not None and number % split.count == 0

    def some(shared: tuple, own: tuple[State, Args], rows: Array) -> tuple[State, SolveInfo]:
        """Paths from end states, by their numbers; dealt out, the first is of the first state."""
        solve, score, key, args = shared
        first = rows[0] // num_samples if dealt else jnp.zeros((), rows.dtype)

        def one(i: Array) -> tuple[State, SolveInfo]:
            x, conditions = jax.tree.map(lambda e: e[i // num_samples - first], own)
            conditions = conditions if args_axes == 0 else args
            return solve(score, x, jax.random.fold_in(key, i), conditions)

        return in_chunks(one, rows, chunk_size)

    shared = (solve, score, key, None if args_axes == 0 else args)
    own = (_flat(x_end, batch), _flat(args, batch) if args_axes == 0 else None)
    count = number * num_samples
    rows = jnp.arange(count)
    if split is None:
        paths = some(shared, own, rows)
    elif dealt:
        paths = split.over(some, own, rows, whole=(shared,))
    else:
        paths = split.over(some, filled_up(rows, count, split), whole=(shared, own))
        paths = jax.tree.map(lambda x: x[:count], paths)
    shape = (*batch, num_samples)
    paths = jax.tree.map(lambda x: jnp.reshape(x, shape + x.shape[1:]), paths)
    return paths if split is None else split.pin(paths)

"""How likely is a state, and how right a sampler: log densities and weights of paths, in nats."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import (
    check_choice,
    check_finite,
    check_key,
    check_kind,
    check_positive,
    check_that,
    check_within,
    concrete,
)
from smdp_jax.scores.kernel import LearnedKernel, first_step
from smdp_jax.scores.learned import check_evaluates, check_is_score
from smdp_jax.scores.reference import best_kind, reference_of
from smdp_jax.sde import SDE, Args, ScoreFn, State
from smdp_jax.solve.certificate import Certificate
from smdp_jax.solve.flow_density import FlowDensity, LogDensity, check_density
from smdp_jax.solve.inverses import walked
from smdp_jax.solve.particles import doubts, effective_size, log_mean_exp, stated_error
from smdp_jax.solve.path_weights import PathWeights
from smdp_jax.solve.process import check_process, check_time_grid
from smdp_jax.solve.time_grids import time_index
from smdp_jax.solve.transitions import StepKernel, transitions_of
from smdp_jax.trajectories import Trajectories

_PRIOR = "a function prior(x, args), the log density at ts[0]"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogProb:
    """Log density of states, and how it came about.

    Parameters
    ----------
    log_prob, standard_error : array (*batch,)
        log p at ``ts[-1]`` in nats, and its standard error over probes; 0 for the exact trace.
    starts : pytree
        Where the flow takes each state at ``ts[0]``, leaves (*batch, *state).
    """

    log_prob: Any
    standard_error: Any
    starts: Any


def log_prob(
    sde: SDE,
    score: ScoreFn,
    x: State,
    ts: Float[Array, "times"],
    prior: LogDensity,
    *,
    trace: Literal["exact", "hutchinson"] = "exact",
    probes: int = 16,
    key: PRNGKeyArray | None = None,
    args: Args = None,
    args_axes: int | None = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    substeps: int = 1,
    batch_axes: int = 0,
    chunk_size: int | None = None,
) -> LogProb:
    """Compute log p_t(x) at ``ts[-1]`` along the probability flow.

    With ``f = P - g^2 s / 2``, ``log p_T(x_T) = log p_0(x_0) - int div f dt`` (Chen et al. 2018;
    Song et al. 2021, eq. 39), x solved back from ``ts[-1]`` to ``ts[0]``. A flow map is taken as
    the discrete flow that it is: the log-determinants of its steps are summed.

    Parameters
    ----------
    sde : SDE
        The forward process.
    score : callable
        ``score(t, x, args)``, a score: a step correction has no flow.
    x : pytree
        States at ``ts[-1]``: one, or with ``batch_axes`` leading axes.
    ts : array (times,)
        Increasing times. Start them where the prior has a density: point masses have none.
    prior : callable
        ``prior(x, args)``, log density at ``ts[0]`` of one state, in nats.
    trace : {"exact", "hutchinson"}
        The divergence by one Jacobian-vector product per entry of the state, or estimated by
        ``probes`` random signs, the same ones along the whole solve.
    probes, key
        Hutchinson's, at least 2 (the standard error falls with their square root), and their PRNG
        key; state i draws from ``fold_in(key, i)``.
    args, args_axes
        Conditions: the same for all states, or, with 0, on the same leading axes.
    solver : diffrax.AbstractSolver, optional
        An ODE solver, default ``diffrax.Heun()``; with a score in closed form
        ``diffrax.Dopri8()`` reaches rounding.
    substeps, batch_axes : int
        Solver steps per interval of ``ts``; number of leading axes of ``x`` that index states.
    chunk_size : int, optional
        States, and entries of the divergence of each, worked on at once; default all.

    Returns
    -------
    LogProb
        In nats of a density per unit of state, with its standard error.

    Raises
    ------
    ValueError, TypeError
        For a step correction, a grid, process, state, prior or key that does not fit.
    """
    flat, shape = _flatten(x, args if args_axes == 0 else None, batch_axes)
    probes, substeps, chunk_size = check_positive(
        optional="chunk_size", probes=probes, substeps=substeps, chunk_size=chunk_size
    )
    first, own = jax.tree.map(lambda x: x[0], flat)
    check_choice("args_axes", args_axes, None, 0)
    check_is_score(score, "log_prob")
    check_evaluates(sde, score, ts, first, own if args_axes == 0 else args)
    check_kind("prior", prior, _PRIOR, "__call__")
    check_finite(x, "x")
    check_choice("trace", trace, "exact", "hutchinson")
    exact = trace == "exact"
    if not exact:
        check_that(sde.drift, "trace must be 'exact' for a flow map, got 'hutchinson'")
        check_positive(least=2, probes=probes)  # to know their error
        check_key(key)
    flow = FlowDensity(sde, ts, prior, solver, substeps, None if exact else probes, chunk_size)
    found = _log_prob(flow, score, flat, key, args, args_axes, chunk_size)
    check_density(found.log_prob, found.starts)
    return jax.tree.map(lambda x: x.reshape(shape + x.shape[1:]), found)


@eqx.filter_jit
def _log_prob(
    flow: FlowDensity,
    score: ScoreFn,
    states: tuple[State, Args],
    key: Any,
    args: Args,
    args_axes: int | None,
    chunk_size: int | None,
) -> LogProb:
    count = jax.tree.leaves(states)[0].shape[0]

    def one(entry: tuple) -> LogProb:
        i, x, own = entry
        seed = None if key is None else jax.random.fold_in(key, i)
        return LogProb(*flow(score, x, seed, own if args_axes == 0 else args))

    return jax.lax.map(one, (jnp.arange(count), *states), batch_size=chunk_size or count)


def _flatten(x: State, mapped: Args, batch_axes: int) -> tuple[tuple, tuple[int, ...]]:
    """Put all leading axes into one."""
    check_positive(least=0, batch_axes=batch_axes)
    trees = jax.tree.map(jnp.asarray, (x, mapped))
    shapes = {leaf.shape[:batch_axes] for leaf in jax.tree.leaves(trees)}
    shape = next(iter(shapes), ())
    said = f"x, and args mapped over states, must share {batch_axes} leading axes (batch_axes)"
    check_that(len(shapes) == 1 and len(shape) == batch_axes and 0 not in shape, said, shapes or x)
    return jax.tree.map(
        lambda leaf: leaf.reshape(math.prod(shape), *leaf.shape[batch_axes:]), trees
    ), shape


def certify(
    sde: SDE,
    score: ScoreFn | LearnedKernel,
    x_end: State,
    ts: Float[Array, "times"],
    prior: LogDensity,
    *,
    num_paths: int,
    key: PRNGKeyArray,
    solver: Any = None,
    reference: Trajectories | Callable[[Any, Any], Any] | None = None,
    threshold: float = 0.5,
    args: Args = None,
    chunk_size: int | None = None,
) -> Certificate:
    """Weigh the reverse-time SDE's paths from an end state against the simulator's law of them.

    The evidence is that of the simulator's chain on ``ts``, with one Gaussian step an interval
    (Burda, Grosse, Salakhutdinov 2016, "Importance Weighted Autoencoders"; resampled: Del Moral,
    Doucet, Jasra 2006). It is without bias whatever the score, differentiable in ``args`` (through
    resampling, too), and needs noise on every leaf. Use ``jax.vmap`` for many end states.

    Parameters
    ----------
    sde : SDE
        The forward process.
    score : callable or LearnedKernel
        ``score(t, x, args)``, or a step correction or a backward kernel on its own steps.
    x_end : pytree
        Observed state at ``ts[-1]``, unbatched.
    ts, prior
        As for `log_prob`.
    num_paths, key
        How many paths, and their randomness.
    solver : GaussianStep or Transitions, optional
        Gaussian laws of one step; default those of ``Euler()``, or ``Splitting()`` for flow maps.
        With a ``GaussianStep`` the chain is that of ``simulate``, exact for the linear part.
    reference : Trajectories or callable, optional
        Resample on the way, for states of many entries: ``reference(t, x)`` is a guess of log p_t,
        or paths at (at least) the times of ``ts``, whose Gaussians are.
    threshold : float
        Resample where the effective size falls below this share of the paths.
    args, chunk_size
        Conditions; paths solved at once, to bound memory, default all.

    Returns
    -------
    Certificate
        Bounds, evidence, weighted samples; ``str`` of it is a line for a report.

    Raises
    ------
    ValueError, TypeError
        For a grid, process, solver, end state or key that does not fit, or a prior without density.
    """
    num_paths, chunk_size = check_positive(
        optional="chunk_size", num_paths=num_paths, chunk_size=chunk_size
    )
    x_end = jax.tree.map(jnp.asarray, x_end)
    sde = walked(sde, score)
    kernel = isinstance(score, LearnedKernel)
    if kernel:
        check_time_grid(ts, sde)
        check_process(sde, ts, x_end, args, maps=("drift",))
        score.check_state(x_end)
    else:
        check_evaluates(sde, score, ts, x_end, args)
    if check_use := getattr(score, "check_use", None):
        check_use(sde, ts, 1.0, whole_steps=True, use="certify")
    check_kind("prior", prior, _PRIOR, "__call__")
    check_finite(x_end, "x_end")
    check_key(key)
    check_within("(0, 1]", threshold=threshold)
    steps = transitions_of(solver, sde, score, ts, x_end, args)
    paths = PathWeights(ts, steps, prior, chunk_size, first_step(score.ts, ts) if kernel else 0)
    guide = _reference(reference, ts)
    found = _certify(paths, score, x_end, key, args, num_paths, guide, threshold)
    if concrete(found):
        check_density(found.log_weights, found.samples)
    return found


@eqx.filter_jit
def _certify(
    paths: PathWeights,
    score: ScoreFn | StepKernel,
    x_end: State,
    key: PRNGKeyArray,
    args: Args,
    count: int,
    guide: Any,
    threshold: float,
) -> Certificate:
    k_paths, k_resampled = jax.random.split(key)
    x, logs = paths.independent(score, k_paths, x_end, count, args)
    logs = jnp.where(jnp.isnan(logs), -jnp.inf, logs)
    bound, share, sizes = log_mean_exp(logs), effective_size(logs) / count, None
    found = x, logs, bound, stated_error(doubts(logs))
    elbo, error = logs.mean(), logs.std(ddof=1) / math.sqrt(count)
    if guide is not None:

        def reference(j: Array, x: State) -> Array:
            if callable(guide):
                return jnp.asarray(guide(paths.ts[j], x))
            return jax.tree.map(lambda a: a[j], guide).log_density(x)

        run = paths.resampled(score, k_resampled, x_end, count, args, reference, threshold)
        other, sizes = (*run[:3], stated_error(run.doubt)), run.ess
        better = jnp.isfinite(other[2]) & ~(other[3] > found[3])
        found = jax.tree.map(lambda new, old: jnp.where(better, new, old), other, found)
    x, logs, evidence, doubt = found
    log_weights = jax.nn.log_softmax(logs)
    return Certificate(elbo, error, bound, evidence, doubt, share, sizes, x, log_weights)


def _reference(reference: Any, ts: Any) -> Any:
    """A function as it is; paths as one Gaussian per time, in the basis that is best at the end."""
    if reference is None or callable(reference):
        return reference
    check_kind("reference", reference, "Trajectories(ts, xs) or a function (t, x)", "ts", "xs")
    reference.check()
    places = [time_index(reference.ts, float(t), "the reference's ts") for t in ts]
    at = [jax.tree.map(lambda x, i=i: x[:, i], reference.xs) for i in places]
    kind = best_kind(at[-1])
    return jax.tree.map(lambda *x: jnp.stack(x), *[reference_of(draws, kind) for draws in at])

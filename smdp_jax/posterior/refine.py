"""Posterior samples refined by the simulator itself: each is drawn to the end that was seen."""

from dataclasses import dataclass
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import eval_context
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import (
    as_state,
    check_choice,
    check_finite,
    check_key,
    check_positive,
    check_that,
    check_within,
    holds_traced,
)
from smdp_jax.compiled import compiled
from smdp_jax.posterior.refine_looks import (
    measured,
    noise_at,
    say_if_missed,
    say_if_not_gaussian,
)
from smdp_jax.sde import SDE, Args, State
from smdp_jax.solve.batches import in_chunks
from smdp_jax.solve.noise_free import NoiseFree
from smdp_jax.solve.process import check_process, check_time_grid
from smdp_jax.solve.proximal import Noise, Problem, Spread, drawn_to
from smdp_jax.solve.solvers import check_solver
from smdp_jax.trajectories import Trajectories

_NUMBERS = 2**26


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Refined:
    """Samples of a past state, drawn to the end that was seen.

    Parameters
    ----------
    samples : pytree
        Leaves (*batch, num_samples, *state), like the samples that were given.
    misfit, misfit_before : array (*batch, num_samples)
        Mean square of what the end of each misses without noise, in units of the noise's variance:
        of exact samples about 1.
    lost : bool array (*batch, num_samples)
        Which lay where no start does, or were not finite, and began anew from draws of the prior.
    """

    samples: Any
    misfit: Any
    misfit_before: Any
    lost: Any


def refine_posterior(
    sde: SDE,
    samples: State,
    x_end: State,
    ts: Float[Array, "times"],
    data: Trajectories,
    *,
    key: PRNGKeyArray,
    step: float = 0.25,
    rounds: int = 2,
    iterations: int = 16,
    directions: int = 64,
    noise_paths: int = 256,
    args: Args = None,
    args_axes: int | None = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    substeps: int = 1,
    batch_axes: int = 0,
    chunk_size: int | None = None,
) -> Refined:
    r"""Draw samples of the past to the end that was seen, through the simulator's derivatives.

    With F the simulation without noise, R the covariance of what noise adds to its end, C that of
    the starts, and y, p, x perturbed by ``N(0, R)``, ``N(0, C)`` and ``2 / a`` times that, each
    sample x goes to the minimum over x' of

        |y - F(x')|_R^2 + |x' - p|_C^2 + a |x' - x|_C^2,    a = 1 / step - 1,

    p the mean of the starts, by Levenberg-Marquardt. Directions that the end tells are drawn anew
    from it; others stay as they are, but for a share ``step``. Where F is linear, start and noise
    Gaussian, samples of the posterior stay such, and others come nearer with every round: a
    proximal step of Langevin dynamics, and at ``step=1`` randomised maximum likelihood. Where F is
    not linear, what the end tells is drawn from the posterior times ``|det F'|``, which leans to
    starts that the end depends on more, by as much as F' changes within the posterior.

    Parameters
    ----------
    sde : SDE
        The process; its simulation without noise is differentiated.
    samples : pytree
        Samples at ``ts[0]``, as `sample_posterior` returns them, or draws of the prior: leaves
        (*batch, num_samples, *state).
    x_end : pytree
        Observed states at ``ts[-1]``, leaves (*batch, *state).
    ts : array (times,)
        Increasing times of the simulation.
    data : Trajectories
        Simulated paths with ``ts[0]`` and ``ts[-1]`` among their times: what the starts are like,
        and what noise does to the end. At most 1024 are looked at.
    key : PRNG key
        Sample i of end state j draws from ``fold_in(key, j * num_samples + i)``.
    step : float
        In (0, 1]: the share that is drawn anew of what the end does not tell.
    rounds : int
        How often all samples are moved.
    iterations : int
        Of the minimisation, in each round.
    directions : int
        Principal components of the starts that are moved. Each costs a simulation's derivative.
    noise_paths : int
        Simulations with noise from each sample, in all rounds but the first, for what noise does to
        its end: few leave more of it unknown than is told. 0: what it does to the ends of the data,
        alike for all.
    args : pytree, optional
        Conditions of the end states.
    args_axes : int or None
        None: the same ``args`` for all end states; 0: one entry per end state, on the same
        ``batch_axes`` leading axes.
    solver : diffrax.AbstractSolver, optional
        Of the simulation; default Heun for drifts.
    substeps : int
        Its steps per interval of ``ts``.
    batch_axes : int
        Number of leading axes that index end states.
    chunk_size : int, optional
        Samples moved at once, to bound memory: default all, or as many as have 64 million numbers
        in the ends of their simulations with noise.

    Returns
    -------
    Refined
        The samples and their misfits. Warnings tell of starts or noise that are far from Gaussian,
        and, outside of ``jit``, of samples that began anew, and that still miss.

    Raises
    ------
    ValueError
        For a grid, process, data, samples, end state or key that does not fit (see the message).
    TypeError
        If ``data`` are no trajectories.

    References
    ----------
    Oliver, He & Reynolds (1996), "Conditioning permeability fields to pressure data", ECMOR V;
    Pereyra (2016), "Proximal Markov chain Monte Carlo algorithms", Statistics and Computing 26.
    """
    check_time_grid(ts, sde)
    check_key(key)
    names = {"rounds": rounds, "iterations": iterations, "directions": directions}
    counts = check_positive(
        optional="chunk_size", **names, substeps=substeps, chunk_size=chunk_size
    )
    (own_paths,) = check_positive(least=0, noise_paths=noise_paths)
    check_that(own_paths != 1, "noise_paths must be 0, or at least 2", noise_paths)
    own_paths = own_paths if rounds > 1 else 0
    check_within("(0, 1]", step=step)
    check_choice("args_axes", args_axes, None, 0)
    samples, x_end = as_state(samples, "samples"), as_state(x_end, "x_end")
    check_finite(x_end, "x_end")
    mapped, shared = (args, None) if args_axes == 0 else (None, args)
    batch = _batch(samples, x_end, mapped, batch_axes)
    x, own = jax.tree.map(lambda v: jnp.asarray(v)[(0,) * batch_axes], (x_end, mapped))
    check_process(sde, ts, x, own if args_axes == 0 else args, maps=("drift", "step"))

    end = NoiseFree(sde, jnp.asarray(ts), _forward_mode(sde, solver), counts[3])
    traced = holds_traced(end, x, own if args_axes == 0 else args)
    said = "what sde closes over must be known before tracing, since its noise is measured"
    check_that(not traced, f"{said}: got traced values")
    with eval_context():  # inside of a caller's jit, too
        spreads, starts, added = measured(data, ts, end, x, counts[2], own_paths)

    def rows(tree: Any, axes: int) -> Any:
        return jax.tree.map(lambda v: jnp.reshape(v, (-1, *jnp.shape(v)[axes:])), tree)

    work = (rows(samples, batch_axes + 1), rows(x_end, batch_axes), rows(mapped, batch_axes))
    chunk = counts[4]
    if chunk is None and own_paths:
        chunk = max(_NUMBERS // (own_paths * spreads[0].mean.size), 1)
    how = (*counts[:2], chunk, own_paths)
    found = _refined(end, spreads, work, shared, key, float(step), how)
    result = Refined(*jax.tree.map(lambda v: v.reshape(*batch, *v.shape[1:]), found))
    say_if_not_gaussian(starts, added, step, own_paths > 0)
    say_if_missed(result, spreads[0].mean.size)
    return result


def _forward_mode(sde: SDE, solver: Any) -> Any:
    """A solver whose loop over stages has forward derivatives."""
    if solver is None:
        return None if sde.drift is None else diffrax.Heun(scan_kind="lax")
    check_solver(sde, solver, deterministic=True, adaptive=False)
    if isinstance(solver, diffrax.AbstractRungeKutta):
        return eqx.tree_at(lambda s: s.scan_kind, solver, "lax", is_leaf=lambda x: x is None)
    return solver


def _batch(samples: State, x_end: State, mapped: Args, axes: int) -> tuple[int, ...]:
    """Shape of the batch: that of the end states, and the number of samples of each."""
    check_positive(least=0, batch_axes=axes)
    ends = [jnp.shape(v)[:axes] for v in jax.tree.leaves((x_end, mapped))]
    states = [jnp.shape(v)[axes:] for v in jax.tree.leaves(x_end)]
    given = [jnp.shape(v) for v in jax.tree.leaves(samples)]
    batch = given[0][: axes + 1]
    same = jax.tree.structure(samples) == jax.tree.structure(x_end)
    fits = len(batch) == axes + 1 and given == [(*batch, *shape) for shape in states]
    said = f"samples must have the shape (*batch, num_samples, *state) of x_end's {ends} + {states}"
    check_that(same and fits and set(ends) == {batch[:-1]} and 0 not in batch, said, given)
    return batch


@compiled
def _refined(
    end: NoiseFree,
    spreads: tuple[Spread, Spread],
    work: tuple[State, State, Args],
    shared: Args,
    key: PRNGKeyArray,
    step: Any,
    how: tuple,
) -> tuple[State, Array, Array, Array]:
    """Samples (n, *state), their misfits after and before, and whether they were lost."""
    rounds, iterations, chunk_size, own_paths = how
    samples, x_end, mapped = work
    unravel = ravel_pytree(jax.tree.map(lambda x: x[0], x_end))[1]
    flat = jax.vmap(lambda x: ravel_pytree(x)[0])
    problem = Problem(lambda x, args: ravel_pytree(end(unravel(x), args))[0], *spreads)
    count = jax.tree.leaves(samples)[0].shape[0]
    per_end = count // jax.tree.leaves(x_end)[0].shape[0]

    def one(given: tuple) -> tuple[Array, ...]:
        x, i = given
        y = ravel_pytree(jax.tree.map(lambda v: v[i // per_end], x_end))[0]
        own = shared if mapped is None else jax.tree.map(lambda v: v[i // per_end], mapped)
        own_key = jax.random.fold_in(key, i)

        def move(x: Array, number: Array) -> tuple[Array, None]:
            k_move, k_noise = jax.random.split(jax.random.fold_in(own_key, number))
            here = problem
            if own_paths:
                of_all = Noise.alike(spreads[1], own_paths)
                own_noise = noise_at(end, spreads[1], unravel(x), own, k_noise, own_paths)
                usable = jnp.isfinite(own_noise.own.deviations).all()
                chosen = jax.tree.map(lambda a, b: jnp.where(usable, a, b), own_noise, of_all)
                here = problem._replace(noise=chosen)
            return drawn_to(here, x, y, own, k_move, step, iterations), None

        # A sample that is new, or lost, may be where noise does something else.
        k_first = jax.random.fold_in(own_key, 0)
        moved = drawn_to(problem, x, y, own, k_first, step, iterations)
        moved, _ = jax.lax.scan(move, moved, jnp.arange(1, rounds))
        misfit = lambda x: jnp.mean(problem.miss(x, y, own) ** 2)
        return moved, misfit(moved), misfit(x), ~problem.prior.holds(x)

    moved, *told = in_chunks(one, (flat(samples), jnp.arange(count)), chunk_size)
    return jax.vmap(unravel)(moved), *told

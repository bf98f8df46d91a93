"""Simulate paths of a process, with or without score targets."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import (
    check_conditions,
    check_finite,
    check_flags,
    check_key,
    check_kind,
    check_no_lists,
    check_positive,
    check_samples,
    check_that,
)
from smdp_jax.compiled import compiled
from smdp_jax.scores.targets import Ramp, ScoreTargetSplitting, least_variance_ramp
from smdp_jax.sde import SDE, Args, State
from smdp_jax.solve.batches import Split, in_chunks, on_auto_mesh, say_filled_up, split_of
from smdp_jax.solve.chain import ChainSplitting, chain_of
from smdp_jax.solve.forward import forward_way
from smdp_jax.solve.integrate import advance
from smdp_jax.solve.looked import Ends
from smdp_jax.solve.process import check_process, check_time_grid, noise_table
from smdp_jax.solve.solvers import check_solver, splits
from smdp_jax.solve.time_grids import even
from smdp_jax.trajectories import Trajectories

_PILOT_PATHS, _FEWEST_PILOT_PATHS = 256, 16


def simulate(
    sde: SDE,
    x0: State,
    ts: Float[Array, "times"],
    *,
    key: PRNGKeyArray,
    args: Args = None,
    args_axes: int | None = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    substeps: int = 1,
    score_targets: bool | Ramp = False,
    chunk_size: int | None = None,
    rematerialise: bool = False,
    mesh: Mesh | None = None,
) -> Trajectories:
    """Simulate paths of ``dx = P dt + g dW`` from given initial states.

    Parameters
    ----------
    sde : SDE
        The process.
    x0 : pytree
        Initial states at ``ts[0]``; leaves (samples, *state).
    ts : array (times,)
        Increasing times to store.
    key : PRNG key
        Path i draws from ``fold_in(key, i)``: the same noise whatever the chunking, and the same
        path up to rounding.
    args, args_axes : pytree, and int or None
        Conditions: the same for all samples, or, with 0, one entry of the leading axis for each.
    solver : diffrax.AbstractSolver, optional
        Default: the same steps with and without ``score_targets``, so the same paths: a drift by
        Heun's step between two half kicks of noise (weak order 2), a flow map by its own step and
        the noise after it. With ``SDE.linear`` the linear part and its noise are exact at every
        step; so are fields with linear physics where Heun's step would be too long, and other
        drifts then take more substeps (both are looked for outside of ``jit``). Or any diffrax
        solver for a drift; with ``score_targets`` that is the ODE solver of the physics step
        between the kicks.
    substeps : int
        Solver steps per interval of ``ts``: simulate finely, store coarsely.
    score_targets : bool or ramp
        Accumulate an unbiased target of the score along every path, for ``PathScore``. True finds
        the ramp of least variance from a pilot of up to 256 extra paths; or give one
        (``PowerRamp``, ``SinhRamp``, ``least_variance_ramp``).
    chunk_size : int, optional
        Simulate that many paths at once, to bound memory; default all.
    rematerialise : bool
        Recompute each step where gradients are taken through the paths, instead of storing it.
    mesh : jax.sharding.Mesh, optional
        Devices that share the paths along its axis ``data``, ``chunk_size`` of them at once on
        each; ``xs`` comes back split. Default: that over whose axis ``x0`` is split, if it is.

    Returns
    -------
    Trajectories
        ``xs`` leaves (samples, times, *state).

    Raises
    ------
    ValueError, TypeError
        For an argument that does not fit (see the message), and if a simulated state is not
        finite, naming the sample and the time.
    """
    split = split_of(mesh, x0)
    ts, x0, args, key = on_auto_mesh((ts, x0, args, key))
    how = (solver, substeps, chunk_size, rematerialise)
    x0, samples, substeps, chunk_size = _check(
        sde, x0, ts, key, (args, args_axes), how, score_targets
    )
    ts = jnp.asarray(ts)
    if solver is None:
        sde, substeps = forward_way(sde, ts, Ends(x0, args, args_axes == 0), substeps)
    pilot_key = jax.random.split(key)[1] if score_targets is True else key
    say_filled_up("paths:", samples, split)
    ramp = None if isinstance(score_targets, bool) else score_targets
    if score_targets is True:
        # Evenly spaced: initial states may be sorted. A pilot of a chunk or so has its memory.
        size = min(samples, _PILOT_PATHS, max(chunk_size or _PILOT_PATHS, _FEWEST_PILOT_PATHS))
        pilot = jnp.linspace(0, samples - 1, size).astype(int)
        some = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[pilot], tree)
        how = {"args": some(args) if args_axes == 0 else args, "args_axes": args_axes}
        how |= {"solver": solver, "substeps": substeps}
        ramp = least_variance_ramp(sde, some(x0), ts, key=pilot_key, **how)
    if split is not None:
        ts, args, key, ramp = split.known((ts, args, key, ramp))
        x0 = split.known(x0) if samples % split.count else split.put(x0)
    how = (args_axes, solver, substeps, ramp, chunk_size, rematerialise, split)
    xs, targets = _simulate(sde, x0, ts, key, args, *how)
    data = Trajectories(ts, xs, args, targets, args_axes)
    data = split.returned(data) if split is not None and split.gathered else data
    try:
        data.check()
    except ValueError:
        check_finite(args, "args")
        raise
    return data if split is None else split.returned(data)


def _check(
    sde: Any, x0: Any, ts: Any, key: Any, conditions: tuple, how: tuple, score_targets: Any
) -> tuple[State, int, int, int | None]:
    """Check ``simulate``; return the states, their number, substeps and chunk size."""
    (args, args_axes), (solver, substeps, chunk_size, rematerialise) = conditions, how
    check_time_grid(ts, sde)
    check_no_lists(x0, "x0")
    samples = check_samples(x0, "x0")
    substeps, chunk_size = check_positive(
        optional="chunk_size", substeps=substeps, chunk_size=chunk_size
    )
    check_flags(rematerialise=rematerialise)
    check_key(key)
    check_conditions(args, args_axes, samples, "x0")
    x, mapped = jax.tree.map(lambda x: x[0], (x0, args if args_axes == 0 else None))
    equal = substeps == 1 and even(ts)
    check_process(sde, ts, x, mapped if args_axes == 0 else args, equal_steps=equal)
    if score_targets is not False:
        if score_targets is not True:
            wanted = "True or a ramp, such as PowerRamp()"
            check_kind("score_targets", score_targets, wanted, "__call__")
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(x)]
        for name, g in zip(names, noise_table(sde, ts, x), strict=False):
            said = f"SDE.diffusion must be positive on all leaves, got 0 at {name}"
            check_that(g.any(), f"{said}: score targets divide by it")
        of_noise = isinstance(solver, diffrax.AbstractSRK) or splits(solver)
        said = "with score_targets, solver must be an ODE solver of the physics, such as Heun()"
        check_that(sde.drift is None or not of_noise, f"{said}, got {type(solver).__name__}")
    if solver is not None:
        check_solver(sde, solver)
    return jax.tree.map(jnp.asarray, x0), samples, substeps, chunk_size


@compiled
def _simulate(
    sde: SDE,
    x0: State,
    ts: Array,
    key: PRNGKeyArray,
    args: Args,
    args_axes: int | None,
    solver: diffrax.AbstractSolver[Any] | None,
    substeps: int,
    ramp: Ramp | None,
    chunk_size: int | None,
    rematerialise: bool,
    split: Split | None,
) -> tuple[State, State | None]:
    """Return states, and score targets where there is a ramp."""
    key = jax.random.split(key)[0]  # the other one is the pilot's
    process, halves = sde, False
    if ramp is not None or solver is None:
        process, halves = chain_of(sde, solver)
    if ramp is None:
        start = lambda x: x
        stepper = solver or ChainSplitting(sde.linear, halves)
    else:
        start = lambda x: (x, jax.tree.map(jnp.zeros_like, x))
        stepper = ScoreTargetSplitting(sde.linear, halves, rho=ramp, start=ts[0])

    def one(shared: tuple, inputs: tuple) -> State:
        ts, key, args, stepper = shared
        i, x, own_args = inputs
        own = jax.random.fold_in(key, i), own_args if args_axes == 0 else args
        how = {"solver": stepper, "substeps": substeps, "rematerialise": rematerialise}
        return advance(process, start(x), ts, key=own[0], args=own[1], **how)[0]

    samples = jax.tree.leaves(x0)[0].shape[0]
    inputs = (jnp.arange(samples), x0, args if args_axes == 0 else None)
    shared = (ts, key, None if args_axes == 0 else args, stepper)
    paths = in_chunks(one, inputs, chunk_size, split, (shared,))
    if ramp is None:
        return paths, None
    return paths[0], jax.tree.map(jnp.negative, paths[1])

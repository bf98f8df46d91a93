"""Simulate paths of a process, with or without score targets."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import (
    check_conditions,
    check_key,
    check_kind,
    check_positive,
    check_process,
    check_samples,
    check_time_grid,
)
from smdp_jax.score_targets import Ramp, ScoreTargetSplitting, least_variance_ramp
from smdp_jax.sde import SDE, Args, State
from smdp_jax.solve.integrate import integrate
from smdp_jax.solve.solvers import flow_map_of
from smdp_jax.solve.terms import Splitting
from smdp_jax.trajectories import Trajectories

__all__ = ["simulate"]

_PILOT_PATHS = 256


def simulate(
    sde: SDE,
    x0: State,
    ts: Float[Array, "times"],
    *,
    key: PRNGKeyArray,
    args: Args = None,
    args_axes: int | None = None,
    solver: diffrax.AbstractSolver | None = None,
    substeps: int = 1,
    score_targets: bool | Ramp = False,
    chunk_size: int | None = None,
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
    args : pytree, optional
        Conditions.
    args_axes : int or None
        None: the same ``args`` for all samples; 0: one entry per sample on the leading axis.
    solver : diffrax.AbstractSolver, optional
        Any diffrax solver for a drift; default ``diffrax.ShARK()`` (strong order 1.5 for additive
        noise). Flow maps are advanced by ``Splitting()``. With ``score_targets``: the ODE solver
        of the physics step, default ``diffrax.Euler()``, the noise being added after each step.
    substeps : int
        Solver steps per interval of ``ts``: simulate finely, store coarsely.
    score_targets : bool or ramp
        Accumulate an unbiased target of the score along every path, for ``PathScore``. True finds
        the ramp of least variance from a pilot of up to 256 extra paths; or give one
        (``PowerRamp``, ``SinhRamp``, ``least_variance_ramp``).
    chunk_size : int, optional
        Simulate that many paths at once, to bound memory; default all.

    Returns
    -------
    Trajectories
        ``xs`` leaves (samples, times, *state).

    Raises
    ------
    ValueError
        For a time grid, diffusion, drift, solver or key that does not fit (see the message), and if
        a simulated state is not finite, naming the sample and the time.
    TypeError
        If the solver is no solver, or ``score_targets`` no ramp.
    """
    check_time_grid(ts, sde)
    samples = check_samples(x0, "x0")
    substeps, chunk_size = check_positive(substeps=substeps, chunk_size=chunk_size)
    check_key(key)
    check_conditions(args, args_axes, samples, "x0")
    first = jax.tree.map(lambda x: x[0], (x0, args if args_axes == 0 else None))
    check_process(sde, ts, first[0], first[1] if args_axes == 0 else args)
    is_drift, targets = sde.drift is not None, score_targets is not False
    if is_drift and targets and isinstance(solver, (Splitting, diffrax.AbstractSRK)):
        raise ValueError(
            "with score_targets, solver is the ODE solver of the physics step, such as Euler() or "
            f"Heun(), got {type(solver).__name__}"
        )
    path_key, pilot_key = jax.random.split(key)
    ramp = None if isinstance(score_targets, bool) else score_targets
    if ramp is not None:
        check_kind("score_targets", ramp, "True or a ramp, such as PowerRamp()", "__call__")
    if score_targets is True:
        # Evenly spaced: initial states may be sorted.
        pilot = jnp.linspace(0, samples - 1, min(samples, _PILOT_PATHS)).astype(int)
        ramp = least_variance_ramp(
            sde,
            jax.tree.map(lambda x: jnp.asarray(x)[pilot], x0),
            ts,
            key=pilot_key,
            args=jax.tree.map(lambda a: jnp.asarray(a)[pilot], args) if args_axes == 0 else args,
            args_axes=args_axes,
            solver=solver,
            substeps=substeps,
        )
    data = _simulate(sde, x0, ts, path_key, args, args_axes, solver, substeps, ramp, chunk_size)
    data.check()
    return data


@eqx.filter_jit
def _simulate(
    sde: SDE,
    x0: State,
    ts: Array,
    key: PRNGKeyArray,
    args: Args,
    args_axes: int | None,
    solver: diffrax.AbstractSolver | None,
    substeps: int,
    ramp: Ramp | None,
    chunk_size: int | None,
) -> Trajectories:
    if ramp is None:
        process, start = sde, lambda x: x
        stepper = solver or (Splitting() if sde.step is not None else diffrax.ShARK())
    else:
        process, start = flow_map_of(sde, solver), lambda x: (x, jax.tree.map(jnp.zeros_like, x))
        stepper = ScoreTargetSplitting(ramp, ts[0])

    def one(i: Array, x: State, own_args: Args) -> State:
        conditions = own_args if args_axes == 0 else args
        return integrate(
            process,
            start(x),
            ts,
            key=jax.random.fold_in(key, i),
            args=conditions,
            solver=stepper,
            substeps=substeps,
        )[0]

    samples = jax.tree.leaves(x0)[0].shape[0]
    inputs = (jnp.arange(samples), x0, args if args_axes == 0 else None)
    paths = jax.lax.map(lambda a: one(*a), inputs, batch_size=chunk_size or samples)
    xs, targets = (paths, None) if ramp is None else paths
    if targets is not None:
        targets = jax.tree.map(jnp.negative, targets)
    return Trajectories(ts, xs, args, targets, args_axes)

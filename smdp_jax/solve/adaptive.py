"""Solve an ``SDE`` with the step sizes that a controller chooses."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from smdp_jax.checks import check_kind, check_positive, check_that
from smdp_jax.sde import SDE, Args, State
from smdp_jax.solve.process import check_start, check_time_grid
from smdp_jax.solve.solvers import check_solver, default_adaptive_solver
from smdp_jax.solve.terms import levy_area_of, terms_of

CONTROLLER = "a diffrax step size controller"


def solve_adaptive(
    sde: SDE,
    x0: State,
    ts: Float[Array, "times"],
    *,
    controller: diffrax.AbstractAdaptiveStepSizeController,
    key: PRNGKeyArray | None = None,
    args: Args = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    max_steps: int = 16**4,
) -> tuple[State, Shaped[Array, ""]]:
    """Solve with the step sizes that a controller chooses; states are saved at all of ``ts``.

    Parameters
    ----------
    sde, x0, ts
        As for `integrate`, of a process with a drift.
    controller : diffrax.AbstractAdaptiveStepSizeController
        For example ``diffrax.PIDController(rtol=1e-4, atol=1e-6)``.
    key, args
        Seed of the virtual Brownian tree, None for a process without noise; and conditions.
    solver : diffrax.AbstractSolver, optional
        One with an error estimate; default ``diffrax.Tsit5()``, or with noise ``diffrax.SPaRK()``.
    max_steps : int
        Bound on the number of steps; a path that needs more ends as NaN.

    Returns
    -------
    xs : pytree
        Leaves (times, *state).
    steps : int
        Number of solver steps taken.

    Raises
    ------
    ValueError, TypeError
        For a flow map, noise without a key, or what else does not fit.
    """
    check_time_grid(ts, sde)
    check_that(sde.drift, "solve_adaptive needs a drift, got a flow map")
    (max_steps,) = check_positive(max_steps=max_steps)
    check_kind("controller", controller, CONTROLLER, "adapt_step_size")
    x0 = check_start("solve_adaptive", sde, ts, x0, key, args, equal_steps=False)
    if solver is not None:
        check_solver(sde, solver, adaptive=True)
    return advance_adaptively(
        sde, x0, jnp.asarray(ts), controller, key, args, solver, max_steps=max_steps
    )


def advance_adaptively(
    sde: SDE,
    x0: State,
    ts: Array,
    controller: diffrax.AbstractAdaptiveStepSizeController,
    key: PRNGKeyArray | None,
    args: Args,
    solver: diffrax.AbstractSolver[Any] | None,
    *,
    max_steps: int = 16**4,
) -> tuple[State, Array]:
    """Solve as ``solve_adaptive`` does, what it is asked for having been checked."""
    solver = default_adaptive_solver(sde) if solver is None else solver
    noise = None
    if key is not None:
        tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x0)
        tolerance = (ts[-1] - ts[0]) * 2.0**-14
        noise = diffrax.VirtualBrownianTree(
            ts[0], ts[-1], tolerance, tree, key, levy_area=levy_area_of(solver)
        )
    solution = diffrax.diffeqsolve(
        terms_of(sde, noise),
        solver,
        ts[0],
        ts[-1],
        None,
        x0,
        args,
        saveat=diffrax.SaveAt(ts=ts),
        # States between steps would be interpolated, without the noise in between.
        stepsize_controller=diffrax.ClipStepSizeController(controller, step_ts=ts),
        max_steps=max_steps,
        throw=False,
    )
    solved = solution.result == diffrax.RESULTS.successful
    xs = jax.tree.map(lambda x: jnp.where(solved, x, jnp.nan), solution.ys)
    return xs, solution.stats["num_steps"]

"""Solve an ``SDE`` on a time grid, by the step functions of diffrax inside one ``lax.scan``.

Every caller (simulation, posterior sampling, training windows) advances states through
``integrate``; ``solve_adaptive`` is its counterpart for solvers that choose their own steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from smdp_jax._types import Args, Scalar, State
from smdp_jax.sde import SDE
from smdp_jax.terms import GridNoise, Splitting, levy_area_of, terms_of

__all__ = [
    "default_adaptive_solver",
    "default_solver",
    "evaluations_per_step",
    "flow_map_of",
    "integrate",
    "linear_grid",
    "log_grid",
    "solve_adaptive",
]

Save = Literal["all", "last"] | Sequence[int]
Hook = Callable[[PRNGKeyArray, Scalar, State], State]


def linear_grid(start: float, end: float, steps: int) -> Float[Array, "times"]:
    """Uniform time grid.

    Parameters
    ----------
    start, end : float
        First and last time, ``start < end``.
    steps : int
        Number of steps, at least 1.

    Returns
    -------
    array (steps + 1,)
        Increasing times.

    Raises
    ------
    ValueError
        If the grid would be empty or not increasing.
    """
    _check_grid_request(start, end, steps)
    return jnp.linspace(start, end, steps + 1)


def log_grid(start: float, end: float, steps: int, *, offset: float = 0.1) -> Float[Array, "times"]:
    """Time grid that is dense near ``start``: uniform in ``log(t - start + offset)``.

    Parameters
    ----------
    start, end : float
        First and last time, ``start < end``.
    steps : int
        Number of steps, at least 1.
    offset : float
        Time scale below which the steps become uniform; the smaller, the denser near ``start``.

    Returns
    -------
    array (steps + 1,)
        Increasing times.

    Raises
    ------
    ValueError
        If the grid would be empty or not increasing, or if ``offset`` is not positive.
    """
    _check_grid_request(start, end, steps)
    if not offset > 0:
        raise ValueError(f"log_grid needs a positive offset, got {offset}")
    fractions = jnp.linspace(0.0, 1.0, steps + 1)
    span = end - start
    ts = start + offset * jnp.expm1(fractions * jnp.log1p(span / offset))
    return ts.at[0].set(start).at[-1].set(end)


def _check_grid_request(start: float, end: float, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a time grid needs at least 1 step, got steps={steps}")
    if not start < end:
        raise ValueError(f"a time grid must increase, got start={start}, end={end}")


def default_solver(sde: SDE) -> diffrax.AbstractSolver:
    """Choose the solver used where the caller names none.

    Euler for drifts and ``Splitting`` for flow maps: both evaluate a score at the times of the
    grid only, which are the times that a learned one was trained at. With a score known in closed
    form, or a stiff process, ``diffrax.Heun()`` or ``diffrax.ShARK()`` reach more.

    Parameters
    ----------
    sde : SDE
        The process to solve.

    Returns
    -------
    diffrax.AbstractSolver
        ``diffrax.Euler()`` or ``Splitting()``.
    """
    return diffrax.Euler() if sde.step is None else Splitting()


def default_adaptive_solver(sde: SDE) -> diffrax.AbstractSolver:
    """Choose the adaptive solver used where the caller names none.

    Parameters
    ----------
    sde : SDE
        The process to solve.

    Returns
    -------
    diffrax.AbstractSolver
        ``diffrax.Tsit5()`` without noise, ``diffrax.SPaRK()`` with noise.
    """
    return diffrax.Tsit5() if sde.deterministic else diffrax.SPaRK()


def evaluations_per_step(solver: diffrax.AbstractSolver) -> int:
    """Count the drift evaluations of one step.

    Parameters
    ----------
    solver : diffrax.AbstractSolver
        Any diffrax solver, or ``Splitting``.

    Returns
    -------
    int
        Stages of the solver's tableau (without the one that a first-same-as-last scheme reuses);
        1 for solvers without a tableau.
    """
    tableau = getattr(solver, "tableau", None)
    if tableau is None:
        return 1
    if isinstance(tableau, diffrax.MultiButcherTableau):
        tableau = tableau.tableaus[0]
    return len(tableau.b_sol) - int(getattr(tableau, "fsal", False))


def flow_map_of(sde: SDE, solver: diffrax.AbstractSolver | None = None) -> SDE:
    """Transform a continuous drift into the flow map of one solver step per call.

    Parameters
    ----------
    sde : SDE
        Process with a drift; one with a flow map is returned as it is.
    solver : diffrax.AbstractSolver, optional
        ODE solver for dx = P dt; the default is ``diffrax.Euler()``.

    Returns
    -------
    SDE
        The process whose ``step`` is that solver's; it is walked back by the same solver.

    Raises
    ------
    ValueError
        If a solver other than ``Splitting()`` is given for a flow map.
    """
    if sde.drift is None:
        if solver is not None:
            _check_solver(sde, solver)
        return sde
    stepper = diffrax.Euler() if solver is None else solver
    term = diffrax.ODETerm(sde.drift)

    def step(t0: Scalar, t1: Scalar, x: State, args: Args) -> State:
        t0, t1 = jnp.asarray(t0), jnp.asarray(t1)
        state = stepper.init(term, t0, t1, x, args)
        return stepper.step(term, t0, t1, x, args, state, made_jump=False)[0]

    def inverse(t1: Scalar, t0: Scalar, x: State, args: Args) -> State:
        return step(t1, t0, x, args)

    return SDE(step=step, inverse=inverse, diffusion=sde.diffusion, interval=sde.interval)


def integrate(
    sde: SDE,
    x0: State,
    ts: Float[Array, "times"],
    *,
    key: PRNGKeyArray | None = None,
    args: Args = None,
    solver: diffrax.AbstractSolver | None = None,
    substeps: int = 1,
    save: Save = "all",
    denoise_last: bool = False,
    after_step: Hook | None = None,
    monitor: Callable[[Scalar, State], Scalar] | None = None,
    rematerialise: bool = False,
) -> tuple[State, Scalar]:
    """Advance one state over a time grid with fixed steps.

    Parameters
    ----------
    sde : SDE
        The process; a reversed one is solved on its grid in ``tau = -t``.
    x0 : pytree
        State at ``ts[0]``, unbatched.
    ts : array (times,)
        Increasing times.
    key : PRNG key, optional
        Noise of the whole path: step i draws from ``fold_in(key, i)``. None for a process without
        noise.
    args : pytree, optional
        Conditions handed to the drift.
    solver : diffrax.AbstractSolver, optional
        Default: ``default_solver(sde)``.
    substeps : int
        Equal solver steps within each interval of the grid.
    save : "all", "last" or sequence of int
        Which times of the grid to return.
    denoise_last : bool
        Add no noise in the very last step.
    after_step : callable, optional
        ``after_step(key, t, x)`` maps the state after every step (a corrector).
    monitor : callable, optional
        ``monitor(t, x)`` returns a scalar, evaluated at the start of one
        step in 32 or more, and of the last.
    rematerialise : bool
        Recompute each step in the backward pass instead of storing its intermediates.

    Returns
    -------
    xs : pytree
        States, leaves (saved times, *state), or (*state,) for ``save="last"``.
    monitored : scalar
        Largest value of ``monitor`` (0 without one).

    Raises
    ------
    ValueError
        If noise is needed and no key is given, or if the solver cannot solve this process.
    """
    if not sde.deterministic and key is None:
        raise ValueError("integrate needs a key for a process with noise, got key=None")
    solver = default_solver(sde) if solver is None else solver
    _check_solver(sde, solver)
    solver = _with_root_finder(solver, x0)
    noise_key = jax.random.key(0) if key is None else key
    levy = levy_area_of(solver)
    steps = (ts.shape[0] - 1) * substeps
    # One look in 32 steps costs little; the last step, nearest to a sharp prior, is always one.
    stride = max(32, -(-steps // 16))
    probe = (lambda t, x: jnp.zeros(())) if monitor is None else monitor

    def terms_at(i: Any) -> diffrax.AbstractTerm:
        amplitude = jnp.where(i == steps - 1, 0.0, 1.0) if denoise_last else None
        return terms_of(sde, GridNoise.like(x0, jax.random.fold_in(noise_key, i), levy, amplitude))

    def substep(carry: tuple, i: Any) -> tuple[tuple, None]:
        x, solver_state, largest = carry
        n, m = i // substeps, i % substeps
        width = (ts[n + 1] - ts[n]) / substeps
        t0 = ts[n] + jnp.asarray(m, ts.dtype) * width
        t1 = jnp.where(m == substeps - 1, ts[n + 1], t0 + width)
        y, _, _, solver_state, result = solver.step(
            terms_at(i), t0, t1, x, args, solver_state, made_jump=after_step is not None
        )
        if isinstance(solver, diffrax.AbstractImplicitSolver):
            solved = result == diffrax.RESULTS.successful
            y = jax.tree.map(lambda y: jnp.where(solved, y, jnp.nan), y)
        if after_step is not None:
            y = after_step(jax.random.fold_in(noise_key, steps + i), t1, y)
        if monitor is not None:
            chosen = (i % stride == 0) | (i == steps - 1)
            observed = jax.lax.cond(chosen, probe, lambda t, x: jnp.zeros_like(largest), t0, x)
            largest = jnp.maximum(largest, observed)
        return (y, solver_state, largest), None

    body = jax.checkpoint(substep) if rematerialise else substep
    state0 = solver.init(terms_at(0), ts[0], ts[1], x0, args)
    monitored = jax.eval_shape(probe, ts[0], x0)
    carry = (x0, state0, jnp.zeros(monitored.shape, monitored.dtype))
    return _scan_saving(body, carry, ts.shape[0] - 1, substeps, save)


def _scan_saving(
    body: Callable, carry: tuple, intervals: int, substeps: int, save: Save
) -> tuple[State, Scalar]:
    """Run ``body`` over all substeps and return the asked-for states and the monitored value."""

    def interval(carry: tuple, n: Any) -> tuple[tuple, None]:
        if substeps == 1:
            return body(carry, n)
        return jax.lax.scan(body, carry, n * substeps + jnp.arange(substeps))

    x0 = carry[0]
    if save == "last":
        (x, _, monitored), _ = jax.lax.scan(interval, carry, jnp.arange(intervals))
        return x, monitored
    if save == "all":

        def record(carry: tuple, n: Any) -> tuple[tuple, State]:
            carry, _ = interval(carry, n)
            return carry, carry[0]

        (_, _, monitored), xs = jax.lax.scan(record, carry, jnp.arange(intervals))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), x0, xs), monitored

    wanted = sorted({range(intervals + 1)[i] for i in save})
    slots = jnp.full(intervals + 1, len(wanted)).at[jnp.array(wanted)].set(jnp.arange(len(wanted)))

    def store(buffer: State, n: Any, x: State) -> State:
        return jax.tree.map(lambda b, x: b.at[slots[n]].set(x), buffer, x)

    def keep(carry: tuple, n: Any) -> tuple[tuple, None]:
        inner, buffer = carry
        inner, _ = interval(inner, n)
        return (inner, store(buffer, n + 1, inner[0])), None

    # The extra slot takes the states that are not wanted.
    empty = jax.tree.map(lambda x: jnp.zeros((len(wanted) + 1, *x.shape), x.dtype), x0)
    ((_, _, monitored), buffer), _ = jax.lax.scan(
        keep, (carry, store(empty, 0, x0)), jnp.arange(intervals)
    )
    return jax.tree.map(lambda b: b[:-1], buffer), monitored


def _check_solver(sde: SDE, solver: diffrax.AbstractSolver) -> None:
    name = type(solver).__name__
    if sde.step is not None and not isinstance(solver, Splitting):
        raise ValueError(
            f"a flow map is solved by Splitting(), got {name}; give a drift for {name}"
        )
    if sde.step is None and isinstance(solver, Splitting):
        raise ValueError("Splitting() solves flow maps, got a drift: see flow_map_of")
    if isinstance(solver, diffrax.HalfSolver):
        raise ValueError("HalfSolver estimates errors for adaptive steps: see solve_adaptive")
    if isinstance(solver, diffrax.AbstractSRK) and sde.deterministic:
        raise ValueError(f"{name} needs noise, got an ODE: use an ODE solver such as Heun()")


def _with_root_finder(solver: diffrax.AbstractSolver, x: State) -> diffrax.AbstractSolver:
    """Give an implicit solver tolerances, where it expects those of a step size controller."""
    finder = getattr(solver, "root_finder", None)
    if finder is None or isinstance(getattr(finder, "rtol", 0.0), (int, float)):
        return solver
    # Half the digits: a stiff drift's own rounding error is far above the last one.
    tolerance = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(x))).eps) ** 0.5
    finder = optx.Newton(rtol=tolerance, atol=tolerance)
    return eqx.tree_at(lambda s: s.root_finder, solver, finder)


def solve_adaptive(
    sde: SDE,
    x0: State,
    ts: Float[Array, "times"],
    *,
    controller: diffrax.AbstractAdaptiveStepSizeController,
    key: PRNGKeyArray | None = None,
    args: Args = None,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 16**4,
) -> tuple[State, Shaped[Array, ""]]:
    """Solve with the step sizes that a controller chooses; states are saved at all of ``ts``.

    Parameters
    ----------
    sde : SDE
        The process, with a drift.
    x0 : pytree
        State at ``ts[0]``, unbatched.
    ts : array (times,)
        Increasing times to save at.
    controller : diffrax.AbstractAdaptiveStepSizeController
        For example ``diffrax.PIDController(rtol=1e-4, atol=1e-6)``.
    key : PRNG key, optional
        Seed of the virtual Brownian tree; None for a process without noise.
    args : pytree, optional
        Conditions handed to the drift.
    solver : diffrax.AbstractSolver, optional
        A solver with an error estimate; default ``diffrax.Tsit5()`` without noise and
        ``diffrax.SPaRK()`` with noise.
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
    ValueError
        If noise is needed and no key is given, or if ``sde`` is a flow map.
    """
    if sde.drift is None:
        raise ValueError("solve_adaptive needs a drift, got a flow map")
    if not sde.deterministic and key is None:
        raise ValueError("solve_adaptive needs a key for a process with noise, got key=None")
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

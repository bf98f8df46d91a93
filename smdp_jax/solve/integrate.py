"""Solve an ``SDE`` on a time grid, by the step functions of diffrax inside one ``lax.scan``.

Every caller (simulation, posterior sampling, training windows) advances states through
``integrate``; ``solve_adaptive`` is its counterpart for solvers that choose their own steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.sde import SDE, Args, Scalar, State
from smdp_jax.solve.solvers import check_solver, default_solver, with_root_finder
from smdp_jax.solve.terms import GridNoise, levy_area_of, terms_of

__all__ = ["Save", "integrate"]

Save = Literal["all", "last"] | Sequence[int]
Hook = Callable[[PRNGKeyArray, Scalar, State], State]


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
    check_solver(sde, solver)
    solver = with_root_finder(solver, x0)
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

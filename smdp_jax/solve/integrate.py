"""Solve an ``SDE`` on a time grid, by the step functions of diffrax inside one ``lax.scan``.

Every caller (simulation, posterior sampling, training windows) advances states through
``advance``; ``integrate`` is the same with its arguments checked, ``solve_adaptive`` the
counterpart for solvers that choose their own steps.

The loop is a scan of ours, not ``diffrax.diffeqsolve`` with ``StepTo``: forward the two cost about
the same beside a network, but its gradient took 1.3 to 12 times as long, the more the cheaper the
drift (1000 scalars, 200 steps, on a busy machine; ``benchmarks/sampling.py``), as it plans
checkpoints where a scan differentiates. In the place of its adjoints there is ``rematerialise``.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import check_flags, check_positive, check_that
from smdp_jax.sde import SDE, Args, Scalar, State
from smdp_jax.solve.process import check_start, check_time_grid, time_dtype
from smdp_jax.solve.solvers import check_solver, default_solver, with_root_finder
from smdp_jax.solve.terms import GridNoise, levy_area_of, terms_of
from smdp_jax.solve.time_grids import even
from smdp_jax.solve.varying import either, like_results

Save = Literal["all", "last"] | Sequence[int]
Hook = Callable[[PRNGKeyArray, Scalar, State], State]


class Watched(NamedTuple):
    """What was seen on the way: the largest value of a monitor, and when a path was lost."""

    largest: Any
    lost_at: Any
    """First time with a state that is not finite; inf where there is none."""
    left_at: Any = None
    """First time with a state outside of a range; inf where there is none."""


class _Looks(NamedTuple):
    """What is looked at on the way, if there is a monitor."""

    monitor: Callable[[Scalar, State], Scalar] | None
    outside: Callable[[Scalar, State], Array] | None
    steps: int

    def start(self, t: Scalar, x: State) -> Watched:
        """Nothing was seen yet."""
        size, never = jnp.zeros(()), jnp.asarray(jnp.inf, t.dtype)
        if self.monitor is not None:
            seen = jax.eval_shape(self.monitor, t, x)
            size = jnp.zeros(seen.shape, seen.dtype)
        return Watched(size, never, never)

    def after(self, watched: Watched, i: Any, before: tuple, after: tuple) -> Watched:
        """Look at step i, from (t, x) before it to those after it."""
        if self.monitor is None:
            return watched
        # One look in 32 steps costs little; the last step, nearest to a sharp prior, is always one.
        stride, never = max(32, -(-self.steps // 16)), watched.lost_at.dtype.type(jnp.inf)
        chosen = (i % stride == 0) | (i == self.steps - 1)
        seen = either(chosen, self.monitor, lambda t, x: jnp.zeros_like(watched.largest), *before)
        finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(after[1])]).all()
        lost_at = jnp.minimum(watched.lost_at, jnp.where(finite, never, after[0]))
        left_at = watched.left_at
        if self.outside is not None:
            left_at = jnp.minimum(left_at, jnp.where(self.outside(*after), after[0], never))
        return Watched(jnp.maximum(watched.largest, seen), lost_at, left_at)


def integrate(
    sde: SDE,
    x0: State,
    ts: Float[Array, "times"],
    *,
    key: PRNGKeyArray | None = None,
    args: Args = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
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
    key, args
        Noise of the whole path (step i draws from ``fold_in(key, i)``), None for a process without
        noise; and conditions handed to the drift.
    solver : diffrax.AbstractSolver, optional
        Default: ``diffrax.Euler()``, or ``Splitting()`` for flow maps.
    substeps : int
        Equal solver steps within each interval of the grid.
    save : "all", "last" or sequence of int
        Which times of the grid to return.
    denoise_last : bool
        Add no noise in the very last step.
    after_step : callable, optional
        ``after_step(key, t, x)`` maps the state after every step but the last (a corrector: at the
        end of the grid there may be no score).
    monitor : callable, optional
        ``monitor(t, x)`` returns a scalar, evaluated at the start of one step in 32 or more, and
        of the last.
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
    ValueError, TypeError
        For a grid, process, state, key, solver or number that does not fit (see the message).
    """
    check_time_grid(ts, sde)
    (substeps,) = check_positive(substeps=substeps)
    check_flags(denoise_last=denoise_last, rematerialise=rematerialise)
    equal = substeps == 1 and even(ts)
    x0 = check_start("integrate", sde, ts, x0, key, args, equal_steps=equal)
    if solver is not None:
        check_solver(sde, solver)
    xs, watched = advance(
        sde,
        x0,
        jnp.asarray(ts),
        key=key,
        args=args,
        solver=solver,
        substeps=substeps,
        save=check_save(save, len(ts)),
        denoise_last=denoise_last,
        after_step=after_step,
        monitor=monitor,
        rematerialise=rematerialise,
    )
    return xs, watched.largest


def advance(
    sde: SDE,
    x0: State,
    ts: Array,
    *,
    key: PRNGKeyArray | None = None,
    args: Args = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    substeps: int = 1,
    save: Save = "all",
    denoise_last: bool = False,
    after_step: Hook | None = None,
    monitor: Callable[[Scalar, State], Scalar] | None = None,
    outside: Callable[[Scalar, State], Array] | None = None,
    rematerialise: bool = False,
) -> tuple[State, Watched]:
    """``integrate`` for what is known to fit; ``ts`` of a flow map may also decrease."""
    solver = with_root_finder(default_solver(sde) if solver is None else solver, x0)
    # Steps of half precision would be lost in the times that they are added to.
    ts = ts.astype(time_dtype(ts))
    noise_key = jax.random.key(0) if key is None else key
    levy = levy_area_of(solver)
    steps = (ts.shape[0] - 1) * substeps
    looks = _Looks(monitor, outside, steps)

    def terms_at(i: Any) -> diffrax.AbstractTerm:
        amplitude = jnp.where(i == steps - 1, 0.0, 1.0) if denoise_last else None
        return terms_of(sde, GridNoise.like(x0, jax.random.fold_in(noise_key, i), levy, amplitude))

    def substep(carry: tuple, i: Any) -> tuple[tuple, None]:
        x, solver_state, watched = carry
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
            hook_key = jax.random.fold_in(noise_key, steps + i)
            y = either(i < steps - 1, after_step, lambda key, t, y: y, hook_key, t1, y)
        return (y, solver_state, looks.after(watched, i, (t0, x), (t1, y))), None

    body = jax.checkpoint(substep) if rematerialise else substep
    state0 = solver.init(terms_at(0), ts[0], ts[1], x0, args)
    carry = (x0, state0, looks.start(ts[0], x0))
    return scan_saving(body, like_results(body, carry, 0), ts.shape[0] - 1, substeps, save)


def check_save(save: Any, times: int) -> Any:
    """Check which times of a grid are to be saved."""
    if isinstance(save, str) and save in ("all", "last"):
        return save
    indices: Any = save
    try:
        chosen = tuple(map(operator.index, indices))
    except TypeError:
        chosen = ()
    said = f"save must be 'last', 'all', or indices of the {times} times between {-times} and"
    within = chosen and -times <= min(chosen) and max(chosen) < times
    check_that(within, f"{said} {times - 1}", save)
    return chosen


def chosen_times(save: Save, times: int) -> list[int]:
    """Indices of a grid that are saved, in order."""
    if isinstance(save, str):
        return [times - 1] if save == "last" else list(range(times))
    return sorted({range(times)[i] for i in save})


def scan_saving(
    body: Callable, carry: tuple, intervals: int, substeps: int, save: Save
) -> tuple[State, Watched]:
    """Run ``body`` over all substeps and return the asked-for states and what was seen."""

    def interval(carry: tuple, n: Any) -> tuple[tuple, None]:
        if substeps == 1:
            return body(carry, n)
        return jax.lax.scan(body, carry, n * substeps + jnp.arange(substeps))

    def over_intervals(step: Callable, carry: tuple) -> tuple[tuple, Any]:
        if intervals > 1:
            return jax.lax.scan(step, carry, jnp.arange(intervals))
        # One step needs no loop, which takes longer to trace than the step.
        carry, x = step(carry, jnp.asarray(0))
        return carry, jax.tree.map(lambda x: x[None], x)

    x0 = carry[0]
    if save == "last":
        (x, _, watched), _ = over_intervals(interval, carry)
        return x, watched
    if save == "all":

        def record(carry: tuple, n: Any) -> tuple[tuple, State]:
            carry, _ = interval(carry, n)
            return carry, carry[0]

        (_, _, watched), xs = over_intervals(record, carry)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), x0, xs), watched

    wanted = chosen_times(save, intervals + 1)
    slots = jnp.full(intervals + 1, len(wanted)).at[jnp.array(wanted)].set(jnp.arange(len(wanted)))

    def store(buffer: State, n: Any, x: State) -> State:
        return jax.tree.map(lambda b, x: b.at[slots[n]].set(x), buffer, x)

    def keep(carry: tuple, n: Any) -> tuple[tuple, None]:
        inner, buffer = carry
        inner, _ = interval(inner, n)
        return (inner, store(buffer, n + 1, inner[0])), None

    # The extra slot takes the states that are not wanted.
    empty = jax.tree.map(lambda x: jnp.zeros_like(x, shape=(len(wanted) + 1, *x.shape)), x0)
    ((_, _, watched), buffer), _ = over_intervals(keep, (carry, store(empty, 0, x0)))
    return jax.tree.map(lambda b: b[:-1], buffer), watched

"""What was asked of a solve back in time, looked at once: the doorman of its verbs."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smdp_jax.checks import (
    as_state,
    check_choice,
    check_finite,
    check_flags,
    check_holds,
    check_key,
    check_kind,
    check_like,
    check_positive,
    check_that,
    check_within,
)
from smdp_jax.compiled import parts_of, signature_of
from smdp_jax.sde import Args, State
from smdp_jax.solve.adaptive import CONTROLLER
from smdp_jax.solve.backward import BackwardSolve
from smdp_jax.solve.gaussian import GaussianStep, check_gaussian, check_metric
from smdp_jax.solve.integrate import check_save
from smdp_jax.solve.inverses import walked
from smdp_jax.solve.process import check_process, check_returns, check_time_grid, known
from smdp_jax.solve.solvers import check_solver
from smdp_jax.solve.time_grids import even

_PATHS = 2**31 - 1


class Work(NamedTuple):
    """End states (*batch, *state), and how many paths from each, so many at once."""

    x_end: State
    args_axes: int | None
    batch: tuple[int, ...]
    num_samples: int
    chunk_size: int | None


def prepared(
    verb: str, asked: BackwardSolve, score: Any, given: Work, batch_axes: Any, args: Any, key: Any
) -> tuple[BackwardSolve, Work]:
    """The solve and its work, once what ``sample_posterior`` was asked for is found in order."""
    sde, ts = walked(asked.sde, score), asked.ts
    check_time_grid(ts, sde)
    if not hasattr(score, "check_use"):
        check_kind("score", score, "a function score(t, x, args), such as fit.score", "__call__")
    num_samples, substeps, chunk_size = check_positive(
        optional="chunk_size",
        num_samples=given.num_samples,
        substeps=asked.substeps,
        chunk_size=given.chunk_size,
    )
    check_key(key)
    check_flags(denoise_last=asked.denoise_last, rematerialise=asked.rematerialise)
    check_choice("args_axes", given.args_axes, None, 0)
    (level,) = check_within("[0, inf)", noise_level=asked.noise_level)
    x_end = as_state(given.x_end, "x_end")
    mapped = args if given.args_axes == 0 else None
    batch, x, own = _parted(asked, score, x_end, args, mapped, batch_axes)
    if hasattr(score, "check_state"):
        score.check_state(x)
    ends = math.prod(batch)
    said = f"num_samples must be at most {_PATHS // ends} for {ends} end states (2^31 paths)"
    check_that(ends * num_samples <= _PATHS, said, num_samples)
    equal = substeps == 1 and even(ts)
    check_process(sde, ts, x, own, maps=("drift", "inverse"), equal_steps=equal)
    fixed = substeps != 1 or asked.corrector is not None
    if hasattr(score, "check_use"):
        score.check_use(sde, ts, level, whole_steps=not fixed, use=verb)
    else:
        check_returns(score, "score", ts, x, own)
    check_finite(x_end, "x_end")
    if asked.corrector is not None:
        check_kind("corrector", asked.corrector, "Langevin(step_size)", "step_size", "steps")
        if (metric := getattr(asked.corrector, "metric", None)) is not None:
            check_metric(metric, sde, score, jnp.asarray(ts), x, own)
    adaptive = asked.controller is not None
    if adaptive:
        check_kind("controller", asked.controller, CONTROLLER, "adapt_step_size")
        check_that(asked.sde.drift, "controller needs a drift, got a flow map")
        fixed = fixed or asked.denoise_last or isinstance(asked.solver, GaussianStep)
        said = "corrector, denoise_last, substeps and GaussianStep need fixed steps"
        check_that(not fixed, f"{said}, got a controller")
    if asked.solver is not None:
        check_solver(sde, asked.solver, deterministic=level == 0, adaptive=adaptive)
    if isinstance(asked.solver, GaussianStep):
        check_gaussian(asked.solver, sde, score, jnp.asarray(ts), x, own)
    solve = replace(
        asked,
        sde=sde,
        ts=jnp.asarray(ts),
        substeps=substeps,
        noise_level=level,
        denoise_last=bool(asked.denoise_last),
        save=check_save(asked.save, len(ts)),
        rematerialise=bool(asked.rematerialise),
    )
    return solve, Work(x_end, given.args_axes, batch, num_samples, chunk_size)


def _parted(
    asked: BackwardSolve, score: Any, x_end: State, args: Args, mapped: Args, batch_axes: Any
) -> tuple[tuple[int, ...], State, Args]:
    """Find the shape of the batch; return it with one state and its conditions."""
    (axes,) = check_positive(least=0, optional="batch_axes", batch_axes=batch_axes)
    shapes = {jnp.shape(leaf)[: axes or 0] for leaf in jax.tree.leaves((x_end, mapped))}
    batch = next(iter(shapes), ())
    said = f"x_end, and args mapped over end states, must share {axes} leading axes (batch_axes)"
    check_that(len(shapes) == 1 and len(batch) == (axes or 0), said, shapes)
    check_holds("x_end", math.prod(batch), 1, "end state")
    x, own = jax.tree.map(lambda x: jnp.asarray(x)[(0,) * len(batch)], (x_end, mapped))
    own = args if mapped is None else own
    if axes is None and _reads_as_batch(asked, score, x_end, own):
        count, *shape = jnp.shape(jax.tree.leaves(x_end)[0])
        either = f"one state (batch_axes=0), or {count} of shape {tuple(shape)} (batch_axes=1)"
        raise ValueError(f"batch_axes must be given where x_end may be {either}, got None")
    return batch, x, own


def _reads_as_batch(asked: BackwardSolve, score: Any, x: State, args: Args) -> bool:
    """Tell whether process and score take the parts of a state of several axes as states."""
    leaves, shapes = jax.tree.leaves(x), getattr(score, "shapes", None)
    least = 2 if shapes is None else 1
    if len({leaf.shape[:1] for leaf in leaves}) != 1 or min(leaf.ndim for leaf in leaves) < least:
        return False
    part = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), x)
    if shapes is not None:
        return [x.shape for x in jax.tree.leaves(part)] == list(shapes)
    sde = asked.sde

    def look() -> bool:
        t = jax.ShapeDtypeStruct((), jnp.float32)
        try:
            check_like(part, jax.eval_shape(score, t, part, args), "score")
            physics: Any = sde.drift or sde.inverse
            times = (t,) if sde.drift else (t, t)
            check_like(part, jax.eval_shape(physics, *times, part, args), "physics")
        except Exception:  # whatever they say of another shape, they do not take it
            return False
        return True

    key = ("batch", parts_of(sde), parts_of(score), signature_of((score, x, args)))
    return known.get(key, look)

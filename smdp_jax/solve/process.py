"""Checks of a process at the edge, looked at once, before anything is computed.

What the doormen of the verbs share (``solve.asked``, ``training.asked``). What was found of the
shapes that a process returns is kept for the next call.
"""

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from smdp_jax.checks import (
    as_state,
    check_finite,
    check_floating,
    check_key,
    check_like,
    check_that,
    concrete,
)
from smdp_jax.compiled import Recent, parts_of, signature_of
from smdp_jax.sde import SDE, Args, State

known = Recent(64)


def check_time_grid(ts: Any, sde: SDE) -> None:
    """Check that a time grid is one-dimensional, increasing, and inside the SDE's interval."""
    if not isinstance(sde, SDE):
        raise TypeError(f"sde must be an SDE(drift, diffusion=g), got {reprlib.repr(sde)}")
    array = isinstance(ts, (jax.Array, np.ndarray))
    check_that(array, "ts must be a one-dimensional array of times", ts)
    grid = ts.ndim == 1 and len(ts) > 1
    check_that(grid, f"ts must be one-dimensional with at least 2 times, got {ts.shape}")
    check_floating("ts", ts)
    if not concrete(ts):
        return
    # In the precision that it is solved in: close float64 times may be one float32 time.
    times = np.asarray(ts, jnp.result_type(ts))
    i = int(np.argmin(np.diff(times) > 0))
    kind = "" if times.dtype == ts.dtype else f" in {times.dtype}"
    said = f"ts must increase{kind}, got ts[{i}]={times[i]} and ts[{i + 1}]={times[i + 1]}"
    remedy = "; backward solves also take the increasing grid and walk it from its end"
    check_that(times[i] < times[i + 1], said + remedy)
    (first, last), got = sde.interval, f"[{times[0]}, {times[-1]}]"
    check_that(np.isfinite(times).all(), f"ts must be finite, got {got}")
    inside = first <= times[0] and times[-1] <= last
    check_that(inside, f"ts must lie inside SDE.interval=[{first}, {last}], got {got}")


def time_dtype(ts: Any) -> Any:
    """Times are solved in their own dtype, but not in half precision, where steps are lost."""
    dtype = jnp.result_type(ts)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def check_process(
    sde: SDE,
    ts: Any,
    x: State,
    args: Args,
    *,
    maps: Sequence[str] = ("drift", "step"),
    deterministic: bool = False,
    equal_steps: bool = True,
) -> None:
    """Check the noise on ``ts``, and that the physics returns states like ``x``."""
    check_that(jax.tree.leaves(x), "a state must hold at least one array", x)
    said = "SDE.diffusion must be positive, got None (a process without noise)"
    check_that(deterministic or not sde.deterministic, said)
    if not sde.deterministic:
        _check_noise(sde, ts, x)
    for name in maps:
        function = getattr(sde, name)
        if function is None:
            continue
        blind = check_returns(function, f"SDE.{name}", ts, x, args, times=1 + (name != "drift"))
        said = f"SDE.{name} must depend on t0 and t1 to be asked for steps of several lengths"
        check_that(equal_steps or not blind, f"{said} (or substeps), got one of a fixed time")
    dtypes = " and ".join(sorted({str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(x)}))
    said = f"the state of a drift must have one dtype in all leaves, got {dtypes}"
    one = sde.drift is None or " and " not in dtypes
    check_that(one, f"{said}; a flow map, SDE(step=...), takes any")


def _check_noise(sde: SDE, ts: Any, x: State) -> None:
    """Some leaf must have noise; a leaf has it at all times, or never."""
    table = noise_table(sde, ts, x)
    for g in table:
        with np.errstate(under="ignore", over="ignore"):
            good = (g > 0) & (g * g > 0) & np.isfinite(g * g)
        t, value = (float(np.asarray(v)[np.argmin(good)]) for v in (ts, g))
        large = "small enough to square" if value > 1 else "large enough to square"
        kind = "positive" if not value > 0 else "finite" if value == np.inf else large
        said = f"SDE.diffusion must be {kind}"
        check_that(good.all() or not g.any(), f"{said} at t={t:g}, got {value:g}")
    some = not table or any(g.any() for g in table)
    check_that(some, "SDE.diffusion must be positive, got 0 at all times; no noise is None")


def noise_table(sde: SDE, ts: Any, x: State) -> list[np.ndarray]:
    """g of every leaf at all times, as far as it can be looked at."""
    if not concrete(ts, *(g for g in jax.tree.leaves(sde.diffusion) if not callable(g))):
        return []

    def table() -> list[np.ndarray]:
        with jax.ensure_compile_time_eval():
            leaves = jax.tree.leaves(jax.vmap(lambda t: sde.g(t, x))(jnp.asarray(ts)))
        return [np.asarray(leaf) for leaf in leaves if concrete(leaf)]

    times = np.asarray(ts)
    key = ("noise", parts_of(sde), signature_of(x), times.dtype, times.tobytes())
    return known.get(key, table)


def check_returns(
    function: Callable, name: str, ts: Any, x: State, args: Args, *, times: int = 1
) -> bool:
    """Check that a function returns states; tell whether it is a step of one fixed length."""

    def look() -> bool:
        t = jax.ShapeDtypeStruct((), time_dtype(ts))
        try:
            traced, result = jax.make_jaxpr(function, return_shape=True)(*(t,) * times, x, args)
        except Exception as error:
            if args is None:  # what a function of conditions says then is seldom plain
                error.add_note(f"{name} was called with args=None: it may need its conditions")
            raise
        check_like(x, result, name)
        if times == 1:
            return False
        states = traced.jaxpr.invars[2 : 2 + len(jax.tree.leaves(x))]
        if all(a is b for a, b in zip(traced.jaxpr.outvars, states, strict=True)):
            return False  # what rests may rest for any time
        _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
        return not any(used[:2])

    key = (name, parts_of(function), jnp.result_type(ts), signature_of((x, args)))
    return known.get(key, look)


def check_start(
    verb: str, sde: SDE, ts: Any, x0: Any, key: Any, args: Args, *, equal_steps: bool
) -> State:
    """Check one state to start from, the process there, and a key for its noise."""
    x0 = as_state(x0, "x0")
    check_finite(x0, "x0")
    keyed = key is not None or sde.deterministic
    check_that(keyed, f"{verb} needs a key for a process with noise, got key=None")
    if key is not None:
        check_key(key)
    check_process(sde, ts, x0, args, deterministic=True, equal_steps=equal_steps)
    return x0

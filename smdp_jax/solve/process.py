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

from smdp_jax.checks import as_state, check_finite, check_floating, check_key, check_like, concrete
from smdp_jax.compiled import Recent, parts_of, signature_of
from smdp_jax.sde import SDE, Args, State

known = Recent(64)


def check_time_grid(ts: Any, sde: SDE) -> None:
    """Check that a time grid is one-dimensional, increasing, and inside the SDE's interval."""
    if not isinstance(sde, SDE):
        raise TypeError(f"sde must be an SDE(drift, diffusion=g), got {reprlib.repr(sde)}")
    if not isinstance(ts, (jax.Array, np.ndarray)):
        raise ValueError(f"ts must be a one-dimensional array of times, got {reprlib.repr(ts)}")
    if jnp.ndim(ts) != 1 or jnp.shape(ts)[0] < 2:
        raise ValueError(f"ts must be one-dimensional with at least 2 times, got {jnp.shape(ts)}")
    check_floating("ts", ts)
    if not concrete(ts):
        return
    # In the precision that it is solved in: close float64 times may be one float32 time.
    times = np.asarray(ts, jnp.result_type(ts))
    wrong = np.flatnonzero(~(np.diff(times) > 0))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(
            f"ts must increase{'' if times.dtype == ts.dtype else f' in {times.dtype}'}, got "
            f"ts[{i}]={times[i]} and ts[{i + 1}]={times[i + 1]}; "
            "backward solves also take the increasing grid and walk it from its end"
        )
    if not np.isfinite(times).all():
        raise ValueError(f"ts must be finite, got [{times[0]}, {times[-1]}]")
    first, last = sde.interval
    if times[0] < first or times[-1] > last:
        got = f"[{times[0]}, {times[-1]}]"
        raise ValueError(f"ts must lie inside SDE.interval=[{first}, {last}], got {got}")


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
    if not jax.tree.leaves(x):
        raise ValueError(f"a state must hold at least one array, got {x!r}")
    if sde.deterministic and not deterministic:
        raise ValueError("SDE.diffusion must be positive, got None (a process without noise)")
    if not sde.deterministic:
        _check_noise(sde, ts, x)
    for name in maps:
        function = getattr(sde, name)
        if function is None:
            continue
        blind = check_returns(function, f"SDE.{name}", ts, x, args, times=1 + (name != "drift"))
        if blind and not equal_steps:
            raise ValueError(
                f"SDE.{name} must depend on t0 and t1 to be asked for steps of its own choice "
                "(substeps, or a grid with steps of several lengths), got one that ignores both: "
                "it walks one fixed time"
            )
    if sde.drift is not None:
        dtypes = sorted({jnp.result_type(leaf) for leaf in jax.tree.leaves(x)}, key=str)
        if len(dtypes) != 1:
            raise ValueError(
                "the state of a drift must have one dtype in all leaves, got "
                f"{' and '.join(map(str, dtypes))}; a flow map, SDE(step=...), takes any"
            )


def _check_noise(sde: SDE, ts: Any, x: State) -> None:
    """Some leaf must have noise; a leaf has it at all times, or never."""
    table = noise_table(sde, ts, x)
    for g in table:
        with np.errstate(under="ignore"):
            wrong = np.flatnonzero(~((g > 0) & np.isfinite(g) & (g * g > 0)))
        if wrong.size and (g != 0).any():
            t, value = np.asarray(ts)[wrong[0]], g[wrong[0]]
            large = "finite" if value > 1 else "large enough to square"
            want = large if value > 0 else "positive"
            raise ValueError(f"SDE.diffusion must be {want} at t={t:g}, got {value:g}")
    if table and not any(g.any() for g in table):
        raise ValueError(
            f"SDE.diffusion must be positive at t={np.asarray(ts)[0]:g}, got 0; no noise is None"
        )


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
    if key is not None:
        check_key(key)
    elif not sde.deterministic:
        raise ValueError(f"{verb} needs a key for a process with noise, got key=None")
    check_process(sde, ts, x0, args, deterministic=True, equal_steps=equal_steps)
    return x0

"""Checks at the edge: what a caller hands in, looked at once, before anything is computed.

Values that are being traced (inside a caller's ``jit`` or ``vmap``) cannot be looked at and pass.
"""

import reprlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smdp_jax._types import Args, State
from smdp_jax.sde import SDE

__all__ = [
    "check_args_axes",
    "check_conditions",
    "check_finite",
    "check_like",
    "check_process",
    "check_samples",
    "check_time_grid",
    "concrete",
]


def concrete(*values: Any) -> bool:
    """Tell whether all leaves hold numbers that can be looked at.

    Parameters
    ----------
    *values : pytree
        Arrays, numbers, or tracers.

    Returns
    -------
    bool
        False if any leaf is a tracer.
    """
    return not any(isinstance(v, Tracer) for v in jax.tree.leaves(values))


def check_time_grid(ts: Any, sde: SDE) -> None:
    """Check that a time grid is one-dimensional, increasing, and inside the SDE's interval.

    Parameters
    ----------
    ts : array
        Time grid.
    sde : SDE
        The process to be solved on it.

    Raises
    ------
    ValueError
        Naming the first time that is wrong.
    TypeError
        If ``sde`` is no ``SDE``.
    """
    if not isinstance(sde, SDE):
        raise TypeError(f"sde must be an SDE(drift, diffusion=g), got {reprlib.repr(sde)}")
    if not isinstance(ts, (jax.Array, np.ndarray)):
        raise ValueError(f"ts must be a one-dimensional array of times, got {reprlib.repr(ts)}")
    if jnp.ndim(ts) != 1 or jnp.shape(ts)[0] < 2:
        raise ValueError(f"ts must be one-dimensional with at least 2 times, got {jnp.shape(ts)}")
    if not jnp.issubdtype(jnp.result_type(ts), jnp.floating):
        raise ValueError(f"ts must be floating point, got {jnp.result_type(ts)}")
    if not concrete(ts):
        return
    # In the precision that it is solved in: close float64 times may be one float32 time.
    times = np.asarray(ts, jnp.result_type(ts))
    wrong = np.flatnonzero(~(np.diff(times) > 0))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(
            f"ts must increase, got ts[{i}]={times[i]} and ts[{i + 1}]={times[i + 1]}; "
            "backward solves also take the increasing grid and walk it from its end"
        )
    if not np.isfinite(times).all():
        raise ValueError(f"ts must be finite, got [{times[0]}, {times[-1]}]")
    first, last = sde.interval
    if times[0] < first or times[-1] > last:
        raise ValueError(
            f"ts must lie inside SDE.interval=[{first}, {last}], got [{times[0]}, {times[-1]}]"
        )


def check_process(
    sde: SDE, ts: Any, x: State, args: Args, *, maps: Sequence[str] = ("drift", "step")
) -> None:
    """Check that the noise is positive on ``ts`` and that the physics returns states like ``x``.

    Parameters
    ----------
    sde : SDE
        The forward process.
    ts : array (times,)
        Time grid.
    x : pytree
        One unbatched state.
    args : pytree
        Conditions of that state.
    maps : sequence of str
        Which of "drift", "step" and "inverse" are to be used.

    Raises
    ------
    ValueError
        If the process has no noise, if g is not positive and finite at some time, if one of
        ``maps`` returns another tree, shape or dtype than the state's, or if the solvers of a drift
        would change the dtype of the state.
    """
    if sde.deterministic:
        raise ValueError("SDE.diffusion must be positive, got None (a process without noise)")
    if concrete(ts):
        with jax.ensure_compile_time_eval():
            table = jax.tree.leaves(jax.vmap(lambda t: sde.g(t, x))(jnp.asarray(ts)))
        for leaf in filter(concrete, table):
            amplitudes = np.asarray(leaf)
            wrong = np.flatnonzero(~((amplitudes > 0) & np.isfinite(amplitudes)))
            if wrong.size:
                t, g = np.asarray(ts)[wrong[0]], amplitudes[wrong[0]]
                want = "finite" if g > 0 else "positive"
                raise ValueError(f"SDE.diffusion must be {want} at t={t:g}, got {g:g}")
    t = jax.ShapeDtypeStruct((), jnp.result_type(ts))
    for name in maps:
        function, times = getattr(sde, name), (t,) if name == "drift" else (t, t)
        if function is not None:
            check_like(x, jax.eval_shape(function, *times, x, args), f"SDE.{name}")
    if sde.drift is not None:
        _check_dtypes(ts, x)


def _check_dtypes(ts: Any, x: State) -> None:
    """Solvers of a drift multiply it by steps of time, and promote."""
    leaves = sorted({jnp.result_type(leaf) for leaf in jax.tree.leaves(x)}, key=str)
    if len(leaves) != 1:
        raise ValueError(
            "the state of a drift must have one dtype in all leaves, got "
            f"{' and '.join(map(str, leaves)) or 'no leaf'}; a flow map, SDE(step=...), takes any"
        )
    times = jnp.result_type(ts)
    with jax.numpy_dtype_promotion("standard"):
        kept = jnp.promote_types(times, leaves[0]) == leaves[0]
    if not kept:
        raise ValueError(
            f"ts must not be more precise than the state of a drift, got {times} for a state of "
            f"{leaves[0]}: give ts in that dtype, or the state in a wider one"
        )


def check_like(x: State, result: Any, name: str) -> None:
    """Check that a function of the state returned a tree like the state.

    Parameters
    ----------
    x : pytree
        The state.
    result : pytree
        What was returned, or its shapes.
    name : str
        Name of the function, for the message.

    Raises
    ------
    ValueError
        If the result has another tree, shape or dtype.
    """
    want, got = jax.tree.structure(x), jax.tree.structure(result)
    if want != got:
        raise ValueError(f"{name} must return the state's tree {want}, got {got}")
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(x), jax.tree.leaves(result), strict=True
    ):
        expected = (jnp.shape(a), jnp.result_type(a))
        if expected != (b.shape, b.dtype):
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"{name} must return shape {expected[0]} and dtype {expected[1]}"
                f"{f' at {where}' if where else ''}, got {b.shape} and {b.dtype}"
            )


def check_args_axes(args_axes: int | None) -> None:
    """Check that conditions are shared or mapped over the leading axis.

    Parameters
    ----------
    args_axes : int or None
        As the user gave it.

    Raises
    ------
    ValueError
        If it is neither None nor 0.
    """
    if args_axes not in (None, 0):
        raise ValueError(f"args_axes must be None or 0, got {args_axes}")


def check_conditions(args: Args, args_axes: int | None, size: int, owner: str) -> None:
    """Check that conditions mapped over an axis have as many entries as there are samples.

    Parameters
    ----------
    args : pytree
        Conditions.
    args_axes : int or None
        None: the same conditions for all samples; 0: one entry per sample on the leading axis.
    size : int
        Number of samples.
    owner : str
        Name of the argument that sets the number, for the message.

    Raises
    ------
    ValueError
        If ``args_axes`` is neither, or a leaf has another length.
    """
    check_args_axes(args_axes)
    if args_axes is None:
        return
    for leaf in jax.tree.leaves(args):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != size:
            raise ValueError(
                f"args mapped over axis 0 must have {size} entries like {owner}, "
                f"got shape {jnp.shape(leaf)}"
            )


def check_samples(x: State, owner: str) -> int:
    """Check that all leaves hold the same number of samples on their leading axis.

    Parameters
    ----------
    x : pytree
        States, leaves (samples, *state).
    owner : str
        Name of the argument, for the message.

    Returns
    -------
    int
        The number of samples.

    Raises
    ------
    ValueError
        If there is no leaf or no sample, if leaves disagree, are not floating point, or not finite.
    """
    leaves = jax.tree.leaves(x)
    shapes = sorted({jnp.shape(leaf) for leaf in leaves})
    sizes = sorted({shape[0] if shape else 0 for shape in shapes})
    if len(sizes) != 1 or sizes[0] == 0:
        raise ValueError(
            f"{owner} must be arrays with one leading axis of samples, at least 1 and the same in "
            f"all leaves, got {f'shapes {shapes}' if leaves else reprlib.repr(x)}"
        )
    for leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"{owner} must be floating point, got {jnp.result_type(leaf)}")
    check_finite(x, owner)
    return sizes[0]


def check_finite(x: State, owner: str) -> None:
    """Check that no entry is NaN or infinite.

    Parameters
    ----------
    x : pytree
        Arrays.
    owner : str
        Name of the argument, for the message.

    Raises
    ------
    ValueError
        Naming the first entry that is.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        if not concrete(leaf):
            continue
        with jax.ensure_compile_time_eval():
            finite = jnp.isfinite(jnp.asarray(leaf))
            if finite.all():
                continue
        i = tuple(int(n) for n in np.argwhere(~np.asarray(finite))[0])
        where = f"{owner}{jax.tree_util.keystr(path)}{list(i) if i else ''}"
        raise ValueError(f"{owner} must be finite, got {where}={np.asarray(leaf)[i]}")

"""Checks at the edge: what a caller hands in, looked at once, before anything is computed.

Values that are being traced (inside a caller's ``jit`` or ``vmap``) cannot be looked at and pass.
"""

import operator
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smdp_jax.sde import SDE, Args, State


def concrete(*values: Any) -> bool:
    """Tell whether all leaves hold numbers that can be looked at."""
    return not any(isinstance(v, Tracer) for v in jax.tree.leaves(values))


def check_time_grid(ts: Any, sde: SDE) -> None:
    """Check that a time grid is one-dimensional, increasing, and inside the SDE's interval."""
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
    """Check that the noise is positive on ``ts`` and that the physics returns states like ``x``."""
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
    """Check that a function of the state returned a tree like the state."""
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
    """Check that conditions are shared or mapped over the leading axis."""
    if args_axes not in (None, 0):
        raise ValueError(f"args_axes must be None or 0, got {args_axes}")


def check_conditions(args: Args, args_axes: int | None, size: int, owner: str) -> None:
    """Check that conditions mapped over an axis have as many entries as there are samples."""
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
    """Check that all leaves hold the same number of samples on their leading axis."""
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
    """Check that no entry is NaN or infinite."""
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


def check_positive(**numbers: Any) -> list[Any]:
    """Check that counts are whole numbers of at least 1; None stands for a default."""
    for name, value in numbers.items():
        if value is None:
            continue
        if not isinstance(value, (int, np.integer)):
            raise ValueError(f"{name} must be an int of at least 1, got {reprlib.repr(value)}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return [None if value is None else int(value) for value in numbers.values()]


def check_key(key: Any) -> None:
    """Check that a key is one PRNG key, of the new or the old (uint32) style."""
    want = "key must be one PRNG key, such as jax.random.key(0)"
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise ValueError(f"{want}, got {reprlib.repr(key)}")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.dtype != np.uint32:
        raise ValueError(f"{want}, got an array of {key.dtype}")
    if key.ndim != (0 if typed else 1):
        raise ValueError(f"{want}, got keys of shape {key.shape}: use jax.vmap over them")


def check_kind(name: str, value: Any, wanted: str, *attributes: str) -> None:
    """Check that an object has what will be asked of it."""
    if isinstance(value, type):
        raise TypeError(f"{name} must be {wanted}, got the class {value.__name__}: call it")
    if not all(hasattr(value, attribute) for attribute in attributes):
        raise TypeError(f"{name} must be {wanted}, got {reprlib.repr(value)}")


def check_save(save: Any, times: int) -> Any:
    """Check which times of a grid are to be saved."""
    if isinstance(save, str) and save in ("all", "last"):
        return save
    indices: Any = save
    try:
        chosen = tuple(operator.index(i) for i in indices)
    except TypeError:
        chosen = ()
    if not chosen or min(chosen) < -times or max(chosen) >= times:
        raise ValueError(
            f"save must be 'last', 'all', or indices of the {times} times between {-times} and "
            f"{times - 1}, got {save!r}"
        )
    return chosen


# Training ----------------------------------------------------------------------------------------


class Training(NamedTuple):
    """What was asked of ``fit``, as it is wanted."""

    steps: int
    batch_size: int
    epoch_steps: int
    ema: float
    checkpoint_seconds: float
    check_block: Callable[[Any], None]


def check_fit(
    sde: Any,
    model: Any,
    data: Any,
    objective: Any,
    optimizer: Any,
    key: Any,
    validation: Any,
    initial: Any,
    callback: Any,
    counts: dict[str, Any],
    numbers: dict[str, Any],
    flags: dict[str, Any],
) -> Training:
    """Check ``fit``; blocks of a stream are checked as they come, by ``check_block``."""
    check_kinds(model, data, objective, optimizer, validation, initial, callback)
    check_key(key)
    sizes = check_positive(**counts)
    ema, seconds = (check_number(name, value) for name, value in numbers.items())
    if not 0 <= ema < 1:
        raise ValueError(f"ema must be in [0, 1), got {ema}")
    if not seconds >= 0:
        raise ValueError(f"checkpoint_seconds must be at least 0, got {seconds}")
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{name} must be True or False, got {reprlib.repr(value)}")
    stream = hasattr(data, "blocks")
    if not stream:
        check_paths(sde, objective, data)
        if validation is not None:
            check_validation(sde, objective, data, validation)
    seen: list[Any] = []

    def check_block(block: Any) -> None:
        check_kind("a block of data", block, "Trajectories(ts, xs)", "ts", "xs")
        check_paths(sde, objective, block)
        if not seen:
            seen.append(_kinds_of(block))
            if validation is not None:
                check_validation(sde, objective, block, validation)
        elif seen[0] != _kinds_of(block):
            raise ValueError(
                f"blocks of data must be alike, got {_kinds_of(block)} after {seen[0]}"
            )

    return Training(sizes[0], sizes[1], sizes[2], ema, seconds, check_block)


def _kinds_of(data: Any) -> Any:
    """Shapes and dtypes of paths."""
    return jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", data)


def check_number(name: str, value: Any) -> float:
    """Check that a setting is one real number; infinity is one."""
    kinds = (int, float, np.number, np.ndarray, jax.Array)
    if isinstance(value, bool) or not isinstance(value, kinds) or np.shape(value) != ():
        raise ValueError(f"{name} must be a number, got {reprlib.repr(value)}")
    return float(value)


def check_paths(sde: SDE, objective: Any, data: Any) -> None:
    """Check paths against the process that they are said to come from, and for the objective."""
    check_time_grid(data.ts, sde)
    data.check()
    maps = ("drift", "step", "inverse")
    check_process(sde, data.ts, data.at(0, -1), data.args_of(0), maps=maps)
    objective.check(sde, data)


def check_kinds(
    model: Any,
    data: Any,
    objective: Any,
    optimizer: Any,
    validation: Any,
    initial: Any,
    callback: Any = None,
) -> None:
    """Refuse arguments of another kind than ``fit`` takes."""
    paths = "Trajectories(ts, xs)"
    check_kind("model", model, "a flax.linen.Module, such as models.MLP()", "init", "apply")
    if not hasattr(data, "blocks"):
        check_kind("data", data, f"{paths} or what datasets.open_stream returns", "ts", "xs")
    check_kind("objective", objective, "an objective, such as MultiStep()", "learned", "loss")
    check_kind("optimizer", optimizer, "of optax, such as optax.adam(1e-3)", "init", "update")
    if validation is not None:
        check_kind("validation", validation, paths, "ts", "xs")
    if initial is not None:
        check_kind("initial", initial, "fit.learned of another fit", "variables", "preconditioner")
    if callback is not None:
        check_kind("callback", callback, "a function callback(metrics, params)", "__call__")


def check_validation(sde: SDE, objective: Any, data: Any, validation: Any) -> None:
    """Check that held-out paths are like those to learn from."""
    check_paths(sde, objective, validation)
    if validation.ts.shape != data.ts.shape or not bool(jnp.array_equal(validation.ts, data.ts)):
        raise ValueError(
            "validation must have the times of the data: "
            f"{data.num_times} in [{float(data.ts[0]):g}, {float(data.ts[-1]):g}], got "
            f"{validation.num_times} in [{float(validation.ts[0]):g}, {float(validation.ts[-1]):g}]"
        )
    want, got = (
        jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", (d.at(0, 0), d.args_of(0)))
        for d in (data, validation)
    )
    if want != got:
        raise ValueError(f"validation must have states and args like the data's {want}, got {got}")

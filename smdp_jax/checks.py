"""Checks at the edge: what a caller hands in, looked at once, before anything is computed.

Each verb has one doorman, ``check_simulate``, ``check_backward``, ``check_integrate``, that
returns its arguments as the mathematics below wants them; what they share follows. Values that are
being traced (inside a caller's ``jit`` or ``vmap``) cannot be looked at and pass, and what was
found of the shapes that a process returns is kept for the next call.
"""

import math
import operator
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.interpreters import partial_eval

from smdp_jax.compiled import Recent, parts_of, signature_of
from smdp_jax.sde import SDE, Args, State

_PATHS = 2**31 - 1
_known = Recent(64)


# The doormen -------------------------------------------------------------------------------------


def check_simulate(
    sde: Any,
    x0: Any,
    ts: Any,
    key: Any,
    args: Any,
    args_axes: Any,
    solver: Any,
    substeps: Any,
    score_targets: Any,
    chunk_size: Any,
    rematerialise: Any,
) -> tuple[State, int, int, int | None]:
    """Check ``simulate``; return the states, their number, substeps and chunk size."""
    check_time_grid(ts, sde)
    check_no_lists(x0, "x0")
    samples = check_samples(x0, "x0")
    substeps, chunk_size = check_positive(substeps=substeps, chunk_size=chunk_size)
    check_flags(rematerialise=rematerialise)
    check_key(key)
    check_conditions(args, args_axes, samples, "x0")
    x, mapped = jax.tree.map(lambda x: x[0], (x0, args if args_axes == 0 else None))
    equal = substeps == 1 and even(ts)
    check_process(sde, ts, x, mapped if args_axes == 0 else args, equal_steps=equal)
    if score_targets is not False:
        if score_targets is not True:
            check_kind(
                "score_targets", score_targets, "True or a ramp, such as PowerRamp()", "__call__"
            )
        check_noise_everywhere(sde, ts, x, "score targets divide by the noise of every leaf")
        if sde.drift is not None and (isinstance(solver, diffrax.AbstractSRK) or _splits(solver)):
            raise ValueError(
                "with score_targets, solver must be the ODE solver of the physics step, such as "
                f"Euler() or Heun(), got {type(solver).__name__}"
            )
    if solver is not None:
        check_solver(sde, solver)
    return jax.tree.map(jnp.asarray, x0), samples, substeps, chunk_size


class Backward(NamedTuple):
    """What was asked of a backward solve, as it is wanted."""

    x_end: State
    batch: tuple[int, ...]
    num_samples: int
    substeps: int
    noise_level: float
    save: Any
    chunk_size: int | None


def check_backward(
    verb: str,
    sde: Any,
    score: Any,
    x_end: Any,
    ts: Any,
    *,
    args: Any,
    args_axes: Any,
    solver: Any,
    substeps: Any,
    noise_level: Any,
    corrector: Any,
    controller: Any,
    save: Any,
    batch_axes: Any,
    num_samples: Any,
    chunk_size: Any,
    key: Any = None,
    **flags: Any,
) -> Backward:
    """Check ``sample_posterior`` and ``probability_flow``."""
    check_time_grid(ts, sde)
    if not hasattr(score, "check_use"):
        check_kind("score", score, "a function score(t, x, args), such as fit.score", "__call__")
    num_samples, substeps, chunk_size = check_positive(
        num_samples=num_samples, substeps=substeps, chunk_size=chunk_size
    )
    if verb == "sample_posterior":
        check_key(key)
    if num_samples is None:
        raise ValueError("num_samples must be an int of at least 1, got None")
    check_flags(**flags)
    check_args_axes(args_axes)
    level = check_level(noise_level)
    x_end = as_state(x_end, "x_end")
    mapped = args if args_axes == 0 else None
    batch, x, own = _check_batch(sde, score, x_end, ts, args, mapped, batch_axes)
    if hasattr(score, "check_state"):
        score.check_state(x)
    if math.prod(batch) * num_samples > _PATHS:
        raise ValueError(
            f"num_samples must be at most {_PATHS // math.prod(batch)} for {math.prod(batch)} end "
            f"states (2^31 paths), got {num_samples}"
        )
    equal = substeps == 1 and even(ts)
    check_process(sde, ts, x, own, maps=("drift", "inverse"), equal_steps=equal)
    if not hasattr(score, "check_use"):
        _returns_states(score, "score", ts, x, own)
    else:
        score.check_use(sde, ts, level, whole_steps=substeps == 1 and corrector is None, use=verb)
    check_finite(x_end, "x_end")
    if corrector is not None:
        check_kind("corrector", corrector, "Langevin(step_size)", "step_size", "steps")
    if controller is not None:
        _check_adaptive(
            sde, controller, substeps != 1 or corrector is not None or flags.get("denoise_last")
        )
    if solver is not None:
        check_solver(sde, solver, deterministic=level == 0, adaptive=controller is not None)
    return Backward(
        x_end, batch, num_samples, substeps, level, check_save(save, len(ts)), chunk_size
    )


def check_integrate(
    sde: Any,
    x0: Any,
    ts: Any,
    key: Any,
    args: Any,
    solver: Any,
    substeps: Any,
    save: Any,
    denoise_last: Any,
) -> tuple[State, int, Any]:
    """Check ``integrate``; return the state, the substeps and what to save."""
    check_time_grid(ts, sde)
    (substeps,) = check_positive(substeps=substeps)
    check_flags(denoise_last=denoise_last)
    x0 = as_state(x0, "x0")
    check_finite(x0, "x0")
    if key is not None:
        check_key(key)
    elif not sde.deterministic:
        raise ValueError("integrate needs a key for a process with noise, got key=None")
    equal = substeps == 1 and even(ts)
    check_process(sde, ts, x0, args, deterministic=True, equal_steps=equal)
    if solver is not None:
        check_solver(sde, solver)
    return x0, substeps, check_save(save, len(ts))


# Processes and times -----------------------------------------------------------------------------


def concrete(*values: Any) -> bool:
    """Tell whether all leaves hold numbers that can be looked at."""
    return not any(isinstance(v, Tracer) for v in jax.tree.leaves(values))


def is_number(value: Any) -> bool:
    """Tell a real number that can be looked at, also in an array without axes."""
    kinds = (int, float, np.number, np.ndarray, jax.Array)
    return (
        isinstance(value, kinds)
        and not isinstance(value, (bool, Tracer))
        and np.shape(value) == ()
        and np.isrealobj(value)
    )


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


def time_dtype(ts: Any) -> Any:
    """Times are solved in their own dtype, but not in half precision, where steps are lost."""
    dtype = jnp.result_type(ts)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def even(ts: Any) -> bool:
    """Tell whether all steps are the same up to rounding; traced ones are believed to be."""
    if not concrete(ts):
        return True
    times = np.asarray(ts, np.float64)
    steps, rounding = np.diff(times), 4 * float(jnp.finfo(ts.dtype).eps) * np.abs(times).max()
    return bool(steps.max() - steps.min() <= 1e-3 * steps.min() + rounding)


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
        blind = _returns_states(function, f"SDE.{name}", ts, x, args, times=1 + (name != "drift"))
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
            want = (
                "positive" if not value > 0 else "finite" if value > 1 else "large enough to square"
            )
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
    return _known.get(key, table)


def check_noise_everywhere(sde: SDE, ts: Any, x: State, why: str) -> None:
    """Refuse leaves without noise."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(x)]
    for name, g in zip(names, noise_table(sde, ts, x), strict=False):
        if not g.any():
            raise ValueError(
                f"SDE.diffusion must be positive on all leaves, got 0 at {name}: {why}"
            )


def _returns_states(
    function: Callable, name: str, ts: Any, x: State, args: Args, *, times: int = 1
) -> bool:
    """Check that a function returns states; tell whether it is a step of one fixed length."""

    def look() -> bool:
        t = jax.ShapeDtypeStruct((), time_dtype(ts))
        if times == 1:
            check_like(x, jax.eval_shape(function, t, x, args), name)
            return False
        traced, result = jax.make_jaxpr(function, return_shape=True)(t, t, x, args)
        check_like(x, result, name)
        states = traced.jaxpr.invars[2 : 2 + len(jax.tree.leaves(x))]
        if all(a is b for a, b in zip(traced.jaxpr.outvars, states, strict=True)):
            return False  # what rests may rest for any time
        _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
        return not any(used[:2])

    key = (name, parts_of(function), jnp.result_type(ts), signature_of((x, args)))
    return _known.get(key, look)


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


# Solvers ----------------------------------------------------------------------------------------


def check_is_solver(solver: Any) -> None:
    """Refuse what is no solver, such as a solver's class."""
    check_kind("solver", solver, "a diffrax solver, such as diffrax.Heun()", "init", "step")


def _splits(solver: Any) -> bool:
    return getattr(solver, "advances_flow_maps", False)


def check_solver(
    sde: SDE, solver: Any, *, deterministic: bool | None = None, adaptive: bool = False
) -> None:
    """Refuse a solver that cannot solve this process, or is wrong for it."""
    check_is_solver(solver)
    name = type(solver).__name__
    if sde.step is not None and not _splits(solver):
        raise ValueError(
            f"a flow map is solved by Splitting(), got {name}; give a drift for {name}"
        )
    if sde.step is None and _splits(solver):
        raise ValueError("Splitting() solves flow maps, got a drift: see flow_map_of")
    if isinstance(solver, diffrax.HalfSolver) and not adaptive:
        raise ValueError("HalfSolver estimates errors for adaptive steps: see solve_adaptive")
    if isinstance(solver, (diffrax.AbstractFosterLangevinSRK, diffrax.SemiImplicitEuler)):
        raise ValueError(
            f"solver must be one of a single drift, got {name}, whose terms are two: use "
            "Heun(), or ShARK() with noise"
        )
    if isinstance(solver, (diffrax.ItoMilstein, diffrax.StratonovichMilstein)):
        raise ValueError(
            f"solver must be one of additive noise, for which {name} is Euler() at the price of a "
            f"Jacobian, got {name}()"
        )
    if sde.deterministic if deterministic is None else deterministic:
        if isinstance(solver, diffrax.AbstractSRK):
            raise ValueError(f"{name} needs noise, got an ODE: use an ODE solver such as Heun()")
    elif not isinstance(solver, _OF_NOISE):
        raise ValueError(
            f"solver must be one that converges with noise, got {name}, which is for ODEs: use "
            "Euler(), Heun() or ShARK()"
        )


_OF_NOISE = (
    diffrax.AbstractRungeKutta,
    diffrax.AbstractImplicitSolver,
    diffrax.AbstractSRK,
    diffrax.AbstractItoSolver,
    diffrax.AbstractStratonovichSolver,
    diffrax.AbstractWrappedSolver,
)


def _check_adaptive(sde: SDE, controller: Any, fixed: Any) -> None:
    check_kind("controller", controller, "a diffrax step size controller", "adapt_step_size")
    if sde.drift is None:
        raise ValueError("controller needs a drift, got a flow map")
    if fixed:
        raise ValueError("corrector, denoise_last and substeps need fixed steps, got a controller")


# States, conditions, numbers ---------------------------------------------------------------------


def _check_batch(
    sde: SDE, score: Any, x_end: State, ts: Any, args: Args, mapped: Args, batch_axes: Any
) -> tuple[tuple[int, ...], State, Args]:
    """Find the shape of the batch; return it with one state and its conditions."""
    (axes,) = check_positive(least=0, batch_axes=batch_axes)
    shapes = {jnp.shape(leaf)[: axes or 0] for leaf in jax.tree.leaves((x_end, mapped))}
    batch = next(iter(shapes), ())
    if len(shapes) != 1 or len(batch) != (axes or 0):
        raise ValueError(
            f"x_end, and args mapped over end states, must share {axes} leading axes "
            f"(batch_axes), got {shapes}"
        )
    if 0 in batch:
        raise ValueError(f"x_end must hold at least 1 end state, got leading axes {batch}")
    x, own = jax.tree.map(lambda x: jnp.asarray(x)[(0,) * len(batch)], (x_end, mapped))
    own = args if mapped is None else own
    if axes is None and _reads_as_batch(sde, score, x_end, ts, own):
        shape = jnp.shape(jax.tree.leaves(x_end)[0])
        raise ValueError(
            f"batch_axes must be given where x_end may be read in two ways, got shape {shape}: one "
            f"state (batch_axes=0), or {shape[0]} of shape {shape[1:]} (batch_axes=1)"
        )
    return batch, x, own


def _reads_as_batch(sde: SDE, score: Any, x: State, ts: Any, args: Args) -> bool:
    """Tell whether process and score take the parts of a state of several axes as states."""
    leaves = jax.tree.leaves(x)
    least = 1 if getattr(score, "shapes", None) is not None else 2
    if len({leaf.shape[:1] for leaf in leaves}) != 1 or min(leaf.ndim for leaf in leaves) < least:
        return False
    part = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), x)
    known = getattr(score, "shapes", None)
    if known is not None:
        return [x.shape for x in jax.tree.leaves(part)] == list(known)

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
    return _known.get(key, look)


def as_state(x: Any, owner: str) -> State:
    """Return a state with arrays in the place of numbers."""
    check_no_lists(x, owner)
    for leaf in jax.tree.leaves(x):
        number = is_number(leaf) or isinstance(leaf, (jax.Array, np.ndarray))
        if not number or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            got = jnp.result_type(leaf) if number else reprlib.repr(leaf)
            raise ValueError(f"{owner} must be floating point, got {got}")
    if not jax.tree.leaves(x):
        raise ValueError(f"{owner} must be one state or a batch of them, got {x}")
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), x)


def check_no_lists(x: Any, owner: str) -> None:
    """Refuse numbers in a list, which would be a tree of as many leaves."""
    if isinstance(x, list) and not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(x)):
        raise ValueError(
            f"{owner} must be an array or a tree of arrays, got the list {reprlib.repr(x)}"
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


def check_positive(*, least: int = 1, **numbers: Any) -> list[Any]:
    """Check that counts are whole numbers of at least 1; None stands for a default."""
    for name, value in numbers.items():
        if value is None:
            continue
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise ValueError(
                f"{name} must be an int of at least {least}, got {reprlib.repr(value)}"
            )
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    return [None if value is None else int(value) for value in numbers.values()]


def check_flags(**flags: Any) -> None:
    """Check that switches are True or False."""
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{name} must be True or False, got {reprlib.repr(value)}")


def check_level(noise_level: Any) -> float:
    """Check the alpha of a backward process, and return it as a number."""
    if not is_number(noise_level) or not 0 <= noise_level < math.inf:
        raise ValueError(
            f"noise_level must be finite and not negative, got {reprlib.repr(noise_level)}"
        )
    return float(noise_level)


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
    alike = {"correction": "score"}
    own, start = objective.kind(sde), getattr(initial, "kind", objective.kind(sde))
    if alike.get(own, own) != alike.get(start, start):
        raise TypeError(f"initial must be a {own}, as {objective!r} learns, got a {start}")
    sizes = check_positive(**counts)
    ema, seconds = (check_number(name, value) for name, value in numbers.items())
    if not 0 <= ema < 1:
        raise ValueError(f"ema must be in [0, 1), got {ema}")
    if not seconds >= 0:
        raise ValueError(f"checkpoint_seconds must be at least 0, got {seconds}")
    check_flags(**flags)
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
    if not is_number(value):
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

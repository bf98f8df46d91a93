"""Checks at the edge, of one value or one state each, and the sentences of refusals.

Each names what was given as its caller knows it, and says what it must be and what it was. Values
that are being traced (inside a caller's ``jit`` or ``vmap``) cannot be looked at and pass.
"""

import importlib
import inspect
import math
import reprlib
import warnings
from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the caller's code, however deep in the library the reason was found."""
    frame, level, caller = inspect.currentframe(), 1, 2
    while frame is not None:
        asked_by = frame.f_globals.get("__name__", "").partition(".")[0]
        # jaxtyping's wrapper of a function of ours is no caller; one of a caller's function is.
        if asked_by == "smdp_jax" or (asked_by == "jaxtyping" and caller == level):
            caller = level + 1
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=caller)


def concrete(*values: Any) -> bool:
    """Tell whether all leaves hold numbers that can be looked at."""
    return not any(isinstance(v, Tracer) for v in jax.tree.leaves(values))


def holds_traced(function: Any, *args: Any) -> bool:
    """Tell whether a function closes over values that a caller traces."""
    return not concrete(jax.make_jaxpr(function)(*args).consts)


def is_number(value: Any) -> bool:
    """Tell a real number that can be looked at, also in an array without axes."""
    kinds = (int, float, np.number, np.ndarray, jax.Array)
    number = isinstance(value, kinds) and not isinstance(value, (bool, Tracer))
    return number and np.shape(value) == () and np.isrealobj(value)


def is_count(value: Any, least: Any = 1) -> bool:
    """Tell a whole number of at least 1."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and bool(value >= least)


def check_that(holds: Any, said: str, *got: Any) -> None:
    """Refuse what does not hold, in a sentence ``NAME must be ..., got ...``."""
    if not holds:
        raise ValueError(", got ".join([said, *map(reprlib.repr, got)]))


_SAID = {
    "(-inf, inf)": "finite",
    "(0, inf)": "finite and positive",
    "[0, inf)": "finite and not negative",
    "[0, inf]": "at least 0",
}


def check_within(interval: str, *, owner: Any = None, **numbers: Any) -> list[Any]:
    """Check that real numbers lie in an interval, such as "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    for name, value in numbers.items():
        check_that(is_number(value), f"{_field(owner, name)} must be a number", value)
        x = float(value)
        ends = (x == low and interval[0] == "[") or (x == high and interval[-1] == "]")
        said = _SAID.get(interval, f"in {interval}")
        check_that(low < x < high or ends, f"{_field(owner, name)} must be {said}, got {value}")
    return [float(value) for value in numbers.values()]


def check_positive(
    *, least: int = 1, owner: Any = None, optional: Any = None, **numbers: Any
) -> list[Any]:
    """Check that counts are whole numbers of at least 1; one of them may be None, a default."""
    for name, value in numbers.items():
        if name == optional and value is None:
            continue
        said = f"{_field(owner, name)} must be"
        check_that(is_count(value, -math.inf), f"{said} an int of at least {least}", value)
        check_that(int(value) >= least, f"{said} at least {least}, got {value}")
    return [None if value is None else int(value) for value in numbers.values()]


def _field(owner: Any, name: str) -> str:
    return name if owner is None else f"{type(owner).__name__}.{name}"


def check_counts(*, least: int = 1, owner: Any = None, **tuples: Any) -> list[tuple[int, ...]]:
    """Check tuples of whole numbers of at least 1, none of them empty."""
    for name, given in tuples.items():
        several = isinstance(given, (tuple, list)) and given
        counts = several and all(is_count(value, least) for value in given)
        said = f"{_field(owner, name)} must be a tuple of ints of at least {least}"
        check_that(counts, said, given)
    return [tuple(map(int, given)) for given in tuples.values()]


def check_flags(**flags: Any) -> None:
    """Check that switches are True or False."""
    for name, value in flags.items():
        check_that(isinstance(value, (bool, np.bool_)), f"{name} must be True or False", value)


def check_choice(name: str, value: Any, *choices: Any) -> None:
    """Check that a setting is one of a few values."""
    plain = value.item() if isinstance(value, np.generic) else value  # numbers of NumPy are numbers
    known = any(isinstance(plain, type(choice)) and plain == choice for choice in choices)
    check_that(known, f"{name} must be one of {list(choices)}", value)


def check_shape(name: str, x: Any, shape: tuple[int, ...], hint: str = "") -> None:
    """Check the shape of an array; ``hint`` says where it comes from, or what to do."""
    given = getattr(x, "shape", type(x).__name__)
    check_that(given == shape, f"{name} must have shape {shape}{hint}, got {given}")


def check_floating(name: str, *arrays: Any) -> None:
    """Check that arrays hold floating point numbers."""
    for kind in map(jnp.result_type, arrays):
        check_that(jnp.issubdtype(kind, jnp.floating), f"{name} must be floating point, got {kind}")


def check_holds(name: str, count: int, least: int, what: str) -> None:
    """Check that a collection has at least so many draws, paths, points."""
    check_that(count >= least, f"{name} must hold at least {least} {what}, got {count}")


def check_kind(name: str, value: Any, wanted: str, *attributes: str) -> None:
    """Check that an object has what will be asked of it."""
    if isinstance(value, type):
        raise TypeError(f"{name} must be {wanted}, got the class {value.__name__}: call it")
    if not all(hasattr(value, attribute) for attribute in attributes):
        raise TypeError(f"{name} must be {wanted}, got {reprlib.repr(value)}")


def needed(module: str, what: str, extra: str) -> ModuleType:
    """Import an optional package, or say who needs it and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        said = f'{what} {module}, which is not installed: pip install "smdp_jax[{extra}]"'
        raise ImportError(said) from error


def check_key(key: Any) -> None:
    """Check that a key is one PRNG key, of the new or the old (uint32) style."""
    want = "key must be one PRNG key, such as jax.random.key(0)"
    check_that(isinstance(key, (jax.Array, np.ndarray)), want, key)
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    check_that(typed or key.dtype == np.uint32, f"{want}, got an array of {key.dtype}")
    alone = key.ndim == (0 if typed else 1)
    check_that(alone, f"{want}, got keys of shape {key.shape}: use jax.vmap over them")


def check_alike(said: str, want: Any, got: Any) -> None:
    """Check that two trees have one structure, and the same shapes and dtypes."""
    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(want, got)
    except AssertionError:
        told = lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}"
        first, second = (jax.tree.map(told, tree) for tree in (want, got))
        raise ValueError(f"{said} {first}, got {second}") from None


def check_finite(x: Any, owner: str) -> None:
    """Check that no entry is NaN or infinite."""
    where = not_finite(x, owner)
    check_that(where is None, f"{owner} must be finite, got {where}")


def not_finite(x: Any, owner: str) -> str | None:
    """Name the first number of a tree that is NaN or infinite, as far as it can be looked at."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        if not isinstance(leaf, (float, np.ndarray, np.generic, jax.Array)) or not concrete(leaf):
            continue
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        # By numpy on the host: there is nothing to compile for every shape.
        xp: Any = np if _on_host(leaf) else jnp
        with jax.ensure_compile_time_eval(), np.errstate(over="ignore"):
            finite = xp.isfinite(xp.asarray(leaf, jnp.result_type(leaf)))
            if finite.all():
                continue
        i = tuple(int(n) for n in np.argwhere(~np.asarray(finite))[0])
        name = f"{owner}{jax.tree_util.keystr(path)}{list(i) if i else ''}"
        return f"{name}={np.asarray(leaf)[i]}"
    return None


def finite_rows(x: Any) -> jax.Array:
    """Which entries of the leading axis are finite in all leaves (n,)."""
    rows = [jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in jax.tree.leaves(x)]
    return jnp.stack(rows).all(axis=0)


def _on_host(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or (
        leaf.is_fully_addressable and all(d.platform == "cpu" for d in leaf.devices())
    )


def check_like(x: Any, result: Any, name: str) -> None:
    """Check that a function of the state returned a tree like the state."""
    check_alike(f"{name} must return a state like", x, result)


def as_state(x: Any, owner: str) -> Any:
    """Return a state with arrays in the place of numbers."""
    check_no_lists(x, owner)
    for leaf in jax.tree.leaves(x):
        number = is_number(leaf) or isinstance(leaf, (jax.Array, np.ndarray))
        check_that(number, f"{owner} must be floating point", leaf)
        check_floating(owner, leaf)
    check_that(jax.tree.leaves(x), f"{owner} must be one state or a batch of them", x)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), x)


def check_no_lists(x: Any, owner: str) -> None:
    """Refuse numbers in a list, which would be a tree of as many leaves."""
    arrays = all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(x))
    said = f"{owner} must be an array or a tree of arrays, got the list {reprlib.repr(x)}"
    check_that(arrays or not isinstance(x, list), said)


def check_conditions(args: Any, args_axes: int | None, size: int, owner: str) -> None:
    """Check that conditions mapped over an axis have as many entries as there are samples."""
    check_choice("args_axes", args_axes, None, 0)
    said = f"args mapped over axis 0 must have {size} entries like {owner}, got shape"
    for shape in map(jnp.shape, [] if args_axes is None else jax.tree.leaves(args)):
        check_that(shape[:1] == (size,), f"{said} {shape}")


def check_samples(x: Any, owner: str) -> int:
    """Check that all leaves hold the same number of samples on their leading axis."""
    leaves = jax.tree.leaves(x)
    shapes = sorted({jnp.shape(leaf) for leaf in leaves})
    sizes = {shape[0] if shape else 0 for shape in shapes}
    said = f"{owner} must be arrays with one leading axis of samples, at least 1, the same in all"
    got = f"shapes {shapes}" if leaves else reprlib.repr(x)
    check_that(len(sizes) == 1 and sizes != {0}, f"{said}, got {got}")
    check_floating(owner, *leaves)
    check_finite(x, owner)
    return sizes.pop()

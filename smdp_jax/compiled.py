"""Programs compiled once for what they are made of, and dropped together with it.

``jax.jit`` keeps the program of every function it was ever given: a closure made for each call,
as a score of conditions often is, would fill the memory. Here a program is found by the parts of
its arguments (equal processes are one), the numbers among them are traced, and it goes when one of
the functions it was made of does, or when ``SIZE`` others were used since.
"""

import functools
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer

SIZE = 32
FEW = 2**21
_QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
_PLAIN = {"xla_backend_optimization_level": 1}


def parts_of(value: Any) -> Hashable:
    """What tells a static value from others: its parts or its value, or else that it is itself.

    Methods of equal systems are equal; a function, or what has no hash, is told by identity.
    """
    if isinstance(value, types.MethodType):
        return ("method", value.__func__, parts_of(value.__self__))
    if value is None or isinstance(value, (bool, int, float)):
        return (type(value), value)
    own = getattr(value, "_parts", None)
    if callable(own) and not isinstance(value, type):
        return (type(value), own())
    if type(value).__eq__ is object.__eq__:
        return _Itself(value)
    try:
        hash(value)
    except TypeError:
        return _Itself(value)
    return value


class _Itself:
    """Equal to itself alone, and held weakly where that can be."""

    def __init__(self, value: Any) -> None:
        self._id = id(value)
        try:
            self.get: Callable[[], Any] = weakref.ref(value)
        except TypeError:
            self.get = lambda: value

    def __hash__(self) -> int:
        return self._id

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, _Itself) and self.get() is other.get() is not None
        )


def signature_of(tree: Any) -> Hashable:
    """Shapes and dtypes of arrays, and the parts of everything else."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(map(_signed, leaves))


def _signed(x: Any) -> Hashable:
    if eqx.is_array(x) or isinstance(x, (np.ndarray, np.generic, jax.ShapeDtypeStruct)):
        return np.shape(x), x.dtype, bool(getattr(x, "weak_type", False))
    return type(x) if _traced(x) else parts_of(x)


def _traced(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, (float, complex, np.ndarray, np.generic))


class Recent:
    """The last few values by key; a key that held a function now gone is dropped at once."""

    def __init__(self, size: int = SIZE) -> None:
        self._size, self._values, self._lock = size, OrderedDict(), threading.RLock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the value of a key, made the first time."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        for part in _identities(key):
            if (held := part.get()) is not None and isinstance(part.get, weakref.ref):
                weakref.finalize(held, _forget, weakref.ref(self)).atexit = False
        return value

    def forget(self) -> None:
        """Drop what something that is gone was part of."""
        with self._lock:
            for key in [k for k in self._values if any(p.get() is None for p in _identities(k))]:
                del self._values[key]


def _forget(recent: weakref.ref) -> None:
    if (cache := recent()) is not None:
        cache.forget()


def _identities(key: Any) -> list[_Itself]:
    if isinstance(key, _Itself):
        return [key]
    if isinstance(key, tuple):
        return [identity for part in key for identity in _identities(part)]
    return []


def compiled(
    function: Callable, *, options_for: Callable[[list], dict[str, Any] | None] | None = None
) -> Callable:
    """Compile, arrays and floats traced, everything else static, and no program for ever.

    Static arguments are lent to the program while it is called: held, they would not go.
    """
    programs = Recent()

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        traced = [x if _traced(x) else None for x in leaves]
        static = [None if _traced(x) else x for x in leaves]
        options = None if options_for is None else options_for(traced)
        key = (structure, tuple(parts_of(x) for x in static), tuple((options or {}).items()))
        program, lent = programs.get(key, lambda: _program(function, options))
        before = getattr(lent, "static", None)
        lent.static = (structure, static)
        try:
            return program(traced)
        finally:
            lent.static = before

    call.programs = programs  # type: ignore[attr-defined]
    return call


def once(function: Callable, *, light: bool = True) -> Callable:
    """``compiled`` for what runs once or twice: what counts is to compile quickly.

    ``light`` work on few numbers takes the slowest code: a CPU compiles it in a third of the time.
    """

    def options(traced: list) -> dict[str, Any] | None:
        arrays = [x for x in traced if x is not None]
        if any(isinstance(x, Tracer) for x in arrays):
            return None  # a program within another has no options of its own
        few = light and sum(np.size(x) for x in arrays) <= FEW
        return _quick() if few and jax.default_backend() == "cpu" else _PLAIN

    return compiled(function, options_for=options)


@functools.cache
def _quick() -> dict[str, Any]:
    """The options, as far as this version of XLA knows them."""
    try:
        jax.jit(lambda: 0).lower().compile(_QUICK)
    except jax.errors.JaxRuntimeError:
        return {"xla_backend_optimization_level": 0}
    return _QUICK


def run_often() -> dict[str, Any] | None:
    """Options of a training's epochs: on a CPU the last optimisations speed up compiling alone."""
    return _PLAIN if jax.default_backend() == "cpu" else None


def _program(
    function: Callable, options: dict[str, Any] | None
) -> tuple[Callable, threading.local]:
    lent = threading.local()

    def run(traced: list) -> Any:
        structure, static = lent.static
        leaves = [s if t is None else t for t, s in zip(traced, static, strict=True)]
        return function(*jax.tree.unflatten(structure, leaves))

    run.__name__ = function.__name__.strip("_")
    return jax.jit(run, compiler_options=options), lent

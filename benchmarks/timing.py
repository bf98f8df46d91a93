"""Wall times beside a peer, and what JAX spends on compiling."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax


@dataclass(frozen=True)
class Timing:
    """Wall times of one callable, in seconds.

    Parameters
    ----------
    first : float
        The first call, which traces and compiles.
    runs : tuple of float
        Later calls.
    """

    first: float
    runs: tuple[float, ...]

    @property
    def least(self) -> float:
        """The fastest call: what the machine does when nobody else uses it."""
        return min(self.runs)

    @property
    def median(self) -> float:
        """The middle call."""
        return statistics.median(self.runs)

    @property
    def compilation(self) -> float:
        """What the first call took beyond a middle one."""
        return max(self.first - self.median, 0.0)

    def row(self) -> dict[str, float]:
        """Return the columns of a table."""
        return {
            "compile s": self.compilation,
            "least s": self.least,
            "median s": self.median,
        }


def seconds(call: Callable[[], Any]) -> float:
    """Time one call, until its result is there.

    Parameters
    ----------
    call : callable
        Returns arrays, or a tree of them.

    Returns
    -------
    float
        Wall time.
    """
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def interleave(cases: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Time callables in turn, so that a slow spell of the machine hits all of them.

    Parameters
    ----------
    cases : dict of callables
        Each is called ``repeats + 1`` times.
    repeats : int
        Rounds after the first calls.

    Returns
    -------
    dict of Timing
        By name.
    """
    first = {name: seconds(call) for name, call in cases.items()}
    rounds = [{name: seconds(call) for name, call in cases.items()} for _ in range(repeats)]
    return {name: Timing(first[name], tuple(r[name] for r in rounds)) for name in cases}


def ratio(timing: Timing, peer: Timing) -> dict[str, float]:
    """Compare two that were timed in turn.

    Parameters
    ----------
    timing, peer : Timing
        From one ``interleave``.

    Returns
    -------
    dict
        Ratio of the least times, and median of the rounds' ratios.
    """
    each = [a / b for a, b in zip(timing.runs, peer.runs, strict=True)]
    return {"ratio of least": timing.least / peer.least, "median ratio": statistics.median(each)}


@dataclass(frozen=True)
class Compilations:
    """What was compiled while ``watch_compilation`` was on, in seconds by function name."""

    trace: dict[str, list[float]] = field(default_factory=dict)
    lower: dict[str, list[float]] = field(default_factory=dict)
    backend: dict[str, list[float]] = field(default_factory=dict)

    def of(self, name: str) -> float:
        """Return seconds to trace, lower and compile all versions of one function."""
        return sum(sum(kind.get(name, ())) for kind in (self.trace, self.lower, self.backend))

    def count(self, name: str) -> int:
        """Return how often the backend compiled one function."""
        return len(self.backend.get(name, ()))

    @property
    def total(self) -> float:
        """Seconds to lower and compile, and to trace what was compiled at top level."""
        named = set(self.backend)
        return sum(self.of(name) for name in named)


@contextmanager
def watch_compilation() -> Iterator[Compilations]:
    """Record what JAX traces, lowers and compiles meanwhile.

    Yields
    ------
    Compilations
        Filled while the context is open.
    """
    seen = Compilations()
    kinds = {
        "/jax/core/compile/jaxpr_trace_duration": seen.trace,
        "/jax/core/compile/jaxpr_to_mlir_module_duration": seen.lower,
        "/jax/core/compile/backend_compile_duration": seen.backend,
    }

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event in kinds:
            name = str(kwargs.get("fun_name", "")).removeprefix("jit(").removesuffix(")")
            kinds[event].setdefault(name, []).append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)

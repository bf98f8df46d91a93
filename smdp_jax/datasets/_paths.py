"""Paths in one or several files, each read from where it lies."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.datasets._arrays import on_device
from smdp_jax.datasets._axes import Axes, find_axes, sample_axis
from smdp_jax.datasets._files import Arrays, ContentError, Variable, open_arrays
from smdp_jax.trajectories import Trajectories


@dataclass(frozen=True)
class Layout:
    """Names of the arrays of times, of states and of conditions, and how they are meant.

    ``groups``: prefixes of the names, one path or set of paths in each. ``ts`` may be the times
    themselves. ``one_more``: there may be a time too many. Without ``args_axes`` conditions are
    those of all samples; with 0, those without an axis of samples are repeated.
    """

    ts: Any
    xs: Any
    args: Any = None
    args_axes: int | None = None
    dims: Sequence[str] | None = None
    groups: tuple[str, ...] = ("",)
    one_more: bool = False
    repeat: bool = False


@dataclass(frozen=True)
class Part:
    """Some paths of one file: how many, and where in its arrays they are."""

    path: Path
    kind: str
    layout: Layout
    group: str
    count: int
    axes: tuple[Axes, ...]
    times: np.ndarray
    like: Any
    shared: Any

    def load(self, index: Sequence[int], dtype: Any) -> Trajectories:
        """Read some paths."""
        with open_arrays(self.path, self.kind) as arrays:
            layout, runs = self.layout, _runs(index)

            def states(name: str, axes: Axes) -> jax.Array:
                variable = _find(arrays, self.group + name, self.path)
                parts = [axes.read(variable, run, len(self.times)) for run in runs]
                return self._on_device(np.concatenate(parts), dtype, variable)

            names, tree = jax.tree.flatten(layout.xs)
            leaves = [states(n, a) for n, a in zip(names, self.axes, strict=True)]
            args = jax.tree.map(
                lambda name: self._conditions(arrays, name, runs, len(index), dtype), layout.args
            )
            times = self._on_device(self.times, dtype, f"the times of {self.path}")
            data = Trajectories(times, tree.unflatten(leaves), args, args_axes=layout.args_axes)
            try:
                data.check()
            except ValueError as error:
                raise ContentError(f"{self.path}: {error}") from error
        return data

    def _conditions(
        self, arrays: Arrays, name: str, runs: list[slice], count: int, dtype: Any
    ) -> jax.Array:
        variable = _find(arrays, self.group + name, self.path)
        axis = sample_axis(variable)
        if self.layout.args_axes is None:
            if axis is not None:
                raise ContentError(
                    f"{variable} has an axis of samples, {variable.dims}: pass args_axes=0"
                )
            return self._on_device(variable.read(), dtype, variable)
        if self.layout.repeat and axis is None:
            value = variable.read()
            return self._on_device(np.broadcast_to(value, (count, *value.shape)), dtype, variable)
        axis = axis or 0
        if len(variable.shape) == 0 or variable.shape[axis] != self.count:
            raise ContentError(
                f"args_axes=0: {variable} must have {self.count} entries like the states, got "
                f"shape {variable.shape}"
            )
        before = (slice(None),) * axis
        read = np.concatenate([variable.read((*before, run)) for run in runs], axis=axis)
        return self._on_device(np.moveaxis(read, axis, 0), dtype, variable)

    def _on_device(self, array: np.ndarray, dtype: Any, what: Any) -> jax.Array:
        try:
            return on_device(array, dtype, str(what))
        except ValueError as error:
            raise ContentError(str(error)) from None


def find_parts(path: Path, kind: str, arrays: Arrays, layout: Layout) -> list[Part]:
    """Find the paths of one open file."""
    parts = []
    for group in layout.groups:
        names = jax.tree.leaves(layout.xs)
        states = [_find(arrays, group + name, path) for name in names]
        stored = None if not isinstance(layout.ts, str) else _find(arrays, group + layout.ts, path)
        times = np.asarray(layout.ts) if stored is None else stored.read()
        _check_times(times, "ts" if stored is None else str(stored))
        if layout.one_more and not any(len(times) in v.shape for v in states):
            times, stored = times[:-1], None
        axes = [find_axes(v, stored, len(times), layout.dims) for v in states]
        counts = [a.count(v) for a, v in zip(axes, states, strict=True)]
        for variable, count in zip(states, counts, strict=True):
            if not variable.floating:
                raise ContentError(f"{variable} must be floating point, got {variable.dtype}")
            if count != counts[0]:
                raise ContentError(
                    f"{variable} must have leading axes (samples, times)="
                    f"{(counts[0], len(times))} like {states[0]}, got shape {variable.shape}"
                )
        like = [
            [n for i, n in enumerate(v.shape) if i not in (a.sample, a.time)]
            for v, a in zip(states, axes, strict=True)
        ]
        names = [] if layout.args_axes == 0 else jax.tree.leaves(layout.args)
        shared = [_digest(_find(arrays, group + name, path).read()) for name in names]
        if counts[0]:
            part = Part(path, kind, layout, group, counts[0], tuple(axes), times, like, shared)
            parts.append(part)
    if not parts:
        raise ContentError(f"{path} must hold at least one path, got none")
    return parts


def _check_times(times: np.ndarray, what: str) -> None:
    if times.ndim != 1 or len(times) < 2 or not np.issubdtype(times.dtype, np.floating):
        raise ContentError(
            f"{what} must be at least two times, floating point, got shape {times.shape} and "
            f"dtype {times.dtype}"
        )
    wrong = np.flatnonzero(~(np.diff(times) > 0))
    if wrong.size:
        i = int(wrong[0])
        raise ContentError(
            f"{what} must increase, got {times[i]} and then {times[i + 1]} at index {i + 1}"
        )


def _find(arrays: Arrays, name: str, path: Path) -> Variable:
    if name not in arrays:
        raise ContentError(f"{path} has no array {name!r}; it holds {sorted(arrays)}")
    return arrays[name]


def _runs(index: Sequence[int]) -> list[slice]:
    """Neighbours in an increasing sequence, to be read at once."""
    ends = [0, *(i + 1 for i, step in enumerate(np.diff(index)) if step != 1), len(index)]
    return [slice(index[a], index[b - 1] + 1) for a, b in itertools.pairwise(ends)]


@dataclass(frozen=True)
class Paths:
    """All paths of some files, as what a ``Stream`` takes its blocks from."""

    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        """How many paths there are."""
        return sum(part.count for part in self.parts)

    num_samples = count

    @property
    def identity(self) -> list[Any]:
        """What tells these files from others, without reading all of them."""
        files = {part.path: part.path.stat() for part in self.parts}
        stats = [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in files.items()]
        layouts = [[p.group, p.count, str(p.layout), _digest(p.times)] for p in self.parts]
        return [stats, layouts]

    def load(self, chosen: Sequence[int], dtype: Any) -> Trajectories:
        """Read paths by number, in increasing order of it."""
        first, blocks = 0, []
        for part in self.parts:
            own = sorted(i - first for i in chosen if first <= i < first + part.count)
            if own:
                blocks.append(part.load(own, dtype))
            first += part.count
        if len(blocks) == 1:
            return blocks[0]

        def join(name: str) -> Any:
            trees = [getattr(block, name) for block in blocks]
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)

        joined = replace(blocks[0], xs=join("xs"))
        return joined if joined.args_axes is None else replace(joined, args=join("args"))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def check_alike(parts: Sequence[Part]) -> None:
    """Check that all paths have the same times and states of the same shapes."""
    first = parts[0]
    for part in parts[1:]:
        where = f"{part.path}{f' in {part.group}' if part.group else ''}"
        if part.like != first.like:
            raise ContentError(
                f"{where} must have states of the shapes {first.like} like {first.path}, got "
                f"{part.like}"
            )
        if not np.array_equal(part.times, first.times):
            raise ContentError(
                f"{where} must have the times of {first.path}, {len(first.times)} in "
                f"[{first.times[0]:g}, {first.times[-1]:g}], got {len(part.times)} in "
                f"[{part.times[0]:g}, {part.times[-1]:g}]: cut all paths to the times they share"
            )
        if part.shared != first.shared:
            raise ContentError(
                f"{where} must have the conditions of {first.path}, which are said to hold for all "
                "samples (args_axes=None), got others"
            )

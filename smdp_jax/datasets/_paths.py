"""Paths in one or several files, each read from where it lies."""

import hashlib
import itertools
import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.datasets._arrays import ContentError, on_device
from smdp_jax.datasets._axes import Axes, find_axes, sample_axis
from smdp_jax.datasets._files import Arrays, Variable, open_arrays
from smdp_jax.trajectories import Trajectories


@dataclass(frozen=True)
class Layout:
    """Names of the arrays of times, of states and of conditions, and how they are meant.

    ``groups``: prefixes of the names, one set of paths in each. ``ts`` may be the times themselves,
    ``one_more``: one too many. ``args_axes``, ``mask``: as for ``from_npz``; ``repeat`` conditions
    that have no axis of samples.
    """

    ts: Any
    xs: Any
    args: Any = None
    args_axes: int | None = None
    dims: Any = None
    mask: Any = None
    groups: tuple[str, ...] = ("",)
    one_more: bool = False
    repeat: bool = False

    def __post_init__(self) -> None:
        """Refuse masks that are neither asked for nor named."""
        if not (self.mask is None or isinstance(self.mask, bool | str)):
            said = f"mask must be True or the name of an array, got a {type(self.mask).__name__}"
            raise ContentError(f"{said}: an array goes into dataclasses.replace(data, mask=...)")


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
    units: tuple[str, ...]
    kept: np.ndarray | None = None  # which of the file's first times ours are, if not all

    @property
    def stored(self) -> int:
        """How many of the file's times are read."""
        return len(self.times if self.kept is None else self.kept)

    def load(self, index: Sequence[int], dtype: Any, common: np.ndarray) -> Trajectories:
        """Read some paths, at the times that all have in common."""
        with open_arrays(self.path, self.kind) as arrays:
            layout, runs = self.layout, _runs(index)
            names, tree = jax.tree.flatten(layout.xs)
            found = [_find(arrays, self.group + name, self.path) for name in names]
            leaves = [
                on_device(self._at(v, a, runs, common), dtype, v)
                for v, a in zip(found, self.axes, strict=True)
            ]
            args = jax.tree.map(
                lambda name: self._conditions(arrays, name, runs, len(index), dtype), layout.args
            )
            mask = self._mask(arrays, leaves, runs, common) if layout.mask else None
            times = on_device(common, dtype, f"the times of {self.path}")
            xs = tree.unflatten(leaves)
            data = Trajectories(times, xs, args, args_axes=layout.args_axes, mask=mask)
            try:
                data.check(masked=True)
            except ValueError as error:
                gaps = mask is None and any(jnp.isnan(x).any() for x in leaves)
                hint = "; if NaN says that nobody looked, pass mask=True" if gaps else ""
                raise ContentError(f"{self.path}: {error}{hint}") from error
        return data

    def _at(self, variable: Variable, axes: Axes, runs: list[slice], common: Any) -> np.ndarray:
        """States of some paths at common times, NaN where this file has none."""
        whole: Any = None
        done = 0
        places = np.abs(common[:, None] - self.times).argmin(axis=0)
        for run in runs:  # straight to its place: blocks are what memory is for
            read = axes.read(variable, run, self.stored, missing=bool(self.layout.mask))
            read = read if self.kept is None else read[:, self.kept]
            if len(runs) == 1 and len(self.times) == len(common):
                return read
            if whole is None:
                rows, gaps = sum(r.stop - r.start for r in runs), len(self.times) < len(common)
                kind = np.result_type(read, np.float16) if gaps else read.dtype
                whole = np.empty((rows, len(common), *read.shape[2:]), kind)
                if gaps:
                    whole.fill(np.nan)
            whole[done : done + len(read), places] = read
            done += len(read)
        return whole

    def _mask(self, arrays: Arrays, states: list[Any], runs: list[slice], common: Any) -> Any:
        """Where a state was seen, (samples, times)."""
        if self.layout.mask is True:
            gaps = [jnp.isnan(x).reshape(*x.shape[:2], -1).any(axis=2) for x in states]
            return ~jnp.any(jnp.stack(gaps), axis=0)
        variable = _find(arrays, self.group + self.layout.mask, self.path)
        axes = find_axes(variable, None, self.stored, None)
        seen = self._at(variable, axes, runs, common)
        if seen.ndim != 2:
            shape = variable.shape
            raise ContentError(f"mask must be (samples, times), got {variable} of shape {shape}")
        return jnp.asarray(np.nan_to_num(seen) != 0)

    def _conditions(
        self, arrays: Arrays, name: str, runs: list[slice], count: int, dtype: Any
    ) -> jax.Array:
        variable = _find(arrays, self.group + name, self.path)
        axis = sample_axis(variable)
        if self.layout.args_axes is None:
            if axis is not None:
                dims = variable.dims
                raise ContentError(f"{variable} has an axis of samples, {dims}: pass args_axes=0")
            return on_device(variable.read(), dtype, variable)
        if self.layout.repeat and axis is None:
            value = variable.read()
            return on_device(np.broadcast_to(value, (count, *value.shape)), dtype, variable)
        axis = axis or 0
        if variable.shape[axis : axis + 1] != (self.count,):
            said = f"args_axes=0: {variable} must have {self.count} entries like the states"
            raise ContentError(f"{said}, got shape {variable.shape}")
        before = (slice(None),) * axis
        read = np.concatenate([variable.read((*before, run)) for run in runs], axis=axis)
        return on_device(np.moveaxis(read, axis, 0), dtype, variable)


def find_parts(path: Path, kind: str, arrays: Arrays, layout: Layout) -> list[Part]:
    """Find the paths of one open file."""
    parts = []
    for group in layout.groups:
        names = jax.tree.leaves(layout.xs)
        states = [_find(arrays, group + name, path) for name in names]
        stored = None if not isinstance(layout.ts, str) else _find(arrays, group + layout.ts, path)
        gaps, told = bool(layout.mask), "ts" if stored is None else str(stored)
        times = np.asarray(layout.ts) if stored is None else stored.read(missing=gaps)
        times = _as_times(times, told)
        units = tuple("" if v is None else _unit(v) for v in (stored, *states))
        if layout.one_more and all(v.shape[1:2] == (len(times) - 1,) for v in states):
            times, stored = times[:-1], None
        axes = [find_axes(v, stored, len(times), layout.dims) for v in states]
        kept = ~np.isnan(times) if gaps and np.isnan(times).any() else None
        times = times if kept is None else times[kept]
        _check_increasing(times, told)
        counts = [a.count(v) for a, v in zip(axes, states, strict=True)]
        for variable, count in zip(states, counts, strict=True):
            if not variable.floating:
                raise ContentError(f"{variable} must be floating point, got {variable.dtype}")
            if count != counts[0]:
                want = f"leading axes (samples, times)={(counts[0], len(times))} like {states[0]}"
                got = f"shape {variable.shape}: name what is state with xs="
                raise ContentError(f"{variable} must have {want}, got {got}")
        like = [
            [n for i, n in enumerate(v.shape) if i not in (a.sample, a.time)]
            for v, a in zip(states, axes, strict=True)
        ]
        names = [] if layout.args_axes == 0 else jax.tree.leaves(layout.args)
        shared = [_digest(_find(arrays, group + name, path).read()) for name in names]
        if counts[0]:
            where = (path, kind, layout, group, counts[0], tuple(axes))
            parts.append(Part(*where, times, like, shared, units, kept))
    if not parts:
        raise ContentError(f"{path} must hold at least one path, got none")
    return parts


def _unit(variable: Variable) -> str:
    """Unit as the file has it; where times begin to be counted does not matter."""
    return str(variable.attrs.get("units", "")).split(" since ")[0]


def _as_times(times: np.ndarray, what: str) -> np.ndarray:
    """Times as floating-point numbers; whole ones keep all their digits."""
    if times.ndim == 2 and len(times):
        same = np.broadcast_to(times[:1], times.shape)
        if np.array_equal(times, same, equal_nan=times.dtype.kind == "f"):
            times = times[0]  # told for every path, and always the same
    if times.ndim != 1 or len(times) < 2 or times.dtype.kind not in "iuf":
        got = f"shape {times.shape} and dtype {times.dtype}"
        raise ContentError(f"{what} must be at least two times, numbers, got {got}")
    if times.dtype.kind == "f":
        return times
    single = times.astype(np.float32)
    return single if (single == times).all() else times.astype(np.float64)


def _check_increasing(times: np.ndarray, what: str) -> None:
    for i in np.flatnonzero(~(np.diff(times) > 0)):
        got = f"{times[i]} and then {times[i + 1]} at index {i + 1}"
        raise ContentError(f"{what} must increase, got {got}: sort them, and the states alike")


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
    times: np.ndarray

    @property
    def count(self) -> int:
        """How many paths there are."""
        return sum(part.count for part in self.parts)

    num_samples = count

    @property
    def numbers(self) -> int:
        """How many numbers the states of one path are."""
        state = sum(math.prod(shape) for shape in self.parts[0].like)
        return len(self.times) * max(state, 1)

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
                blocks.append(part.load(own, dtype, self.times))
            first += part.count
        if len(blocks) == 1:
            return blocks[0]

        def join(name: str) -> Any:
            trees = [getattr(block, name) for block in blocks]
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)

        joined = replace(blocks[0], xs=join("xs"), mask=join("mask"))
        return joined if joined.args_axes is None else replace(joined, args=join("args"))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def joined_times(parts: Sequence[Part]) -> np.ndarray:
    """All times of paths that may have gaps; without a mask all have the same."""
    first = parts[0]
    if not first.layout.mask:
        return first.times
    times = np.unique(np.concatenate([part.times for part in parts]))
    return times[np.append(True, ~_same(times[1:], times[:-1]))]


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether times are equal but for rounding to single precision."""
    return np.abs(a - b) <= 5e-7 * np.maximum(np.abs(a), np.abs(b))


def check_alike(parts: Sequence[Part]) -> None:
    """Check that all paths have the same times and units, and states of the same shapes."""
    first = parts[0]
    for part in parts[1:]:
        where = f"{part.path}{f' in {part.group}' if part.group else ''}"
        pairs = zip(_alike(part, first), _alike(first, part), strict=True)
        for (what, remedy, found), (_, _, wanted) in pairs:
            if found != wanted:
                said = f"{where} must have the {what} of {first.path}"
                got = f"{reprlib.repr(wanted)}, got {reprlib.repr(found)}"
                raise ContentError(f"{said}, {got}{remedy}")


def _alike(part: Part, other: Part) -> list[tuple[str, str, Any]]:
    """What paths to be read as one must agree in, what to do where they do not, and its value."""
    told = len(part.times) == len(other.times) and _same(part.times, other.times).all()
    same_times = told or part.layout.mask
    name_them = ": name those that all have with xs= and args="
    shorter = ": cut all paths to the times they share, or pass mask=True"
    units = [a if b else "" for a, b in zip(part.units, other.units, strict=False)]
    return [
        ("states", name_them, part.layout.xs),
        ("conditions", name_them, part.layout.args),
        ("shapes of states", "", part.like),
        ("units", ": convert them first", units),
        ("times", shorter, [] if same_times else part.times.tolist()),
        ("conditions", ": args_axes=None says that all samples share them", part.shared),
    ]

"""Which axes of an array are the samples and the times: by name where axes have names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smdp_jax.datasets._arrays import ContentError
from smdp_jax.datasets._files import Variable

TIME = {"time", "times", "t", "ts", "timestep", "time_step", "step"}
SAMPLE = {
    "sample", "samples", "trajectory", "trajectories", "path", "paths", "run", "realization",
    "realisation", "member", "ensemble", "batch", "case", "simulation", "sim", "seed", "number",
}  # fmt: skip
_SPACE = {
    "x", "y", "z", "lat", "lon", "latitude", "longitude", "level", "depth", "height",
    "channel", "channels", "component", "components", "variable",
}  # fmt: skip


_NAME_THEM = ": name its axes with dims, such as dims=('sample', 'time', 'x')"


@dataclass(frozen=True)
class Axes:
    """Places of the samples' axis (None: the array is one path) and of the times'."""

    sample: int | None
    time: int

    def count(self, variable: Variable) -> int:
        """How many paths there are."""
        return 1 if self.sample is None else variable.shape[self.sample]

    def read(
        self, variable: Variable, part: slice, times: int, *, missing: bool = False
    ) -> np.ndarray:
        """Read some paths, (samples, times, *state)."""
        index = [slice(None)] * len(variable.shape)
        index[self.time] = slice(times)
        if self.sample is not None:
            index[self.sample] = part
        read = variable.read(tuple(index), missing=missing)
        if self.sample is None:
            return np.moveaxis(read, self.time, 0)[None][part]
        return np.moveaxis(read, (self.sample, self.time), (0, 1))


def find_axes(variable: Variable, times: Variable | None, count: int, dims: Any) -> Axes:
    """Find the axes of states at ``count`` times; ``dims`` are names that the user gave."""
    if isinstance(dims, Mapping):
        dims = dims.get(variable.name)
    names = tuple(dims) if dims is not None else variable.dims
    if dims is not None and len(dims) != (ndim := len(variable.shape)):
        raise ContentError(f"dims must name the {ndim} axes of {variable}, got {tuple(dims)}")
    if names is None:
        return _by_order(variable, count)
    own = times.dims[0] if times is not None and times.dims and dims is None else None
    time = names.index(own) if own in names else _only(variable, names, "time", TIME)
    if time is None:
        if set(names) & (SAMPLE | _SPACE):
            raise ContentError(f"{variable} must have an axis of times, got {names}{_NAME_THEM}")
        return _by_order(variable, count)
    if (size := variable.shape[time]) != count:
        raise ContentError(f"{variable} must have {count} times along {names[time]!r}, got {size}")
    others = ["" if i == time else name for i, name in enumerate(names)]
    sample = _only(variable, others, "sample", SAMPLE)
    if sample is None and time == 1:
        sample = 0
    elif sample is None and not {name.lower() for name in others} <= {"", *_SPACE}:
        raise ContentError(f"{variable} must name its axis of samples, got {names}{_NAME_THEM}")
    return Axes(sample, time)


def _by_order(variable: Variable, count: int) -> Axes:
    shape = variable.shape
    if shape[1:2] != (count,):
        hint = "; its first axis has that length: put one of samples before it"
        got = f"shape {shape}{hint if shape[:1] == (count,) else ''}"
        raise ContentError(
            f"{variable} must be (samples, times, *state) with {count} times, got {got}"
        )
    return Axes(0, 1)


def sample_axis(variable: Variable) -> int | None:
    """Place of the samples' axis of conditions by name, if it has one."""
    if variable.attrs.get("sample_varying", False):
        return 0
    return _only(variable, variable.dims or (), "sample", SAMPLE)


def _only(variable: Variable, names: Sequence[str], role: str, known: set[str]) -> int | None:
    found = [i for i, name in enumerate(names) if name.lower() in known]
    if len(found) > 1:
        got = [names[i] for i in found]
        raise ContentError(f"{variable} must have one axis of {role}s, got {got}{_NAME_THEM}")
    return found[0] if found else None

"""The layouts of public data sets, recognised by the names of their arrays.

PDEBench: ``tensor`` (samples, times, x), or one array per field, with ``t-coordinate``, which may
be one too long; or a group per seed with ``data`` (times, *grid, channels) and ``grid/t``.
The Well: ``t0_fields``, ``t1_fields``, ``t2_fields`` (components are the last axes),
``dimensions/time``, ``scalars``. Named axes (netCDF, xarray's Zarr): what has an axis of times is
state. Else ``ts`` and ``xs``, or the one array of a ``.npy`` file.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from smdp_jax.datasets._arrays import ContentError
from smdp_jax.datasets._axes import SAMPLE, TIME
from smdp_jax.datasets._files import Arrays, Variable
from smdp_jax.datasets._paths import Layout


def find_layout(arrays: Arrays, given: Mapping[str, Any]) -> Layout:
    """Recognise the layout of a file; what the user named goes before what is found."""
    named = {name: value for name, value in given.items() if value is not None}
    if "ts" in named and "xs" in named:
        return _with_conditions(Layout("", ""), named)
    mask = named.get("mask")
    arrays = {n: v for n, v in arrays.items() if not (isinstance(mask, str) and n == mask)}
    for recognise in (_the_well, _pdebench, _pdebench_seeds, _named_axes, _plain, _alone):
        found = recognise(arrays, named.get("ts"))
        if found is not None:
            return _with_conditions(found, named)
    shapes = {name: variable.shape for name, variable in list(arrays.items())[:20]}
    known = "PDEBench, The Well, named axes with time and sample, or 'ts' and 'xs'"
    how = "name them with ts= (or give the times themselves) and xs="
    raise ContentError(f"arrays must be in a layout that is known ({known}), got {shapes}: {how}")


def _with_conditions(layout: Layout, named: Mapping[str, Any]) -> Layout:
    own = {"args_axes": None, "repeat": False} if "args" in named else {}
    return dataclasses.replace(layout, **own | dict(named))


def _the_well(arrays: Arrays, ts: Any) -> Layout | None:
    fields = [name for name in arrays if re.fullmatch(r"t\d_fields/[^/]+", name)]
    if not fields:
        return None
    scalars = [name for name in arrays if re.fullmatch(r"scalars/[^/]+", name)]
    moves = {name: arrays[name].attrs.get("time_varying", name in fields) for name in arrays}
    xs = {name.split("/")[1]: name for name in fields if moves[name]}
    args = {name.split("/")[1]: name for name in fields + scalars if not moves[name]}
    return Layout("dimensions/time", xs, args or None, 0 if args else None, repeat=True)


def _pdebench(arrays: Arrays, ts: Any) -> Layout | None:
    if "t-coordinate" not in arrays:
        return None
    count = arrays["t-coordinate"].shape[0]
    xs = {n: n for n, v in arrays.items() if len(v.shape) > 2 and v.shape[1] in (count, count - 1)}
    states = "tensor" if list(xs) == ["tensor"] else xs
    return Layout("t-coordinate", states, one_more=True) if xs else None


def _pdebench_seeds(arrays: Arrays, ts: Any) -> Layout | None:
    groups = [name.removesuffix("data") for name in arrays if re.fullmatch(r"[^/]+/data", name)]
    groups = tuple(sorted(group for group in groups if f"{group}grid/t" in arrays))
    if not groups:
        return None
    axes = len(arrays[f"{groups[0]}data"].shape)
    dims = ("time", *"xyz"[: axes - 2], "channel")
    return Layout("grid/t", "data", dims=dims, groups=groups)


def _named_axes(arrays: Arrays, ts: Any) -> Layout | None:
    clocks = {n for n, v in arrays.items() if v.dims == (n.rsplit("/", 1)[-1],) and _is_clock(v)}
    timed = lambda dim: dim.lower() in TIME or dim in clocks
    with_time = {n: v for n, v in arrays.items() if v.dims and any(map(timed, v.dims))}
    times = [name for name, v in with_time.items() if v.dims == (name.rsplit("/", 1)[-1],)]
    edges = [v.attrs.get("bounds") for v in arrays.values()]  # of the cells of CF coordinates
    states = [
        n for n, v in with_time.items()
        if n not in (*times, *edges) and v.floating and len(v.shape) > 1
    ]  # fmt: skip
    if not states or (len(times) != 1 and ts is None):
        return None
    if len(times) > 1:
        raise ContentError(f"there must be one array of times, got {times}: name it with ts=")
    sampled = {n: v.dims for n, v in arrays.items() if SAMPLE & {d.lower() for d in v.dims or ()}}
    args = {n: n for n, dims in sampled.items() if n not in with_time and dims != (n,)}
    xs = states[0] if len(states) == 1 else {name: name for name in states}
    return Layout(times[0] if times else ts, xs, args or None, 0 if args else None, repeat=True)


def _is_clock(variable: Variable) -> bool:
    """Whether CF attributes say that these are times."""
    told = [str(variable.attrs.get(name, "")) for name in ("axis", "standard_name", "units")]
    return told[0] == "T" or told[1] == "time" or " since " in told[2]


def _plain(arrays: Arrays, ts: Any) -> Layout | None:
    return Layout("ts", "xs") if "xs" in arrays and ("ts" in arrays or ts is not None) else None


def _alone(arrays: Arrays, ts: Any) -> Layout | None:
    names = [name for name, variable in arrays.items() if len(variable.shape) > 2]
    return Layout(ts, names[0]) if len(names) == 1 and ts is not None else None

"""One Zarr group with trajectories in chunks of samples, each with a checksum once it is whole.

The layout is that of Zarr 3: one array per leaf, its axes named, with a unit; ``config`` and
``smdp_jax`` are attributes of the group, JSON as text. ``checksum[i]`` is 0 until all arrays of
chunk i are written, then the CRC-32 of their bytes plus one: a chunk that is missing reads as zeros
in Zarr, and only the checksum tells.
"""

import glob
import json
import os
import shutil
import uuid
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smdp_jax.datasets._arrays import installed
from smdp_jax.datasets._variables import CHECKSUM, leading_axes, name_axes, to_arrays
from smdp_jax.trajectories import Trajectories

_VERSION = 1


def create_store(
    path: Path,
    first: Trajectories,
    *,
    chunks: int,
    key: Sequence[Any],
    config: Mapping[str, Any],
    dims: Mapping[str, Sequence[str]],
    units: Mapping[str, str],
) -> None:
    """Make a dataset without chunks, whole or not at all."""
    zarr = installed("zarr")
    structure, arrays = to_arrays(first)
    axes, stacked = name_axes(structure, arrays, dims), _stacked(structure)
    if unknown := sorted(set(units) - set(arrays)):
        raise ValueError(f"units names {unknown}, but the arrays are {sorted(arrays)}")
    layout = {
        "version": _VERSION,
        "structure": structure,
        "chunks": chunks,
        "samples_per_chunk": first.num_samples,
        "shared": _checksum({n: a for n, a in arrays.items() if n not in stacked}),
        "key": key,
    }
    attributes = {"config": json.dumps(config), "smdp_jax": json.dumps(layout)}
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):  # of one that was stopped
        shutil.rmtree(left, ignore_errors=True)
    # A new name each time: zarr's threads may still write for a call that was interrupted.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    group = zarr.create_group(partial, zarr_format=3, attributes=attributes)

    def make(name: str, shape: tuple[int, ...], chunk: Any, axes: Sequence[str], dtype: Any) -> Any:
        options = {"dimension_names": axes, "attributes": {"units": _unit(name, units)}}
        return group.create_array(name, shape=shape, chunks=chunk, dtype=dtype, **options)

    for name, array in arrays.items():
        shape = (chunks * array.shape[0], *array.shape[1:]) if name in stacked else array.shape
        made = make(name, shape, array.shape if array.size else "auto", axes[name], array.dtype)
        if name not in stacked:
            made[...] = array
    make(CHECKSUM, (chunks,), (1,), ("chunk",), np.dtype(np.int64))
    with warnings.catch_warnings():
        # Zarr warns that its version 3 has yet to adopt what xarray opens fastest.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(partial)
    os.replace(partial, path)


@dataclass(frozen=True)
class Store:
    """An open dataset."""

    path: Path
    group: Any
    layout: Mapping[str, Any]
    config: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path, *, mode: str = "r") -> "Store":
        """Open a dataset."""
        zarr = installed("zarr")
        if not path.exists():
            raise FileNotFoundError(f"there is no dataset {path}")
        try:
            group = zarr.open_group(path, mode=mode)
            layout = json.loads(group.attrs["smdp_jax"])
            config = json.loads(group.attrs["config"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            said = f"{path} is no dataset of smdp_jax, or its metadata are damaged"
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{said} ({what}); use from_zarr for arrays of your own") from error
        if layout["version"] != _VERSION:
            got = layout["version"]
            raise ValueError(f"{path} has layout {got}, this version of smdp_jax reads {_VERSION}")
        return cls(path, group, layout, config)

    @property
    def chunks(self) -> int:
        """How many chunks the finished dataset has."""
        return self.layout["chunks"]

    @property
    def stacked(self) -> list[str]:
        """Names of the arrays with a sample axis."""
        return _stacked(self.layout["structure"])

    def written(self) -> list[int]:
        """Tell which chunks have been written."""
        return [index for index in range(self.chunks) if self.checksum(index)]

    def checksum(self, index: int) -> int:
        """Read the checksum of one chunk."""
        try:
            return int(self.group[CHECKSUM][index])
        except Exception:  # codecs raise many kinds for damaged files
            return 0

    def write(self, index: int, chunk: Trajectories) -> None:
        """Write one chunk; it counts only once all of it is on disk."""
        structure, arrays = to_arrays(chunk)
        stacked = self.stacked
        if structure != self.layout["structure"]:
            raise ValueError(f"chunk {index} has another tree than {self.path}")
        for name in stacked:
            want, got = self.group[name], arrays[name]
            if (want.chunks, want.dtype) != (got.shape, got.dtype):
                has = f"chunk {index} has {name!r} of shape {got.shape} and dtype {got.dtype}"
                raise ValueError(f"{has}, {self.path} has {want.chunks} and {want.dtype}")
        shared = {name: array for name, array in arrays.items() if name not in stacked}
        if _checksum(shared) != self.layout["shared"]:
            has = "other times, or other conditions that all samples share"
            raise ValueError(f"chunk {index} has {has}, than {self.path}")
        own = {name: arrays[name] for name in stacked}
        count = self.layout["samples_per_chunk"]
        for name, array in own.items():
            self.group[name][index * count : (index + 1) * count] = array
        self.group[CHECKSUM][index] = _checksum(own)

    def another(self, said: str) -> ValueError:
        """What is raised where other data are asked for than lie here."""
        remedy = "use another path, or remove this one"
        return ValueError(f"{self.path} is another dataset: {said}; {remedy}")

    def check_same(
        self,
        index: int,
        chunk: Trajectories,
        dims: Mapping[str, Sequence[str]],
        units: Mapping[str, str],
    ) -> None:
        """Check that a chunk, computed again, is the one that is there, with the same names."""
        structure, arrays = to_arrays(chunk)
        there = self.read(index) | self.shared()
        if structure != self.layout["structure"] or _checksum(arrays) != _checksum(there):
            was = f"chunk {index} of generate was {_difference(there, arrays)}"
            why = "another generate, or another version of JAX or another device"
            raise self.another(f"{was} ({why})")
        for name, axes in name_axes(structure, arrays, dims).items():
            found = self.group[name]
            was = (found.metadata.dimension_names, found.attrs["units"])
            if (now := (tuple(axes), _unit(name, units))) != was:
                raise self.another(f"axes and unit of {name!r} were {was}, now {now}")

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Read one chunk."""
        count = self.layout["samples_per_chunk"]
        part = slice(index * count, (index + 1) * count)
        remedy = "write it again with the same arguments, which computes this chunk anew"
        try:
            arrays = {name: self.group[name][part] for name in self.stacked}
        except Exception as error:  # codecs raise many kinds for damaged files
            said = f"chunk {index} of {self.path} cannot be read"
            raise ValueError(f"{said} ({type(error).__name__}: {error}); {remedy}") from error
        if _checksum(arrays) != self.checksum(index):
            said = f"chunk {index} of {self.path} is not what was written"
            raise ValueError(f"{said}: files were cut short, lost or changed; {remedy}")
        return arrays

    def shared(self) -> dict[str, np.ndarray]:
        """Read the times, and the conditions that all samples share."""
        structure = self.layout["structure"]
        names = set(leading_axes(structure)) - set(_stacked(structure))
        problem = (
            f"the times or shared conditions of {self.path} are not what was written: the dataset "
            "has to be written again, elsewhere"
        )
        try:
            arrays = {name: np.asarray(self.group[name][...]) for name in names}
        except Exception as error:  # codecs raise many kinds for damaged files
            raise ValueError(f"{problem} ({type(error).__name__}: {error})") from error
        if _checksum(arrays) != self.layout["shared"]:
            raise ValueError(problem)
        return arrays


def _stacked(structure: Mapping[str, Any]) -> list[str]:
    """Names of the arrays with a sample axis."""
    axes = leading_axes(structure)
    return sorted(name for name in axes if axes[name][:1] == ("sample",))


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).data, crc)
    return crc + 1


def _difference(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> str:
    if (names := (sorted(old), sorted(new)))[0] != names[1]:
        return f"of the arrays {names[0]}, now {names[1]}"
    for name in old:
        a, b = old[name], new[name]
        if (was := (a.shape, a.dtype)) != (now := (b.shape, b.dtype)):
            return f"{name!r} of shape {was[0]} and dtype {was[1]}, now {now[0]} and {now[1]}"
        if not np.array_equal(a, b):
            gap = np.abs(a.astype(float) - b.astype(float)).max()
            return f"another {name!r}, now off by up to {gap:.3g}"
    return "of another tree"


def _unit(name: str, units: Mapping[str, str]) -> str:
    state = units.get(name.removeprefix("score."), "1")
    if not name.startswith("score.") or name in units:
        return units.get(name, "1")
    return "1" if state == "1" else f"1 / ({state})"

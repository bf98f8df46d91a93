"""Trajectories from files of a user's own: ``.npz``, HDF5 and Zarr."""

import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from smdp_jax.datasets._arrays import on_device
from smdp_jax.datasets._optional import require
from smdp_jax.trajectories import Trajectories

__all__ = ["from_hdf5", "from_npz", "from_zarr"]


def from_npz(
    path: str | Path,
    *,
    ts: str = "ts",
    xs: Any = "xs",
    args: Any = None,
    args_axes: int | None = None,
    dtype: Any = None,
) -> Trajectories:
    """Read trajectories from a numpy archive.

    Parameters
    ----------
    path : path
        The ``.npz`` file.
    ts : str
        Name of the array of times, (times,), increasing.
    xs : str or pytree of str
        Names of the arrays of states, (samples, times, *state), in the tree that the state is to
        have, such as ``{"marker": "smoke", "velocity": "u"}``.
    args : str or pytree of str, optional
        Names of the arrays of conditions.
    args_axes : int or None
        None: the conditions hold for all samples; 0: their leading axis is the sample.
    dtype : floating dtype, optional
        Cast floating-point arrays to it, as float64 files need it where JAX computes in float32.

    Returns
    -------
    Trajectories
        In memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If an array is missing or has another shape than it should, if times do not increase, if a
        state is not finite or not floating point, or if the file is damaged.
    """
    # Opened here: np.load leaves the file open where it is no archive.
    with _damage_named(path, "numpy archive"), Path(path).open("rb") as raw:
        file = np.load(raw, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array alone, not an archive of several")
        arrays = _Arrays(path, file.files, file.__getitem__, dtype)
        return _assemble(arrays, ts, xs, args, args_axes)


def from_hdf5(
    path: str | Path,
    *,
    ts: str = "ts",
    xs: Any = "xs",
    args: Any = None,
    args_axes: int | None = None,
    dtype: Any = None,
) -> Trajectories:
    """Read trajectories from an HDF5 file.

    Parameters
    ----------
    path : path
        The file.
    ts, xs, args : str or pytree of str
        Names as for ``from_npz``, with groups: ``"run/u"``.
    args_axes, dtype
        As for ``from_npz``.

    Returns
    -------
    Trajectories
        In memory.

    Raises
    ------
    ImportError
        If h5py is not installed.
    FileNotFoundError
        If there is no such file.
    ValueError
        As ``from_npz``.
    """
    h5py = require("h5py")
    with _damage_named(path, "HDF5 file"), h5py.File(path, "r") as file:
        names: list[str] = []
        file.visititems(lambda n, item: names.append(n) if isinstance(item, h5py.Dataset) else None)
        arrays = _Arrays(path, names, lambda name: file[name][...], dtype)
        return _assemble(arrays, ts, xs, args, args_axes)


def from_zarr(
    path: str | Path,
    *,
    ts: str = "ts",
    xs: Any = "xs",
    args: Any = None,
    args_axes: int | None = None,
    dtype: Any = None,
) -> Trajectories:
    """Read trajectories from a Zarr group of your own, of version 2 or 3.

    For what ``write`` wrote there is ``open_trajectories``, which notices lost chunks; here they
    read as the array's fill value.

    Parameters
    ----------
    path : path
        Folder of the group.
    ts, xs, args : str or pytree of str
        Names as for ``from_npz``, with groups: ``"run/u"``.
    args_axes, dtype
        As for ``from_npz``.

    Returns
    -------
    Trajectories
        In memory.

    Raises
    ------
    ImportError
        If zarr is not installed.
    FileNotFoundError
        If there is no such folder.
    ValueError
        As ``from_npz``.
    """
    zarr = require("zarr")
    with _damage_named(path, "Zarr group"):
        group = zarr.open_group(path, mode="r")
        members = group.members(max_depth=None)
        names = [name for name, member in members if isinstance(member, zarr.Array)]
        arrays = _Arrays(path, names, lambda name: group[name][...], dtype)
        return _assemble(arrays, ts, xs, args, args_axes)


class _ContentError(ValueError):
    """What is wrong with the content of a file that can be read."""


@contextmanager
def _damage_named(path: str | Path, kind: str) -> Iterator[None]:
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no {kind} {path}")
    try:
        yield
    except _ContentError:
        raise
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or no {kind}: {error}") from error


class _Arrays:
    """The arrays of one file by name, with messages that say what is there."""

    def __init__(
        self,
        path: str | Path,
        names: Collection[str],
        read: Callable[[str], np.ndarray],
        dtype: Any,
    ) -> None:
        self.path, self.names, self._read, self._dtype = path, sorted(names), read, dtype

    def __call__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise _ContentError(f"{self.path} has no array {name!r}; it holds {self.names}")
        return np.asarray(self._read(name))

    def on_device(self, name: str, array: np.ndarray) -> jax.Array:
        try:
            return on_device(array, self._dtype, f"{name!r} of {self.path}")
        except ValueError as error:
            raise _ContentError(str(error)) from None

    def times(self, name: str) -> jax.Array:
        array = self(name)
        if array.ndim != 1 or len(array) < 2 or not np.issubdtype(array.dtype, np.floating):
            raise _ContentError(
                f"{name!r} of {self.path} must be at least two times, floating point, got shape "
                f"{array.shape} and dtype {array.dtype}"
            )
        wrong = np.flatnonzero(~(np.diff(array) > 0))
        if wrong.size:
            i = int(wrong[0])
            raise _ContentError(
                f"{name!r} of {self.path} must increase, got {array[i]} and then {array[i + 1]} at "
                f"index {i + 1}"
            )
        return self.on_device(name, array)

    def states(self, name: str, times: int) -> jax.Array:
        array = self(name)
        if array.ndim < 2 or array.shape[1] != times:
            first = array.ndim > 0 and array.shape[0] == times
            hint = "; its first axis has that length: put one of samples before it" if first else ""
            raise _ContentError(
                f"{name!r} of {self.path} must be (samples, times, *state) with {times} times, got "
                f"shape {array.shape}{hint}"
            )
        if not np.issubdtype(array.dtype, np.floating):
            raise _ContentError(
                f"{name!r} of {self.path} must be floating point, got {array.dtype}"
            )
        return self.on_device(name, array)


def _assemble(arrays: _Arrays, ts: str, xs: Any, args: Any, args_axes: int | None) -> Trajectories:
    times = arrays.times(ts)
    data = Trajectories(
        times,
        jax.tree.map(lambda name: arrays.states(name, times.shape[0]), xs),
        jax.tree.map(lambda name: arrays.on_device(name, arrays(name)), args),
        args_axes=args_axes,
    )
    try:
        data.check()
    except ValueError as error:
        raise _ContentError(f"{arrays.path}: {error}") from error
    return data

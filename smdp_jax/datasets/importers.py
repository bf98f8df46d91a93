"""Trajectories from files of a user's own: ``.npz``, HDF5, netCDF and Zarr, and public layouts."""

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

from smdp_jax.checks import check_positive
from smdp_jax.datasets._files import Arrays, find_files, kind_of, open_arrays
from smdp_jax.datasets._layouts import find_layout
from smdp_jax.datasets._paths import Layout, Paths, check_alike, find_parts, joined_times
from smdp_jax.datasets.reading import Stream
from smdp_jax.trajectories import Trajectories

_BLOCK = 2**23  # numbers of a block of paths: 32 MiB in single precision


class Options(TypedDict, total=False):
    """What all importers take by name."""

    ts: Any
    xs: Any
    args: Any
    args_axes: int | None
    dims: Any
    mask: Any
    dtype: Any


def from_npz(path: Any, **options: Unpack[Options]) -> Trajectories:
    """Read trajectories from numpy archives.

    Parameters
    ----------
    path : path, pattern or list of paths
        The files, such as ``"runs/*.npz"``; their samples one after the other. ``~`` is the home.
    **options
        All importers take the same, by name:

        - ``ts="ts"``: name of the array of times, (times,), increasing, or the times themselves.
        - ``xs="xs"``: name of the array of states, or a tree of names, such as
          ``{"marker": "smoke", "velocity": "run/u"}``: the state gets that tree.
        - ``args=None``: name, or tree of names, of arrays of conditions.
        - ``args_axes=None``: the conditions hold for all samples; 0: one entry per sample.
        - ``dims=None``: names of the states' axes in their order, such as ``("time", "sample",
          "x")``, or a dict of these by array. Without, those of the file; where it has none, states
          are (samples, times, *state).
        - ``mask=None``: every state is there. True: paths may end early, begin late or have gaps;
          files may have times of their own, and states that are NaN or marked as missing count as
          not seen. Or an array (samples, times), true where one was, by name.
        - ``dtype=None``: floating dtype to cast to, as float64 files need it where JAX computes in
          float32. Whole numbers that fit into 32 bits are kept as they are.

        The CF attributes ``scale_factor``, ``add_offset``, ``_FillValue``, ``missing_value`` and
        the valid range are heeded, as xarray does; values marked as missing are refused.

    Returns
    -------
    Trajectories
        In memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If an array is missing or has another shape than it should, if an axis cannot be told, if
        times do not increase, if a state is not finite or not floating point, if files differ in
        their times or units, or if one is damaged.
    """
    return _read(path, "npz", **options)


def from_hdf5(path: Any, **options: Unpack[Options]) -> Trajectories:
    """Read trajectories from HDF5 files, behind links of all kinds too.

    Parameters
    ----------
    path, **options
        As for ``from_npz``; names with groups, ``"run/u"``. Names of axes are labels of dimensions
        or attached scales.

    Returns
    -------
    Trajectories
        In memory.
    """
    return _read(path, "hdf5", **options)


def from_netcdf(path: Any, **options: Unpack[Options]) -> Trajectories:
    """Read trajectories from netCDF files, version 3 or 4.

    Parameters
    ----------
    path, **options
        As for ``from_npz``. Times are numbers, in the file's unit.

    Returns
    -------
    Trajectories
        In memory.
    """
    return _read(path, "netcdf", **options)


def from_zarr(path: Any, **options: Unpack[Options]) -> Trajectories:
    """Read trajectories from Zarr groups of your own, of version 2 or 3.

    For what ``write`` wrote there is ``open_trajectories``, which notices lost chunks; here they
    read as the array's fill value.

    Parameters
    ----------
    path, **options
        As for ``from_npz``; a path is a folder.

    Returns
    -------
    Trajectories
        In memory.
    """
    return _read(path, "zarr", **options)


def open_foreign(
    path: Any,
    *,
    ts: Any = None,
    xs: Any = None,
    args: Any = None,
    args_axes: int | None = None,
    dims: Any = None,
    mask: Any = None,
    paths_per_block: int | None = None,
    dtype: Any = None,
) -> Stream:
    """Open other people's files where they lie, for training or to be read into memory.

    Layouts that are recognised: PDEBench (``tensor`` or fields beside ``t-coordinate``, groups per
    seed), The Well, netCDF, HDF5 and Zarr with named axes, ``ts`` and ``xs``, and one array of
    (samples, times, channels, x) as exponax and APEBench make them. All but ``.npz`` are read in
    parts. ``open_foreign("1D_Burgers.hdf5", dtype="float32").load()`` gives ``Trajectories``.

    Parameters
    ----------
    path : path, pattern or list of paths
        One or several files, also of different numbers of paths.
    ts, xs, args, args_axes, dims, mask : optional
        As for ``from_npz``, before what is recognised. Where conditions are recognised, every path
        has its own.
    paths_per_block : int, optional
        How many paths are in memory for one epoch of ``fit``; default 64, or what 32 MiB hold.
    dtype : floating dtype, optional
        As for ``from_npz``.

    Returns
    -------
    Stream
        To be given to ``fit``; ``.load()`` reads all of it.

    Raises
    ------
    ImportError, FileNotFoundError
        If a package that reads such files is missing; if there is no such file.
    ValueError
        If the layout is unknown, if an axis has two candidates or none, if files differ in times or
        shapes, if there are fewer paths than make a block, and as ``from_npz``.
    """
    if paths_per_block is not None:
        (paths_per_block,) = check_positive(paths_per_block=paths_per_block)
    given = {"ts": ts, "xs": xs, "args": args, "args_axes": args_axes, "dims": dims, "mask": mask}
    found = _paths(path, None, lambda arrays: find_layout(arrays, given))
    most = paths_per_block or min(64, max(1, _BLOCK // found.numbers))
    return Stream(found, min(most, found.count), dtype)


def _read(
    path: Any, kind: str, *, ts: Any = "ts", xs: Any = "xs", dtype: Any = None, **given: Any
) -> Trajectories:
    layout = Layout(ts, xs, **given)
    found = _paths(path, kind, lambda arrays: layout)
    return found.load(range(found.count), dtype)


def _paths(path: Any, kind: str | None, layout_of: Callable[[Arrays], Layout]) -> Paths:
    """All paths of some files, of one kind or each of its own."""
    parts = []
    for file in find_files(path):
        own = kind or kind_of(file)
        with open_arrays(file, own) as arrays:
            parts += find_parts(file, own, arrays, layout_of(arrays))
    check_alike(parts)
    return Paths(tuple(parts), joined_times(parts))

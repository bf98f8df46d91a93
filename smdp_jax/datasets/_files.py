"""Arrays in files of other people's, by name, read in parts and decoded as CF attributes say."""

import contextlib
import glob
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smdp_jax.checks import check_holds
from smdp_jax.datasets._arrays import ContentError, installed
from smdp_jax.files import local_path, read_archive

# What xarray's decoder of CF conventions acts on, times apart.
_CF = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned", "dtype")
_VALID = ("valid_range", "valid_min", "valid_max")


@dataclass(frozen=True)
class Variable:
    """One array of a file: its axes by name, where they have names, and how parts are read."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    raw: Callable[[Any], Any]
    dims: tuple[str, ...] | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Name and file, as messages have them."""
        return f"{self.name!r} of {self.path}"

    @property
    def floating(self) -> bool:
        """Whether it is floating point once it is decoded."""
        packed = "scale_factor" in self.attrs or "add_offset" in self.attrs
        return packed or np.issubdtype(self.dtype, np.floating)

    def read(self, index: Any = ..., *, missing: bool = False) -> np.ndarray:
        """Read and decode a part; values that are marked as missing are NaN, or refused."""
        array = np.asarray(self.raw(index))
        given = {name: self.attrs[name] for name in _CF if name in self.attrs}
        bounds = [self.attrs[name] for name in _VALID if name in self.attrs]
        if not given and not bounds:
            return array
        outside = np.zeros(array.shape, bool)
        if bounds:
            low, high = self.attrs.get("valid_range", (None, None))
            low, high = self.attrs.get("valid_min", low), self.attrs.get("valid_max", high)
            outside |= False if low is None else array < low
            outside |= False if high is None else array > high
        decoded = _decoded(self.name, array, given)
        marked = outside | (np.isnan(decoded) if decoded.dtype.kind == "f" else False)
        if not marked.any():
            return decoded
        if missing and decoded.dtype.kind == "f":
            return np.where(marked, decoded.dtype.type(np.nan), decoded)
        said = f"{self} must have no missing values, got {int(marked.sum())} of {marked.size}"
        how = "leave those paths out, or pass mask=True for states that were not seen at all times"
        raise ContentError(f"{said} that are its fill value or outside its valid range: {how}")


def _decoded(name: str, array: np.ndarray, attributes: Mapping[str, Any]) -> np.ndarray:
    xarray = installed("xarray")
    variable = xarray.Variable([f"axis{i}" for i in range(array.ndim)], array, dict(attributes))
    decode = xarray.conventions.decode_cf_variable
    return decode(name, variable, decode_times=False).to_numpy()


Arrays = Mapping[str, Variable]


@contextlib.contextmanager
def open_arrays(path: Path, kind: str) -> Iterator[Arrays]:
    """Open a file as its arrays by name; what cannot be read is a sentence."""
    opener, noun = _KINDS[kind]
    if kind in _NEEDED:
        installed(_NEEDED[kind])
    if not path.exists():
        raise FileNotFoundError(f"there is no {noun} {path}")
    try:
        with opener(path) as arrays:
            yield arrays
    except (ContentError, ImportError):
        raise
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged or no {noun}: {error}") from error


_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, struct.error)


def kind_of(path: Path) -> str:
    """Tell what kind of file something is by how it begins."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.is_dir():
        return "zarr"
    with path.open("rb") as file:
        start = file.read(8)
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    kinds = "an HDF5 or netCDF file, a Zarr folder, .npz or .npy"
    raise ValueError(f"{path} must be {kinds}, got a file that begins with {start!r}")


def find_files(paths: Any) -> list[Path]:
    """Files of one path, of a pattern such as ``runs/*.h5`` (in order of names), or of a list."""
    if isinstance(paths, Sequence) and not isinstance(paths, str):
        found = [file for path in paths for file in find_files(path)]
        check_holds("paths", len(found), 1, "file")
        return found
    path = local_path(paths)
    if path.exists() or not glob.has_magic(os.fspath(path)):
        return [path]
    found = sorted(map(Path, glob.glob(os.fspath(path), recursive=True)))
    if not found:
        raise FileNotFoundError(f"there is no file like {path}")
    return found


@contextlib.contextmanager
def _npz(path: Path) -> Iterator[Arrays]:
    yield {n: _in_memory(n, path, array) for n, array in read_archive(path).items()}


@contextlib.contextmanager
def _npy(path: Path) -> Iterator[Arrays]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    yield {path.stem: _in_memory(path.stem, path, array)}


def _in_memory(name: str, path: Path, array: np.ndarray) -> Variable:
    return Variable(name, path, array.shape, array.dtype, array.__getitem__)


@contextlib.contextmanager
def _hdf5(path: Path) -> Iterator[Arrays]:
    h5py = installed("h5py")
    with h5py.File(path, "r") as file:
        arrays = {}
        for name, item in _walk(h5py, file, (file.id,)):
            if item is None:
                gone = f"{name} (a link to what is not there)"
                arrays[gone] = Variable(gone, path, (), np.dtype(object), np.asarray)
            elif isinstance(item, h5py.Dataset) and item.shape is not None:
                arrays[name] = _hdf5_variable(name, path, item)
        yield arrays


def _hdf5_variable(name: str, path: Path, item: Any) -> Variable:
    labels = tuple(_label(axis) for axis in item.dims)
    if item.is_scale and len(item.shape) == 1 and not any(labels):
        labels = (name.rsplit("/", 1)[-1],)  # a coordinate of netCDF-4 is its own axis
    attrs = {key: _plain(item.attrs[key]) for key in _KEPT if key in item.attrs}
    named = labels if any(labels) else None
    return Variable(name, path, item.shape, item.dtype, item.__getitem__, named, attrs)


_KEPT = (*_CF, *_VALID, "units", "bounds", "axis", "standard_name")
_KEPT += ("sample_varying", "time_varying")  # The Well's


def _walk(h5py: Any, group: Any, above: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """All members by path, behind hard, soft and external links too; circles are left out."""
    for name in group:
        item: Any = None
        with contextlib.suppress(KeyError, OSError):
            item = group[name]
        if not isinstance(item, h5py.Group):
            yield name, item
        elif item.id not in above:
            for inner, member in _walk(h5py, item, (*above, item.id)):
                yield f"{name}/{inner}", member


def _label(axis: Any) -> str:
    """Name of one axis of an HDF5 array: its label, or the scale that is attached to it."""
    return axis.label or (axis[0].name.rsplit("/", 1)[-1] if len(axis) else "")


def _plain(value: Any) -> Any:
    """Attribute as xarray expects it: HDF5 and netCDF-4 keep numbers as arrays of one."""
    value = value.decode() if isinstance(value, bytes) else value
    return value.reshape(())[()] if isinstance(value, np.ndarray) and value.size == 1 else value


@contextlib.contextmanager
def _zarr(path: Path) -> Iterator[Arrays]:
    zarr = installed("zarr")
    members = zarr.open_group(path, mode="r").members(max_depth=None)
    found = [(name, item) for name, item in members if isinstance(item, zarr.Array)]
    yield {name: _zarr_variable(name, path, item) for name, item in found}


def _zarr_variable(name: str, path: Path, item: Any) -> Variable:
    attrs = dict(item.attrs)
    dims = getattr(item.metadata, "dimension_names", None) or attrs.pop("_ARRAY_DIMENSIONS", None)
    if item.metadata.zarr_format == 2 and dims and item.fill_value is not None:
        attrs["_FillValue"] = item.fill_value  # where xarray keeps it in version 2
    elif isinstance(attrs.get("_FillValue"), str):
        coder = installed("xarray.backends.zarr").FillValueCoder
        attrs["_FillValue"] = coder.decode(attrs["_FillValue"], item.dtype)
    named = tuple(dim or "" for dim in dims) if dims else None
    return Variable(name, path, item.shape, item.dtype, item.__getitem__, named, attrs)


@contextlib.contextmanager
def _netcdf(path: Path) -> Iterator[Arrays]:
    """NetCDF-3 through xarray; version 4 is HDF5 with named axes."""
    if kind_of(path) == "hdf5":
        with _hdf5(path) as arrays:
            yield arrays
        return
    xarray = installed("xarray")
    with xarray.open_dataset(path, engine="scipy", decode_cf=False) as data:
        arrays = {}
        for name, v in data.variables.items():
            read = lambda index, v=v: v[index].to_numpy()
            arrays[str(name)] = Variable(str(name), path, v.shape, v.dtype, read, v.dims, v.attrs)
        yield arrays


_KINDS = {
    "npz": (_npz, "numpy archive"),
    "npy": (_npy, "numpy array"),
    "hdf5": (_hdf5, "HDF5 file"),
    "zarr": (_zarr, "Zarr group"),
    "netcdf": (_netcdf, "netCDF file"),
}
_NEEDED = {"hdf5": "h5py", "zarr": "zarr"}
_MAGIC = {b"\x89HDF": "hdf5", b"CDF": "netcdf", b"PK": "npz", b"\x93NUMPY": "npy"}

"""What files say of their arrays: units, counted times, edges of cells, names of axes."""

import h5py
import numpy as np
import pytest
import xarray

from tests.datasets.foreign import TS, U, read

RANDOM = np.random.default_rng(1)


def written(path, units, since="2001-01-01", **more):
    times = ("time", np.arange(6), {"units": f"hours since {since}"})
    u = (("number", "time", "longitude"), U, {"units": units})
    xarray.Dataset({"u": u, "time": times, **more}).to_netcdf(path, engine="scipy")


def test_units_of_files_agree(tmp_path):
    for name, since in (("a", "2001-01-01"), ("b", "2002-06-30 12:00")):
        written(tmp_path / f"{name}.nc", "m s-1", since)
    data = read(f"{tmp_path}/*.nc")
    np.testing.assert_array_equal(data.xs, np.concatenate([U, U]))
    np.testing.assert_array_equal(data.ts, np.arange(6))
    written(tmp_path / "c.nc", "km s-1")
    with pytest.raises(ValueError, match=r"c.nc must have the units of .* got .*'km s-1'"):
        read(f"{tmp_path}/*.nc")


def test_files_hold_the_same_arrays(tmp_path):
    written(tmp_path / "a.nc", "1", kind=("number", np.arange(3)))
    written(tmp_path / "b.nc", "1")
    with pytest.raises(ValueError, match=r"b.nc must have the conditions of .*'kind'.*, got None:"):
        read(f"{tmp_path}/*.nc")
    assert read(f"{tmp_path}/*.nc", ts="time", xs="u").num_samples == 6
    written(tmp_path / "b.nc", "1", v=(("number", "time"), U[:, :, 0]))
    with pytest.raises(ValueError, match=r"b.nc must have the states of .*a.nc, 'u', got {'u'"):
        read(f"{tmp_path}/*.nc")


def test_edges_and_labels(tmp_path):
    """Bounds of the times are no state; whole numbers per path are conditions."""
    path = tmp_path / "a.nc"
    edges = np.stack([np.arange(6.0), np.arange(6.0) + 1], axis=1)
    time = ("time", np.arange(6.0) + 0.5, {"bounds": "time_bnds"})
    kind = ("number", np.array([4, -1, 2]))
    written(path, "1", time_bnds=(("time", "nv"), edges), kind=kind)
    with xarray.open_dataset(path, engine="scipy", decode_times=False) as data:
        again = data.load().assign(time=time)
    again.to_netcdf(path, engine="scipy")
    data = read(path)
    np.testing.assert_array_equal(data.xs, U)
    assert set(data.args) == {"kind"}
    assert data.args["kind"].dtype.kind == "i"
    np.testing.assert_array_equal(data.args["kind"], [4, -1, 2])


def test_names_of_axes_by_array(tmp_path):
    arrays = {"u": np.moveaxis(U, 0, 1), "total": U.sum(axis=2)}
    np.savez(tmp_path / "a.npz", times=TS, **arrays)
    dims = {"u": ("time", "sample", "x")}
    data = read(tmp_path / "a.npz", ts="times", xs={"u": "u", "total": "total"}, dims=dims)
    np.testing.assert_array_equal(data.xs["u"], U)
    np.testing.assert_array_equal(data.xs["total"], arrays["total"])


def test_times_of_every_path_and_times_by_hand(tmp_path):
    """As the incompressible flows of PDEBench have them: one row of times for each path."""
    force = RANDOM.normal(size=(3, 8)).astype("float32")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["velocity"], file["force"], file["t"] = U, force, np.tile(TS, (3, 1))
    for ts in ("t", TS, TS.tolist()):
        data = read(tmp_path / "a.h5", ts=ts, xs="velocity", args="force", args_axes=0)
        np.testing.assert_array_equal(data.xs, U)
        np.testing.assert_array_equal(data.ts, TS)
        np.testing.assert_array_equal(data.args, force)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["t"][1] *= 2
    with pytest.raises(ValueError, match=r"'t' of .* at least two times, numbers, got shape"):
        read(tmp_path / "a.h5", ts="t", xs="velocity")


@pytest.mark.parametrize(
    "told", [{"axis": "T"}, {"standard_name": "time"}, {"units": "days since 1999-12-31"}]
)
def test_times_by_what_cf_says_of_them(tmp_path, told):
    variables = {"u": (("sample", "leadtime", "x"), U), "leadtime": ("leadtime", TS, told)}
    xarray.Dataset(variables).to_netcdf(tmp_path / "a.nc", engine="scipy")
    data = read(tmp_path / "a.nc")
    np.testing.assert_array_equal(data.xs, U)
    np.testing.assert_array_equal(data.ts, TS)


def test_what_all_paths_share_is_no_state(tmp_path):
    variables = {"u": (("time", "sample", "x"), np.moveaxis(U, 0, 1)), "time": ("time", TS)}
    data = xarray.Dataset(variables | {"forcing": (("time", "x"), U[0])})
    data.to_netcdf(tmp_path / "a.nc", engine="scipy")
    with pytest.raises(ValueError, match=r"must have leading axes .*: name what is state with xs="):
        read(tmp_path / "a.nc")
    np.testing.assert_array_equal(read(tmp_path / "a.nc", xs="u").xs, U)

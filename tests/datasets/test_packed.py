"""Numbers packed by CF attributes; the truth is what xarray decodes."""

import h5py
import numpy as np
import pytest
import xarray
import zarr

from smdp_jax import datasets

RANDOM = np.random.default_rng(0)
TS = np.linspace(0, 1, 4)
PACKED = RANDOM.integers(-900, 900, (3, 4, 5)).astype("int16")
PACKED[1, 2, 3] = -7


def packed_hdf5(folder, attributes, packed):
    with h5py.File(folder / "a.h5", "w") as file:
        file["ts"] = TS
        file["u"] = packed
        for name, value in attributes.items():
            file["u"].attrs[name] = np.array([value]) if name == "scale_factor" else value
    return folder / "a.h5", datasets.from_hdf5


def packed_zarr(folder, attributes, packed):
    group = zarr.create_group(folder / "a.zarr", zarr_format=3)
    group.create_array("ts", data=TS)
    group.create_array("u", data=packed, attributes={n: v.item() for n, v in attributes.items()})
    return folder / "a.zarr", datasets.from_zarr


def packed_netcdf(folder, attributes, packed):
    variables = {
        "ts": ("time", TS),
        "u": (("sample", "time", "x"), packed, attributes),
    }
    xarray.Dataset(variables).to_netcdf(folder / "a.nc", engine="scipy")
    return folder / "a.nc", datasets.from_netcdf


@pytest.mark.parametrize("make", [packed_hdf5, packed_zarr, packed_netcdf])
@pytest.mark.parametrize(
    "attributes",
    [
        {"scale_factor": np.float64(0.04)},
        {"add_offset": np.float64(-31.0)},
        {"scale_factor": np.float32(2.5), "add_offset": np.float32(7.0)},
        {"scale_factor": np.float64(0.3), "_FillValue": np.int16(-9999)},
        {"scale_factor": np.float64(0.3), "missing_value": np.int16(9999)},
    ],
)
def test_packed_numbers_are_what_xarray_decodes(tmp_path, make, attributes):
    path, read = make(tmp_path, attributes, PACKED)
    variable = xarray.Variable(("sample", "time", "x"), PACKED, attributes)
    expected = xarray.conventions.decode_cf_variable("u", variable).to_numpy()
    found = read(path, xs="u", dtype="float32")
    np.testing.assert_array_equal(found.xs, expected.astype("float32"))
    assert np.abs(expected - PACKED).max() > 5


@pytest.mark.parametrize("make", [packed_hdf5, packed_zarr, packed_netcdf])
@pytest.mark.parametrize(
    ("attributes", "count"),
    [
        ({"_FillValue": np.int16(-32000)}, 1),
        ({"missing_value": np.int16(-32000)}, 1),
        ({"valid_min": np.int16(-5000)}, 1),
        ({"valid_max": np.int16(0)}, int((PACKED > 0).sum())),
    ],
)
def test_missing_values_are_named(tmp_path, make, attributes, count):
    packed = PACKED.copy()
    packed[1, 2, 3] = -32000
    path, read = make(tmp_path, attributes | {"scale_factor": np.float64(0.5)}, packed)
    with pytest.raises(ValueError, match=f"no missing values, got {count} of 60 that are its fill"):
        read(path, xs="u", dtype="float32")


def test_conditions_are_decoded_too(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ts"], file["xs"] = TS, RANDOM.normal(size=(3, 4, 5))
        file["nu"] = np.array([3, 5, 9], "u1")
        file["nu"].attrs["scale_factor"] = np.float32(0.5)
    data = datasets.from_hdf5(tmp_path / "a.h5", args="nu", args_axes=0, dtype="float32")
    np.testing.assert_array_equal(data.args, np.array([1.5, 2.5, 4.5], "float32"))


def test_zarr_of_xarray_in_both_versions(tmp_path):
    values = RANDOM.normal(size=(4, 3, 4)).astype("float32")
    for version in (2, 3):
        variables = {"u": (("time", "sample", "x"), values), "ts": ("time", TS)}
        packing = {"dtype": "int16", "scale_factor": 1e-3, "add_offset": 1.0, "_FillValue": -9999}
        path = tmp_path / f"{version}.zarr"
        xarray.Dataset(variables).to_zarr(
            path, zarr_format=version, encoding={"u": packing}, consolidated=False
        )
        with xarray.open_zarr(path, consolidated=False) as expected:
            found = datasets.from_zarr(path, xs="u", dtype="float32")
            truth = expected["u"].transpose("sample", "time", "x").to_numpy()
        np.testing.assert_array_equal(found.xs, truth.astype("float32"))

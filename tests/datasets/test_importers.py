import sys

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zarr

from smdp_jax import datasets

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "ts": np.linspace(0, 1, 4),
    "xs": RANDOM.normal(size=(3, 4, 5)),
    "u": RANDOM.normal(size=(3, 4, 6, 5)),
    "nu": RANDOM.normal(size=(3,)),
    "mask": RANDOM.random((6, 5)) > 0.5,
    "whole": np.ones((3, 4, 2), int),
    "turned": RANDOM.normal(size=(4, 3, 5)),
    "single": RANDOM.normal(size=(4, 5)),
    "short": RANDOM.normal(size=(2, 4, 5)),
    "broken": np.full((3, 4, 5), np.nan),
    "back": np.array([0.0, 2.0, 1.0, 3.0]),
}


def npz(folder):
    np.savez(folder / "a.npz", **ARRAYS)
    return folder / "a.npz", datasets.from_npz


def hdf5(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        for name, array in ARRAYS.items():
            # One in a group, one in the other order of bytes.
            stored = array.astype(">f8") if name == "u" else array
            file.create_dataset(name, data=stored)
        file["run/inner"] = ARRAYS["u"]
    return folder / "a.h5", datasets.from_hdf5


def zarr_group(version):
    def make(folder):
        group = zarr.create_group(folder / "a.zarr", zarr_format=version)
        for name, array in ARRAYS.items():
            group.create_array(name, data=array)
        group.create_group("run").create_array("inner", data=ARRAYS["u"])
        return folder / "a.zarr", datasets.from_zarr

    return make


@pytest.fixture(scope="module", params=[npz, hdf5, zarr_group(2), zarr_group(3)])
def source(request, tmp_path_factory):
    path, read = request.param(tmp_path_factory.mktemp("own"))
    return lambda **options: read(path, **{"dtype": "float32"} | options)


def test_arrays_as_they_are(source):
    data = source()
    np.testing.assert_array_equal(data.ts, ARRAYS["ts"].astype("float32"))
    np.testing.assert_array_equal(data.xs, ARRAYS["xs"].astype("float32"))
    assert data.args is None
    data.check()


def test_trees_of_names(source):
    data = source(xs={"a": "xs", "b": ["u"]}, args={"mask": "mask"})
    assert jax.tree.structure(data.xs) == jax.tree.structure({"a": 0, "b": [0]})
    np.testing.assert_array_equal(data.xs["b"][0], ARRAYS["u"].astype("float32"))
    assert data.args["mask"].dtype == bool
    per_sample = source(args="nu", args_axes=0)
    np.testing.assert_array_equal(per_sample.args_of(1), ARRAYS["nu"].astype("float32")[1])


def test_float64_is_kept_where_it_can_be(source):
    with jax.enable_x64(True):
        assert source(dtype=None).xs.dtype == jnp.float64
    with pytest.raises(ValueError, match="stored as float64, which JAX would round"):
        source(dtype=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"xs": "velocity"}, "has no array 'velocity'; it holds .*'back', 'broken'"),
        ({"ts": "xs"}, r"'xs' of .* must be at least two times, .*got shape \(3, 4, 5\)"),
        ({"ts": "back"}, r"must increase, got 2.0 and then 1.0 at index 2"),
        ({"xs": "nu"}, r"must be \(samples, times, \*state\) with 4 times, got shape \(3,\)$"),
        ({"xs": "turned"}, r"got shape \(4, 3, 5\); its first axis has that length"),
        ({"xs": "single"}, r"got shape \(4, 5\); its first axis has that length"),
        ({"xs": "whole"}, "must be floating point, got int64"),
        ({"xs": "broken"}, "is not finite in 3 of 3 samples"),
        ({"xs": {"a": "xs", "b": "short"}}, r"leading axes \(samples, times\)=\(3, 4\)"),
        ({"args": "mask", "args_axes": 0}, "must have 3 entries"),
    ],
)
def test_arrays_that_do_not_fit(source, options, message):
    with pytest.raises(ValueError, match=message):
        source(**options)


def test_arrays_in_groups(tmp_path):
    for make in (hdf5, zarr_group(3)):
        path, read = make(tmp_path)
        data = read(path, xs="run/inner", dtype="float32")
        np.testing.assert_array_equal(data.xs, ARRAYS["u"].astype("float32"))
        with pytest.raises(ValueError, match=r"has no array 'run'; it holds .*'run/inner'"):
            read(path, xs="run", dtype="float32")


@pytest.mark.parametrize("make", [npz, hdf5])
def test_damaged_files(tmp_path, make):
    path, read = make(tmp_path)
    content = path.read_bytes()
    for damaged in (content[:-300], content[:40], b"", b"no archive at all"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged or no"):
            read(path, dtype="float32")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no"):
        read(path)


def test_other_files(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 4)))
    with pytest.raises(ValueError, match="holds one array alone"):
        datasets.from_npz(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="is damaged or no Zarr group"):
        datasets.from_zarr(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no Zarr group"):
        datasets.from_zarr(tmp_path / "b.zarr")


@pytest.mark.parametrize(("package", "read"), [("h5py", "from_hdf5"), ("zarr", "from_zarr")])
def test_missing_package_names_the_extra(tmp_path, monkeypatch, package, read):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'need {package}, .* pip install "smdp_jax\[data\]"'):
        getattr(datasets, read)(tmp_path / "a")

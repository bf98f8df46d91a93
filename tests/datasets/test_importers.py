"""Arrays by their names, from files of one's own."""

import itertools
import sys

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
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
    for damaged in (content[:-300], content[:40], b"", b"no archive at all", b"0.5 1.5\n2.5 3\n"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged or no") as error:
            read(path, dtype="float32")
        assert "pickle" not in str(error.value)
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


# Named axes.

SQUARE = RANDOM.normal(size=(4, 4, 4)).astype("float32")  # as many samples as times as points


def named(kind, folder, dims):
    if kind == "netcdf":
        data = xarray.Dataset({"u": (dims, SQUARE), "ts": ("time", ARRAYS["ts"])})
        data.to_netcdf(folder / "a.nc", engine="scipy")
        return folder / "a.nc", datasets.from_netcdf
    if kind == "zarr":
        group = zarr.create_group(folder / "a.zarr")
        group.create_array("u", data=SQUARE, dimension_names=dims)
        group.create_array("ts", data=ARRAYS["ts"], dimension_names=["time"])
        return folder / "a.zarr", datasets.from_zarr
    with h5py.File(folder / "a.h5", "w") as file:
        file["u"], file["ts"] = SQUARE, ARRAYS["ts"]
        for axis, name in enumerate(dims):
            if kind == "scales" and name == "time":
                file["ts"].make_scale("time")
                file["u"].dims[axis].attach_scale(file["ts"])
            else:
                file["u"].dims[axis].label = name
    return folder / "a.h5", datasets.from_hdf5


@pytest.mark.parametrize("kind", ["netcdf", "zarr", "labels", "scales"])
@pytest.mark.parametrize("dims", list(itertools.permutations(("sample", "time", "x"))))
def test_axes_go_by_their_names(tmp_path, kind, dims):
    path, read = named(kind, tmp_path, dims)
    expected = np.transpose(SQUARE, [dims.index(n) for n in ("sample", "time", "x")])
    np.testing.assert_array_equal(read(path, xs="u", dtype="float32").xs, expected)


def test_axes_that_the_user_names(tmp_path):
    np.savez(tmp_path / "a.npz", ts=ARRAYS["ts"], xs=SQUARE)
    found = datasets.from_npz(tmp_path / "a.npz", dims=("x", "time", "sample"), dtype="float32")
    np.testing.assert_array_equal(found.xs, np.transpose(SQUARE, (2, 1, 0)))
    one = datasets.from_npz(tmp_path / "a.npz", dims=("time", "x", "y"), dtype="float32")
    np.testing.assert_array_equal(one.xs, SQUARE[None])
    with pytest.raises(ValueError, match=r"dims must name the 3 axes of 'xs'.*got \('time', 'x'\)"):
        datasets.from_npz(tmp_path / "a.npz", dims=("time", "x"), dtype="float32")


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (("member", "time", "batch"), r"one axis of samples, got \['member', 'batch'\]"),
        (("sample", "x", "y"), r"must have an axis of times, got \('sample', 'x', 'y'\)"),
        (
            ("time", "house", "x"),
            r"its axis of samples, got \('time', 'house', .* dims=\('sample'",
        ),
    ],
)
def test_axes_that_cannot_be_told(tmp_path, dims, message):
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array("u", data=SQUARE, dimension_names=dims)
    group.create_array("ts", data=ARRAYS["ts"])
    with pytest.raises(ValueError, match=message):
        datasets.from_zarr(tmp_path / "a.zarr", xs="u", dtype="float32")


def test_conditions_with_an_axis_of_samples_are_not_shared(tmp_path):
    variables = {
        "xs": (("time", "sample", "x"), SQUARE),
        "ts": ("time", ARRAYS["ts"]),
        "map": (("x", "sample"), SQUARE[0]),
    }
    xarray.Dataset(variables).to_netcdf(tmp_path / "a.nc", engine="scipy")
    with pytest.raises(ValueError, match=r"has an axis of samples.*: pass args_axes=0"):
        datasets.from_netcdf(tmp_path / "a.nc", args="map", dtype="float32")
    data = datasets.from_netcdf(tmp_path / "a.nc", args="map", args_axes=0, dtype="float32")
    np.testing.assert_array_equal(data.args, SQUARE[0].T)


# Numbers, links, places.


def test_whole_numbers_among_conditions(tmp_path):
    def read(args, **options):
        np.savez(tmp_path / "a.npz", ts=ARRAYS["ts"], xs=ARRAYS["xs"], label=args)
        options = {"dtype": "float32", "args": "label", "args_axes": 0} | options
        return datasets.from_npz(tmp_path / "a.npz", **options)

    found = read(np.array([3, -4, 2**31 - 1]))
    np.testing.assert_array_equal(found.args, [3, -4, 2**31 - 1])
    assert found.args.dtype == jnp.int32
    with pytest.raises(ValueError, match=r"fit into int32, got int64 up to 2147483648: enable 64"):
        read(np.array([3, -4, 2**31]))
    with jax.enable_x64(True):  # the remedy that is named works
        assert read(np.array([3, -4, 2**31])).args[2] == 2**31
    with pytest.raises(ValueError, match=r"real numbers or masks, got <U4: store labels as whole"):
        read(np.array(["cold", "warm", "hot"]))
    labels = np.unique(["cold", "warm", "hot"], return_inverse=True)[1]
    np.testing.assert_array_equal(read(labels).args, labels)


def test_links_in_hdf5(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["deep/u"] = ARRAYS["xs"]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["run/ts"] = ARRAYS["ts"]
        file["run/xs"] = ARRAYS["xs"]
        file["soft"] = h5py.SoftLink("/run/xs")
        file["hard"] = file["run/xs"]
        file["external"] = h5py.ExternalLink("other.h5", "/deep/u")
        file["group"] = h5py.ExternalLink("other.h5", "/deep")
        file["run/circle"] = h5py.SoftLink("/run")
        file["gone"] = h5py.SoftLink("/nowhere")
    for name in ("soft", "hard", "external", "group/u", "run/xs"):
        found = datasets.from_hdf5(tmp_path / "a.h5", ts="run/ts", xs=name, dtype="float32")
        np.testing.assert_array_equal(found.xs, ARRAYS["xs"].astype("float32"))
    with pytest.raises(
        ValueError, match=r"no array 'gone'; .*'gone \(a link to what is not there\)"
    ):
        datasets.from_hdf5(tmp_path / "a.h5", ts="run/ts", xs="gone", dtype="float32")


def test_several_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, samples in (("a", slice(0, 1)), ("b", slice(1, 3))):
        np.savez(tmp_path / f"{name}.npz", ts=ARRAYS["ts"], xs=ARRAYS["xs"][samples], nu=2.5)
    expected = ARRAYS["xs"].astype("float32")
    for paths in ("~/*.npz", [tmp_path / "a.npz", tmp_path / "b.npz"]):
        data = datasets.from_npz(paths, args="nu", dtype="float32")
        np.testing.assert_array_equal(data.xs, expected)
        assert data.args == 2.5
    np.savez(tmp_path / "b.npz", ts=ARRAYS["ts"] * 2, xs=ARRAYS["xs"], nu=2.5)
    with pytest.raises(ValueError, match=r"b.npz must .* times of .*a.npz, \[0.0, .* 1.0\], got"):
        datasets.from_npz("~/*.npz", dtype="float32")
    np.savez(tmp_path / "b.npz", ts=ARRAYS["ts"], xs=ARRAYS["xs"], nu=3.5)
    with pytest.raises(ValueError, match=r"b.npz must have the conditions of .*a.npz"):
        datasets.from_npz("~/*.npz", args="nu", dtype="float32")
    with pytest.raises(FileNotFoundError, match=r"there is no file like .*none"):
        datasets.from_npz("~/none*.npz")
    with pytest.raises(ValueError, match="at least 1 file, got 0"):
        datasets.from_npz([])
    with pytest.raises(ValueError, match=r"got 'https://host/a.npz': download it first"):
        datasets.from_npz("https://host/a.npz")

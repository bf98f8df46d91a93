"""Files in the layouts that people have, made here; the truth is what went in."""

import itertools
import subprocess
import sys

import h5py
import jax
import numpy as np
import pytest
import xarray
import zarr

import smdp_jax as smdp
from smdp_jax import datasets
from tests.datasets.foreign import TS, U, read

RANDOM = np.random.default_rng(1)


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("shape", [(3, 6, 8), (7, 6, 9), (5, 6, 7), (6, 6, 6)])
def test_pdebench_tensor(tmp_path, more, shape):
    """Also with as many paths or points as there are times, or one more."""
    tensor = RANDOM.normal(size=shape).astype("float32")
    with h5py.File(tmp_path / "1D_Burgers.hdf5", "w") as file:
        file["tensor"] = tensor
        file["x-coordinate"] = np.linspace(0, 1, shape[2])
        file["t-coordinate"] = np.append(TS, [2.4] * more)
    data = read(tmp_path / "1D_Burgers.hdf5")
    np.testing.assert_array_equal(data.xs, tensor)
    np.testing.assert_array_equal(data.ts, TS)


def test_pdebench_fields_of_a_fluid(tmp_path):
    fields = {n: RANDOM.normal(size=(2, 6, 4, 5)) for n in ("Vx", "Vy", "density", "pressure")}
    with h5py.File(tmp_path / "2D_CFD.hdf5", "w") as file:
        for name, array in fields.items():
            file[name] = array
        file["t-coordinate"] = np.append(TS, 2.4)
        file["x-coordinate"], file["y-coordinate"] = np.arange(4.0), np.arange(5.0)
    data = read(tmp_path / "2D_CFD.hdf5")
    assert set(data.xs) == set(fields)
    for name, array in fields.items():
        np.testing.assert_array_equal(data.xs[name], array.astype("float32"))


def test_pdebench_group_per_seed(tmp_path):
    with h5py.File(tmp_path / "2D_diff-react.h5", "w") as file:
        for seed in range(3):
            # As many times as points and channels: the order is the layout's, not a guess.
            file[f"{seed:04}/data"] = U[seed, :, :6, None].repeat(6, axis=-1)
            file[f"{seed:04}/grid/t"] = TS
    data = read(tmp_path / "2D_diff-react.h5")
    np.testing.assert_array_equal(data.xs, U[:, :, :6, None].repeat(6, axis=-1))


def the_well(path, samples):
    with h5py.File(path, "w") as file:
        file["dimensions/time"] = TS
        file["dimensions/x"] = np.arange(4.0)
        # What varies, the axes in their order, the array.
        parts = {
            "t0_fields/density": (True, True, U[samples, :, :4]),
            "t0_fields/porosity": (True, False, U[samples, 0, :4]),
            "t0_fields/mask": (False, False, np.arange(4) > 1),
            "t1_fields/velocity": (True, True, U[samples].reshape(-1, 6, 4, 2)),
            "t2_fields/strain": (True, True, U[samples].reshape(-1, 6, 2, 2, 2)),
            "scalars/viscosity": (False, False, np.float32(0.25)),
            "scalars/label": (True, False, np.arange(3)[samples]),
            "scalars/energy": (True, True, U[samples, :, 0]),
        }
        for name, (sample, time, array) in parts.items():
            file[name] = array
            file[name].attrs["sample_varying"], file[name].attrs["time_varying"] = sample, time


def test_the_well_in_files_of_different_numbers_of_paths(tmp_path):
    the_well(tmp_path / "a.hdf5", slice(0, 1))
    the_well(tmp_path / "b.hdf5", slice(1, 3))
    data = read(f"{tmp_path}/*.hdf5")
    assert set(data.xs) == {"density", "velocity", "strain"}
    np.testing.assert_array_equal(data.xs["velocity"], U.reshape(3, 6, 4, 2))
    np.testing.assert_array_equal(data.xs["strain"], U.reshape(3, 6, 2, 2, 2))
    assert set(data.args) == {"porosity", "mask", "viscosity", "label"}
    one = data.args_of(2)
    np.testing.assert_array_equal(one["porosity"], U[2, 0, :4])
    np.testing.assert_array_equal(one["mask"], [False, False, True, True])
    assert one["viscosity"] == 0.25
    assert one["label"] == 2


def test_one_array_as_exponax_makes_them(tmp_path):
    array = U[:, :, None]  # (sample, time, channel, x)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read(tmp_path / "a.npy", ts=TS).xs, array)
    with pytest.raises(ValueError, match=r"layout that is known .* got {'a': .*with ts="):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("kind", ["scipy", "h5netcdf", "zarr"])
def test_named_axes_with_packing(tmp_path, kind):
    """NetCDF of versions 3 and 4, and Zarr, as xarray writes them."""
    data = xarray.Dataset(
        {
            "u": (("time", "member", "x"), np.moveaxis(U, 0, 1)),
            "v": (("member", "x", "time"), np.moveaxis(U, 1, 2)),
            "nu": ("member", np.array([1.0, 2.0, 3.0])),
            "lat": ("x", np.arange(8.0)),
        },
        {"time": TS.astype(float)},
    )
    packing = {"u": {"dtype": "int16", "scale_factor": 1e-3, "_FillValue": -32768}}
    path = tmp_path / "a.data"
    if kind != "zarr":
        data.to_netcdf(path, engine=kind, encoding=packing)
        expected = xarray.open_dataset(path, engine=kind)
    else:
        data.to_zarr(path, encoding=packing, consolidated=False)
        expected = xarray.open_zarr(path, consolidated=False)
    found = read(path)
    with expected:
        for name in ("u", "v"):
            truth = expected[name].transpose("member", "time", "x").to_numpy()
            np.testing.assert_array_equal(found.xs[name], truth.astype("float32"))
    np.testing.assert_array_equal(found.args["nu"], [1.0, 2.0, 3.0])
    assert set(found.args) == {"nu"}


def test_streams_see_every_path_once_a_pass(tmp_path):
    the_well(tmp_path / "a.hdf5", slice(0, 1))
    the_well(tmp_path / "b.hdf5", slice(1, 3))
    stream = datasets.open_foreign([tmp_path / "a.hdf5", tmp_path / "b.hdf5"], paths_per_block=2)
    assert isinstance(stream, smdp.TrajectoryStream)
    assert stream.num_samples == 3
    blocks = list(itertools.islice(stream.blocks(jax.random.key(4)), 6))
    seen = np.concatenate([np.asarray(block.args["label"]) for block in blocks])
    # A block that reaches into the next pass has its paths in the order of the file.
    assert np.bincount(seen).tolist() == [4, 4, 4]
    for block in blocks:
        np.testing.assert_array_equal(
            block.xs["density"], U[np.asarray(block.args["label"]), :, :4]
        )
    again = datasets.open_foreign([tmp_path / "a.hdf5", tmp_path / "b.hdf5"], paths_per_block=2)
    before = stream.fingerprint
    assert again.fingerprint == before
    the_well(tmp_path / "b.hdf5", slice(0, 2))
    changed = datasets.open_foreign([tmp_path / "a.hdf5", tmp_path / "b.hdf5"], paths_per_block=2)
    assert changed.fingerprint != before


def test_every_block_is_checked(tmp_path):
    broken = U.copy()
    broken[2, 3, 1] = np.inf
    np.savez(tmp_path / "a.npz", ts=TS, xs=broken)
    blocks = datasets.open_foreign(tmp_path / "a.npz", paths_per_block=1).blocks(jax.random.key(0))
    with pytest.raises(ValueError, match=r"a.npz: Trajectories.xs is not finite .* t=1.2"):
        list(itertools.islice(blocks, 3))


PASS = """
import resource, sys, jax
from smdp_jax import datasets
stream = datasets.open_foreign(sys.argv[1])
jax.random.permutation(jax.random.key(0), stream.num_samples).block_until_ready()  # JAX starts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
blocks = stream.blocks(jax.random.key(0))
total = sum(next(blocks).xs.nbytes for _ in range(512 // stream.chunks_per_block))
print(total, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_two_gigabytes_pass_through_little_memory(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t-coordinate"] = np.linspace(0, 1, 32, dtype="float32")
        # Chunks that nobody wrote read as this value, and take no room on disk.
        shape, chunk = (512, 32, 32768), (1, 32, 32768)
        file.create_dataset("tensor", shape, "float32", chunks=chunk, fillvalue=0.5)
    done = subprocess.run(
        [sys.executable, "-c", PASS, str(tmp_path / "a.h5")], capture_output=True, check=True
    )
    assert b"Traceback" not in done.stderr  # the next block is being read as the program ends
    total, before, peak = map(int, done.stdout.split())
    assert total == 2 * 2**30
    # Beside what JAX itself takes.
    assert (peak - before) * (1 if sys.platform == "darwin" else 1024) < 400e6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"a": U, "b": U},
            r"layout that is known .*got {'a': \(3, 6, 8\), 'b'.*with ts=",
        ),
        ({"ts": TS}, "layout that is known"),
        ({"ts": TS, "xs": U[:, :4]}, "with 6 times, got shape"),
        ({"ts": TS[::-1], "xs": U}, "must increase"),
    ],
)
def test_unknown_layouts(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        datasets.open_foreign(tmp_path / "a.npz")


def test_two_candidates(tmp_path):
    variables = {"u": (("run", "time", "batch"), U), "time": ("time", TS)}
    xarray.Dataset(variables).to_netcdf(tmp_path / "a.nc", engine="scipy")
    with pytest.raises(ValueError, match=r"one axis of samples, got \['run', 'batch'\]: name its"):
        read(tmp_path / "a.nc")
    data = read(tmp_path / "a.nc", ts="time", xs="u", dims=("sample", "time", "x"))
    np.testing.assert_array_equal(data.xs, U)


def test_lengths_that_differ(tmp_path):
    for name, times in (("a", 6), ("b", 5)):
        np.savez(tmp_path / f"{name}.npz", ts=TS[:times], xs=U[:, :times])
    with pytest.raises(ValueError, match=r"b.npz must have the times of .*cut all paths to the"):
        datasets.open_foreign(f"{tmp_path}/*.npz")


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "a.txt").write_text("0.1 0.2")
    with pytest.raises(ValueError, match=r"an HDF5 or netCDF file, .* begins with b'0.1 0.2'"):
        datasets.open_foreign(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        datasets.open_foreign(tmp_path / "none.h5")
    with pytest.raises(ValueError, match="paths_per_block must be at least 1"):
        datasets.open_foreign(tmp_path / "a.txt", paths_per_block=0)


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    zarr.create_group(tmp_path / "a.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r'need zarr, .* pip install "smdp_jax\[data\]"'):
        datasets.open_foreign(tmp_path / "a.zarr")


def test_blocks_are_small_unless_asked(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t-coordinate"] = TS
        file.create_dataset("tensor", (100, 6, 2**18), "float32", chunks=(1, 6, 2**18))
    assert datasets.open_foreign(tmp_path / "a.h5").chunks_per_block == 5  # of 6 MiB each
    assert datasets.open_foreign(tmp_path / "a.h5", paths_per_block=70).chunks_per_block == 70

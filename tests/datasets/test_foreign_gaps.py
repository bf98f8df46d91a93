"""Files of unequal lengths and with missing times: states lie at their times, beside a mask."""

import h5py
import jax
import numpy as np
import pytest
import xarray

import smdp_jax as smdp
from smdp_jax import datasets
from tests.datasets.foreign import TS, U, read

RANDOM = np.random.default_rng(1)


@pytest.mark.filterwarnings("ignore:one backward step misses")  # these are no paths of it
def test_files_of_other_lengths_and_other_times(tmp_path):
    """Whole, ending early, beginning late, with a hole: states lie at their times."""
    u = RANDOM.normal(size=(6, 6, 8)).astype("float32")
    seen = np.ones((6, 6), bool)
    places = {"a": [0, 1, 2, 3, 4, 5], "b": [0, 1, 2, 3], "c": [1, 2, 4, 5]}
    rows = {"a": slice(0, 1), "b": slice(1, 4), "c": slice(4, 6)}
    seen[3, 2] = False
    u[3, 2, 5] = np.nan
    for name, place in places.items():
        seen[rows[name]] &= np.isin(np.arange(6), place)
        np.savez(tmp_path / f"{name}.npz", t=TS[place], v=u[rows[name]][:, place])
    options = {"ts": "t", "xs": "v", "mask": True}
    data = read(f"{tmp_path}/?.npz", **options)
    np.testing.assert_array_equal(data.ts, TS)
    np.testing.assert_array_equal(data.mask, seen)
    np.testing.assert_array_equal(np.asarray(data.xs)[seen], u[seen])
    stream = datasets.open_foreign(f"{tmp_path}/?.npz", **options, paths_per_block=4)
    block = next(stream.blocks(jax.random.key(1)))
    assert block.xs.shape == (4, 6, 8)
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.5)
    fit = smdp.fit(
        sde, smdp.models.MLP((4,)), stream, smdp.OneStep(), steps=4, epoch_steps=2,
        batch_size=8, key=jax.random.key(2), progress=False,
    )  # fmt: skip
    assert np.isfinite(fit.history["loss"]).all()
    with pytest.raises(ValueError, match=r"b.npz must have the times .* or pass mask=True"):
        read(f"{tmp_path}/?.npz", ts="t", xs="v")
    np.savez(tmp_path / "d.npz", t=TS.astype(float) * (1 + 1e-7), v=u)  # but for rounding
    more = read(f"{tmp_path}/?.npz", **options)
    np.testing.assert_array_equal(more.mask[:6], seen)
    np.testing.assert_allclose(more.ts, TS, rtol=2e-7)
    np.savez(tmp_path / "d.npz", t=TS * 1.5, v=u)
    assert read(f"{tmp_path}/?.npz", **options).num_times == 6 + 4  # 0 and 1.2 are there


def test_times_of_a_group_that_are_missing(tmp_path):
    """Seeds of PDEBench that stopped early, padded with NaN in times and states."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for seed, length in enumerate((6, 3, 5)):
            cut = np.arange(6) < length
            file[f"{seed}/data"] = np.where(cut[:, None], U[seed], np.nan)[..., None]
            file[f"{seed}/grid/t"] = np.where(cut, TS, np.nan)
    data = read(tmp_path / "a.h5", mask=True)
    np.testing.assert_array_equal(data.mask.sum(axis=1), [6, 3, 5])
    np.testing.assert_array_equal(np.asarray(data.xs)[data.mask][..., 0], U[np.asarray(data.mask)])
    with pytest.raises(ValueError, match=r"'1/grid/t' of .* must increase, got .* then nan"):
        read(tmp_path / "a.h5")


@pytest.mark.parametrize("asked", [True, "watched"])
def test_missing_in_netcdf(tmp_path, asked):
    """By fill values, or as an array says; axes by name, packed, other axis order."""
    seen = np.ones((3, 6), bool)
    seen[1, 4:], seen[2, 0] = False, False
    u = xarray.DataArray(U, dims=("realization", "t", "lon")).where(
        xarray.DataArray(seen, dims=("realization", "t"))
    )
    variables = {
        "u": u.transpose("lon", "t", "realization"),
        "watched": (("t", "realization"), seen.T.astype("int8")),
        "t": ("t", TS.astype("float64")),
    }
    encoding = {"u": {"dtype": "int16", "scale_factor": 1e-3, "_FillValue": -32768}}
    path = tmp_path / "a.nc"
    xarray.Dataset(variables).to_netcdf(path, engine="scipy", encoding=encoding)
    data = read(path, mask=asked)
    np.testing.assert_array_equal(data.mask, seen)
    with xarray.open_dataset(path, engine="scipy") as expected:
        truth = expected["u"].transpose("realization", "t", "lon").to_numpy().astype("float32")
    np.testing.assert_array_equal(np.asarray(data.xs)[seen], truth[seen])
    with pytest.raises(ValueError, match=r"'u' of .* got 24 of 144 .*or pass mask=True"):
        read(path)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("none", "has no array 'none'"),
        ("wide", r"mask must be \(samples, times\), got 'wide'"),
        ("short", r"'short' of .* must be \(samples, times, \*state\) with 6 times"),
        ("never", "got none in sample 1: leave such paths out"),
        (np.ones((3, 6), bool), r"True or the name of an array, got a ndarray: .*replace\(data"),
    ],
)
def test_masks_that_do_not_fit(tmp_path, mask, message):
    never = np.arange(3)[:, None] + np.zeros(6, int) != 1
    masks = {"wide": np.ones((3, 6, 8)), "short": np.ones((3, 5)), "never": never}
    np.savez(tmp_path / "a.npz", ts=TS, xs=U, **masks)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.npz", mask=mask)


def test_states_that_are_nan_without_a_word(tmp_path):
    broken = U.copy()
    broken[1, 2] = np.nan
    np.savez(tmp_path / "a.npz", ts=TS, xs=broken)
    with pytest.raises(ValueError, match=r"in 1 of 3 samples.*nobody looked, pass mask=True"):
        read(tmp_path / "a.npz")
    broken[1, 2, 3] = np.inf  # that is no gap: a simulator ran off
    broken[1, 2, :3], broken[1, 2, 4:] = 0, 0
    np.savez(tmp_path / "a.npz", ts=TS, xs=broken)
    for mask in (None, True):
        with pytest.raises(ValueError, match=r"not finite in 1 of 3 .* check the simulator there$"):
            read(tmp_path / "a.npz", mask=mask)

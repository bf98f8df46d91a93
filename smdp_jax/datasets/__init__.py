"""Trajectories on disk: written by key as Zarr, read back or streamed, imported from other files.

zarr, h5py and xarray are needed, each for its files, here alone: ``pip install "smdp_jax[data]"``.
"""

from smdp_jax.datasets.importers import from_hdf5, from_netcdf, from_npz, from_zarr, open_foreign
from smdp_jax.datasets.reading import Stream, open_stream, open_trajectories
from smdp_jax.datasets.writing import write

__all__ = [
    "Stream",
    "from_hdf5",
    "from_netcdf",
    "from_npz",
    "from_zarr",
    "open_foreign",
    "open_stream",
    "open_trajectories",
    "write",
]

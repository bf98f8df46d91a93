"""Trajectories on disk: written by key as Zarr, read back or streamed, imported from other files.

Needs zarr, h5py and xarray (``pip install "smdp_jax[data]"``), each for its files; nothing else in the package does.
"""

from smdp_jax.datasets.importers import (
    from_hdf5,
    from_netcdf,
    from_npz,
    from_zarr,
    open_foreign,
)
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

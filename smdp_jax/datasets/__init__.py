"""Trajectories on disk: written by key as Zarr, read back or streamed, imported from other files.

Needs zarr, and h5py for HDF5 (``pip install "smdp_jax[data]"``); nothing else in the package does.
"""

from smdp_jax.datasets.importers import from_hdf5, from_npz, from_zarr
from smdp_jax.datasets.reading import Stream, open_stream, open_trajectories
from smdp_jax.datasets.writing import write

__all__ = [
    "Stream",
    "from_hdf5",
    "from_npz",
    "from_zarr",
    "open_stream",
    "open_trajectories",
    "write",
]

"""Trajectories on disk: written by key as Zarr, read back or streamed, imported from other files.

zarr, h5py and xarray are needed, each for its files, here alone: ``pip install "smdp_jax[data]"``.
"""

from smdp_jax.datasets.importers import from_hdf5 as from_hdf5
from smdp_jax.datasets.importers import from_netcdf as from_netcdf
from smdp_jax.datasets.importers import from_npz as from_npz
from smdp_jax.datasets.importers import from_zarr as from_zarr
from smdp_jax.datasets.importers import open_foreign as open_foreign
from smdp_jax.datasets.reading import Stream as Stream
from smdp_jax.datasets.reading import open_stream as open_stream
from smdp_jax.datasets.reading import open_trajectories as open_trajectories
from smdp_jax.datasets.writing import write as write

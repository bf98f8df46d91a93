"""From arrays in files to arrays in memory, without a silent loss of digits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def on_device(array: np.ndarray, dtype: Any, what: str) -> jax.Array:
    """Turn a stored array into one of JAX's."""
    if dtype is not None and np.issubdtype(array.dtype, np.floating):
        array = array.astype(dtype)
    # Bytes in the other order, as HDF5 files may have them, are the same numbers.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"{what} is stored as {array.dtype}, which JAX would round: pass dtype='float32', or "
            'enable float64 with jax.config.update("jax_enable_x64", True)'
        )
    return jnp.asarray(array)

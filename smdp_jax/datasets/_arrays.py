"""From arrays in files to arrays in memory, without a silent loss of digits."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.checks import needed

_X64 = 'jax.config.update("jax_enable_x64", True)'


class ContentError(ValueError):
    """What is wrong with the content of a file that can be read."""


def on_device(array: np.ndarray, dtype: Any, what: Any) -> jax.Array:
    """Turn a stored array into one of JAX's; whole numbers that fit become int32 without x64."""
    return jnp.asarray(as_jax_has_it(array, dtype, what))


def as_jax_has_it(array: np.ndarray, dtype: Any, what: Any) -> np.ndarray:
    """Turn a stored array into one whose dtype JAX has."""
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        how = "store labels as whole numbers, such as numpy.unique(labels, return_inverse=True)[1]"
        said = f"{what} must be real numbers or masks, got {array.dtype}: {how}"
        raise ContentError(f"{said}, or name with args= the conditions that count")
    if dtype is not None and jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(dtype)
    # Bytes in the other order, as HDF5 files may have them, are the same numbers.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    narrow = jax.dtypes.canonicalize_dtype(array.dtype)
    if narrow == array.dtype:
        return array
    if array.dtype.kind not in "iu":
        said = f"{what} is stored as {array.dtype}, which JAX would round"
        raise ContentError(f"{said}: pass dtype='float32', or enable float64 with {_X64}")
    if not np.array_equal(array.astype(narrow), array):
        got = f"{array.dtype} up to {np.abs(array).max()}"
        raise ContentError(f"{what} must fit into {narrow}, got {got}: enable 64 bits by {_X64}")
    return array.astype(narrow)


def installed(module: str) -> ModuleType:
    """Import a package that datasets on disk need."""
    return needed(module, "datasets on disk need", "data")

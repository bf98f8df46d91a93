"""Checks of single arguments: counts, PRNG keys, indices, and objects of some kind."""

import operator
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["check_key", "check_kind", "check_positive", "check_save"]


def check_positive(**numbers: Any) -> list[Any]:
    """Check that counts are whole numbers of at least 1; None stands for a default.

    Parameters
    ----------
    **numbers : int or None
        By the name of the argument.

    Returns
    -------
    list of int or None
        The same in their order, numpy's integers as Python's.

    Raises
    ------
    ValueError
        Naming the first that is not.
    """
    for name, value in numbers.items():
        if value is None:
            continue
        if not isinstance(value, (int, np.integer)):
            raise ValueError(f"{name} must be an int of at least 1, got {reprlib.repr(value)}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return [None if value is None else int(value) for value in numbers.values()]


def check_key(key: Any) -> None:
    """Check that a key is one PRNG key, of the new or the old (uint32) style.

    Parameters
    ----------
    key : PRNG key
        As the user gave it.

    Raises
    ------
    ValueError
        If it is none, or several.
    """
    want = "key must be one PRNG key, such as jax.random.key(0)"
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise ValueError(f"{want}, got {reprlib.repr(key)}")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.dtype != np.uint32:
        raise ValueError(f"{want}, got an array of {key.dtype}")
    if key.ndim != (0 if typed else 1):
        raise ValueError(f"{want}, got keys of shape {key.shape}: use jax.vmap over them")


def check_kind(name: str, value: Any, wanted: str, *attributes: str) -> None:
    """Check that an object has what will be asked of it.

    Parameters
    ----------
    name : str
        Name of the argument.
    value : Any
        As the user gave it.
    wanted : str
        What it must be, for the message.
    *attributes : str
        Names of attributes that it must have.

    Raises
    ------
    TypeError
        If one is missing, or if it is a class in place of its instance.
    """
    if isinstance(value, type):
        raise TypeError(f"{name} must be {wanted}, got the class {value.__name__}: call it")
    if not all(hasattr(value, attribute) for attribute in attributes):
        raise TypeError(f"{name} must be {wanted}, got {reprlib.repr(value)}")


def check_save(save: Any, times: int) -> Any:
    """Check which times of a grid are to be saved.

    Parameters
    ----------
    save : "all", "last" or sequence of int
        As the user gave it.
    times : int
        Number of times.

    Returns
    -------
    "all", "last" or tuple of int
        The same.

    Raises
    ------
    ValueError
        If it is something else, if nothing is to be saved, or if an index is out of range.
    """
    if isinstance(save, str) and save in ("all", "last"):
        return save
    indices: Any = save
    try:
        chosen = tuple(operator.index(i) for i in indices)
    except TypeError:
        chosen = ()
    if not chosen or min(chosen) < -times or max(chosen) >= times:
        raise ValueError(
            f"save must be 'last', 'all', or indices of the {times} times between {-times} and "
            f"{times - 1}, got {save!r}"
        )
    return chosen

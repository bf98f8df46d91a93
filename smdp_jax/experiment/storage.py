"""Trees of arrays in one ``.npz`` file: written whole or not at all, read or refused.

Leaves are arrays named after their place in the tree (``train/xs``), for any program to read; one
more entry, ``structure``, holds the tree and all that is not an array.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.experiment.fields import ExperimentError
from smdp_jax.files import digest_of, open_atomically, read_archive, unpack, write_atomically

_ARRAYS = (jax.Array, np.ndarray, np.generic)


@contextlib.contextmanager
def _readable(path: Path, remedy: str) -> Iterator[None]:
    """Say in a sentence what reading a damaged file, or one of somebody else, raises."""
    try:
        yield
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise ExperimentError(f"{path} is truncated or damaged ({error}); {remedy}") from error


def check_kept(path: Path, digest: Any, content: Any, remedy: str) -> None:
    """Refuse what somebody has edited."""
    if digest != digest_of(content):
        raise ExperimentError(f"{path} must be as it was written, and has changed since; {remedy}")


def write_arrays(path: Path, tree: Any) -> None:
    """Write a tree of arrays, whole or not at all.

    Parameters
    ----------
    path : Path
        The ``.npz`` file; its folder must exist.
    tree : tree
        Dicts with plain names, lists and tuples of arrays, numbers, strings, bools and None; else
        an ExperimentError.
    """
    arrays: dict[str, np.ndarray] = {}
    structure = _pack(tree, "", arrays)
    arrays["structure"] = np.array(json.dumps(structure))
    with open_atomically(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path, remedy: str) -> Any:
    """Read what ``write_arrays`` wrote.

    Parameters
    ----------
    path, remedy
        The ``.npz`` file; what to do where it cannot be read, for the message.

    Returns
    -------
    tree
        The same tree, leaves as numpy arrays.

    Raises
    ------
    ExperimentError
        If the file is truncated, damaged, or not one of ours.
    """
    with _readable(path, remedy):
        arrays = read_archive(path)
        return unpack(json.loads(str(arrays.pop("structure"))), arrays)


def read_part(path: Path, name: str, remedy: str) -> Any:
    """Read one entry of a tree that is a dict, and no other array of the file."""
    with _readable(path, remedy):
        of_it = read_archive(path, lambda n: n == "structure" or n.split("/")[0] == name)
        structure = json.loads(str(of_it["structure"]))["dict"]
        return unpack(structure[name], of_it) if name in structure else None


def json_text(value: Any) -> str:
    """Write values as JSON for people and programs."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_atomically(path, json_text(value))


def read_json(path: Path, remedy: str) -> Any:
    """Read JSON."""
    with _readable(path, remedy):
        return json.loads(path.read_text(encoding="utf-8"))


def _pack(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Move the arrays of a tree into ``arrays``; return its structure as JSON values."""
    if isinstance(value, _ARRAYS):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            raise ExperimentError(f"{name} is a PRNG key; store jax.random.key_data of it")
        array, name = np.asarray(value), name or "array"
        # numpy's files know no bfloat16 and the like: their bytes are kept, and what they are.
        foreign = array.dtype.kind == "V"
        arrays[name] = array.view(f"u{array.dtype.itemsize}") if foreign else array
        return {"array": name} | ({"dtype": array.dtype.name} if foreign else {})
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        inner = {k: _pack(v, f"{name}/{k}" if name else k, arrays) for k, v in value.items()}
        return {"dict": inner}
    if type(value) in (list, tuple):
        inner = [_pack(v, f"{name}/{i}" if name else str(i), arrays) for i, v in enumerate(value)]
        return {type(value).__name__: inner}
    want = "dicts with string keys, lists and tuples of arrays, numbers, strings and None"
    got = f"{name or 'the tree'} is a {type(value).__name__}"
    raise ExperimentError(f"{got}; files of a run hold {want}")

"""Trajectories as named arrays with named axes, and back.

The times are ``time``; a leaf of the state is named by its place in the tree (``marker``,
``flow.velocity``; ``x`` where the state is one array), one of the score targets or conditions the
same behind ``score.`` or ``args.``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.files import unpack
from smdp_jax.trajectories import Trajectories

TIME, CHECKSUM = "time", "checksum"
_AXES = ("x", "y", "z")


def to_arrays(data: Trajectories) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Take trajectories apart."""
    arrays = {TIME: np.asarray(data.ts)}
    structure: dict[str, Any] = {"args_axes": data.args_axes}
    roots = {"xs": "", "args": "args", "score_targets": "score"}
    for part, root in roots.items():
        structure[part] = _pack(getattr(data, part), root, arrays)
    if data.mask is not None:
        structure["mask"] = _pack(data.mask, "mask", arrays)
    return structure, arrays


def from_arrays(structure: Mapping[str, Any], arrays: Mapping[str, Any]) -> Trajectories:
    """Put trajectories together."""
    parts = {part: unpack(structure[part], arrays) for part in ("xs", "args", "score_targets")}
    mask = unpack(structure.get("mask"), arrays)
    return Trajectories(arrays[TIME], **parts, args_axes=structure["args_axes"], mask=mask)


def leading_axes(structure: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Tell which axes, before those of its own, every array has."""
    own = () if structure["args_axes"] is None else ("sample",)
    axes: dict[str, tuple[str, ...]] = {TIME: (TIME,)}
    axes |= dict.fromkeys(_names(structure["xs"]), ("sample", TIME))
    for part in ("score_targets", "mask"):
        axes |= dict.fromkeys(_names(structure.get(part)), ("sample", TIME))
    return axes | dict.fromkeys(_names(structure["args"]), own)


def name_axes(
    structure: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    dims: Mapping[str, Sequence[str]],
) -> dict[str, tuple[str, ...]]:
    """Name all axes of all arrays."""
    leading = leading_axes(structure)
    if unknown := sorted(set(dims) - set(arrays)):
        raise ValueError(f"dims names {unknown}, but the arrays are {sorted(arrays)}")
    lengths: dict[str, int] = {}
    named = {}
    for name, array in arrays.items():
        own = array.shape[len(leading[name]) :]
        given = dims.get(name, dims.get(name.removeprefix("score.")))
        if given is None:
            axes = _default_axes(name, own, lengths)
        elif len(given) != len(own):
            raise ValueError(f"dims of {name!r} must name its {len(own)} own axes, got {given}")
        else:
            axes = tuple(given)
        named[name] = leading[name] + axes
        for axis, length in zip(named[name], array.shape, strict=True):
            if lengths.setdefault(axis, length) != length:
                said = f"axis {axis!r} has length {lengths[axis]} and, in {name!r}, {length}"
                raise ValueError(f"dims: {said}")
    return named


def _default_axes(name: str, own: tuple[int, ...], lengths: Mapping[str, int]) -> tuple[str, ...]:
    plain = [_AXES[i] if i < len(_AXES) else f"axis{i}" for i in range(len(own))]
    return tuple(
        axis if lengths.get(axis, length) == length else f"{axis}.{name}"
        for axis, length in zip(plain, own, strict=True)
    )


def _pack(tree: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    if tree is None:
        return None
    if type(tree) is dict:
        if bad := [key for key in tree if not isinstance(key, str) or "/" in key or not key]:
            raise TypeError(f"datasets need plain names as keys, got {bad[0]!r} in {name or 'xs'}")
        return {"dict": {key: _pack(v, _join(name, key), arrays) for key, v in tree.items()}}
    if type(tree) in (list, tuple):
        parts = [_pack(v, _join(name, str(i)), arrays) for i, v in enumerate(tree)]
        return {type(tree).__name__: parts}
    if not isinstance(tree, jax.Array | np.ndarray | np.generic | int | float):
        got = f"a {type(tree).__name__} in {name or 'xs'}"
        raise TypeError(f"datasets hold dicts, lists and tuples of arrays, got {got}")
    # Python numbers take JAX's default precision, arrays keep theirs.
    tree, name = tree if hasattr(tree, "dtype") else jnp.asarray(tree), name or "x"
    if jnp.issubdtype(tree.dtype, jax.dtypes.prng_key) or tree.dtype.kind not in "biuf":
        raise TypeError(f"datasets hold real numbers and masks, got {tree.dtype} in {name!r}")
    if name in arrays or name == CHECKSUM:
        raise ValueError(f"two arrays of the dataset would be named {name!r}: rename the leaf")
    arrays[name] = np.asarray(tree)
    return {"array": name}


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _names(node: Any) -> Iterator[str]:
    if node is None:
        return
    ((kind, inner),) = node.items()
    if kind == "array":
        yield inner
        return
    for part in inner.values() if kind == "dict" else inner:
        yield from _names(part)

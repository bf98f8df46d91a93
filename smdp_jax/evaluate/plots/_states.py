"""Posteriors and trees of states as named columns of numbers."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def samples_of(given: Any) -> Any:
    """The samples of a posterior, equally weighted, or a tree of them as it is."""
    samples, weights = getattr(given, "samples", given), getattr(given, "log_weights", None)
    if weights is None or np.ptp(weights) == 0:
        return samples
    share = np.cumsum(np.exp(np.asarray(weights, np.float64) - np.max(weights)))
    index = np.searchsorted(share / share[-1], (np.arange(len(share)) + 0.5) / len(share))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], samples)


def columns(given: Any, axes: int, entries: Sequence[int] | None, most: int) -> dict[str, Any]:
    """Entries by name, each with ``axes`` leading axes: ``x[3]``, ``marker``, ``velocity[0, 2]``.

    Without a choice, those of a state that has no more than ``most``, else equally spaced ones.
    """
    found: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(samples_of(given)):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "x"
        values = np.asarray(leaf, np.float64)
        if values.ndim < axes:
            raise ValueError(f"{name} must have {axes} axes before the state, got {values.shape}")
        state = values.shape[axes:]
        for index in np.ndindex(state):
            told = f"{name}[{', '.join(map(str, index))}]" if state else name
            found[told] = values[(..., *index)]
    if not found or next(iter(found.values())).size == 0:
        raise ValueError(f"samples must hold at least one draw of one entry, got {given}")
    names = list(found)
    count = len(names)
    some = range(count) if count <= most else np.linspace(0, count - 1, most).astype(int).tolist()
    chosen = list(some if entries is None else entries)
    wrong = [i for i in chosen if not 0 <= i < count]
    if wrong or not chosen:
        raise ValueError(f"entries must be indices below {count}, got {chosen}")
    return {names[i]: found[names[i]] for i in chosen}


def like(given: Any, names: Sequence[str], what: str) -> dict[str, float]:
    """The same entries of one state."""
    if given is None:
        return {}
    one = columns(given, 0, None, 1 << 30)
    missing = [name for name in names if name not in one]
    if missing:
        raise ValueError(f"{what} must be one state like the samples', got none of {missing}")
    return {name: float(one[name]) for name in names}

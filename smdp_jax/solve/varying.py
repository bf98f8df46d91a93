"""Loops and branches inside ``shard_map``, whose types tell over which axes a value varies."""

from collections.abc import Callable
from typing import Any

import jax


def either(chosen: Any, yes: Callable, no: Callable, *operands: Any) -> Any:
    """``lax.cond`` of branches that may vary over different axes of a mesh."""
    if not _manual():
        return jax.lax.cond(chosen, yes, no, *operands)
    kinds = [jax.eval_shape(branch, *operands) for branch in (yes, no)]
    union = jax.tree.map(lambda a, b: _axes(a) | _axes(b), *kinds)

    def widened(branch: Callable) -> Callable:
        return lambda *operands: jax.tree.map(_widen, branch(*operands), union)

    return jax.lax.cond(chosen, widened(yes), widened(no), *operands)


def like_results(body: Callable, carry: Any, i: Any) -> Any:
    """Let the start of a loop vary over all axes that its results vary over."""
    if not _manual():
        return carry
    for _ in range(2):  # what varies now may make others vary
        results = jax.eval_shape(body, carry, i)[0]
        carry = jax.tree.map(lambda x, y: _widen(x, _axes(y)), carry, results)
    return carry


def varying_as(like: Any, tree: Any) -> Any:
    """Let leaves vary over all axes that those of another tree vary over."""
    if not _manual():
        return tree
    return jax.tree.map(lambda x, y: _widen(x, _axes(jax.typeof(y))), tree, like)


def _manual() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _axes(kind: Any) -> frozenset:
    now = getattr(kind, "manual_axis_type", None)  # before it: a set of its own
    axes = getattr(kind, "vma", None) if now is None else now.varying
    return frozenset(axes or ())


def _widen(x: Any, axes: frozenset) -> Any:
    missing = tuple(axes - _axes(jax.typeof(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x

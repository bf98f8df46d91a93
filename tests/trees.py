"""Trees of arrays, compared leaf by leaf and as one vector."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def every_leaf(test: Callable[..., Any], *trees: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda *leaves: bool(test(*leaves)), *trees)))


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def distance(a: Any, b: Any) -> float:
    return float(np.linalg.norm(flat(a) - flat(b)))


def assert_close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(flat(a), flat(b), rtol=0, atol=1e-5 * np.abs(flat(b)).max())


def assert_like(a: Any, x: Any) -> None:
    assert every_leaf(lambda p, q: (p.shape, p.dtype) == (q.shape, q.dtype), a, x)

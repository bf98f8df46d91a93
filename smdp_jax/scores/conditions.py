"""Features of conditions that a regression may depend on: splines of the scalars in ``args``.

Gains vary smoothly with conditions, and the errors of their interpolation are alike in all steps of
a chain: quadratic splines. Covariances are averaged where a feature is, and must be so near: hats.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax.sde import Args
from smdp_jax.trajectories import Trajectories

_KNOTS = {1: 7, 2: 3, 3: 2}
_SLACK = 0.1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hats:
    """Products of hat functions, one factor per scalar condition; they sum to 1 everywhere.

    Increasing ``knots`` for each of ``picks``, (leaf, entry) in ``args``: a table with one entry
    per feature is interpolated. ``smooth``: gains by quadratic splines (files that lack it: by
    hats).
    """

    knots: tuple[Any, ...]
    picks: tuple[tuple[int, int], ...] = field(metadata={"static": True})
    smooth: bool = field(default=False, metadata={"static": True})

    @classmethod
    def of(cls, data: Trajectories, most: int) -> "Hats":
        """Put knots at quantiles of the (first three) scalars that differ between paths."""
        if data.args_axes is None:
            return cls((), ())
        picks, columns = [], []
        for i, leaf in enumerate(jax.tree.leaves(data.args)):
            if leaf.size > 3 * data.num_samples or not jnp.issubdtype(leaf.dtype, jnp.number):
                continue  # a field or an object: for the network alone
            values = np.real(np.asarray(leaf)).reshape(data.num_samples, -1)
            for k, column in enumerate(values.T.astype(float)):
                if np.ptp(column) > 0:
                    picks.append((i, k))
                    columns.append(column)
        picks, columns = picks[:3], columns[:3]
        while picks and 2 ** len(picks) > most:
            picks, columns = picks[:-1], columns[:-1]
        count = min(_KNOTS.get(len(picks), 1), int(most ** (1 / max(len(picks), 1)) + 1e-9))
        dtype = jax.tree.leaves(data.xs)[0].dtype
        knots = [np.unique(np.quantile(c, np.linspace(0, 1, count)).astype(dtype)) for c in columns]
        kept = [(p, jnp.asarray(k)) for p, k in zip(picks, knots, strict=True) if len(k) > 1]
        return cls(tuple(k for _, k in kept), tuple(p for p, _ in kept), smooth=True)

    def __call__(self, args: Args, dtype: Any) -> Float[Array, "2 features"]:
        """Features of gains, and of covariances; outside the knots the nearest one holds."""
        leaves = jax.tree.leaves(args)
        values = [
            jnp.clip(jnp.ravel(leaves[i])[k].astype(knots.dtype), knots[0], knots[-1])
            for knots, (i, k) in zip(self.knots, self.picks, strict=True)
        ]

        def product(of: Callable[[Array, Array], Array]) -> Array:
            factors = [of(*pair) for pair in zip(self.knots, values, strict=True)]
            return reduce(lambda a, b: jnp.outer(a, b).ravel(), factors, jnp.ones(1, dtype))

        hats = product(_hats)
        return jnp.stack([product(_splines) if self.smooth else hats, hats]).astype(dtype)

    def beyond(self, args: Args, mapped: bool) -> list[tuple[str, float, float, float]]:
        """Scalars far from the knots, by name, with value, least and largest knot."""
        leaves, found = jax.tree_util.tree_leaves_with_path(args), []
        for knots, (i, k) in zip(self.knots, self.picks, strict=True):
            path, leaf = leaves[i]
            low, high = float(knots[0]), float(knots[-1])
            values = np.asarray(leaf, float).reshape(len(leaf) if mapped else 1, -1)[:, k]
            off = np.maximum(low - values, values - high)
            if off.max() > _SLACK * (high - low):
                name = "args" + jax.tree_util.keystr(path)
                name += f"[{k}]" if np.size(leaf) > len(values) else ""
                found.append((name, float(values[off.argmax()]), low, high))
        return found

    @property
    def count(self) -> int:
        """Number of features."""
        return len(list(itertools.product(*self.knots)))


def _hats(knots: Array, value: Array) -> Array:
    i = jnp.clip(jnp.searchsorted(knots, value, side="right") - 1, 0, knots.shape[0] - 2)
    weight = (value - knots[i]) / (knots[i + 1] - knots[i])
    return jnp.zeros_like(knots).at[i].set(1 - weight).at[i + 1].set(weight)


def _splines(knots: Array, value: Array) -> Array:
    """Quadratic splines, as many as there are knots (de Boor 1972)."""
    count = knots.shape[0]
    if count < 3:
        return _hats(knots, value)
    # One piece less: breaks a little farther apart, and the ends three times.
    own = jnp.arange(count, dtype=knots.dtype)
    breaks = jnp.interp(jnp.linspace(0, count - 1, count - 1, dtype=knots.dtype), own, knots)
    i = jnp.clip(jnp.searchsorted(breaks, value, side="right") - 1, 0, count - 3)
    ends = jnp.pad(breaks, 2, mode="edge")
    before, start, stop, after = (ends[i + n] for n in (1, 2, 3, 4))
    up, down = (value - start) / (stop - start), (stop - value) / (stop - start)
    left, right = (stop - value) / (stop - before), (value - start) / (after - start)
    parts = down * left, down * (1 - left) + up * (1 - right), up * right
    return jnp.zeros_like(knots).at[i + jnp.arange(3)].set(jnp.stack(parts))

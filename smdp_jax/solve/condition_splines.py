"""Features of conditions that tables may depend on: splines of the scalars in ``args``.

Gains vary smoothly with conditions, and the errors of their interpolation are alike in all steps of
a chain: quadratic splines. Covariances are averaged where a feature is, and must be so near: hats.
"""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax.checks import check_that
from smdp_jax.sde import Args

_KNOTS = {1: 7, 2: 3, 3: 2}
_SLACK = 0.1
_SCORINGS = 8
PATHS_PER_KNOT = 20


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
    def of(cls, args: Args, paths: int, most: int, dtype: Any) -> "Hats":
        """Put knots at quantiles of the (first three) scalars that differ between paths."""
        picks, columns = [], []
        for i, leaf in enumerate(map(jnp.asarray, jax.tree.leaves(args))):
            if leaf.size > 3 * paths or not jnp.issubdtype(leaf.dtype, jnp.number):
                continue  # a field or an object: for the network alone
            values = np.real(np.asarray(leaf)).reshape(paths, -1)
            for k, column in enumerate(values.T.astype(float)):
                if np.ptp(column) > 0:
                    picks.append((i, k))
                    columns.append(column)
        picks, columns = picks[:3], columns[:3]
        while picks and 2 ** len(picks) > most:
            picks, columns = picks[:-1], columns[:-1]
        count = min(_KNOTS.get(len(picks), 1), int(most ** (1 / max(len(picks), 1)) + 1e-9))
        knots = [np.unique(np.quantile(c, np.linspace(0, 1, count)).astype(dtype)) for c in columns]
        kept = [(p, jnp.asarray(k)) for p, k in zip(picks, knots, strict=True) if len(k) > 1]
        return cls(tuple(k for _, k in kept), tuple(p for p, _ in kept), smooth=True)

    def __call__(self, args: Args, dtype: Any) -> Float[Array, "2 features"]:
        """Features of gains, and of covariances; outside the knots the nearest one holds."""
        leaves, last = jax.tree.leaves(args), max((i for i, _ in self.picks), default=-1)
        check_that(last < len(leaves), "args must be conditions like those of the paths", args)
        values = [
            jnp.clip(jnp.ravel(leaves[i])[k].astype(knots.dtype), knots[0], knots[-1])
            for knots, (i, k) in zip(self.knots, self.picks, strict=True)
        ]

        def product(of: Callable[[Array, Array], Array]) -> Array:
            factors = [of(*pair) for pair in zip(self.knots, values, strict=True)]
            return reduce(lambda a, b: jnp.outer(a, b).ravel(), factors, jnp.ones(1, dtype))

        hats = product(_hats)
        return jnp.stack([product(_splines) if self.smooth else hats, hats]).astype(dtype)

    def linear(self, table: Array, args: Args) -> Array:
        """Between the knots of a table (features, ...)."""
        weights = self(args, jnp.finfo(table.dtype).dtype)[1]
        return jnp.tensordot(weights.astype(table.dtype), table, 1)

    def geometric(self, table: Array, args: Args) -> Array:
        """The same in logarithms, for variances."""
        least = jnp.finfo(table.dtype).tiny
        return jnp.exp(self.linear(jnp.log(jnp.maximum(table, least)), args))

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


def shares_of(hats: Float[Array, "paths features"]) -> Float[Array, "paths features"]:
    """Weights of paths in the averages at the features; all alike where there are none."""
    total = hats.sum(axis=0, keepdims=True)
    return jnp.where(total >= 1, hats / jnp.maximum(total, 1), 1 / hats.shape[0])


def fitted_means(hats: Float[Array, "paths features"], values: Array) -> Array:
    """Table (features, ...) whose interpolation is nearest to values (paths, ...)."""
    mean, solve = values.mean(axis=0), _least_squares(hats).astype(values.dtype)
    return mean[None] + jnp.tensordot(solve, values - mean[None], 1)


def fitted_variances(hats: Float[Array, "paths features"], powers: Array) -> Array:
    """The same of squares, positive: likeliest log variances, by Fisher's scoring.

    Averages at the knots would be those of the steepest conditions near them.
    """
    least = jnp.finfo(powers.dtype).tiny
    solve = _least_squares(hats)
    first = jnp.tensordot(shares_of(hats).T, powers, 1)

    def improve(logs: Array, _: None) -> tuple[Array, None]:
        excess = powers * jnp.exp(-jnp.tensordot(hats, logs, 1)) - 1
        return logs + jnp.clip(jnp.tensordot(solve, excess, 1), -1, 1), None

    logs = jnp.log(jnp.maximum(first, least))
    return jnp.exp(jax.lax.scan(improve, logs, length=_SCORINGS)[0])


def fitted_gains(hats: Float[Array, "paths features"], earlier: Array, later: Array) -> Array:
    """Table (features, ...) of the factors from one mode (paths, ...) to another."""
    power, cross = jnp.abs(earlier) ** 2, jnp.conj(earlier) * later
    least = jnp.maximum(power.mean(axis=0), jnp.finfo(power.dtype).tiny)
    alike = cross.mean(axis=0) / least.astype(cross.dtype)
    unlike = cross - alike[None] * power.astype(cross.dtype)
    own = jnp.einsum("sk,s...->...k", hats.astype(cross.dtype), unlike)
    gram = jnp.einsum("sk,sl,s...->...kl", hats, hats, power)
    # One path of the mean power more at each knot, as there may be none.
    gram = gram + jnp.multiply.outer(least, jnp.eye(hats.shape[1], dtype=least.dtype))
    found = jnp.linalg.solve(gram.astype(cross.dtype), own[..., None])[..., 0]
    return alike[None] + jnp.moveaxis(found, -1, 0)


def _least_squares(hats: Array) -> Array:
    """From values (paths, ...) to a table (features, ...), towards 0 where there are no paths."""
    gram = hats.T @ hats + jnp.eye(hats.shape[1], dtype=hats.dtype)
    return jnp.linalg.solve(gram, hats.T)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ByConditions:
    """Tables as a function of conditions, leaves (features, ...)."""

    hats: Hats
    tables: Any

    def __call__(self, args: Args) -> Any:
        """Interpolate them."""
        return jax.tree.map(lambda table: self.hats.linear(table, args), self.tables)


def with_conditions(table: Callable[..., Any], t: Any, args: Args) -> Any:
    """Call a function of time, and of conditions where it takes them."""
    return table(t, args) if takes_conditions(table) else table(t)


def takes_conditions(table: Callable[..., Any]) -> bool:
    """Whether a function of time has a place for conditions, too."""
    given = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in given for p in inspect.signature(table).parameters.values()) > 1


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

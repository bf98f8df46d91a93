"""The Gaussian nearest to draws of a state, in the basis where it fits best what it has not seen.

Candidates: Fourier modes (fields that are alike everywhere), eigenvectors of the covariance (up to
1024 entries), single entries. Which one is decided by the log density of held-out draws.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from smdp_jax.sde import State
from smdp_jax.solve.covariance import Spread

DENSE = 1024  # entries up to which matrices over the whole state are made
_FLOOR = 1e-10  # of the largest variance: what never moves still has one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fourier:
    """Unitary Fourier transform over all axes of every leaf, factors in the layout of ``fftn``."""

    def apply(self, factors: State, x: State) -> State:
        """Multiply the modes of real fields by real, even factors."""

        def leaf(factor: Any, x: Any) -> Any:
            modes = jnp.fft.rfftn(x)
            half = factor[..., : modes.shape[-1]]
            scaled = jax.lax.complex(half * modes.real, half * modes.imag)
            return jnp.fft.irfftn(scaled, s=x.shape)

        return jax.tree.map(leaf, factors, x)

    def products(self, a: State, b: State) -> State:
        """Real parts of the products of the modes."""
        modes = lambda x: jnp.fft.fftn(x, norm="ortho")
        return jax.tree.map(lambda a, b: jnp.real(modes(a) * modes(b).conj()), a, b)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rotation:
    """All leaves as one vector, in an orthonormal basis (columns of ``basis``)."""

    basis: Any

    def apply(self, factors: Any, x: State) -> State:
        """Multiply the coordinates of a state."""
        flat, unravel = ravel_pytree(x)
        return unravel(self.basis @ (factors * (self.basis.T @ flat)))

    def products(self, a: State, b: State) -> Any:
        """Products of the coordinates."""
        return (self.basis.T @ ravel_pytree(a)[0]) * (self.basis.T @ ravel_pytree(b)[0])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reference:
    """A Gaussian of states."""

    mean: State
    spread: Spread

    def log_density(self, x: State) -> Any:
        """In nats, of one state."""
        return self.spread.log_density(jax.tree.map(jnp.subtract, x, self.mean))


def flat_of(draws: State) -> np.ndarray:
    """Draws as float64 rows (n, entries)."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(draws)]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def modes_of(rows: np.ndarray, like: State) -> np.ndarray:
    """Unitary modes of flat rows, leaf by leaf."""
    return _leafwise(rows, like, lambda x, axes: np.fft.fftn(x, axes=axes, norm="ortho"))


def rows_of(modes: np.ndarray, like: State) -> np.ndarray:
    """Real flat rows of their modes."""
    return _leafwise(modes, like, lambda x, axes: np.fft.ifftn(x, axes=axes, norm="ortho").real)


def _leafwise(rows: np.ndarray, like: State, transform: Any) -> np.ndarray:
    shapes = [np.shape(x) for x in jax.tree.leaves(like)]
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])[:-1]
    parts = [
        transform(part.reshape(-1, *shape), tuple(range(1, 1 + len(shape)))).reshape(len(rows), -1)
        for part, shape in zip(np.split(rows, ends, axis=1), shapes, strict=True)
    ]
    return np.concatenate(parts, axis=1)


def best_kind(draws: State) -> str:
    """Choose "modes", "dense" or "entries" by the log density of every fifth draw."""
    like = jax.tree.map(lambda x: x[0], draws)
    rows = flat_of(draws)
    kinds = ["entries"]
    if rows.shape[1] <= DENSE and rows.shape[1] > 1:
        kinds.append("dense")
    if all(min(np.shape(x), default=0) >= 4 for x in jax.tree.leaves(like)):
        kinds.append("modes")
    held = np.arange(len(rows)) % 5 == 0
    if len(rows) < 10:
        return kinds[-1]

    def fit(kind: str) -> float:
        mean, variance, basis = _moments(rows[~held], like, kind)
        coordinates = _coordinates(rows[held] - mean, like, kind, basis)
        return float(-np.mean(np.sum(np.abs(coordinates) ** 2 / variance + np.log(variance), 1)))

    return max(kinds, key=fit)


def reference_of(draws: State, kind: str | None = None) -> Reference:
    """Fit the Gaussian to draws, leaves (n, *state)."""
    like = jax.tree.map(lambda x: jnp.asarray(x[0]), draws)
    kind = best_kind(draws) if kind is None else kind
    mean, variance, basis = _moments(flat_of(draws), like, kind)
    flat, unravel = ravel_pytree(like)
    as_state = lambda row: unravel(jnp.asarray(row, flat.dtype))
    if kind == "dense":
        rotation = Rotation(jnp.asarray(basis, flat.dtype))
        return Reference(as_state(mean), Spread(jnp.asarray(variance, flat.dtype), rotation))
    transform = Fourier() if kind == "modes" else None
    return Reference(as_state(mean), Spread(as_state(variance), transform))


def _moments(rows: np.ndarray, like: State, kind: str) -> tuple[np.ndarray, np.ndarray, Any]:
    mean = rows.mean(axis=0)
    centred = rows - mean
    if kind == "dense":
        covariance = centred.T @ centred / len(rows)
        share = rows.shape[1] / (rows.shape[1] + len(rows))
        shrunk = (1 - share) * covariance + share * np.diag(np.diag(covariance))
        variance, basis = np.linalg.eigh(shrunk)
    else:
        coordinates, basis = _coordinates(centred, like, kind, None), None
        variance = np.mean(np.abs(coordinates) ** 2, axis=0)
    return mean, np.maximum(variance, _FLOOR * variance.max()), basis


def _coordinates(centred: np.ndarray, like: State, kind: str, basis: Any) -> np.ndarray:
    if kind == "modes":
        return modes_of(centred, like)
    return centred @ basis if kind == "dense" else centred

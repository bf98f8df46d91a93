"""Unitary transforms that cut a state into small blocks which hardly know each other.

A transform takes one state to groups of blocks, ``to(x)`` -> a tuple of arrays (blocks, entries per
block), one for each grid among the leaves, and back. Leaves on one grid share its blocks, so that a
block holds what is coupled: all leaves at one wavenumber, or at one point. ``multiplicity`` says
how many times a stored block counts in |x|^2 (twice for a mode whose conjugate is not stored).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.checks import check_that
from smdp_jax.sde import State
from smdp_jax.solve.linear import cosines
from smdp_jax.solve.terms import white_noise

Blocks = tuple[Array, ...]
Kind = Literal["periodic", "cosine", "points", "joint"]


@dataclass(frozen=True)
class _Grids:
    """Transforms of every grid on its own; ``axes`` leading axes of a leaf are its grid."""

    axes: int

    def to(self, x: State) -> Blocks:
        """Take a state to blocks."""
        leaves, found = jax.tree.leaves(x), []
        for grid, where in _grids(leaves, self.axes).items():
            dtype = _widest([leaves[i] for i in where])
            parts = [leaves[i].astype(dtype).reshape(*grid, -1) for i in where]
            field = self._forward(jnp.concatenate(parts, axis=-1), len(grid))
            found.append(field.reshape(-1, field.shape[-1]))
        return tuple(found)

    def back(self, blocks: Blocks, like: State) -> State:
        """Take blocks to a state of the tree, shapes and dtypes of ``like``."""
        leaves, tree = jax.tree.flatten(like)
        out: list[Any] = [None] * len(leaves)
        for (grid, where), block in zip(_grids(leaves, self.axes).items(), blocks, strict=True):
            stored = self._stored(grid)
            field = self._backward(block.reshape(*stored, block.shape[-1]), grid)
            sizes = [math.prod(leaves[i].shape[len(grid) :]) for i in where]
            parts = jnp.split(field, np.cumsum(sizes)[:-1], axis=-1)
            for i, part in zip(where, parts, strict=True):
                out[i] = jnp.real(part).reshape(leaves[i].shape).astype(leaves[i].dtype)
        return jax.tree.unflatten(tree, out)

    def multiplicity(self, x: State) -> tuple[np.ndarray, ...]:
        """How many times each block counts in the squared norm of a state."""
        grids = _grids(jax.tree.leaves(x), self.axes)
        return tuple(self._weights(grid).ravel() for grid in grids)

    def _forward(self, field: Array, axes: int) -> Array:
        return field

    def _backward(self, stored: Array, grid: tuple[int, ...]) -> Array:
        return stored

    def _stored(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        return grid

    def _weights(self, grid: tuple[int, ...]) -> np.ndarray:
        return np.ones(grid)


@dataclass(frozen=True)
class Points(_Grids):
    """No transform: a block is a point of the grid."""


@dataclass(frozen=True)
class Periodic(_Grids):
    """Fourier modes of ``rfftn(..., norm="ortho")``: for fields that are alike everywhere."""

    def _forward(self, field: Array, axes: int) -> Array:
        return jnp.fft.rfftn(field, axes=range(axes), norm="ortho") if axes else field

    def _backward(self, stored: Array, grid: tuple[int, ...]) -> Array:
        if not grid:
            return stored
        return jnp.fft.irfftn(stored, s=grid, axes=range(len(grid)), norm="ortho")

    def _stored(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        return (*grid[:-1], grid[-1] // 2 + 1) if grid else grid

    def _weights(self, grid: tuple[int, ...]) -> np.ndarray:
        if not grid:
            return np.ones(())
        last = np.arange(grid[-1] // 2 + 1)
        single = (2 * last) % grid[-1] == 0
        return np.broadcast_to(np.where(single, 1.0, 2.0), self._stored(grid))


@dataclass(frozen=True)
class Cosine(_Grids):
    """Cosine modes (type II) along every axis: for fields between walls."""

    def _forward(self, field: Array, axes: int) -> Array:
        for axis in range(axes):
            field = _along(axis, cosines(field.shape[axis]), field)
        return field

    def _backward(self, stored: Array, grid: tuple[int, ...]) -> Array:
        for axis, size in enumerate(grid):
            stored = _along(axis, cosines(size).T, stored)
        return stored


@dataclass(frozen=True)
class Custom(_Grids):
    """A user's own pair of functions of one field (*grid,), each the other's inverse."""

    forward: Callable[[Any], Any]
    inverse: Callable[[Any], Any]

    def _forward(self, field: Array, axes: int) -> Array:
        return jax.vmap(self.forward, in_axes=-1, out_axes=-1)(field)

    def _backward(self, stored: Array, grid: tuple[int, ...]) -> Array:
        return jax.vmap(self.inverse, in_axes=-1, out_axes=-1)(stored)


@dataclass(frozen=True)
class Joint:
    """One block of all entries of all leaves."""

    def to(self, x: State) -> Blocks:
        """Take a state to its one block."""
        leaves = jax.tree.leaves(x)
        dtype = _widest(leaves)
        return (jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in leaves])[None],)

    def back(self, blocks: Blocks, like: State) -> State:
        """Take the block to a state of the tree, shapes and dtypes of ``like``."""
        leaves, tree = jax.tree.flatten(like)
        parts = jnp.split(blocks[0][0], np.cumsum([leaf.size for leaf in leaves])[:-1])
        return jax.tree.unflatten(
            tree, [p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, leaves, strict=True)]
        )

    def multiplicity(self, x: State) -> tuple[np.ndarray, ...]:
        """Once."""
        return (np.ones(1),)


Transform = Periodic | Cosine | Points | Joint | Custom


def named(kind: Kind, axes: int) -> Transform:
    """Return the transform of that name for states with that many grid axes."""
    if kind == "joint":
        return Joint()
    return {"periodic": Periodic, "cosine": Cosine, "points": Points}[kind](axes)


def check_unitary(transform: Any, x: State) -> None:
    """Refuse a transform that changes the norm of a random state or does not come back to it."""
    with jax.ensure_compile_time_eval():
        state = white_noise(jax.random.key(0), x)
        blocks = transform.to(state)
        there = sum(
            float((jnp.abs(b) ** 2 * jnp.asarray(w, jnp.abs(b).dtype)[:, None]).sum())
            for b, w in zip(blocks, transform.multiplicity(state), strict=True)
        )
        square = lambda tree: sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(tree))
        missed = square(jax.tree.map(jnp.subtract, transform.back(blocks, state), state))
        norm, missed = there / square(state), missed / square(state)
    said = "BackwardKernel.transform must be unitary, a pair (forward, inverse), got"
    got = f"|forward(x)|^2 = {norm:.4g} |x|^2 and |inverse(forward(x)) - x|^2 = {missed:.4g} |x|^2"
    check_that(abs(norm - 1) < 1e-3 and missed < 1e-6, f"{said} {got}")


def matvec(matrices: Array, vectors: Array) -> Array:
    """Multiply the entries of every block by its own matrix."""
    if matrices.shape[-1] == 1:
        return matrices[..., 0] * vectors
    return jnp.einsum("kcd,kd->kc", matrices, vectors)


def _grids(leaves: list[Any], axes: int) -> dict[tuple[int, ...], list[int]]:
    found: dict[tuple[int, ...], list[int]] = {}
    for i, leaf in enumerate(leaves):
        found.setdefault(tuple(leaf.shape[:axes]), []).append(i)
    return found


def _widest(leaves: list[Any]) -> Any:
    return max((leaf.dtype for leaf in leaves), key=lambda dtype: jnp.finfo(dtype).bits)


def _along(axis: int, matrix: np.ndarray, field: Array) -> Array:
    product = jnp.tensordot(jnp.asarray(matrix, field.dtype), field, axes=(1, axis))
    return jnp.moveaxis(product, 0, axis)

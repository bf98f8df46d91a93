"""Variance per Fourier mode of periodic fields: C(t, k) = E|x_k|², x_k unitary modes of x at t.

Fields are real; modes are those of `jnp.fft.rfftn(..., norm="ortho")`, shape
(*grid[:-1], grid[-1] // 2 + 1), so that E|x_k|² is 1 for white noise of unit variance per point.
It is the second moment: no mean is subtracted, and among Gaussians of zero mean that are diagonal
in k, the one with these variances is the nearest to the data in the Kullback-Leibler sense.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from smdp_jax.files import digest_of


def modes_shape(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the modes of a real field."""
    return (*grid[:-1], grid[-1] // 2 + 1)


def squared_wavenumbers(grid: tuple[int, ...]) -> np.ndarray:
    """|k|² per mode, in integer wavenumbers (periods per box)."""
    axes = [np.fft.fftfreq(side, 1 / side) for side in grid[:-1]]
    axes.append(np.fft.rfftfreq(grid[-1], 1 / grid[-1]))
    return np.rint(sum(k**2 for k in np.meshgrid(*axes, indexing="ij"))).astype(int)


def multiplicity(grid: tuple[int, ...]) -> np.ndarray:
    """How many of the modes of the full transform each stored mode stands for."""
    last = np.arange(grid[-1] // 2 + 1)
    own_conjugate = (2 * last) % grid[-1] == 0
    return np.broadcast_to(np.where(own_conjugate, 1, 2), modes_shape(grid)).copy()


def _average_shells(
    variance: Float[Array, "*modes"], grid: tuple[int, ...]
) -> Float[Array, "*modes"]:
    _, shell = np.unique(squared_wavenumbers(grid).ravel(), return_inverse=True)
    weight = multiplicity(grid).ravel()
    count = np.bincount(shell, weight)
    share = jnp.asarray(weight / count[shell], variance.dtype)
    means = jnp.zeros(count.shape, variance.dtype).at[shell].add(share * variance.ravel())
    return means[shell].reshape(variance.shape)


def mode_variance(xs: PyTree, *, radial: bool = False) -> PyTree:
    """Second moment E|x_k|² of every Fourier mode over a sample of fields.

    Parameters
    ----------
    xs : pytree
        Real fields, leaves (n, *grid); any number of grid axes.
    radial : bool
        Average over modes of equal |k|², in periods per box: less estimation noise where
        statistics are isotropic on a box of equal sides. The relative error of an entry is about
        sqrt(2 / (n m)), m the number of modes in its shell (1 without averaging).

    Returns
    -------
    pytree
        Leaves (*grid[:-1], grid[-1] // 2 + 1), in the units of x².

    Raises
    ------
    ValueError
        If a leaf has no grid axis or no sample.
    """

    def of_leaf(leaf: ArrayLike) -> Array:
        leaf = jnp.asarray(leaf)
        if leaf.ndim < 2 or leaf.shape[0] == 0:
            raise ValueError(f"expected fields of shape (n, *grid), n >= 1, got {leaf.shape}")
        grid = leaf.shape[1:]

        # One field at a time: the modes of all of them need not fit in memory.
        def add(total: Array, field: Array) -> tuple[Array, None]:
            modes = jnp.fft.rfftn(field, norm="ortho")
            return total + modes.real**2 + modes.imag**2, None

        total, _ = jax.lax.scan(add, jnp.zeros(modes_shape(grid), leaf.dtype), leaf)
        variance = total / leaf.shape[0]
        return _average_shells(variance, grid) if radial else variance

    return jax.tree.map(of_leaf, xs)


def _bounded_below(variance: np.ndarray, floor: float) -> np.ndarray:
    bounded = np.maximum(variance, 1e-12 * variance.mean())
    for i in range(len(bounded) - 2, -1, -1):
        bounded[i] = np.maximum(bounded[i], floor * bounded[i + 1])
    return bounded


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Table of mode variances over time, callable at any time: `spectrum(t)` -> tree of C(t, k).

    Between two stored times a rising variance is interpolated linearly (noise adds variance at a
    constant rate) and a falling one geometrically (dissipation takes a constant fraction); both are
    exact for those two cases alone. Outside the stored times the nearest is used.

    Two tables with equal contents are equal and hash alike, so that a network holding one can be
    a static argument of `jax.jit`. A table is no variable of the network: no optimiser, weight
    decay or moving average touches it, and a restored network is built with the same table.

    Parameters
    ----------
    ts : array (n,)
        Stored times, strictly increasing, n >= 2.
    variance : pytree
        Structure of the state, leaves (n, *modes) >= 0, in the units of x².
    floor : float
        A mode that starts from nothing, C = 0 at the first time, has an infinite score there.
        C(t_i) is kept above `floor` times C(t_{i+1}), which is as if the noise had set in that
        fraction of a step earlier. Modes that never move get 1e-12 times the mean over modes.

    Raises
    ------
    ValueError
        If shapes do not fit, times do not increase, values are negative or not finite, all
        variances are zero, or the floor is outside (0, 1].
    """

    ts: Any
    variance: PyTree
    floor: float = 1e-3
    _digest: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the table and bound it from below."""
        ts = np.array(self.ts)
        if ts.ndim != 1 or len(ts) < 2 or not np.all(np.diff(ts) > 0):
            raise ValueError(f"ts must be at least two strictly increasing times, got {ts}")
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor must be in (0, 1], got {self.floor}")

        def bounded(leaf: Any) -> np.ndarray:
            leaf = np.array(leaf)
            if leaf.ndim < 2 or len(leaf) != len(ts):
                raise ValueError(f"expected {len(ts)} times by modes, got shape {leaf.shape}")
            if not (np.all(np.isfinite(leaf)) and leaf.min() >= 0 and leaf.max() > 0):
                raise ValueError(
                    "variances must be finite, non-negative and not all zero, got values in "
                    f"[{leaf.min()}, {leaf.max()}]"
                )
            return _bounded_below(leaf, self.floor)

        object.__setattr__(self, "ts", ts)
        object.__setattr__(self, "variance", jax.tree.map(bounded, self.variance))
        object.__setattr__(self, "_digest", digest_of((self.ts, self.variance)))

    @classmethod
    def from_trajectories(
        cls, ts: ArrayLike, xs: PyTree, *, radial: bool = False, floor: float = 1e-3
    ) -> "Spectrum":
        """Estimate the table from simulated paths.

        Parameters
        ----------
        ts : array (times,)
            Stored times.
        xs : pytree
            States of real periodic fields, leaves (samples, times, *grid).
        radial : bool
            Average over modes of equal |k|², see `mode_variance`.
        floor : float
            As in `Spectrum`.

        Returns
        -------
        Spectrum
            Table at those times.
        """
        variance = jax.vmap(lambda x: mode_variance(x, radial=radial), in_axes=1)(xs)
        return cls(ts, variance, floor)

    def __call__(self, t: ArrayLike) -> PyTree:
        """Variances at a scalar time t, leaves (*modes), in t's dtype."""
        t = jnp.asarray(t)
        ts = jnp.asarray(self.ts, t.dtype)
        i = jnp.clip(jnp.sum(ts <= t) - 1, 0, len(self.ts) - 2)
        weight = jnp.clip((t - ts[i]) / (ts[i + 1] - ts[i]), 0, 1)

        def interpolate(leaf: np.ndarray) -> Array:
            table = jnp.asarray(leaf, t.dtype)
            left, right = table[i], table[i + 1]
            rising = left + weight * (right - left)
            falling = left * (right / left) ** weight
            return jnp.where(right > left, rising, falling)

        return jax.tree.map(interpolate, self.variance)

    def __eq__(self, other: object) -> bool:
        """Equal contents."""
        return isinstance(other, Spectrum) and self._digest == other._digest

    def __hash__(self) -> int:
        """Hash of the contents."""
        return hash(self._digest)

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

from smdp_jax.checks import check_conditions, check_within
from smdp_jax.files import digest_of
from smdp_jax.physics.spectral.gaussian_field import mode_variance
from smdp_jax.sde import Args, State
from smdp_jax.solve.condition_splines import PATHS_PER_KNOT, Hats, fitted_variances
from smdp_jax.solve.time_grids import between, variance_between


def _bounded_below(variance: np.ndarray, floor: float) -> np.ndarray:
    bounded = np.maximum(variance, 1e-12 * variance.mean())
    for i in range(len(bounded) - 2, -1, -1):
        bounded[i] = np.maximum(bounded[i], floor * bounded[i + 1])
    return bounded


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Table of mode variances over time, and over conditions: `spectrum(t, args)` gives C(t, k).

    Between two stored times a rising variance is interpolated linearly (noise adds variance at a
    constant rate) and a falling one geometrically (dissipation takes a constant fraction); both are
    exact for those two cases alone. Outside the stored times the nearest is used. Over conditions
    the logarithm is interpolated linearly.

    Two tables with equal contents are equal and hash alike, so that a network holding one can be
    a static argument of `jax.jit`. A table is no variable of the network: no optimiser, weight
    decay or moving average touches it, and a restored network is built with the same table.

    Parameters
    ----------
    ts, variance : array (n,), pytree
        Stored times, strictly increasing, n >= 2; structure of the state, leaves (n, *modes) >= 0,
        in the units of x²; with conditions (n, knots, *modes).
    floor : float
        A mode that starts from nothing, C = 0 at the first time, has an infinite score there.
        C(t_i) is kept above `floor`, in (0, 1], times C(t_{i+1}), which is as if the noise had set
        in that fraction of a step earlier. Modes that never move get 1e-12 times the mean over
        modes; if none does, the table is refused (ValueError).
    conditions : optional
        Knots in the scalars of ``args``, as `from_trajectories` puts them; None: C(t, k) alone.

    Raises
    ------
    ValueError
        If shapes do not fit, times do not increase, values are negative or not finite, all
        variances are zero, or the floor is outside (0, 1].
    """

    ts: Any
    variance: State
    floor: float = 1e-3
    conditions: Hats | None = field(default=None, repr=False)
    _digest: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the table and bound it from below."""
        ts = np.array(self.ts)
        if ts.ndim != 1 or len(ts) < 2 or not np.all(np.diff(ts) > 0):
            raise ValueError(f"ts must be at least two strictly increasing times, got {ts}")
        check_within("(0, 1]", floor=self.floor)

        knots = () if self.conditions is None else (self.conditions.count,)
        want = " by ".join([f"{len(ts)} times", *(f"{count} knots" for count in knots), "modes"])

        def bounded(leaf: Any) -> np.ndarray:
            leaf = np.array(leaf)
            known = 1 + len(knots)
            if leaf.ndim <= known or leaf.shape[:known] != (len(ts), *knots):
                raise ValueError(f"variance must be {want}, got {leaf.shape}")
            if not (leaf.min() >= 0 and 0 < leaf.max() < np.inf):
                got = f"values in [{leaf.min()}, {leaf.max()}]"
                raise ValueError(f"variances must be finite, at least 0, not all 0, got {got}")
            return _bounded_below(leaf, self.floor)

        object.__setattr__(self, "ts", ts)
        object.__setattr__(self, "variance", jax.tree.map(bounded, self.variance))
        object.__setattr__(self, "_digest", digest_of((self.ts, self.variance, self.conditions)))

    @classmethod
    def from_trajectories(
        cls,
        ts: ArrayLike,
        xs: State,
        *,
        args: Args = None,
        radial: bool = False,
        floor: float = 1e-3,
    ) -> "Spectrum":
        """Estimate the table from simulated paths.

        Parameters
        ----------
        ts, xs : array (times,), pytree
            Stored times; states of real periodic fields, leaves (samples, times, *grid).
        args : pytree, optional
            Conditions of the paths, leaves (samples, ...): the table follows (up to three of) the
            scalars that differ between paths, each knot being told by at least 20 of them.
        radial, floor
            Average over modes of equal |k|², see `mode_variance`; as in `Spectrum`.

        Returns
        -------
        Spectrum
            Table at those times.

        Raises
        ------
        ValueError
            If conditions are not one for each path; as for `Spectrum`.
        """
        paths, dtype = len(jax.tree.leaves(xs)[0]), jax.tree.leaves(xs)[0].dtype
        check_conditions(args, 0, paths, "xs")
        hats = Hats.of(args, paths, paths // PATHS_PER_KNOT, dtype)
        if not hats.picks:
            variance = jax.vmap(lambda x: mode_variance(x, radial=radial), in_axes=1)(xs)
            return cls(ts, variance, floor)
        weights = jax.vmap(lambda args: hats(args, dtype)[1])(args)

        def at(x: State) -> State:
            powers = jax.vmap(lambda x: mode_variance(x, radial=radial))(
                jax.tree.map(lambda field: field[:, None], x)
            )
            return jax.tree.map(lambda p: fitted_variances(weights, p), powers)

        by_time = jax.tree.map(lambda x: jnp.moveaxis(jnp.asarray(x), 1, 0), xs)
        return cls(ts, jax.jit(lambda xs: jax.lax.map(at, xs))(by_time), floor, hats)

    def __call__(self, t: ArrayLike, args: Args = None) -> State:
        """Variances at a scalar time t for some conditions, leaves (*modes), in t's dtype."""
        t = jnp.asarray(t)
        i, share = between(jnp.asarray(self.ts, t.dtype), t)
        table = jax.tree.map(lambda leaf: jnp.asarray(leaf, t.dtype), self.variance)
        found = jax.tree.map(lambda v: variance_between(v[i - 1], v[i], share), table)
        hats = self.conditions
        return found if hats is None else jax.tree.map(lambda v: hats.geometric(v, args), found)

    def __eq__(self, other: object) -> bool:
        """Equal contents."""
        return isinstance(other, Spectrum) and self._digest == other._digest

    def __hash__(self) -> int:
        """Hash of the contents."""
        return hash(self._digest)

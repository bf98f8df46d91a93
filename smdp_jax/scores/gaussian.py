"""The Gaussian nearest to training paths, mode by mode, and the linear part that they show."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.checks import check_within, concrete
from smdp_jax.sde import Args, Scalar, State
from smdp_jax.solve.condition_splines import (
    PATHS_PER_KNOT,
    ByConditions,
    Hats,
    fitted_gains,
    fitted_means,
    fitted_variances,
    shares_of,
)
from smdp_jax.solve.linear import LinearPart, Transform, check_transform, times, to_modes
from smdp_jax.solve.time_grids import between, variance_between
from smdp_jax.trajectories import Trajectories

_PAIRS = slice(-1), slice(1, None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianReference:
    """Mean and variance per mode over time: the Gaussian that ``GaussianStep`` solves exactly.

    Between stored times a rising variance is interpolated linearly (noise adds at a constant
    rate), a falling one geometrically (decay takes a constant share); between conditions the mean
    linearly, and the variance geometrically.

    Parameters
    ----------
    ts : array (times,)
        Increasing times, at least 2.
    mean, variance : pytree
        Leaves (times, *modes), with conditions (times, knots, *modes); in units of the state, and
        squared.
    transform : tuple of callables, optional
        The unitary ``(forward, backward)`` of the modes; None: the entries of the state.
    conditions : optional
        Knots in the scalars of ``args``, as `of` puts them; None: time alone.

    Raises
    ------
    ValueError
        If a variance is negative or not finite.
    """

    ts: Any
    mean: Any
    variance: Any
    transform: Transform | None = field(default=None, metadata={"static": True})
    conditions: Hats | None = None

    def __post_init__(self) -> None:
        for leaf in jax.tree.leaves(self.variance):
            if not isinstance(leaf, (jax.Array, np.ndarray)) or not concrete(leaf):
                continue
            check_within("[0, inf)", owner=self, variance=np.min(np.asarray(leaf)))

    @classmethod
    def of(
        cls, data: Trajectories, transform: Transform | None = None, *, floor: float = 1e-3
    ) -> "GaussianReference":
        """Measure the moments of paths.

        Parameters
        ----------
        data, transform
            Training paths, and a unitary ``(forward, backward)`` of one state. Where scalars in the
            paths' ``args`` differ, the tables follow (up to three of) them, each knot being told by
            at least 20 paths.
        floor : float
            A variance is kept above that share of the next one: the score of a mode that starts
            from nothing is infinite.

        Returns
        -------
        GaussianReference
            Its tables at the times of the paths.

        Raises
        ------
        ValueError
            If the transform is not unitary.
        """
        check_transform(transform, data.at(0, 0))

        hats = _hats_of(data)
        weights = _weights(hats, data)

        def moments(xs: State) -> tuple[State, State]:
            modes = jax.vmap(partial(to_modes, transform))(xs)
            mean = jax.tree.map(lambda w: _means(weights, w), modes)
            off = jax.tree.map(lambda w, m: jnp.abs(w - _to_paths(weights, m)) ** 2, modes, mean)
            return mean, jax.tree.map(lambda v: _variances(weights, v), off)

        by_time = jax.tree.map(lambda x: jnp.moveaxis(jnp.asarray(x), 1, 0), data.xs)
        mean, variance = jax.jit(lambda xs: jax.lax.map(moments, xs))(by_time)

        def bounded(table: Array) -> Array:
            table = jnp.maximum(table, 1e-9 * table.mean())

            def raise_(later: Array, own: Array) -> tuple[Array, Array]:
                own = jnp.maximum(own, floor * later)
                return own, own

            return jax.lax.scan(raise_, table[-1], table, reverse=True)[1]

        variance = jax.tree.map(bounded, variance)
        return cls(jnp.asarray(data.ts), mean, variance, transform, hats)

    def moments(self, t: Scalar, args: Args = None) -> tuple[State, State]:
        """Interpolate mean and variance.

        Parameters
        ----------
        t : scalar
            Time; the nearest stored one outside.
        args : pytree, optional
            Conditions, where the tables follow them.

        Returns
        -------
        mean, variance : pytree
            Leaves (*modes).
        """
        i, share = between(self.ts, jnp.asarray(t, self.ts.dtype))

        def straight(table: Array) -> Array:
            left, right = table[i - 1], table[i]
            mean = left + times(share.astype(jnp.finfo(table.dtype).dtype), right - left)
            return mean if self.conditions is None else self.conditions.linear(mean, args)

        def spread(table: Array) -> Array:
            found = variance_between(table[i - 1], table[i], share.astype(table.dtype))
            return found if self.conditions is None else self.conditions.geometric(found, args)

        return jax.tree.map(straight, self.mean), jax.tree.map(spread, self.variance)

    def linear_part(self, data: Trajectories) -> LinearPart:
        """Estimate the linear part of the physics by regression of each stored state on the last.

        Parameters
        ----------
        data : Trajectories
            The paths.

        Returns
        -------
        LinearPart
            Rates per mode, averaged over time by the variance of the earlier state; real in a real
            transform; functions of the conditions where the tables are. What grows is set to 0: the
            rest of the drift holds it.
        """
        weights = _weights(self.conditions, data)

        def products(pair: tuple) -> tuple[State, State]:
            first, then, mean, later = pair

            def centred(xs: State, mean: State) -> State:
                modes = jax.vmap(partial(to_modes, self.transform))(xs)
                return jax.tree.map(lambda w, m: w - _to_paths(weights, m), modes, mean)

            first, then = centred(first, mean), centred(then, later)
            gains = jax.tree.map(partial(_gains, weights), first, then)
            return gains, jax.tree.map(lambda a: _average(weights, jnp.abs(a) ** 2), first)

        by_time = jax.tree.map(lambda x: jnp.moveaxis(jnp.asarray(x), 1, 0), data.xs)
        both = lambda tree: [jax.tree.map(lambda x, s=s: x[s], tree) for s in _PAIRS]
        gains, power = jax.lax.map(products, (*both(by_time), *both(self.mean)))

        def rate(gain: Array, power: Array) -> Array:
            dt = jnp.diff(self.ts).reshape((-1,) + (1,) * (power.ndim - 1)).astype(power.dtype)
            share = power / jnp.maximum(power.sum(axis=0, keepdims=True), 1e-30)
            decay = -jnp.log(jnp.maximum(jnp.abs(gain), 1e-6)) / dt
            decay = jnp.maximum((share * decay).sum(axis=0), 0)
            if not jnp.iscomplexobj(gain):
                return decay
            return jax.lax.complex(decay, (share * (-jnp.angle(gain) / dt)).sum(axis=0))

        rates = jax.tree.map(rate, gains, power)
        if self.conditions is not None:
            rates = ByConditions(self.conditions, rates)
        return LinearPart(rates, self.transform)


def _hats_of(data: Trajectories) -> Hats | None:
    if data.args_axes is None:
        return None
    dtype = jax.tree.leaves(data.xs)[0].dtype
    hats = Hats.of(data.args, data.num_samples, data.num_samples // PATHS_PER_KNOT, dtype)
    return hats if hats.picks else None


def _weights(hats: Hats | None, data: Trajectories) -> Array | None:
    """Of the knots at the conditions of the paths (paths, knots)."""
    if hats is None:
        return None
    dtype = jax.tree.leaves(data.xs)[0].dtype
    return jax.vmap(lambda i: hats(data.args_of(i), dtype)[1])(jnp.arange(data.num_samples))


def _means(weights: Array | None, values: Array) -> Array:
    return values.mean(axis=0) if weights is None else fitted_means(weights, values)


def _variances(weights: Array | None, powers: Array) -> Array:
    return powers.mean(axis=0) if weights is None else fitted_variances(weights, powers)


def _gains(weights: Array | None, earlier: Array, later: Array) -> Array:
    if weights is not None:
        return fitted_gains(weights, earlier, later)
    cross = (jnp.conj(earlier) * later).mean(axis=0)
    return times(1 / jnp.maximum((jnp.abs(earlier) ** 2).mean(axis=0), 1e-30), cross)


def _average(weights: Array | None, values: Array) -> Array:
    if weights is None:
        return values.mean(axis=0)
    return jnp.tensordot(shares_of(weights).T.astype(values.dtype), values, 1)


def _to_paths(weights: Array | None, table: Array) -> Array:
    if weights is None:
        return table[None]
    return jnp.tensordot(weights.astype(table.dtype), table, 1)

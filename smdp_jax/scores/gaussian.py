"""The Gaussian nearest to training paths, mode by mode, and the linear part that they show."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.checks import check_within, concrete
from smdp_jax.sde import Scalar, State
from smdp_jax.solve.linear import LinearPart, Transform, check_transform, times
from smdp_jax.solve.time_grids import between, variance_between
from smdp_jax.trajectories import Trajectories


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianReference:
    """Mean and variance per mode over time: the Gaussian that ``GaussianStep`` solves exactly.

    Between stored times a rising variance is interpolated linearly (noise adds at a constant
    rate), a falling one geometrically (decay takes a constant share).

    Parameters
    ----------
    ts : array (times,)
        Increasing times, at least 2.
    mean, variance : pytree
        Leaves (times, *modes); in units of the state, and squared.
    transform : tuple of callables, optional
        The unitary ``(forward, backward)`` of the modes; None: the entries of the state.

    Raises
    ------
    ValueError
        If a variance is negative or not finite.
    """

    ts: Any
    mean: Any
    variance: Any
    transform: Transform | None = field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        for leaf in jax.tree.leaves(self.variance):
            if not isinstance(leaf, (jax.Array, np.ndarray)) or not concrete(leaf):
                continue
            check_within("[0, inf)", owner=self, variance=jnp.min(leaf))

    @classmethod
    def of(
        cls, data: Trajectories, transform: Transform | None = None, *, floor: float = 1e-3
    ) -> "GaussianReference":
        """Measure the moments of paths.

        Parameters
        ----------
        data, transform
            Training paths, and a unitary ``(forward, backward)`` of one state.
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
        forward = transform[0] if transform is not None else lambda x: x

        def moments(xs: State) -> tuple[State, State]:
            modes = jax.vmap(forward)(xs)
            mean = jax.tree.map(lambda w: w.mean(axis=0), modes)
            off = jax.tree.map(lambda w, m: jnp.abs(w - m[None]) ** 2, modes, mean)
            return mean, jax.tree.map(lambda v: v.mean(axis=0), off)

        by_time = jax.tree.map(lambda x: jnp.moveaxis(jnp.asarray(x), 1, 0), data.xs)
        mean, variance = jax.jit(lambda xs: jax.lax.map(moments, xs))(by_time)

        def bounded(table: Array) -> Array:
            table = jnp.maximum(table, 1e-9 * table.mean())

            def raise_(later: Array, own: Array) -> tuple[Array, Array]:
                own = jnp.maximum(own, floor * later)
                return own, own

            return jax.lax.scan(raise_, table[-1], table, reverse=True)[1]

        return cls(jnp.asarray(data.ts), mean, jax.tree.map(bounded, variance), transform)

    def moments(self, t: Scalar) -> tuple[State, State]:
        """Interpolate mean and variance.

        Parameters
        ----------
        t : scalar
            Time; the nearest stored one outside.

        Returns
        -------
        mean, variance : pytree
            Leaves (*modes).
        """
        i, share = between(self.ts, jnp.asarray(t, self.ts.dtype))

        def straight(table: Array) -> Array:
            left, right = table[i - 1], table[i]
            return left + times(share.astype(jnp.finfo(table.dtype).dtype), right - left)

        def spread(table: Array) -> Array:
            return variance_between(table[i - 1], table[i], share.astype(table.dtype))

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
            transform. What grows is set to 0: the rest of the drift holds it.
        """
        forward = self.transform[0] if self.transform is not None else lambda x: x

        def products(pair: tuple) -> tuple[State, State]:
            first, then, mean, later = pair

            def centred(xs: State, mean: State) -> State:
                return jax.tree.map(lambda w, m: w - m[None], jax.vmap(forward)(xs), mean)

            first, then = centred(first, mean), centred(then, later)
            cross = jax.tree.map(lambda a, b: (jnp.conj(a) * b).mean(axis=0), first, then)
            return cross, jax.tree.map(lambda a: (jnp.abs(a) ** 2).mean(axis=0), first)

        by_time = jax.tree.map(lambda x: jnp.moveaxis(jnp.asarray(x), 1, 0), data.xs)
        first, then = (
            jax.tree.map(lambda x, s=s: x[s], by_time) for s in (slice(-1), slice(1, None))
        )
        means = (jax.tree.map(lambda x, s=s: x[s], self.mean) for s in (slice(-1), slice(1, None)))
        cross, power = jax.lax.map(products, (first, then, *means))
        dt = jnp.diff(self.ts)

        def rate(cross: Array, power: Array) -> Array:
            shape = (-1,) + (1,) * (power.ndim - 1)
            share = power / jnp.maximum(power.sum(axis=0, keepdims=True), 1e-30)
            gain = jnp.abs(cross) / jnp.maximum(power, 1e-30)
            decay = -jnp.log(jnp.maximum(gain, 1e-6)) / dt.reshape(shape).astype(power.dtype)
            decay = jnp.maximum((share * decay).sum(axis=0), 0)
            if not jnp.iscomplexobj(cross):
                return decay
            turn = -jnp.angle(cross) / dt.reshape(shape).astype(power.dtype)
            return jax.lax.complex(decay, (share * turn).sum(axis=0))

        return LinearPart(jax.tree.map(rate, cross, power), self.transform)

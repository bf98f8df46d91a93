"""The Gaussian nearest to training paths, mode by mode, and the linear part that they show."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.checks import check_within, concrete
from smdp_jax.sde import Scalar, State
from smdp_jax.solve.linear import LinearPart, Transform, check_transform, times, to_modes
from smdp_jax.solve.time_grids import between, variance_between
from smdp_jax.trajectories import Trajectories

_PAIRS = slice(-1), slice(1, None)


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

        def moments(xs: State) -> tuple[State, State]:
            modes = jax.vmap(partial(to_modes, transform))(xs)
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

        def products(pair: tuple) -> tuple[State, State]:
            first, then, mean, later = pair

            def centred(xs: State, mean: State) -> State:
                modes = jax.vmap(partial(to_modes, self.transform))(xs)
                return jax.tree.map(lambda w, m: w - m[None], modes, mean)

            first, then = centred(first, mean), centred(then, later)
            cross = jax.tree.map(lambda a, b: (jnp.conj(a) * b).mean(axis=0), first, then)
            return cross, jax.tree.map(lambda a: (jnp.abs(a) ** 2).mean(axis=0), first)

        by_time = jax.tree.map(lambda x: jnp.moveaxis(jnp.asarray(x), 1, 0), data.xs)
        both = lambda tree: [jax.tree.map(lambda x, s=s: x[s], tree) for s in _PAIRS]
        cross, power = jax.lax.map(products, (*both(by_time), *both(self.mean)))

        def rate(cross: Array, power: Array) -> Array:
            dt = jnp.diff(self.ts).reshape((-1,) + (1,) * (power.ndim - 1)).astype(power.dtype)
            share = power / jnp.maximum(power.sum(axis=0, keepdims=True), 1e-30)
            gain = jnp.abs(cross) / jnp.maximum(power, 1e-30)
            decay = -jnp.log(jnp.maximum(gain, 1e-6)) / dt
            decay = jnp.maximum((share * decay).sum(axis=0), 0)
            if not jnp.iscomplexobj(cross):
                return decay
            return jax.lax.complex(decay, (share * (-jnp.angle(cross) / dt)).sum(axis=0))

        return LinearPart(jax.tree.map(rate, cross, power), self.transform)

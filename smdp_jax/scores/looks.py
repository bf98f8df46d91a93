r"""What linear sensors have yet to show at every time, and how it is learned from the particles.

A table holds ``N(y; B_t x + c_t, R_t)`` at every time of a solve. A regression over all simulated
paths is the best linear one for the prior; where physics is not linear, and the posterior narrow,
one over paths near the posterior tells far more (as in iterated auxiliary particle filters:
Guarniero, Johansen, Lee 2017). Any table is exact as the number of particles grows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from smdp_jax.checks import check_that
from smdp_jax.scores.sensors import LinearObservation
from smdp_jax.scores.twist import LinearTwist, by_components
from smdp_jax.sde import State
from smdp_jax.solve.smoothing import Sight


class Tables(NamedTuple):
    """Gain (times, sensors, entries), offset and residual covariance; and which sensors are in.

    Sensors at the very time need no table.
    """

    gain: Array
    offset: Array
    residual: Array
    active: Array


class Looks(NamedTuple):
    """All linear sensors of a solve: where they look, what they saw, and the index of the time."""

    matrix: Array
    values: Array
    noise: Array
    owner: Array

    @classmethod
    def of(cls, sensors: Sequence[tuple[int, LinearObservation]], like: State) -> "Looks":
        """Of observations with the index of their time."""
        entries, _ = ravel_pytree(like)
        rows = [o.matrix(like) for _, o in sensors]
        empty = jnp.zeros((0, entries.size), entries.dtype)
        noise = jax.scipy.linalg.block_diag(*(o.noise(entries.dtype) for _, o in sensors))
        return cls(
            jnp.concatenate([*rows, empty]),
            jnp.concatenate([*(o.read(entries.dtype) for _, o in sensors), empty[:, 0]]),
            noise if sensors else jnp.zeros((0, 0), entries.dtype),
            jnp.asarray(np.repeat([i for i, _ in sensors], [len(r) for r in rows]).astype(int)),
        )

    def tables(self, twist: LinearTwist | None, ts: Array) -> Tables:
        """Those of a twist; without one, no sensor is in before its time."""
        number, entries = self.matrix.shape
        if twist is None:
            shapes = ((number, entries), (number,), (number, number))
            empty = [jnp.zeros((len(ts), *shape), self.matrix.dtype) for shape in shapes]
            gain, offset, residual = empty
            return Tables(gain, offset, residual, jnp.zeros((len(ts), number), bool))
        said = f"twist must be of these observations, {number} sensors of {entries} entries"
        check_that(twist.gain.shape[1:] == self.matrix.shape, said, twist.gain.shape[1:])
        gain, offset, residual = jax.vmap(twist.at)(jnp.asarray(ts))
        return Tables(gain, offset, residual, self._early(len(ts)))

    def sights(self, tables: Tables) -> tuple[Sight, Sight]:
        """What is left to be seen at every time, without and with the sensors at that very time."""

        def at(table: Tables, here: Array) -> tuple[Sight, Sight]:
            gain = jnp.where(here[:, None], self.matrix, table.gain)
            missing = self.values - jnp.where(here, 0, table.offset)
            passed = here[:, None] | here[None, :]
            noise = self.noise + jnp.where(passed, 0, table.residual)
            before = table.active & ~here
            of = lambda on: Sight.of(gain, missing, noise, on)
            return of(before), of(before | here)

        here = self.owner[None] == jnp.arange(len(tables.gain))[:, None]
        return jax.vmap(at)(tables, here)

    def learned(self, tables: Tables, paths: Array) -> Tables:
        """Corrected by the linear regression of what they miss on paths (times, count, entries)."""
        shown = jax.lax.map(lambda look: paths[look[0]] @ look[1], (self.owner, self.matrix)).T

        def at(given: tuple) -> Tables:
            x, table, early = given
            miss = jnp.where(early[None], shown - x @ table.gain.T - table.offset[None], 0)
            middle, mean = x.mean(axis=0), miss.mean(axis=0)
            gain, residual = by_components(x - middle[None], miss - mean[None])
            offset = table.offset + mean - gain @ middle
            return Tables(table.gain + gain, offset, residual, early)

        return jax.lax.map(at, (paths, tables, self._early(len(paths))))

    def _early(self, times: int) -> Array:
        return self.owner[None] < jnp.arange(times)[:, None]

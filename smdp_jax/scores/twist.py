r"""What is left to be seen, given the state at a later time: ``h_t(x) = N(y; B_t x + c_t, R_t)``.

For observations ``y_k = A_k x(t_k) + noise`` with ``t_k <= t``: the linear regression of every
``A_k x(t_k)`` on x(t) over simulated paths gives B and c, its residuals and the noise of the
sensors give R (joint over all k). At ``t = t_k`` it is the observation itself.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from smdp_jax.checks import check_choice, check_that
from smdp_jax.scores.reference import best_kind, flat_of, modes_of, rows_of
from smdp_jax.scores.sensors import LinearObservation
from smdp_jax.solve.time_grids import between, time_index
from smdp_jax.trajectories import Trajectories

_LARGEST = 2**28  # numbers in the tables: a GiB in single precision


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LinearTwist:
    """Linear regression of what was seen on the states at later times.

    Depends on where and when the sensors look, not on what they saw or how well: one twist
    serves any values and covariances.

    Parameters
    ----------
    ts : array (times,)
        Times of the tables.
    gain, offset : array (times, sensors, entries), array (times, sensors)
        B_t and c_t; rows of all observations in their order, zero at times before theirs.
    residual : array (times, sensors, sensors)
        Covariance of the residuals, without the sensors' noise.
    """

    ts: Any
    gain: Any
    offset: Any
    residual: Any

    @classmethod
    def of(
        cls, data: Trajectories, observations: Sequence[Any], *, kind: str | None = None
    ) -> "LinearTwist":
        """Learn it from simulated paths.

        Parameters
        ----------
        data, observations
            Paths, whose times hold those of the observations; others than linear are ignored.
        kind : {"modes", "dense"}, optional
            Regression per Fourier mode of every leaf, or on the leading principal components of
            the whole state, one for ten paths at most. Default: "modes" where a Gaussian that is
            diagonal in them explains held-out end states best.

        Returns
        -------
        LinearTwist
            Tables at the times of the data.

        Raises
        ------
        ValueError
            If an observation is at no time of the data, or if the tables would be too large.
        """
        sensors = [o for o in observations if isinstance(o, LinearObservation)]
        like = data.at(0, 0)
        rows = [np.asarray(o.matrix(like), np.float64) for o in sensors]
        times = [time_index(data.ts, o.time, "the data's ts") for o in sensors]
        entries = ravel_pytree(like)[0]
        number = sum(map(len, rows))
        sizes = f"{data.num_times} times x {number} sensors x {entries.size} entries"
        fits = data.num_times * number * (entries.size + number) <= _LARGEST
        said = f"LinearTwist must fit into memory, got {sizes}: fewer stored times, or twist=None"
        check_that(fits, said)
        if kind is None:
            ends = jax.tree.map(lambda x: x[:, -1], data.xs)
            kind = "modes" if best_kind(ends) == "modes" else "dense"
        check_choice("kind", kind, "modes", "dense")
        regress = _by_modes if kind == "modes" else _by_components
        xs = jax.tree.map(np.asarray, data.xs)
        at = lambda i: flat_of(jax.tree.map(lambda x: x[:, i], xs))
        seen = {k: at(k) for k in set(times)}
        tables = [_table(at(i), i, seen, times, rows, like, regress) for i in range(data.num_times)]
        arrays = [jnp.asarray(np.stack(t), entries.dtype) for t in zip(*tables, strict=True)]
        return cls(data.ts, *arrays)

    def at(self, t: Any) -> tuple[Any, Any, Any]:
        """Gain, offset and residual covariance at one time, interpolated.

        Parameters
        ----------
        t : scalar
            Time.

        Returns
        -------
        tuple
            ``(B, c, covariance)``.
        """
        i, share = between(self.ts, t)
        weight = share.astype(self.gain.dtype)
        mixed = lambda x: (1 - weight) * x[i - 1] + weight * x[i]
        return mixed(self.gain), mixed(self.offset), mixed(self.residual)


def _table(
    x: np.ndarray, i: int, seen: dict, times: list, rows: list, like: Any, regress: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regress all sensors that look before or at the time of ``x``."""
    ends = np.cumsum([0, *map(len, rows)])
    blocks = [slice(a, b) for a, b in itertools.pairwise(ends)]
    gain, residual = np.zeros((ends[-1], x.shape[1])), np.zeros((ends[-1], ends[-1]))
    offset = np.zeros(ends[-1])
    earlier = [k for k, j in enumerate(times) if j < i]
    if earlier:
        pick = np.concatenate([np.arange(ends[-1])[blocks[k]] for k in earlier])
        mean = x.mean(axis=0)
        then = [(seen[times[k]], rows[k]) for k in earlier]
        gain[pick], residual[np.ix_(pick, pick)] = regress(x - mean, then, like)
        expected = np.concatenate([a @ z.mean(axis=0) for z, a in then])
        offset[pick] = expected - gain[pick] @ mean
    for k, j in enumerate(times):
        if j == i:
            gain[blocks[k]] = rows[k]
    return gain, offset, residual


def _by_modes(x: np.ndarray, then: list, like: Any) -> tuple[np.ndarray, np.ndarray]:
    now = modes_of(x, like)
    power = np.mean(np.abs(now) ** 2, axis=0)
    power = np.maximum(power, 1e-12 * power.max())
    past = [modes_of(z - z.mean(axis=0), like) for z, _ in then]
    ratio = [np.mean(z * now.conj(), axis=0) / power for z in past]
    looks = [modes_of(a, like) for _, a in then]
    gain = [rows_of(r.conj() * a, like) for r, a in zip(ratio, looks, strict=True)]

    def between(k: int, m: int) -> np.ndarray:
        left = np.mean(past[k] * past[m].conj(), axis=0) - ratio[k] * ratio[m].conj() * power
        return np.real((looks[k].conj() * left) @ looks[m].T)

    number = range(len(then))
    return np.concatenate(gain), np.block([[between(k, m) for m in number] for k in number])


def _by_components(x: np.ndarray, then: list, like: Any) -> tuple[np.ndarray, np.ndarray]:
    del like
    return by_components(x, np.concatenate([(z - z.mean(axis=0)) @ a.T for z, a in then], axis=1))


def by_components(x: Any, z: Any) -> tuple[Any, Any]:
    """Gain and residual covariance of a regression of rows z on rows x, both centred.

    On leading principal components, one for ten paths; the covariance is shrunk to its diagonal.
    """
    xp, (paths, entries) = x.__array_namespace__(), x.shape
    rank = max(1, min(entries, paths // 10))
    left, size, right = xp.linalg.svd(x, full_matrices=False)
    left, size, right = left[:, :rank], size[:rank], right[:rank]
    kept = size > 10 * xp.finfo(x.dtype).eps * size[0]
    along = xp.where(kept[:, None], left.T @ z, 0)
    miss = z - left @ along
    covariance = miss.T @ miss / max(paths - rank - 1, 1)
    share = z.shape[1] / (z.shape[1] + paths)
    shrunk = (1 - share) * covariance + share * xp.diag(xp.diag(covariance))
    return (along / xp.where(kept, size, 1)[:, None]).T @ right, shrunk

"""Whether a flow map is walked back well enough to learn the rest, and which way is better."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from smdp_jax.checks import warn
from smdp_jax.sde import SDE, integrated_backward, negated
from smdp_jax.solve.inverses import growth_of_inverse, miss_of_inverse
from smdp_jax.trajectories import Trajectories

_MISS, _GROWTH = 1.0, 1.5


class _Seen(NamedTuple):
    """Largest miss of a way back over the noise of a step, and by how much it grows a change."""

    miss: float
    growth: float

    def __str__(self) -> str:
        grows = "" if np.isnan(self.growth) else f" and amplifies {self.growth:.3g} times"
        return f"misses by {self.miss:.2g} times the noise of a step{grows}"


def with_best_inverse(sde: SDE, data: Trajectories) -> SDE:
    """Take the better way back where none is named; warn of one that misses the step's start.

    The simulator itself replaces ``negated(step)`` where it misses less than half as much and
    amplifies no more.
    """
    assert sde.step is not None
    own = _seen(sde, data)
    if own.miss <= _MISS:
        return sde
    unnamed = sde.inverse == negated(sde.step)
    other = integrated_backward if unnamed else negated
    instead = replace(sde, inverse=other(sde.step))
    seen = _seen(instead, data)
    if unnamed and seen.miss < 0.5 * own.miss and seen.growth <= max(own.growth, _GROWTH):
        if seen.miss > _MISS:
            best = "smdp.integrated_backward(step), the best way back of the step,"
            warn(f"fit: {best} {seen}; {_NEITHER}")
        return instead
    remedy = "give it as SDE(..., inverse=...)" if seen.miss < 0.5 * own.miss else _NEITHER
    warn(f"fit: SDE.inverse of the step {own}; smdp.{other.__name__}(step) {seen}: {remedy}")
    return sde


_NEITHER = "give another inverse, shorter steps, or learn a score by PathScore(), which needs none"


def _seen(sde: SDE, data: Trajectories) -> _Seen:
    """The worst of three steps of a path."""
    args, found = data.args_of(0), []
    for i in np.linspace(0, data.num_times - 2, 3).astype(int):
        where = (sde, data.at(0, int(i)), data.ts[i], data.ts[i + 1], args)
        found.append((miss_of_inverse(*where), growth_of_inverse(*where)))
    return _Seen(*np.max(found, axis=0))

"""Whether a flow map is walked back well enough to learn the rest."""

import warnings
from dataclasses import replace

import numpy as np

from smdp_jax.sde import SDE, integrated_backward, negated
from smdp_jax.solve.inverses import miss_of_inverse
from smdp_jax.trajectories import Trajectories

__all__ = ["check_inverse"]

_MISS = 1.0


def check_inverse(sde: SDE, data: Trajectories) -> None:
    """Warn before training on a way back that misses by more than the noise of a step."""
    assert sde.step is not None
    places = np.linspace(0, data.num_times - 2, 3).astype(int)

    def worst(sde: SDE) -> float:
        return max(
            miss_of_inverse(sde, data.at(0, int(i)), data.ts[i], data.ts[i + 1], data.args_of(0))
            for i in places
        )

    own = worst(sde)
    if own <= _MISS:
        return
    other = integrated_backward if sde.inverse == negated(sde.step) else negated
    miss = worst(replace(sde, inverse=other(sde.step)))
    better = (
        f"smdp.{other.__name__}(step) misses by {miss:.2g}: give it as SDE(..., inverse=...)"
        if miss < 0.5 * own
        else f"smdp.{other.__name__}(step) misses by {miss:.2g} as well: give another inverse, "
        "shorter steps, or learn a score by PathScore(), which needs none"
    )
    warnings.warn(
        f"fit: SDE.inverse of the step misses the state that the step came from by {own:.2g} times "
        f"the noise of a step; {better}",
        stacklevel=4,
    )

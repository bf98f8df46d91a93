"""What an inverse problem of a newcomer is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

import smdp_jax as smdp


@dataclass(frozen=True)
class Case:
    """A process with its prior, the times of its paths, and what is known of its posterior."""

    sde: smdp.SDE
    ts: Array
    prior: Callable[[PRNGKeyArray, int], Any]
    args: Callable[[PRNGKeyArray, int], Any] | None = None
    exact: Callable[[Any, Any], tuple[np.ndarray, Any]] | None = None
    """Mean and standard deviation of the start's entries, given those of an end and conditions."""
    particles: bool = False
    """Whether weighted particles are the reference."""
    simulation: dict[str, Any] = field(default_factory=dict)
    """Options of ``simulate``."""
    observables: Callable[[Any], dict[str, Any]] | None = None
    ends: int = 400
    """Unseen paths, whose ends are observed: few entries need many, chance being what it is."""
    paths: int = 4000
    steps: int = 3000

    def simulate(self, key: PRNGKeyArray, number: int) -> smdp.Trajectories:
        """Draw paths."""
        k_prior, k_args, k_noise = jax.random.split(key, 3)
        args = None if self.args is None else self.args(k_args, number)
        return smdp.simulate(
            self.sde,
            self.prior(k_prior, number),
            self.ts,
            key=k_noise,
            args=args,
            args_axes=None if args is None else 0,
            **self.simulation,
        )

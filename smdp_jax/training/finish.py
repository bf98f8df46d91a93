"""What was learned, once all updates are done."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from smdp_jax.objectives import Objective
from smdp_jax.objectives.step_miss import gaussian_of, warn_of_miss
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.learned import LearnedScore, StepCorrection
from smdp_jax.scores.seen import SeenRange
from smdp_jax.sde import SDE
from smdp_jax.trajectories import Trajectories, whole_windows


def finished(
    objective: Objective,
    sde: SDE,
    learned: Any,
    paths: Trajectories,
    kept: Trajectories | None,
    held_out: Trajectories,
    finish_key: PRNGKeyArray,
    miss_key: PRNGKeyArray,
) -> tuple[Any, np.ndarray]:
    """What was learned, complete, and by how much one of its steps misses held-out paths."""
    if kept is not None:
        learned = objective.finish(learned, kept, finish_key)

    def miss_of(term: Any) -> np.ndarray:
        return np.asarray(objective.miss(sde, term, held_out, miss_key))

    miss = miss_of(learned)
    gaussian = partial(lambda term: miss_of(gaussian_of(term, sde, paths)), learned)
    is_score = isinstance(learned, (LearnedScore, StepCorrection))
    warn_of_miss(_shown(miss, paths.mask), paths.ts, learned.kind, gaussian if is_score else None)
    if learned.kind == "score":
        shapes = tuple(x.shape[2:] for x in jax.tree.leaves(paths.xs))
        learned = replace(learned, shapes=shapes, seen=SeenRange.of(paths))
    elif isinstance(learned, LearnedKernel):
        learned = replace(learned, range=SeenRange.of(paths))
    return learned, miss


def _shown(miss: np.ndarray, mask: Any) -> np.ndarray:
    """Steps that no path shows are not known to miss anything."""
    if mask is None:
        return miss
    return np.where(np.asarray(whole_windows(mask, 1, 0)).any(axis=0), miss, 0)

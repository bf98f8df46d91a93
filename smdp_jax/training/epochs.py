"""Many updates, epoch by epoch: the curriculum of windows, checkpoints, and what stops training."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from smdp_jax.objectives import Objective
from smdp_jax.training.checkpoints import RunDirectory
from smdp_jax.training.updates import Epoch, Problem, TrainingState, Windows, epoch_of
from smdp_jax.trajectories import Trajectories, TrajectoryStream

__all__ = ["Blocks", "Pace", "TrainingDiverged", "run_epochs"]


class TrainingDiverged(FloatingPointError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Pace:
    """How long training goes on, and how often it returns to Python."""

    steps: int
    epoch_steps: int
    checkpoint_seconds: float
    progress: bool


@dataclass(frozen=True)
class Blocks:
    """What epochs take their data from: always the same paths, or the blocks of a stream."""

    data: Trajectories
    stream: TrajectoryStream | None
    key: PRNGKeyArray

    def after(self, epochs: int) -> Iterator[Trajectories]:
        """Return the paths of all epochs to come."""
        if self.stream is None:
            return itertools.repeat(self.data)
        return self.stream.blocks(self.key, epochs)


def run_epochs(
    problem: Problem,
    state: TrainingState,
    source: Windows,
    blocks: Blocks,
    held_out: Windows | None,
    pace: Pace,
    store: RunDirectory | None,
) -> tuple[TrainingState, list[dict[str, Any]]]:
    """Update until all updates are done, from where a directory's checkpoint left off."""
    records: list[dict[str, Any]] = []
    done = 0
    if store is not None:
        restored = store.restore(state)
        if restored is not None:
            done, state = restored
        records = store.read_metrics(done)
    saved_at = time.monotonic()
    epochs: dict[int, Epoch] = {}
    coming = blocks.after(_epochs_in(problem.objective, pace, done))
    with tqdm(total=pace.steps, initial=done, disable=not pace.progress, unit="update") as bar:
        try:
            for size, first, last in _phases(problem.objective, pace.steps):
                epoch = epochs.setdefault(size, epoch_of(problem, size))
                while done < last:
                    # Epochs end at multiples of their length, so a resumed run repeats them.
                    epochs_done = (done - first) // pace.epoch_steps
                    stop = min(last, first + (epochs_done + 1) * pace.epoch_steps)
                    source = replace(source, data=next(coming))
                    new, loss, validation = epoch(state, source, held_out, jnp.asarray(stop))
                    loss, validation = float(loss), float(validation)
                    if not (np.isfinite(loss) and _all_finite(new.params)):
                        raise TrainingDiverged(_divergence_message(loss, done, stop, size, store))
                    start, state, done = done, new, stop
                    record = {"step": stop, "window": size, "loss": loss}
                    record["validation_loss"] = validation if np.isfinite(validation) else None
                    records.append(record)
                    if store is not None:
                        store.append_metrics(record)
                    bar.update(stop - start)
                    bar.set_postfix(window=size, loss=f"{loss:.4g}")
                    waited = time.monotonic() - saved_at >= pace.checkpoint_seconds
                    if store is not None and (waited or done == pace.steps):
                        store.save(done, state)
                        saved_at = time.monotonic()
        except (KeyboardInterrupt, TrainingDiverged):
            if store is not None and done > 0:
                store.save(done, state)
            raise
    return state, records


def _phases(objective: Objective, steps: int) -> list[tuple[int, int, int]]:
    """(window, first update, last update) for equal shares of the updates."""
    windows = objective.windows
    bounds = [round(steps * i / len(windows)) for i in range(len(windows) + 1)]
    return [(w, a, b) for w, a, b in zip(windows, bounds[:-1], bounds[1:], strict=True) if b > a]


def _epochs_in(objective: Objective, pace: Pace, done: int) -> int:
    """Number of epochs that the first updates take; each window length begins a new one."""
    phases = [p for p in _phases(objective, pace.steps) if p[1] < done]
    return sum(-((first - min(done, last)) // pace.epoch_steps) for _, first, last in phases)


def _all_finite(tree: Any) -> bool:
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def _divergence_message(
    loss: float, done: int, stop: int, size: int, store: RunDirectory | None
) -> str:
    kept = f"; the last good state is kept in {store.path}" if store and done > 0 else ""
    what = f"the loss became {loss}" if not np.isfinite(loss) else "a parameter became NaN"
    return (
        f"{what} between updates {done} and {stop} (window {size}){kept}. Try a "
        "smaller learning rate, optax.clip_by_global_norm, shorter windows first, or smaller steps"
    )

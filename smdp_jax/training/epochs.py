"""Many updates, epoch by epoch: the curriculum of windows, checkpoints, and what stops training."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from smdp_jax.checks import warn
from smdp_jax.files import agreed
from smdp_jax.objectives import Objective
from smdp_jax.solve.batches import on_auto_mesh
from smdp_jax.training.asked import Asked
from smdp_jax.training.checkpoints import RunDirectory, interrupts_deferred
from smdp_jax.training.divergence import TrainingDiverged, reason_of
from smdp_jax.training.programs import Epochs
from smdp_jax.training.shares import Windows
from smdp_jax.training.updates import Fixed, Problem, TrainingState
from smdp_jax.trajectories import Trajectories, TrajectoryStream, filled

Callback = Callable[[dict[str, Any], Any], Any]


@dataclass(frozen=True)
class Blocks:
    """What epochs take their data from: always the same paths, or the blocks of a stream."""

    data: Trajectories | TrajectoryStream
    key: PRNGKeyArray
    check: Callable[[Trajectories], None]

    def after(self, epochs: int) -> Iterator[Trajectories]:
        """Return the paths of all epochs to come; every block is checked, and none is missing."""
        if isinstance(self.data, Trajectories):
            while True:
                yield self.data
        number = epochs
        for block in map(on_auto_mesh, self.data.blocks(self.key, epochs)):
            self.check(block)
            yield filled(jax.tree.map(jnp.asarray, block))
            number += 1
        said = f"data.blocks(key, first) must go on without end, got a stream of {number} blocks"
        raise ValueError(f"{said}: start again after the last, as datasets.open_stream does")


def run_epochs(
    problem: Problem,
    state: TrainingState,
    fixed: Fixed,
    source: Windows,
    blocks: Blocks,
    held_out: Windows | None,
    asked: Asked,
    store: RunDirectory | None,
) -> tuple[TrainingState, list[dict[str, Any]]]:
    """Update until all updates are done, from where a directory's checkpoint left off."""
    done, state, records = (0, state, []) if store is None else _restored(store, state)
    epochs_done = sum(stop <= done for *_, stop in _epochs(problem.objective, asked, 0))
    coming = _laid_out(problem, source, blocks.after(epochs_done))
    epochs, saved_at, enough = Epochs(problem), time.monotonic(), False
    with tqdm(total=asked.steps, initial=done, disable=not asked.progress, unit="update") as bar:
        try:
            for size, start, stop in _epochs(problem.objective, asked, done):
                source = next(coming)
                # Its inputs are gone once an epoch has begun: Ctrl-C waits until it is noted.
                with interrupts_deferred():
                    state, *losses = epochs(size, state, fixed, source, held_out, stop)
                    done = int(state.step)
                    if done < stop:
                        reason = reason_of(problem, state, fixed, source, size)
                        raise TrainingDiverged(_message(reason, done, size, store))
                    record = _record(stop, size, *losses)
                    records.append(record)
                    if store is not None:
                        store.append_metrics(record)
                bar.update(stop - start)
                bar.set_postfix(window=size, loss=f"{record['loss']:.4g}")
                if asked.callback is not None:
                    averages = jax.tree.map(jnp.array, state.ema)
                    enough = agreed(asked.callback(dict(record), averages) is True)
                waited = store is not None and agreed(
                    time.monotonic() - saved_at >= asked.checkpoint_seconds
                )
                if store is not None and (waited or enough or done == asked.steps):
                    store.save(done, state)
                    saved_at = time.monotonic()
                if enough:
                    break
        except KeyboardInterrupt:
            # Of several processes others may be an epoch further: they could not save together.
            if store is not None and jax.process_count() == 1 and int(state.step) > 0:
                store.save(int(state.step), state)
            raise
    _warn_of_validation(records)
    return state, records


def _restored(
    store: RunDirectory, state: TrainingState
) -> tuple[int, TrainingState, list[dict[str, Any]]]:
    """How many updates were done, and what they left."""
    done, state = store.restore(state) or (0, state)
    records = store.read_metrics(done)
    noted = records[-1]["step"] if records else 0
    if noted < done:
        said = f"{store.metrics_file} ends at update {noted} of the {done} that were done"
        warn(f"{said}: the history between is lost")
    return done, state, records


def _laid_out(
    problem: Problem, source: Windows, blocks: Iterator[Trajectories]
) -> Iterator[Windows]:
    """Blocks as the devices want them; the same one is laid out once."""
    seen = None
    for block in blocks:
        if block is not seen:
            seen, source = block, problem.windows(block, source.constants, source.key)
        yield source


def _record(stop: int, size: int, loss: Any, validation: Any) -> dict[str, Any]:
    """What is noted of an epoch: no validation is None, and one that failed NaN."""
    held_out = None if validation is None else float(validation)
    return {"step": stop, "window": size, "loss": float(loss), "validation_loss": held_out}


def _epochs(objective: Objective, asked: Asked, done: int) -> Iterator[tuple[int, int, int]]:
    """(window, first update, last update) of every epoch that is left, whatever was done."""
    windows = objective.windows  # each for an equal share of the updates
    ends = [round(asked.steps * i / len(windows)) for i in range(len(windows) + 1)]
    for size, (first, last) in zip(windows, itertools.pairwise(ends), strict=True):
        for start in range(first, last, asked.epoch_steps):
            stop = min(start + asked.epoch_steps, last)
            if stop > done:
                yield size, max(start, done), stop


def _message(reason: str, done: int, size: int, store: RunDirectory | None) -> str:
    said = f"training diverged in update {done + 1} (window {size}): {reason}"
    if store is None or store.last is None:
        return said
    return (
        f"{said}; the state of update {store.last} is kept in {store.path}, but this call would "
        "diverge again, and with another optimiser or simulator it is another run: give that one "
        "another directory"
    )


def _warn_of_validation(records: list[dict[str, Any]]) -> None:
    lost = [r["step"] for r in records if not np.isfinite(r["validation_loss"] or 0)]
    if lost:
        many = f"{len(lost)} of {len(records)} epochs, first after update {lost[0]}"
        why = "one step back from held-out paths leaves the finite numbers"
        warn(f"the validation loss is not finite after {many}: {why}")

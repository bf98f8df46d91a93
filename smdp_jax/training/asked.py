"""What was asked of ``fit``, looked at before anything is written or computed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smdp_jax.checks import (
    check_alike,
    check_flags,
    check_key,
    check_kind,
    check_positive,
    check_within,
)
from smdp_jax.scores.own_steps import first_of, steps_of
from smdp_jax.sde import SDE
from smdp_jax.solve.process import check_process, check_time_grid
from smdp_jax.training.inverses import with_best_inverse
from smdp_jax.trajectories import filled, whole_windows


class Asked(NamedTuple):
    """What was asked of ``fit``."""

    sde: SDE
    model: Any
    data: Any
    objective: Any
    optimizer: Any
    key: Any
    validation: Any
    initial: Any
    callback: Any
    steps: int
    batch_size: int
    epoch_steps: int
    ema: float
    checkpoint_seconds: float
    precondition: bool
    progress: bool


def check_fit(asked: Asked) -> tuple[Asked, Callable[[Any], None]]:
    """Check ``fit``; return it as it is wanted, and what checks blocks of a stream as they come."""
    sde, data, objective, validation = asked.sde, asked.data, asked.objective, asked.validation
    of = lambda *names: {name: getattr(asked, name) for name in names}
    check_kinds(**of(*_KINDS))
    check_key(asked.key)
    check_initial(sde, data, objective, asked.initial)
    steps, size, epoch_steps = check_positive(**of("steps", "batch_size", "epoch_steps"))
    (ema,) = check_within("[0, 1)", ema=asked.ema)
    (seconds,) = check_within("[0, inf]", checkpoint_seconds=asked.checkpoint_seconds)
    check_flags(**of("precondition", "progress"))
    if not hasattr(data, "blocks"):
        check_paths(sde, objective, data)
        if objective.kind(sde) == "correction" or getattr(objective, "base", "state") == "inverse":
            sde = sde if sde.step is None else with_best_inverse(sde, data)
        _check_validation(sde, objective, data, validation)
    first: list[Any] = []

    def check_block(block: Any) -> None:
        check_kind("a block of data", block, _PATHS, "ts", "xs")
        check_paths(sde, objective, block)
        if first:
            check_alike("blocks of data must be alike, after", first[0], block)
        else:
            _check_validation(sde, objective, block, validation)
            first.append(jax.eval_shape(lambda: block))

    numbers = {"steps": steps, "batch_size": size, "epoch_steps": epoch_steps, "ema": ema}
    return asked._replace(sde=sde, checkpoint_seconds=seconds, **numbers), check_block


def check_paths(sde: SDE, objective: Any, data: Any) -> None:
    """Check paths against the process that they are said to come from, and for the objective."""
    check_time_grid(data.ts, sde)
    data.check(masked=True)
    if data.mask is not None:
        _check_windows(objective, data)
        data = filled(data)
    check_process(sde, data.ts, *data.shapes(), maps=("drift", "step", "inverse"))
    objective.check(sde, data)


def _check_windows(objective: Any, data: Any) -> None:
    """Check that an objective honours a mask, and finds windows that were seen whole."""
    if not objective.honours_masks:
        said = f"{type(objective).__name__} must have whole paths, as data[data.mask.all(axis=1)]"
        raise ValueError(f"{said}; OneStep(), MultiStep() and PathScore() honour a mask")
    for steps in objective.windows:
        if not whole_windows(data.mask, steps, objective.first_time).any():
            said = (
                f"Trajectories.mask must leave windows of {steps + 1} successive states, got none"
            )
            raise ValueError(f"{said}: shorter windows, or times that all paths have")


def check_initial(sde: SDE, data: Any, objective: Any, initial: Any) -> None:
    """Refuse to start from another kind than is learned, or from a kernel of other times."""
    own = objective.kind(sde)
    start = getattr(initial, "kind", own)
    if start != own and {start, own} != {"correction", "score"}:
        raise TypeError(f"initial must be a {own}, as {objective!r} learns, got a {start}")
    if initial is None or own != "kernel":
        return
    same = len(initial.ts) == len(data.ts) and first_of(initial.ts, data.ts) == 0
    said = "initial must be a kernel of the times of the paths"
    if not same:
        raise ValueError(f"{said} {steps_of(initial.ts, data.ts)}")


_PATHS = "Trajectories(ts, xs)"
_KINDS = {
    "model": ("a flax.linen.Module, such as models.MLP()", "init", "apply"),
    "data": (f"{_PATHS} or what datasets.open_stream returns", "ts", "xs"),
    "objective": ("an objective, such as MultiStep()", "learned", "loss"),
    "optimizer": ("of optax, such as optax.adam(1e-3)", "init", "update"),
    "validation": (_PATHS, "ts", "xs"),
    "initial": ("fit.learned of another fit", "variables", "preconditioner"),
    "callback": ("a function callback(metrics, params)", "__call__"),
}


def check_kinds(**given: Any) -> None:
    """Refuse arguments of another kind than ``fit`` takes; the last three may be left out."""
    for name, value in given.items():
        left_out = value is None and name in ("validation", "initial", "callback")
        if not left_out and not (name == "data" and hasattr(value, "blocks")):
            check_kind(name, value, *_KINDS[name])


def _check_validation(sde: SDE, objective: Any, data: Any, validation: Any) -> None:
    """Check that held-out paths, if there are any, are like those to learn from."""
    if validation is None:
        return
    check_paths(sde, objective, validation)
    if not jnp.array_equal(validation.ts, data.ts):
        told = lambda of: f"{of.num_times} in [{float(of.ts[0]):g}, {float(of.ts[-1]):g}]"
        said = f"validation must have the times of the data: {told(data)}"
        raise ValueError(f"{said}, got {told(validation)}")
    want, got = data.shapes(), validation.shapes()
    check_alike("validation must have states and args like the data's", want, got)
